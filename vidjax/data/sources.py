"""Which examples exist, behind one object: folders, manifests, TFDS, TFRecords and the embedded data set.

A source is opened without reading any video; what an example is becomes known when it is read.
"""

import difflib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vidjax.data import manifest, moving_shapes, prompts, published_lists, records
from vidjax.data.container import DecodeError, blame_file
from vidjax.data.decode import Choose, VideoInfo, read_clip
from vidjax.data.labels import CLASSES_FILE, parse_class_names
from vidjax.errors import UserError


@dataclass(frozen=True)
class Clip:
    """What reading an example gives."""

    frames: UInt8[np.ndarray, "t h w 3"]
    label: int
    """Position in the source's class names, -1 for none."""
    captions: tuple[str, ...]
    """Empty for none."""
    info: VideoInfo
    """Of the whole video, or of the part of it that the manifest names."""


@dataclass(frozen=True)
class Source:
    """A sequence of videos."""

    name: str
    class_names: tuple[str, ...]
    """Empty without labels."""
    ids: Sequence[str]
    """What each example is called: its path (with the part of it, as in `path#t=2.5,7`), or its record."""
    read: Callable[[int, Choose, int | None], Clip]
    """`read(index, choose, short_side)`: `choose` gets the VideoInfo and gives the indices of the frames to read
    (none are fine), which are shrunk to `short_side` unless smaller. Raises DecodeError."""
    label: Callable[[int], int]
    """The label of an example, -1 for none, without decoding its video. Raises DecodeError."""
    captions: Callable[[int], tuple[str, ...]]
    """The captions of an example, likewise."""
    listed: bool
    """Whether labels and captions are at hand; else they are stored with the video, and a look costs its reading."""
    notes: tuple[str, ...] = ()
    """What was left out or is not used when it was opened, a line each, to be told to the user."""

    def __post_init__(self) -> None:
        if not len(self.ids):  # an epoch of it would have no end
            raise UserError(f"there are no examples in {self.name}: give another source")

    def __len__(self) -> int:
        return len(self.ids)


def open_source(name: str, split: str = "train", square_pixels: bool = True) -> Source:
    """The source of this name, see `DataConfig.source`.

    Args:
      name: of it.
      split: of a tfds or synthetic source, or of a Kinetics list that holds several.
      square_pixels: stretch pixels of video files that are not square.

    Raises:
      UserError: one sentence on what is wrong with the source and what to do.
    """
    if (listing := list_files(name, split)) is not None:
        return video_files(name, listing, square_pixels)
    kind, _, rest = name.partition(":")
    if kind == "tfds" and rest:
        return _tfds(name, rest, split)
    if kind == "tfrecord" and rest:
        return _tfrecord(name, rest)
    if name == "synthetic:moving_shapes":
        return _moving_shapes(name, split)
    if Path(name).is_file():
        raise UserError(f"data.source {name} is a file: give its folder, or a .csv or .jsonl manifest")
    if rest and "/" not in kind:
        raise UserError(
            f"data.source {name} is of an unknown kind: use tfds:NAME, tfrecord:PATTERN, synthetic:moving_shapes, "
            "a folder, or a .csv or .jsonl manifest"
        )
    raise UserError(f"data.source {name} does not exist: give a folder, a manifest or KIND:NAME")


def list_files(name: str, split: str = "train") -> manifest.Listing | None:
    """The video files of a source that is a folder or a list, `LIST` or `LIST:FOLDER`; None for other kinds.

    Raises:
      UserError: one sentence on what is wrong with it and what to do.
    """
    path = Path(name)
    if path.is_dir():
        return manifest.list_folder(path)
    if path.suffix.lower() in published_lists.SUFFIXES and path.is_file():
        return published_lists.list_file(path, None, split)
    if name.partition(":")[0] in ("tfds", "tfrecord", "synthetic"):
        return None
    suffixes = "|".join(map(re.escape, published_lists.SUFFIXES))
    if found := re.fullmatch(rf"(.+?(?:{suffixes}))(?::(.+))?", name, re.IGNORECASE):
        return published_lists.list_file(Path(found[1]), Path(found[2]) if found[2] else None, split)
    return None


def subset(source: Source, indices: Sequence[int] | np.ndarray) -> Source:
    """Some of a source's examples."""
    indices = [int(index) for index in indices]
    ids = [source.ids[index] for index in indices]

    def read(index: int, choose: Choose, short_side: int | None) -> Clip:
        return source.read(indices[index], choose, short_side)

    return replace(
        source,
        ids=ids,
        read=read,
        label=lambda index: source.label(indices[index]),
        captions=lambda index: source.captions(indices[index]),
    )


def draw(source: Source, count: int | None, seed: int) -> Source:
    """So many of the examples, drawn at random and kept in their order; all of them when there are no more."""
    if count is None or count >= len(source):
        return source
    return subset(source, np.sort(np.random.default_rng(seed).permutation(len(source))[:count]))


def with_classes(source: Source, class_names: Sequence[str]) -> Source:
    """The same examples with labels that count in `class_names`, in which each of the source's classes must be.

    Case does not matter, nor whether words are parted by spaces or underscores: folders cannot always say it as a
    checkpoint does.

    Raises:
      UserError: the source has a class that is not among them, or no labels.
    """
    if not source.class_names:
        raise UserError(f"{source.name} has no labels, and this needs them: use folders of classes or a label column")
    if tuple(class_names) == source.class_names:
        return source
    positions = {_plain(name): position for position, name in enumerate(class_names)}
    if unknown := [name for name in source.class_names if _plain(name) not in positions]:
        near = difflib.get_close_matches(unknown[0], class_names, n=2)
        raise UserError(
            f"{source.name} has {len(unknown)} classes that the model does not know, such as '{unknown[0]}'"
            f"{' (did you mean ' + ' or '.join(near) + '?)' if near else ''}: "
            f"rename them to its {len(class_names)} classes, "
            f"{', '.join(class_names[:3])}{', ...' if len(class_names) > 3 else ''}"
        )
    labels = [positions[_plain(name)] for name in source.class_names] + [-1]  # the last one is that of the label -1

    def read(index: int, choose: Choose, short_side: int | None) -> Clip:
        clip = source.read(index, choose, short_side)
        return replace(clip, label=labels[clip.label])

    return replace(source, class_names=tuple(class_names), read=read, label=lambda index: labels[source.label(index)])


def _plain(class_name: str) -> str:
    return prompts.spoken(class_name).casefold()


def with_captions(source: Source, templates: Sequence[str]) -> Source:
    """The same examples with captions made of their classes: one by each template.

    Raises:
      UserError: an example has no label (of a source whose labels are not listed, the first; a later one when it
        comes), a template has no slot, or class names repeat.
    """
    if not source.class_names:
        raise UserError(f"{source.name} has no labels to make captions of: use folders of classes or a label column")
    _require_everywhere(source, lambda index: source.label(index) >= 0, "label to make captions of", "label them")
    filled = list(zip(*prompts.fill(templates, source.class_names), strict=True))

    def captions(index: int, label: int) -> tuple[str, ...]:
        if label < 0:
            raise UserError(f"{source.ids[index]} has no label to make captions of: label it, or leave it out")
        return filled[label]

    def read(index: int, choose: Choose, short_side: int | None) -> Clip:
        clip = source.read(index, choose, short_side)
        return replace(clip, captions=captions(index, clip.label))

    return replace(source, read=read, captions=lambda index: captions(index, source.label(index)))


def require_captions(source: Source) -> None:
    """Refuses a source with an example that has no caption.

    Of a source whose captions are not listed only the first example is looked at; the pipeline refuses later ones.

    Raises:
      UserError: how many examples have none, and which.
    """
    advice = "give them one in a .csv or .jsonl manifest, or make captions of class names by templates"
    _require_everywhere(source, lambda index: bool(source.captions(index)), "caption", advice)


def _require_everywhere(source: Source, has: Callable[[int], bool], what: str, advice: str) -> None:
    looked_at = len(source) if source.listed else min(len(source), 1)
    without = [source.ids[index] for index in range(looked_at) if not has(index)]
    if without:
        count = f"{len(without)} of the {len(source)} examples" if source.listed else "the first example"
        raise UserError(
            f"{count} of {source.name} {'has' if len(without) == 1 else 'have'} no {what}: "
            f"{', '.join(without[:3])}{', ...' if len(without) > 3 else ''}; {advice}"
        )


def require_labels(source: Source) -> None:
    """Refuses a source in whose list an example has no label.

    Raises:
      UserError: how many examples have none, and which.
    """
    if source.listed:
        _require_everywhere(source, lambda index: source.label(index) >= 0, "label", "label them, or leave them out")


def video_files(name: str, listing: manifest.Listing, square_pixels: bool = True) -> Source:
    """Video files, or parts of them; pixels that are not square are stretched, or left."""
    rows = listing.rows

    def read(index: int, choose: Choose, short_side: int | None) -> Clip:
        row = rows[index]

        def choose_in_part(info: VideoInfo) -> np.ndarray:
            first, part = part_of(row, info)
            chosen = np.asarray(choose(part), np.int64)
            return first + (part.num_frames - 1 - chosen if row.reverse else chosen)

        frames, info = read_clip(row.path, choose_in_part, short_side, square_pixels)
        return Clip(frames, row.label, row.captions, part_of(row, info)[1])

    return Source(
        name,
        listing.class_names,
        [row.id for row in rows],
        read,
        lambda i: rows[i].label,
        lambda i: rows[i].captions,
        listed=True,
        notes=listing.notes,
    )


def part_of(row: manifest.Row, info: VideoInfo) -> tuple[int, VideoInfo]:
    """The first frame of the row's part of the video, and what the part's info is."""
    # A frame belongs to the part if it begins in it; the small number forgives the rounding of seconds.
    first = math.ceil((row.start or 0) * info.rate - 1e-3)
    stop = info.num_frames if row.end is None else min(math.ceil(row.end * info.rate - 1e-3), info.num_frames)
    if first >= info.num_frames:
        raise DecodeError(f"{row.path}: no frame from {row.start or 0} s on, as it ends at {info.duration:.2f} s")
    if stop <= first:
        raise DecodeError(f"{row.path}: no frame begins from {row.start or 0} to {row.end} s")
    return first, replace(info, num_frames=stop - first, duration=(stop - first) / info.rate)


def _tfrecord(name: str, pattern: str) -> Source:
    """Shards that `experiments/write_tfrecords.py` wrote; a folder stands for the .tfrecord files in it."""
    paths = records.find_files(pattern)
    if not paths:
        raise UserError(f"data.source {name} matches no file: correct the pattern")
    index = records.index_records(paths)
    file = os.path.join(os.path.dirname(paths[0]), CLASSES_FILE)
    content = records.read_file(file)
    class_names = () if content is None else parse_class_names(file, content)
    ids = [index.id(i) for i in range(len(index))]

    def record(i: int) -> records.Record:
        with blame_file(ids[i]):
            return records.decode_record(index.read(i), ids[i])

    def read(i: int, choose: Choose, short_side: int | None) -> Clip:
        return _from_pictures(record(i), choose, short_side, ids[i])

    return Source(name, class_names, ids, read, lambda i: record(i).label, lambda i: record(i).captions, listed=False)


def _tfds(name: str, rest: str, split: str) -> Source:
    """A prepared set of TensorFlow Datasets with a video feature, read by index without TFDS' decoding."""
    import tensorflow_datasets as tfds  # here, as it takes seconds and few need it

    try:
        builder = tfds.builder(rest, data_dir=os.environ.get("TFDS_DATA_DIR"))
    except tfds.core.DatasetNotFoundError:
        near = difflib.get_close_matches(rest.partition("/")[0], tfds.list_builders(with_community_datasets=False))
        raise UserError(
            f"data.source {name} is no data set that tfds knows or that lies in TFDS_DATA_DIR"
            f"{' (did you mean ' + ' or '.join(near) + '?)' if near else ''}: correct one of the two"
        ) from None
    except ValueError as error:
        raise UserError(f"data.source {name}: {str(error).splitlines()[0]}") from error
    if not builder.is_prepared():
        raise UserError(
            f"data.source {name} is not prepared in {builder.data_path}: run `tfds build {rest}` first, "
            "or set TFDS_DATA_DIR to the folder that holds it"
        )
    features = builder.info.features
    videos = [key for key, feature in features.items() if isinstance(feature, tfds.features.Video)]
    if not videos:
        raise UserError(f"data.source {name} holds no video, but {', '.join(features)}: choose another")
    try:
        parts = builder.info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
        raise UserError(
            f"data.split {split} is unknown: {name} has {', '.join(builder.info.splits)}, choose one of them"
        ) from error
    if not sum(part.take for part in parts):
        raise UserError(f"data.split {split} of {name} holds no examples: choose another")
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        get = ArrayRecordDataSource(parts).__getitem__
        count = sum(part.take for part in parts)
    else:
        index = records.index_records([part.filename for part in parts])
        starts = np.searchsorted(index.file, np.arange(len(parts)))
        chosen = np.concatenate(
            [start + np.arange(part.skip, part.skip + part.take) for start, part in zip(starts, parts, strict=True)]
        )
        count = len(chosen)

        def get(i: int) -> bytes:
            return index.read(int(chosen[i]))

    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    class_names = tuple(features[labels[0]].names) if labels else ()
    ids = [f"{name}/{split}[{i}]" for i in range(count)]

    def record(i: int) -> records.Record:
        with blame_file(ids[i]):
            values = records.parse_example(get(i), ids[i])
            frames = list(values[videos[0]].bytes_list.value)
            label = values[labels[0]].int64_list.value[0] if labels else -1
            captions = records.texts(values["caption"], ids[i]) if "caption" in features else ()
        return records.Record(frames, math.nan, 0, 0, label, "", captions, ids[i])

    def read(i: int, choose: Choose, short_side: int | None) -> Clip:
        found = record(i)
        height, width = records.picture_size(found.frames[0], ids[i]) if found.frames else (0, 0)
        return _from_pictures(replace(found, height=height, width=width), choose, short_side, ids[i])

    return Source(name, class_names, ids, read, lambda i: record(i).label, lambda i: record(i).captions, listed=False)


def _from_pictures(record: records.Record, choose: Choose, short_side: int | None, id: str) -> Clip:
    count = len(record.frames)
    if not count:
        raise DecodeError(f"{id}: it has no frames")
    info = VideoInfo(count, record.rate, record.width, record.height, count / record.rate, "pictures")
    frames = records.decode_frames(record.frames, choose(info), short_side, id)
    return Clip(frames, record.label, record.captions, info)


def _moving_shapes(name: str, split: str) -> Source:
    """The embedded data set, rendered at the asked size."""
    if split not in (splits := (*moving_shapes.SPLITS, *moving_shapes.COMPOSITION_SPLITS)):
        raise UserError(f"data.split {split} is unknown: {name} has {', '.join(splits)}, choose one of them")
    numbers, class_names = moving_shapes.split_indices(split), moving_shapes.class_names(split)
    composed = class_names is moving_shapes.COMPOSITIONS

    def label(index: int) -> int:
        return moving_shapes.composition(numbers[index]) if composed else moving_shapes.describe(numbers[index])[0]

    def captions(index: int) -> tuple[str, ...]:
        return moving_shapes.describe(numbers[index])[1]

    def read(index: int, choose: Choose, short_side: int | None) -> Clip:
        size, count, rate = short_side or 256, moving_shapes.NUM_FRAMES, moving_shapes.RATE
        info = VideoInfo(count, rate, size, size, count / rate, "rendered")
        frames = moving_shapes.render(numbers[index], np.asarray(choose(info), np.int64), size)
        return Clip(frames, label(index), captions(index), info)

    ids = [f"moving_shapes/{split}[{index}]" for index in range(len(numbers))]
    return Source(name, class_names, ids, read, label, captions, listed=True)
