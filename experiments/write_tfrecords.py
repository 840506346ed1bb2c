"""Converts a source of videos to sharded TFRecords of JPEG frames, for four to six times as many clips per second.

    python experiments/write_tfrecords.py /videos /records
    python experiments/mae_pretrain.py --data.source tfrecord:/records

Two cores convert about two ten-second videos per second. Running the same command again resumes an interrupted
conversion: finished shards are kept. Unreadable videos are left out and listed in OUT/bad_files.jsonl.
"""

from dataclasses import dataclass

from vidjax import cli
from vidjax.runs.announce import print_notes
from vidjax.runs.records import RecordConfig, describe_training, further_fields, make_record, write_records


@dataclass(frozen=True)
class Config(RecordConfig):
    """What to convert, and how."""


def main(config: Config) -> None:
    """Writes the missing shards and prints a summary."""
    from vidjax.data.sources import open_source

    source = open_source(config.source, config.split, config.square_pixels)
    print_notes(source)
    fields = further_fields(source)
    out = write_records(config, source, fields, lambda index: make_record(source, index, config, fields))
    print(f"train on them with {describe_training(out)}")


if __name__ == "__main__":
    cli.run(main, Config)
