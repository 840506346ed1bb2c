"""Converts a source of videos to sharded TFRecords of JPEG frames, for four to six times as many clips per second.

    python experiments/write_tfrecords.py /videos /records
    python experiments/mae_pretrain.py --data.source tfrecord:/records

Two cores convert about two ten-second videos per second. Running the same command again resumes an interrupted
conversion: finished shards are kept. Unreadable videos are left out and listed in OUT/bad_files.jsonl.
"""

import hashlib
import json
import os
import shlex
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tyro.conf import Positional

from vidjax import cli
from vidjax.data.config import core_count
from vidjax.errors import UserError
from vidjax.runs.announce import print_notes


@dataclass(frozen=True)
class Config:
    """What to convert, and how."""

    source: Positional[str]
    """A folder, LIST or LIST:FOLDER (.csv .jsonl .json .txt), tfds:NAME, tfrecord:PATTERN, synthetic:moving_shapes."""
    out: Positional[str]
    """Folder for the shards, created if needed."""
    split: str = "train"
    """Split of a tfds or synthetic source, or of a Kinetics list that contains several."""
    square_pixels: bool = True
    """Stretch non-square pixels in width, as players do; False keeps frames as stored."""
    short_side: int = 256
    """Resize the shorter side to this many pixels, never enlarging."""
    quality: int = 90
    """JPEG quality, 1 to 100."""
    fps: float | None = None
    """Keep this many frames per second (default: all)."""
    max_frames: int = 300
    """Keep at most this many frames per video, evenly spaced."""
    videos_per_shard: int = 256
    """Videos per shard."""
    workers: int = 0
    """Number of videos converted in parallel, 0 = one per core."""

    def __post_init__(self) -> None:
        for name in ("short_side", "max_frames", "videos_per_shard"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality is {self.quality}: it must be between 1 and 100")
        if self.fps is not None and self.fps <= 0:
            raise UserError(f"fps is {self.fps}: it must be more than 0")
        if self.workers < 0:
            raise UserError(f"workers is {self.workers}: it must be 0 (one per core) or more")


def main(config: Config) -> None:
    """Writes the missing shards and prints a summary."""
    from vidjax.data import records
    from vidjax.data.batches import BadFiles
    from vidjax.data.field_files import FIELDS_FILE, write_specs
    from vidjax.data.sources import open_source

    source = open_source(config.source, config.split, config.square_pixels)
    print_notes(source)
    out = open_out(config, source)
    (out / "classes.json").write_text(json.dumps(source.class_names) + "\n")
    if further := further_fields(source):
        (out / FIELDS_FILE).write_text(write_specs(further))
    bad_files = BadFiles(source, max_fraction=1.0, path=out / "bad_files.jsonl")
    shards = np.array_split(np.arange(len(source)), -(-len(source) // config.videos_per_shard))
    paths = [out / f"videos-{k:05d}-of-{len(shards):05d}.tfrecord" for k in range(len(shards))]
    todo = [k for k, path in enumerate(paths) if not path.exists()]
    print(f"{len(source)} videos of {source.name} to {len(shards)} shards in {out}", flush=True)
    if len(todo) < len(shards):
        print(f"{len(shards) - len(todo)} shards are complete from an earlier run", flush=True)

    start, done, total = time.monotonic(), 0, sum(len(shards[k]) for k in todo)
    for k in todo:
        unfinished = paths[k].with_suffix(".partial")
        with records.tf.io.TFRecordWriter(os.fsencode(unfinished)) as writer:
            for index, data in convert(source, shards[k].tolist(), config):
                if isinstance(data, bytes):
                    writer.write(data)
                else:
                    bad_files.add(source.ids[index], str(data))
        os.replace(unfinished, paths[k])
        done += len(shards[k])
        speed = done / (time.monotonic() - start)
        print(
            f"shard {k + 1} of {len(shards)}: {done} of {total} videos, {speed:.1f} videos/s, "
            f"{(total - done) / speed / 60:.0f} min left, {len(bad_files)} unreadable",
            flush=True,
        )

    count, size = len(records.index_records([str(path) for path in paths])), sum(p.stat().st_size for p in paths)
    print(f"{out}: {count} videos, {size / 1e9:.2f} GB, in {time.monotonic() - start:.0f} s")
    if bad_files.errors:
        print(f"{len(bad_files)} videos could not be read: {out / 'bad_files.jsonl'}")
    print(f"train on them with --data.source {shlex.quote(f'tfrecord:{out}')}")


def open_out(config: Config, source) -> Path:
    """Creates the folder for the shards, with a meta.json that describes the source and the options.

    Raises:
      UserError: the folder cannot be written, or it contains another conversion (the message names the differences).
    """
    out = Path(config.out)
    meta = {name: value for name, value in cli.as_dict(config).items() if name not in ("out", "workers")}
    meta |= {"videos": len(source), "list": digest(source.ids)}
    captions = [source.captions(index) for index in range(len(source))] if source.listed else []
    if any(captions):
        meta["captions"] = digest(map(repr, captions))
    if further := further_fields(source):
        meta["fields"] = digest(map(repr, further.items()))
    try:
        out.mkdir(parents=True, exist_ok=True)
        old = json.loads((out / "meta.json").read_text()) if (out / "meta.json").exists() else None
        if old is None and not list(out.glob("*.tfrecord")):
            unfinished = out / "meta.partial"
            unfinished.write_text(json.dumps(meta, indent=2) + "\n")
            os.replace(unfinished, out / "meta.json")
            return out
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}): choose another folder") from None
    if old is None:
        raise UserError(f"{out} contains .tfrecord files but no meta.json of an earlier run: choose another folder")
    differing = [f"{name} was {old.get(name)}, is {meta[name]}" for name in meta if old.get(name) != meta[name]]
    if differing:
        raise UserError(
            f"{out} contains another conversion ({'; '.join(differing)}): choose another folder or the same options"
        )
    return out


def further_fields(source) -> dict:
    """Specs of the fields that are stored in addition to video, label and captions."""
    return {name: spec for name, spec in source.fields.items() if name not in ("video", "label")}


def digest(lines: Iterable[str]) -> str:
    """Hash of a sequence of lines."""
    return hashlib.sha256("\n".join(lines).encode(errors="surrogatepass")).hexdigest()


def convert(source, indices: list[int], config: Config) -> Iterator[tuple[int, bytes | Exception]]:
    """Yields each index with its record, or with the DecodeError if it is unreadable, in order."""
    from vidjax.data.decode import DecodeError

    def convert_one(index: int) -> bytes | Exception:
        try:
            return make_record(source, index, config)
        except DecodeError as error:
            return error

    workers = config.workers or core_count()
    with ThreadPoolExecutor(workers) as pool:
        ahead = deque()
        for index in indices:
            ahead.append((index, pool.submit(convert_one, index)))
            if len(ahead) > 2 * workers:  # limits the records in memory
                index, future = ahead.popleft()
                yield index, future.result()
        for index, future in ahead:
            yield index, future.result()


def make_record(source, index: int, config: Config) -> bytes:
    """Reads, subsamples, shrinks and encodes one video."""
    from vidjax.data import images, records
    from vidjax.data.sampling import frames_at

    with source.open(index, list(source.fields)) as example:
        streams = dict(example.streams)
        video = streams.pop("video")
        kept = kept_frames(video.info.num_frames, video.info.rate, config)
        frames, _ = video.read(kept, config.short_side)
        further = {}
        for name, stream in streams.items():
            same = stream.info.rate == video.info.rate or np.isnan(video.info.rate)
            at = kept if same else frames_at(kept / video.info.rate, stream.info.num_frames, stream.info.rate)
            further[name], _ = stream.read(np.minimum(at, stream.info.num_frames - 1), config.short_side)
    count, height, width = frames.shape[:3]
    return records.encode_record(
        records.Record(
            frames=images.encode_frames(frames, config.quality),
            rate=video.info.rate * count / video.info.num_frames,
            height=height,
            width=width,
            label=example.label,
            label_name=source.class_names[example.label] if example.label >= 0 else "",
            captions=example.captions,
            id=source.ids[index],
            values=example.values,
            streams={name: images.encode_stream(frames) for name, frames in further.items()},
        )
    )


def kept_frames(num_frames: int, rate: float, config: Config) -> np.ndarray:
    """Indices of the frames to keep: all, or the first frames of equal parts of the video."""
    count = num_frames
    if config.fps is not None:
        if np.isnan(rate):
            raise UserError(f"fps needs the frame rate, which {config.source} does not store: remove this option")
        count = max(min(round(num_frames * config.fps / rate), num_frames), 1)
    count = min(count, config.max_frames)
    return np.arange(count) * num_frames // count


if __name__ == "__main__":
    cli.run(main, Config)
