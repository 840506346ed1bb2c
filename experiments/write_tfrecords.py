"""Converts a source of videos into sharded TFRecords of JPEG frames, four to six times as many clips a second.

    python experiments/write_tfrecords.py /videos /records
    python experiments/mae_pretrain.py --data.source tfrecord:/records

Two cores convert about two videos of ten seconds a second. The same command again goes on where it was interrupted:
finished shards stay. Unreadable videos are left out and listed in OUT/bad_files.jsonl.
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
    """What to convert, and how small."""

    source: Positional[str]
    """A folder, LIST or LIST:FOLDER (.csv .jsonl .json .txt), tfds:NAME, tfrecord:PATTERN, synthetic:moving_shapes."""
    out: Positional[str]
    """Folder for the shards, made if need be."""
    split: str = "train"
    """The split of a tfds or synthetic source, or of a Kinetics list that holds several."""
    square_pixels: bool = True
    """Stretch pixels that are not square in width, as players do; False leaves frames as files store them."""
    short_side: int = 256
    """Pixels of the shorter side; smaller videos stay as they are."""
    quality: int = 90
    """JPEG quality, 1 to 100."""
    fps: float | None = None
    """Keep this many frames a second (default: all)."""
    max_frames: int = 300
    """Keep at most this many frames of a video, at equal distances over all of it."""
    videos_per_shard: int = 256
    """Videos in a file."""
    workers: int = 0
    """Videos converted at the same time, 0 = one a core."""

    def __post_init__(self) -> None:
        for name in ("short_side", "max_frames", "videos_per_shard"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality is {self.quality}: it must be between 1 and 100")
        if self.fps is not None and self.fps <= 0:
            raise UserError(f"fps is {self.fps}: it must be more than 0")
        if self.workers < 0:
            raise UserError(f"workers is {self.workers}: it must be 0 (one a core) or more")


def main(config: Config) -> None:
    """Writes what is missing of the shards, then says what there is."""
    from vidjax.data import records
    from vidjax.data.example import FIELDS_FILE, write_specs
    from vidjax.data.pipeline import BadFiles
    from vidjax.data.sources import open_source

    source = open_source(config.source, config.split, config.square_pixels)
    print_notes(source)
    out = open_out(config, source)
    (out / "classes.json").write_text(json.dumps(source.class_names) + "\n")
    if further := further_fields(source):
        (out / FIELDS_FILE).write_text(write_specs(further))
    bad_files = BadFiles(source, max_share=1.0, path=out / "bad_files.jsonl")
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
    """The folder for the shards, with a meta.json that says what they are made of and how.

    Raises:
      UserError: it cannot be written, or it holds another conversion (the fields that differ are named).
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
        raise UserError(f"{out} holds .tfrecord files but no meta.json of an earlier run: choose another folder")
    differing = [f"{name} was {old.get(name)}, is {meta[name]}" for name in meta if old.get(name) != meta[name]]
    if differing:
        raise UserError(
            f"{out} holds another conversion ({'; '.join(differing)}): choose another folder or the same options"
        )
    return out


def further_fields(source) -> dict:
    """The specs of the fields that are stored beside the video, its label and its captions."""
    return {name: spec for name, spec in source.fields.items() if name not in ("video", "label")}


def digest(lines: Iterable[str]) -> str:
    """What tells lists apart."""
    return hashlib.sha256("\n".join(lines).encode(errors="surrogatepass")).hexdigest()


def convert(source, indices: list[int], config: Config) -> Iterator[tuple[int, bytes | Exception]]:
    """Yields each index with its record or the DecodeError that kept it from being one, in order, few ahead."""
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
            if len(ahead) > 2 * workers:  # more would pile up in memory
                index, future = ahead.popleft()
                yield index, future.result()
        for index, future in ahead:
            yield index, future.result()


def make_record(source, index: int, config: Config) -> bytes:
    """One video, thinned, shrunk and encoded."""
    from vidjax.data import records
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
            frames=records.encode_frames(frames, config.quality),
            rate=video.info.rate * count / video.info.num_frames,
            height=height,
            width=width,
            label=example.label,
            label_name=source.class_names[example.label] if example.label >= 0 else "",
            captions=example.captions,
            id=source.ids[index],
            values=example.values,
            streams={name: records.encode_stream(frames) for name, frames in further.items()},
        )
    )


def kept_frames(num_frames: int, rate: float, config: Config) -> np.ndarray:
    """The frames to keep: all, or the first ones of equal parts of the video."""
    count = num_frames
    if config.fps is not None:
        if np.isnan(rate):
            raise UserError(f"fps needs the frame rate, which {config.source} does not store: leave it out")
        count = max(min(round(num_frames * config.fps / rate), num_frames), 1)
    count = min(count, config.max_frames)
    return np.arange(count) * num_frames // count


if __name__ == "__main__":
    cli.run(main, Config)
