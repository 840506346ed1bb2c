"""Looks at a source of videos before any training: what is in it, what cannot be read, what a model would see.

    python experiments/check_data.py /videos
    python experiments/check_data.py videos.csv --data.frames 32 --data.stride 2 --out runs/check

Every example is opened and the clip in its middle decoded, on all cores; damage elsewhere in a file stays unseen. What
it finds is printed and written to OUT: summary.json, bad_files.jsonl, and contact_sheet.png of clips as training would
sample and augment them.
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

OURS = {"summary.json", "bad_files.jsonl", "contact_sheet.png"}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to look at."""

    source: Positional[str]
    """A folder, LIST or LIST:FOLDER (.csv .jsonl .json .txt), tfds:NAME, tfrecord:PATTERN, synthetic:moving_shapes."""
    out: str = "runs/check_data"
    """Where the findings go; those of an earlier check there are replaced."""
    data: DataConfig = DataConfig()
    """How clips would be sampled (its source is the one above)."""
    max_examples: int | None = None
    """Look at so many examples only, drawn at random."""
    clips: int = 8
    """Clips on the contact sheet, 0 for none."""

    def __post_init__(self) -> None:
        """Refuses values that cannot be meant."""
        if self.max_examples is not None and self.max_examples < 1:
            raise UserError(f"max_examples is {self.max_examples}: it must be 1 or more")
        if self.clips < 0:
            raise UserError(f"clips is {self.clips}: it must be 0 (no contact sheet) or more")


def main(config: Config) -> dict[str, Any]:
    """Checks, prints and writes; returns the summary."""
    from vidjax.data.sources import open_source

    data = dataclasses.replace(config.data, source=config.source)
    source = open_source(data.source, data.split, data.square_pixels)
    print_notes(source)
    out = open_out(config.out)
    chosen = np.arange(len(source))
    if config.max_examples is not None and config.max_examples < len(source):
        chosen = np.sort(np.random.default_rng(0).permutation(len(source))[: config.max_examples])
    found = dict(look(source, data, chosen.tolist()))
    readable = [index for index, clip in found.items() if not isinstance(clip, Exception)]
    (out / "contact_sheet.png").unlink(missing_ok=True)
    if readable and config.clips:
        found |= draw_sheet(out / "contact_sheet.png", source, data, readable, config.clips)
    good = {source.ids[i]: clip for i, clip in found.items() if not isinstance(clip, Exception)}
    bad = [{"path": source.ids[i], "error": str(error)} for i, error in found.items() if isinstance(error, Exception)]

    summary = summarize(source, data, good, bad)
    report(summary, source, data, bad)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    (out / "bad_files.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in bad))
    print(f"\nwritten to {out}: {', '.join(sorted(path.name for path in out.iterdir() if path.name in OURS))}")
    return summary


def open_out(out: str) -> Path:
    """The folder for the findings; one that holds anything else is refused."""
    path = Path(out)
    cli.make_folder(path, "--out")
    if others := sorted(entry.name for entry in path.iterdir() if entry.name not in OURS):
        raise UserError(f"{out} holds files that are not of a check ({', '.join(others[:3])}): choose another --out")
    return path


def look(source: Any, data: DataConfig, indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Each index with the clip in the middle of its video, without the pixels, or the error that kept it from one."""
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
    """Counts and ranges of the clips in `good`, by the ids of their examples."""
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
    """Least, middle and greatest; None where none is known."""
    known = [float(value) for value in values if np.isfinite(value)]
    return {"min": min(known), "median": float(np.median(known)), "max": max(known)} if known else None


def report(summary: dict[str, Any], source: Any, data: DataConfig, bad: list[dict[str, str]]) -> None:
    """Prints the summary for a person."""
    print(f"{source.name}: {summary['examples']:,} examples, {summary['looked_at']:,} looked at, {len(bad)} unreadable")
    print(f"\n{'':18}{'min':>10}{'median':>10}{'max':>10}")
    for name in ("seconds", "frames", "frames_a_second", "width", "height", "seconds_covered"):
        if summary[name]:
            print(f"{name.replace('_', ' '):18}" + "".join(f"{value:10.5g}" for value in summary[name].values()))
    print(f"\ncodecs     {', '.join(f'{name} {count}' for name, count in summary['codecs'].items())}")
    if summary["hdr"]:
        kinds = ", ".join(f"{name} {count}" for name, count in summary["hdr"].items())
        print(f"HDR        {kinds}: not tone-mapped, so these look pale beside the others")
    if summary["packets_read"]:
        suffixes = Counter(Path(name.partition("#")[0]).suffix for name in summary["packets_read"])
        print(
            f"times      of {len(summary['packets_read']):,} files come from reading all packets once, as their "
            f"container does not tell them ({', '.join(f'{name} {count}' for name, count in suffixes.most_common())}; "
            "listed in summary.json)"
        )
    classes, counts = summary["classes"], list(summary["classes"].values())
    if classes:
        print(
            f"labels     {summary['labelled']:,} of {len(source.class_names)} classes, from {min(counts)} "
            f"({list(classes)[-1]}) to {max(counts)} ({next(iter(classes))}) examples each"
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
        + (f"{data.fps:g} a second" if data.fps else f"every {data.stride} frames of the file")
        + f": {summary['shorter_than_a_clip']} videos are shorter and hold their last frame"
    )
    for entry in bad[:10]:
        print(f"unreadable {entry['error']}")
    if len(bad) > 10:
        print(f"           and {len(bad) - 10} more: see bad_files.jsonl")


def draw_sheet(path: Path, source: Any, data: DataConfig, indices: list[int], count: int) -> dict[int, Exception]:
    """Clips of examples spread over the source, sampled and augmented as in training; gives what could not be read."""
    import tensorflow as tf

    from vidjax.data.augment import augment
    from vidjax.data.decode import DecodeError
    from vidjax.data.sampling import sample

    clips, titles, unread = [], [], {}
    for position in np.unique(np.linspace(0, len(indices) - 1, count).astype(int)):
        index, rng = indices[position], np.random.default_rng(position)
        try:
            with source.open(index, ()) as example:
                video = example.streams["video"]
                seen = sample(data, video.info.num_frames, video.info.rate, rng)
                frames, info = video.read(seen, data.decode_short_side)
        except DecodeError as error:  # its middle can be read, but not all of it
            unread[index] = error
            continue
        clip = augment(tf.constant(frames), data.augment, data.size, tf.constant([0, position]), data.center_ratio)
        clips.append(clip.numpy()[np.unique(np.linspace(0, data.frames - 1, 12).astype(int))])
        label = f"{source.class_names[example.label]}, " if example.label >= 0 else ""
        when = f"{seen[0] / info.rate:.2f} to {seen[-1] / info.rate:.2f} s of {info.duration:.2f} s"
        caption = f"; '{example.captions[0]}'" if example.captions else ""
        more = f" and {len(example.captions) - 1} more" if len(example.captions) > 1 else ""
        titles.append(f"{Path(source.ids[index]).name}: {label}frames {seen[0]} to {seen[-1]}, {when}{caption}{more}")
    if clips:
        save_contact_sheet(path, clips, titles)
    return unread


if __name__ == "__main__":
    cli.run(main, Config)
