"""Checks a source of videos before training: its contents, unreadable files, and the clips a model would see.

    python experiments/check_data.py /videos
    python experiments/check_data.py videos.csv --data.frames 32 --data.stride 2 --out runs/check

Opens every example and decodes its central clip, on all cores; damage elsewhere in a file is not detected. The results
are printed and written to OUT: summary.json, bad_files.jsonl, and contact_sheet.png with clips sampled and augmented as
in training.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tyro.conf import Positional

from vidjax import cli
from vidjax.data.config import DataConfig, core_count
from vidjax.errors import UserError
from vidjax.runs.announce import print_notes
from vidjax.visualize.contact_sheet import save_contact_sheet

OUTPUTS = {"summary.json", "bad_files.jsonl", "contact_sheet.png"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Which examples to check, and how."""

    source: Positional[str]
    """A folder, LIST or LIST:FOLDER (.csv .jsonl .json .txt), tfds:NAME, tfrecord:PATTERN, synthetic:moving_shapes."""
    out: str = "runs/check_data"
    """Folder for the results; those of an earlier check are replaced."""
    data: DataConfig = DataConfig()
    """How clips are sampled and augmented; `source` above replaces `data.source`."""
    max_examples: int | None = None
    """Check only this many examples, drawn at random."""
    clips: int = 8
    """Number of clips on the contact sheet, 0 for no contact sheet."""

    def __post_init__(self) -> None:
        if self.max_examples is not None and self.max_examples < 1:
            raise UserError(f"max_examples is {self.max_examples}: it must be 1 or more")
        if self.clips < 0:
            raise UserError(f"clips is {self.clips}: it must be 0 (no contact sheet) or more")


def main(config: Config) -> dict[str, Any]:
    """Checks the source, prints and writes the results, and returns the summary."""
    from vidjax.data.sources import open_source

    data = dataclasses.replace(config.data, source=config.source)
    source = open_source(data.source, data.split, data.square_pixels)
    print_notes(source)
    out = open_out(config.out)
    chosen = np.arange(len(source))
    if config.max_examples is not None and config.max_examples < len(source):
        chosen = np.sort(np.random.default_rng(0).permutation(len(source))[: config.max_examples])
    results = dict(look(source, data, chosen.tolist()))
    readable = [index for index, clip in results.items() if not isinstance(clip, Exception)]
    (out / "contact_sheet.png").unlink(missing_ok=True)
    if readable and config.clips:
        results |= draw_sheet(out / "contact_sheet.png", source, data, readable, config.clips)
    good = {source.ids[i]: clip for i, clip in results.items() if not isinstance(clip, Exception)}
    bad = [{"path": source.ids[i], "error": str(error)} for i, error in results.items() if isinstance(error, Exception)]

    summary = summarize(source, data, good, bad)
    report(summary, source, data, bad)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    (out / "bad_files.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in bad))
    print(f"\nwritten to {out}: {', '.join(sorted(path.name for path in out.iterdir() if path.name in OUTPUTS))}")
    return summary


def open_out(out: str) -> Path:
    """Creates the folder for the results; raises UserError if it contains other files."""
    path = Path(out)
    cli.make_folder(path, "--out")
    if others := sorted(entry.name for entry in path.iterdir() if entry.name not in OUTPUTS):
        raise UserError(f"{out} contains other files ({', '.join(others[:3])}): choose another --out")
    return path


def look(source: Any, data: DataConfig, indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Yields each index with the central clip of its video, without pixels, or with the error if it is unreadable."""
    from vidjax.data.decode import DecodeError
    from vidjax.data.sampling import sample
    from vidjax.data.sources import Clip

    def look_at(index: int) -> tuple[int, Any]:
        try:
            with source.open(index, ()) as example:
                video = example.streams["video"]
                indices = sample(data, video.info.num_frames, video.info.rate, None)
                _, info = video.read(indices, data.decode_short_side)
            return index, Clip(np.zeros((0, 1, 1, 3), np.uint8), example.label, example.captions, info)
        except DecodeError as error:
            return index, error

    with ThreadPoolExecutor(data.workers or core_count()) as pool:
        for done, result in enumerate(pool.map(look_at, indices), start=1):
            if done % 500 == 0:
                print(f"{done} of {len(indices)} looked at", flush=True)
            yield result


def summarize(source: Any, data: DataConfig, good: dict[str, Any], bad: list) -> dict[str, Any]:
    """Counts and ranges over the clips in `good`, which are by the id of their example."""
    from vidjax.data.sampling import frames_spanned, seconds_covered

    scanned = [name for name, clip in good.items() if clip.info.scanned]
    good = list(good.values())
    infos = [clip.info for clip in good]
    labels = Counter(source.class_names[clip.label] for clip in good if clip.label >= 0)

    return {
        "source": source.name,
        "examples": len(source),
        "looked_at": len(good) + len(bad),
        "unreadable": len(bad),
        "labelled": sum(labels.values()),
        "captioned": sum(bool(clip.captions) for clip in good),
        "captions": sum(len(clip.captions) for clip in good),
        "caption": next((clip.captions[0] for clip in good if clip.captions), None),
        "classes": dict(labels.most_common()),
        "codecs": dict(Counter(info.codec for info in infos).most_common()),
        "hdr": dict(Counter(info.hdr for info in infos if info.hdr).most_common()),
        "packets_read": scanned,
        "seconds": spread([info.duration for info in infos]),
        "frames": spread([info.num_frames for info in infos]),
        "frames_a_second": spread([info.rate for info in infos]),
        "height": spread([info.height for info in infos]),
        "width": spread([info.width for info in infos]),
        "seconds_covered": spread([seconds_covered(data, info.num_frames, info.rate) for info in infos]),
        "shorter_than_a_clip": sum(
            data.sampling == "dense" and info.num_frames < frames_spanned(data, info.rate) for info in infos
        ),
    }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Minimum, median and maximum of the finite values; None if there are none."""
    known = [float(value) for value in values if np.isfinite(value)]
    return {"min": min(known), "median": float(np.median(known)), "max": max(known)} if known else None


def report(summary: dict[str, Any], source: Any, data: DataConfig, bad: list[dict[str, str]]) -> None:
    """Prints the summary."""
    print(f"{source.name}: {summary['examples']:,} examples, {summary['looked_at']:,} looked at, {len(bad)} unreadable")
    print(f"\n{'':18}{'min':>10}{'median':>10}{'max':>10}")
    for name in ("seconds", "frames", "frames_a_second", "width", "height", "seconds_covered"):
        if summary[name]:
            print(f"{name.replace('_', ' '):18}" + "".join(f"{value:10.5g}" for value in summary[name].values()))
    print(f"\ncodecs     {', '.join(f'{name} {count}' for name, count in summary['codecs'].items())}")
    if summary["hdr"]:
        kinds = ", ".join(f"{name} {count}" for name, count in summary["hdr"].items())
        print(f"HDR        {kinds}: not tone-mapped, so these videos look pale")
    if summary["packets_read"]:
        suffixes = Counter(Path(name.partition("#")[0]).suffix for name in summary["packets_read"])
        print(
            f"times      for {len(summary['packets_read']):,} files, all packets are read to determine the frame times "
            f"({', '.join(f'{name} {count}' for name, count in suffixes.most_common())}; listed in summary.json)"
        )
    classes, counts = summary["classes"], list(summary["classes"].values())
    if classes:
        print(
            f"labels     {summary['labelled']:,} of {len(source.class_names)} classes, from {min(counts)} "
            f"({list(classes)[-1]}) to {max(counts)} ({next(iter(classes))}) examples per class"
        )
        if absent := len(source.class_names) - len(classes):
            print(f"           {absent} classes have no readable example")
    else:
        print("labels     none (pre-training needs none)")
    if summary["captioned"]:
        print(
            f"captions   {summary['captions']:,} of {summary['captioned']:,} examples, such as '{summary['caption']}'"
        )
    else:
        print("captions   none (only contrastive pre-training needs them)")
    print(
        f"sampling   {data.frames} frames, {data.sampling}, "
        + (f"{data.fps:g} per second" if data.fps else f"{data.stride} frames apart")
        + f": {summary['shorter_than_a_clip']} videos are shorter, so their last frame is repeated"
    )
    for entry in bad[:10]:
        print(f"unreadable {entry['error']}")
    if len(bad) > 10:
        print(f"           and {len(bad) - 10} more: see bad_files.jsonl")


def draw_sheet(path: Path, source: Any, data: DataConfig, indices: list[int], count: int) -> dict[int, Exception]:
    """Draws evenly spaced examples, with clips sampled and augmented as in training; returns errors by index."""
    from vidjax.data.crop import cut, random_crop
    from vidjax.data.decode import DecodeError
    from vidjax.data.pixels import change_pixels
    from vidjax.data.sampling import sample

    clips, titles, errors = [], [], {}
    for position in np.unique(np.linspace(0, len(indices) - 1, count).astype(int)):
        index, rng = indices[position], np.random.default_rng(position)
        try:
            with source.open(index, ()) as example:
                video = example.streams["video"]
                sampled = sample(data, video.info.num_frames, video.info.rate, rng)
                frames, info = video.read(sampled, data.decode_short_side)
        except DecodeError as error:  # the central clip is readable, but not this one
            errors[index] = error
            continue
        seed = (0, int(position))
        crop = random_crop(*frames.shape[1:3], data.augment, data.size, seed, data.center_ratio)
        clip = cut(frames, crop, data.size)
        if data.augment.changes_pixels:
            clip = change_pixels(clip, seed, data.augment)
        clips.append(clip[np.unique(np.linspace(0, data.frames - 1, 12).astype(int))])
        label = f"{source.class_names[example.label]}, " if example.label >= 0 else ""
        when = f"{sampled[0] / info.rate:.2f} to {sampled[-1] / info.rate:.2f} s of {info.duration:.2f} s"
        caption = f"; '{example.captions[0]}'" if example.captions else ""
        more = f" and {len(example.captions) - 1} more" if len(example.captions) > 1 else ""
        frame_range = f"frames {sampled[0]} to {sampled[-1]}"
        titles.append(f"{Path(source.ids[index]).name}: {label}{frame_range}, {when}{caption}{more}")
    if clips:
        save_contact_sheet(path, clips, titles)
    return errors


if __name__ == "__main__":
    cli.run(main, Config)
