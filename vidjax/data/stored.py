"""Sources that store videos as encoded images: TFRecords of vidjax, and TensorFlow Datasets."""

import difflib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from jaxtyping import Num

from vidjax.data import images, records
from vidjax.data.container import DecodeError, blame_file
from vidjax.data.decode import VideoInfo
from vidjax.data.example import LABEL, VIDEO, Example, Field, Source, in_pieces
from vidjax.data.field_files import FIELDS_FILE, parse_specs
from vidjax.data.labels import CLASSES_FILE, parse_class_names
from vidjax.errors import UserError


def tfrecords(name: str, pattern: str) -> Source:
    """Opens the TFRecords of `experiments/write_tfrecords.py` that match a pattern, or all of a folder."""
    paths = records.find_files(pattern)
    if not paths:
        raise UserError(f"data.source {name} matches no files: correct the pattern")
    index = records.index_records(paths)
    folder = os.path.dirname(paths[0])
    file = os.path.join(folder, CLASSES_FILE)
    content = records.read_file(file)
    class_names = () if content is None else parse_class_names(file, content)
    ids = [index.id(i) for i in range(len(index))]

    def record(i: int) -> records.Record:
        with blame_file(ids[i]), index.open(i) as data:
            return records.decode_record(data, ids[i])

    @contextmanager
    def open_example(i: int, names: Sequence[str]) -> Iterator[Example]:
        with ExitStack() as stack:  # open while frames are read
            with blame_file(ids[i]):
                opened = records.decode_record(stack.enter_context(index.open(i)), ids[i])
            for name in names:
                if fields.get(name, LABEL).kind == "frames" and name not in opened.streams:
                    raise DecodeError(f"{ids[i]}: it has no {name}")
            yield _open_record(opened, ids[i], names, fields)

    content = records.read_file(file := os.path.join(folder, FIELDS_FILE))
    fields = {} if content is None else parse_specs(file, content)
    return Source(
        name,
        class_names,
        ids,
        open_example,
        lambda i: record(i).label,
        lambda i: record(i).captions,
        listed=False,
        fields={"video": VIDEO, "label": LABEL, **fields},
    )


def tfds_videos(name: str, rest: str, split: str) -> Source:
    """Opens a prepared TensorFlow Dataset with a video feature, with random access and without the decoding of TFDS."""
    import tensorflow_datasets as tfds  # takes seconds and is rarely needed

    try:
        builder = tfds.builder(rest, data_dir=os.environ.get("TFDS_DATA_DIR"))
    except tfds.core.DatasetNotFoundError:
        near = difflib.get_close_matches(rest.partition("/")[0], tfds.list_builders(with_community_datasets=False))
        raise UserError(
            f"data.source {name} is not a TensorFlow Dataset and does not exist in TFDS_DATA_DIR"
            f"{' (did you mean ' + ' or '.join(near) + '?)' if near else ''}: correct the name or TFDS_DATA_DIR"
        ) from None
    except ValueError as error:
        raise UserError(f"data.source {name}: {str(error).splitlines()[0]}") from error
    if not builder.is_prepared():
        raise UserError(
            f"data.source {name} is not prepared in {builder.data_path}: run `tfds build {rest}` first, "
            "or set TFDS_DATA_DIR to the folder that contains it"
        )
    features = builder.info.features
    videos = [key for key, feature in features.items() if isinstance(feature, tfds.features.Video)]
    if not videos:
        raise UserError(f"data.source {name} has no video feature, only {', '.join(features)}: choose another")
    try:
        parts = builder.info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
        raise UserError(
            f"data.split {split} is unknown: {name} has {', '.join(builder.info.splits)}, choose one of them"
        ) from error
    if not sum(part.take for part in parts):
        raise UserError(f"data.split {split} of {name} has no examples: choose another")
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

    @contextmanager
    def open_example(i: int, names: Sequence[str]) -> Iterator[Example]:
        opened = record(i)
        height, width = images.image_size(opened.frames[0], f"{ids[i]}: frame 0") if opened.frames else (0, 0)
        yield _open_record(replace(opened, height=height, width=width), ids[i], names)

    return Source(
        name, class_names, ids, open_example, lambda i: record(i).label, lambda i: record(i).captions, listed=False
    )


def _open_record(
    record: records.Record, id: str, names: Sequence[str], fields: Mapping[str, Field] = MappingProxyType({})
) -> Example:
    if not record.frames:
        raise DecodeError(f"{id}: it has no frames")
    streams = {"video": EncodedImages(record, record.frames, 3, id)}
    for name in names:
        if name in record.streams:
            frames = record.streams[name]
            if len(frames) != len(record.frames):
                raise DecodeError(
                    f"{id}: its {name} has {len(frames)} frames, its video {len(record.frames)}: write it again"
                )
            spec = fields.get(name)
            streams[name] = EncodedImages(
                record, frames, images.channels(frames[0], id), id, spec.dtype if spec else "uint8"
            )
    values = {name: value for name, value in record.values.items() if name in names}
    return Example(streams, record.label, record.captions, values)


@dataclass(frozen=True)
class EncodedImages:
    """A stream of encoded images, which are decoded when they are read."""

    record: records.Record
    frames: Sequence[bytes]
    channels: int
    id: str
    dtype: str = "uint8"

    @property
    def info(self) -> VideoInfo:
        """See `example.Stream`."""
        count, rate = len(self.frames), self.record.rate
        return VideoInfo(count, rate, self.record.width, self.record.height, count / rate, "images")

    def encoded(self, indices: Sequence[int] | np.ndarray, short_side: int | None = None) -> images.EncodedFrames:
        """See `example.EncodedStream`."""
        return images.EncodedFrames(self.frames, indices, short_side, self.id, self.channels, self.dtype)

    def read(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None
    ) -> tuple[Num[np.ndarray, "t h w c"], VideoInfo]:
        """See `example.Stream`."""
        how = short_side, self.id, self.channels, self.dtype
        return images.decode_frames(self.frames, indices, *how), self.info

    def iterate(self, indices: np.ndarray, short_side: int | None) -> Iterator[Num[np.ndarray, "h w c"]]:
        """See `example.Stream`."""
        return in_pieces(self, indices, short_side)
