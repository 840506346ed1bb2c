"""Sources of examples: folders, manifests, published lists, TFDS, TFRecords and the embedded data set.

Opening a source reads no videos; they are opened when an example is read.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Num, UInt8

from vidjax.data import manifest, mixing, prompts, published_lists, rendered
from vidjax.data.container import DecodeError, blame_file
from vidjax.data.decode import OpenClip, VideoInfo, open_clip
from vidjax.data.example import LABEL, VIDEO, Clip, Example, Field, Source, in_pieces
from vidjax.data.labels import find_classes
from vidjax.errors import UserError

__all__ = [
    "Clip",
    "Source",
    "draw",
    "list_files",
    "open_source",
    "part_of",
    "require_captions",
    "require_labels",
    "subset",
    "video_files",
    "with_captions",
    "with_classes",
]


def open_source(name: str, split: str = "train", square_pixels: bool = True) -> Source:
    """Opens a source by name.

    Args:
      name: see `DataConfig.source`.
      split: split of a tfds or synthetic source, or of a Kinetics list that contains several.
      square_pixels: stretch non-square pixels of video files in width.

    Raises:
      UserError: the source does not exist or is invalid.
    """
    if (listing := list_files(name, split)) is not None:
        return video_files(name, listing, square_pixels)
    kind, _, rest = name.partition(":")
    if kind in ("tfds", "tfrecord") and rest:
        from vidjax.data import stored  # TensorFlow takes seconds to import

    if kind == "mix":
        weights = mixing.read_mix(name)
        return mixing.mix(name, [open_source(part, split, square_pixels) for part in weights], weights.values())
    if kind == "tfds" and rest:
        return stored.tfds_videos(name, rest, split)
    if kind == "tfrecord" and rest:
        return stored.tfrecords(name, rest)
    if name == "synthetic:moving_shapes":
        return rendered.moving_shapes_source(name, split)
    if name == "synthetic:untrimmed_shapes":
        return rendered.untrimmed_shapes_source(name, split)
    if name == "synthetic:many_shapes":
        return rendered.many_shapes_source(name, split)
    if name == "synthetic:sounding_shapes":
        return rendered.sounding_shapes_source(name, split)
    if name == "synthetic:brief_shapes":
        return rendered.brief_shapes_source(name, split)
    if name in ("synthetic:shape_photos", "synthetic:shape_clips"):
        return rendered.shape_photos_source(name, split)
    if Path(name).is_file():
        raise UserError(f"data.source {name} is a file: give its folder, or a .csv or .jsonl manifest")
    if rest and "/" not in kind:
        raise UserError(
            f"data.source {name} is of an unknown kind: use tfds:NAME, tfrecord:PATTERN, synthetic:moving_shapes, "
            "synthetic:untrimmed_shapes, synthetic:many_shapes, synthetic:sounding_shapes, synthetic:brief_shapes, "
            "synthetic:shape_photos, synthetic:shape_clips, mix:SOURCE=WEIGHT,SOURCE=WEIGHT, a folder, or a .csv or "
            ".jsonl manifest"
        )
    raise UserError(f"data.source {name} does not exist: give a folder, a manifest or KIND:NAME")


def list_files(name: str, split: str = "train") -> manifest.Listing | None:
    """Lists the video files of a folder or a list (`LIST` or `LIST:FOLDER`); returns None for other kinds of sources.

    Raises:
      UserError: the folder or the list is invalid.
    """
    path = Path(name)
    if path.is_dir():
        return manifest.list_folder(path)
    if path.suffix.lower() in published_lists.SUFFIXES and path.is_file():
        return published_lists.list_file(path, None, split)
    if name.partition(":")[0] in ("tfds", "tfrecord", "synthetic", "mix"):
        return None
    suffixes = "|".join(map(re.escape, published_lists.SUFFIXES))
    if match := re.fullmatch(rf"(.+?(?:{suffixes}))(?::(.+))?", name, re.IGNORECASE):
        return published_lists.list_file(Path(match[1]), Path(match[2]) if match[2] else None, split)
    return None


def subset(source: Source, indices: Sequence[int] | np.ndarray) -> Source:
    """A source with only the examples at `indices`, in this order; they are not weighted if the source is a mix."""
    indices = [int(index) for index in indices]
    ids = [source.ids[index] for index in indices]

    return replace(
        source,
        ids=ids,
        parts=(),
        weights=None if source.weights is None else source.weights[indices],
        open=lambda index, names: source.open(indices[index], names),
        label=lambda index: source.label(indices[index]),
        captions=lambda index: source.captions(indices[index]),
        rejected=lambda index: source.rejected(indices[index]),
    )


def draw(source: Source, count: int | None, seed: int) -> Source:
    """A random subset of `count` examples in their original order; the whole source if `count` is None or larger."""
    if count is None or count >= len(source):
        return source
    return subset(source, np.sort(np.random.default_rng(seed).permutation(len(source))[:count]))


def with_classes(source: Source, class_names: Sequence[str]) -> Source:
    """Maps the labels of a source to indices into `class_names`, which must contain all of its classes.

    Names match regardless of case, quotes, and spaces or underscores between words, since folder names often differ
    from the class names of a checkpoint.

    Raises:
      UserError: the source has no labels, or a class that is not in `class_names`.
    """
    if not source.class_names:
        raise UserError(f"{source.name} has no labels, and this needs them: use class folders or a label column")
    if tuple(class_names) == source.class_names:
        return source
    positions = find_classes(source.class_names, class_names)
    if unknown := [name for name, position in zip(source.class_names, positions, strict=True) if position is None]:
        near = difflib.get_close_matches(unknown[0], class_names, n=2)
        raise UserError(
            f"{source.name} has {len(unknown)} classes that the model does not know, such as '{unknown[0]}'"
            f"{' (did you mean ' + ' or '.join(near) + '?)' if near else ''}: "
            f"rename them to its {len(class_names)} classes, "
            f"{', '.join(class_names[:3])}{', ...' if len(class_names) > 3 else ''}"
        )
    labels = [*positions, -1]  # label -1 indexes the last item

    @contextmanager
    def open_example(index: int, names: Sequence[str]) -> Iterator[Example]:
        with source.open(index, names) as example:
            yield replace(example, label=labels[example.label])

    return replace(
        source, class_names=tuple(class_names), open=open_example, label=lambda index: labels[source.label(index)]
    )


def with_captions(source: Source, templates: Sequence[str]) -> Source:
    """Replaces the captions of a source by captions made from class names, one per template.

    Raises:
      UserError: an example has no label (checked for the first example only if labels are not listed, and for others
        when they are read), a template has no slot, or class names repeat.
    """
    if not source.class_names:
        raise UserError(f"{source.name} has no labels to make captions of: use class folders or a label column")
    _require_everywhere(source, lambda index: source.label(index) >= 0, "label to make captions of", "label them")
    filled = list(zip(*prompts.fill(templates, source.class_names), strict=True))

    def captions(index: int, label: int) -> tuple[str, ...]:
        if label < 0:
            raise UserError(f"{source.ids[index]} has no label to make captions of: label it, or remove it")
        return filled[label]

    @contextmanager
    def open_example(index: int, names: Sequence[str]) -> Iterator[Example]:
        with source.open(index, names) as example:
            yield replace(example, captions=captions(index, example.label))

    return replace(source, open=open_example, captions=lambda index: captions(index, source.label(index)))


def require_captions(source: Source) -> None:
    """Checks that every example has a caption.

    If the captions of the source are not listed, only the first example is checked here, and the pipeline checks the
    others.

    Raises:
      UserError: examples have no caption (with their number and first ids).
    """
    advice = "give them one in a .csv or .jsonl manifest, or make captions from class names with templates"
    _require_everywhere(source, lambda index: bool(source.captions(index)), "caption", advice)


def _require_everywhere(source: Source, has: Callable[[int], bool], what: str, advice: str) -> None:
    checked = len(source) if source.listed else min(len(source), 1)
    without = [source.ids[index] for index in range(checked) if not has(index)]
    if without:
        count = f"{len(without)} of the {len(source)} examples" if source.listed else "the first example"
        raise UserError(
            f"{count} of {source.name} {'has' if len(without) == 1 else 'have'} no {what}: "
            f"{', '.join(without[:3])}{', ...' if len(without) > 3 else ''}; {advice}"
        )


def require_labels(source: Source) -> None:
    """Checks that every example of a source with listed labels has a label.

    Raises:
      UserError: examples have no label (with their number and first ids).
    """
    if source.listed:
        _require_everywhere(source, lambda index: source.label(index) >= 0, "label", "label them, or remove them")


def video_files(name: str, listing: manifest.Listing, square_pixels: bool = True) -> Source:
    """A source of video files, or of parts of them."""
    rows = listing.rows

    @contextmanager
    def open_example(index: int, names: Sequence[str]) -> Iterator[Example]:
        row = rows[index]
        with open_clip(row.path, square_pixels) as clip:
            first, part = part_of(row, clip.info)
            streams, values = {"video": FilePart(clip, row, first, part)}, {}
            for field in listing.fields.keys() & set(names):
                spec, value = listing.fields[field], row.fields.get(field)
                if spec.kind == "frames":
                    streams[field] = ArrayPart.open(row, field, spec, clip.info)
                elif spec.kind == "samples" and value is not None:
                    values[field] = load_array(value)[round(first / clip.info.rate * spec.rate) :]
                elif value is not None:
                    values[field] = value
            yield Example(streams, row.label, row.captions, values)

    return Source(
        name,
        listing.class_names,
        [row.id for row in rows],
        open_example,
        lambda i: rows[i].label,
        lambda i: rows[i].captions,
        listed=True,
        notes=listing.notes,
        fields={"video": VIDEO, "label": LABEL, **listing.fields},
        rejected=lambda i: rows[i].rejected,
    )


@dataclass(frozen=True)
class FilePart:
    """The stream of a video file, or of the part of it that a row names."""

    clip: OpenClip
    row: manifest.Row
    first: int
    """Index in the file of the first frame of the part."""
    info: VideoInfo

    def _in_file(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        indices = np.asarray(indices, np.int64)
        return self.first + (self.info.num_frames - 1 - indices if self.row.reverse else indices)

    def read(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], VideoInfo]:
        """See `example.Stream`."""
        frames, info = self.clip.read(self._in_file(indices), short_side)
        return frames, part_of(self.row, info)[1]

    def iterate(self, indices: np.ndarray, short_side: int | None) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """See `example.Stream`; reversed videos are read in pieces."""
        if self.row.reverse:
            yield from in_pieces(self, indices, short_side)
            return
        yield from self.clip.iterate(self._in_file(indices), short_side)


@dataclass(frozen=True)
class ArrayPart:
    """A stream of frames in a .npy file (t h w c) that belongs to a video, or the part of it that a row names."""

    frames: Num[np.ndarray, "t h w c"]
    first: int
    info: VideoInfo

    @classmethod
    def open(cls, row: manifest.Row, field: str, spec: Field, video: VideoInfo) -> "ArrayPart":
        """Opens the file of a field without reading the frames. Raises DecodeError."""
        if field not in row.fields:
            raise DecodeError(f"{row.id}: it has no {field}")
        frames = load_array(row.fields[field])
        if frames.ndim != 4 or frames.dtype != spec.dtype or frames.shape[-1] != spec.shape[0]:
            shape = "x".join(map(str, frames.shape))
            raise DecodeError(
                f"{row.fields[field]}: it is {frames.dtype} {shape}, not {spec.dtype} t x h x w x {spec.shape[0]}"
            )
        rate = spec.rate or video.rate
        count, height, width = frames.shape[:3]
        if spec.rate is None and count not in (video.num_frames - 1, video.num_frames):
            raise DecodeError(
                f"{row.fields[field]}: it has {count} frames, its video {video.num_frames}: make it again, or give the "
                f"rate of {field} in fields.json"
            )
        # Flow between frames has one frame fewer than the video: the last one is repeated.
        count = video.num_frames if spec.rate is None else count
        first, part = part_of(row, VideoInfo(count, rate, width, height, count / rate, "array"))
        return cls(frames, first, part)

    def read(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None
    ) -> tuple[Num[np.ndarray, "t h w c"], VideoInfo]:
        """See `example.Stream`; arrays are not shrunk before the crop."""
        positions = np.minimum(self.first + np.asarray(indices, np.int64), len(self.frames) - 1)
        return np.asarray(self.frames[positions]), self.info

    def iterate(self, indices: np.ndarray, short_side: int | None) -> Iterator[Num[np.ndarray, "h w c"]]:
        """See `example.Stream`."""
        return in_pieces(self, indices, short_side)


def load_array(path: str) -> np.ndarray:
    """Memory-maps a .npy file. Raises DecodeError."""
    with blame_file(path):
        return np.load(path, mmap_mode="r", allow_pickle=False)


def part_of(row: manifest.Row, info: VideoInfo) -> tuple[int, VideoInfo]:
    """The index of the first frame of the row's part of the video, and the info of the part."""
    # A frame belongs to the part if it starts within it; the tolerance allows for rounded times.
    first = math.ceil((row.start or 0) * info.rate - 1e-3)
    stop = info.num_frames if row.end is None else min(math.ceil(row.end * info.rate - 1e-3), info.num_frames)
    if first >= info.num_frames:
        raise DecodeError(
            f"{row.path}: the part starts at {row.start or 0} s, but the video ends at {info.duration:.2f} s"
        )
    if stop <= first:
        raise DecodeError(f"{row.path}: there is no frame from {row.start or 0} to {row.end} s")
    return first, replace(info, num_frames=stop - first, duration=(stop - first) / info.rate)
