"""Writing a source as sharded TFRecords: in parallel, by one process or several, and resumable after a kill.

A shard is written beside its final name and renamed when it is complete, so that running the same command again only
writes the missing shards. Memory does not grow with the number of videos, and of a video only the encoded frames are
kept.
"""

import hashlib
import json
import os
import shlex
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, UInt8
from tyro.conf import Positional

from vidjax import cli
from vidjax.data.config import core_count
from vidjax.errors import UserError
from vidjax.fields import check_values

if TYPE_CHECKING:  # PyAV and TensorFlow are imported when they are needed
    from vidjax.data.example import Field, Source

Frames = Iterator[UInt8[np.ndarray, "h w 3"]]
Streams = Callable[[Frames], Mapping[str, Sequence[bytes]]]
NOT_IN_RECORDS = ("out", "workers", "part", "pictures")
"""Options that do not change the records: a conversion can resume with other values."""


@dataclass(frozen=True)
class RecordConfig:
    """What to convert, and how the frames are stored."""

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
    part: str = "1/1"
    """Which shards this process writes, such as 2/4 for the second of four processes; each runs the same command."""

    def __post_init__(self) -> None:
        check_values(self)
        for name in ("short_side", "max_frames", "videos_per_shard"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality is {self.quality}: it must be between 1 and 100")
        if self.fps is not None and self.fps <= 0:
            raise UserError(f"fps is {self.fps}: it must be more than 0")
        if self.workers < 0:
            raise UserError(f"workers is {self.workers}: it must be 0 (one per core) or more")
        number, _, count = self.part.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise UserError(f"part is {self.part}: write number/count, such as 2/4")


def write_records(
    config: RecordConfig,
    source: "Source",
    fields: Mapping[str, "Field"],
    make: Callable[[int], bytes],
) -> Path:
    """Writes the missing shards of this process's part, reports progress, and prints a summary.

    Args:
      fields: specs of the fields that the records have in addition to video, label and captions.
      make: the record of an example; DecodeErrors that it raises are listed in OUT/bad_files.jsonl.

    Returns:
      The folder of the shards.

    Raises:
      UserError: the folder cannot be written, or it contains another conversion.
    """
    from vidjax.data import records
    from vidjax.data.batches import BadFiles
    from vidjax.data.field_files import FIELDS_FILE, write_specs

    out = open_out(config, source, fields)
    (out / "classes.json").write_text(json.dumps(source.class_names) + "\n")
    if fields:
        (out / FIELDS_FILE).write_text(write_specs(fields))
    bad_files = BadFiles(source, max_fraction=1.0, path=out / "bad_files.jsonl")
    shards = np.array_split(np.arange(len(source)), -(-len(source) // config.videos_per_shard))
    paths = [out / f"videos-{k:05d}-of-{len(shards):05d}.tfrecord" for k in range(len(shards))]
    number, processes = map(int, config.part.split("/"))
    own = range(number - 1, len(shards), processes)
    todo = [k for k in own if not paths[k].exists()]
    print(f"{len(source)} videos of {source.name} to {len(shards)} shards in {out}", flush=True)
    if processes > 1:
        print(f"part {config.part}: {len(own)} of the shards", flush=True)
    if len(todo) < len(own):
        print(f"{len(own) - len(todo)} shards are complete from an earlier run", flush=True)

    start, done, total = time.monotonic(), 0, sum(len(shards[k]) for k in todo)
    for k in todo:
        unfinished = paths[k].with_suffix(".partial")
        with records.tf.io.TFRecordWriter(os.fsencode(unfinished)) as writer:
            for index, data in in_parallel(make, shards[k].tolist(), config.workers or core_count()):
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

    complete = [path for path in paths if path.exists()]
    count, size = len(records.index_records([str(path) for path in complete])), sum(p.stat().st_size for p in complete)
    print(f"{out}: {count} videos, {size / 1e9:.2f} GB, in {time.monotonic() - start:.0f} s")
    if len(complete) < len(paths):
        print(f"{len(paths) - len(complete)} shards of other parts are not complete yet")
    if bad_files.errors:
        print(f"{len(bad_files)} videos could not be read: {out / 'bad_files.jsonl'}")
    return out


def describe_training(out: Path, flag: str = "--data.source") -> str:
    """The flag that trains on the records in a folder."""
    return f"{flag} {shlex.quote(f'tfrecord:{out}')}"


def open_out(config: RecordConfig, source: "Source", fields: Mapping[str, "Field"]) -> Path:
    """Creates the folder for the shards, with a meta.json that describes the source and the options.

    Raises:
      UserError: the folder cannot be written, or it contains another conversion (the message names the differences).
    """
    out = Path(config.out)
    meta = {name: value for name, value in cli.as_dict(config).items() if name not in NOT_IN_RECORDS}
    meta |= {"videos": len(source), "list": digest(source.ids)}
    captions = [source.captions(index) for index in range(len(source))] if source.listed else []
    if any(captions):
        meta["captions"] = digest(map(repr, captions))
    if fields:
        meta["fields"] = digest(map(repr, fields.items()))
    try:
        out.mkdir(parents=True, exist_ok=True)
        old = json.loads((out / "meta.json").read_text()) if (out / "meta.json").exists() else None
        if old is None and not list(out.glob("*.tfrecord")):
            unfinished = out / f"meta.{os.getpid()}.partial"
            unfinished.write_text(json.dumps(meta, indent=2) + "\n")
            os.replace(unfinished, out / "meta.json")
            return out
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}): choose another folder") from None
    if "store" in meta:  # flow was stored in 8 bits before there was a choice
        old = old and {"store": "uint8"} | old
    if old is None:
        raise UserError(f"{out} contains .tfrecord files but no meta.json of an earlier run: choose another folder")
    differing = [f"{name} was {old.get(name)}, is {meta[name]}" for name in meta if old.get(name) != meta[name]]
    if differing:
        raise UserError(
            f"{out} contains another conversion ({'; '.join(differing)}): choose another folder or the same options"
        )
    return out


def digest(lines: Iterable[str]) -> str:
    """Hash of a sequence of lines."""
    return hashlib.sha256("\n".join(lines).encode(errors="surrogatepass")).hexdigest()


def in_parallel(
    make: Callable[[int], bytes], indices: list[int], workers: int
) -> Iterator[tuple[int, bytes | Exception]]:
    """Yields each index with its record, or with the DecodeError if it is unreadable, in order."""
    from vidjax.data.decode import DecodeError

    def make_one(index: int) -> bytes | Exception:
        try:
            return make(index)
        except DecodeError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        ahead = deque()
        for index in indices:
            ahead.append((index, pool.submit(make_one, index)))
            if len(ahead) > 2 * workers:  # limits the records in memory
                index, future = ahead.popleft()
                yield index, future.result()
        for index, future in ahead:
            yield index, future.result()


def further_fields(source: "Source") -> dict[str, "Field"]:
    """Specs of the fields that are stored in addition to video, label and captions."""
    return {name: spec for name, spec in source.fields.items() if name not in ("video", "label")}


def make_record(
    source: "Source",
    index: int,
    config: RecordConfig,
    fields: Iterable[str],
    make_streams: Streams = lambda frames: {},
) -> bytes:
    """Reads, subsamples, shrinks and encodes one video, frame by frame.

    Args:
      fields: names of the source's fields to store in addition to video, label and captions.
      make_streams: makes encoded streams by name from the frames, which it may leave unread.

    Raises:
      DecodeError: the video cannot be read.
    """
    from vidjax.data import images, records
    from vidjax.data.sampling import frames_at

    with source.open(index, list(fields)) as example:
        streams = {name: stream for name, stream in example.streams.items() if name in fields}
        video, jpegs = example.streams["video"], []
        kept = kept_frames(video.info.num_frames, video.info.rate, config)

        def encoded() -> Frames:
            for frame in video.iterate(kept, config.short_side):
                jpegs.extend(images.encode_frames(frame[None], config.quality))
                yield frame

        frames = encoded()
        made = make_streams(frames)
        deque(frames, maxlen=0)
        height, width = images.image_size(jpegs[0], source.ids[index])
        further = {}
        for name, stream in streams.items():
            same = stream.info.rate == video.info.rate or np.isnan(video.info.rate)
            at = kept if same else frames_at(kept / video.info.rate, stream.info.num_frames, stream.info.rate)
            read, _ = stream.read(np.minimum(at, stream.info.num_frames - 1), config.short_side)
            further[name] = images.encode_stream(read)
    return records.encode_record(
        records.Record(
            frames=jpegs,
            rate=video.info.rate * len(jpegs) / video.info.num_frames,
            height=height,
            width=width,
            label=example.label,
            label_name=source.class_names[example.label] if example.label >= 0 else "",
            captions=example.captions,
            id=source.ids[index],
            values=example.values,
            streams=further | dict(made),
        )
    )


def kept_frames(num_frames: int, rate: float, config: RecordConfig) -> Int[np.ndarray, "n"]:
    """Indices of the frames to keep: all, or the first frames of equal parts of the video."""
    count = num_frames
    if config.fps is not None:
        if np.isnan(rate):
            raise UserError(f"fps needs the frame rate, which {config.source} does not store: remove this option")
        count = max(min(round(num_frames * config.fps / rate), num_frames), 1)
    count = min(count, config.max_frames)
    return np.arange(count) * num_frames // count
