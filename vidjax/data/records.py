"""Videos as JPEG frames in TFRecord files: schema, writing, and reading with random access.

Only the requested frames are decoded, so that a record yields four to six times as many clips per second as the video
that it was made from. A record is a `tf.train.Example`, and the fields of `Record` are its features, prefixed by
`video/` (`captions` is `video/caption`, with one value per caption or an empty string for none). Further fields are
stored as `field/NAME`, an array in .npy format, or as `stream/NAME`, the frames of a further stream as PNG.
`place/video/frames` and `place/stream/NAME` tell where in the record each frame is, so that a clip reads only its own.
Older records have no places, and the first ones no further fields.
"""

import glob
import io
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import BinaryIO

import numpy as np
import tensorflow as tf
from jaxtyping import Int

from vidjax.data.container import DecodeError
from vidjax.errors import UserError

tf.config.set_visible_devices([], "GPU")  # leaves the GPU to JAX


@dataclass(frozen=True)
class Record:
    """One stored video."""

    frames: Sequence[bytes]
    """Encoded images, JPEG or PNG, all of the same size."""
    rate: float
    """Frames per second; nan if unknown."""
    height: int
    width: int
    label: int
    """Index into the class names, -1 for none."""
    label_name: str
    """Empty for none. Bytes that are not UTF-8 are preserved, as in the id."""
    captions: tuple[str, ...]
    """Descriptions of the video; empty for none."""
    id: str
    """Name of the example in the source that it was made from."""
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Values of further fields that are not frames."""
    streams: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    """Further streams, with one encoded image (PNG, 1 to 4 channels) per stored frame of the video."""


_VIDEO = tuple(each for each in fields(Record) if each.name not in ("frames", "values", "streams"))


def encode_record(record: Record) -> bytes:
    """Serialises a record as a `tf.train.Example`, with the frames at the end and their places at the start.

    Serialised messages can be joined: the features of the parts are those of the whole.
    """
    features = {}
    for each in _VIDEO:
        value = getattr(record, each.name)
        values = (list(value) or [""]) if each.name == "captions" else [value]
        values = [value.encode(errors="surrogateescape") if isinstance(value, str) else value for value in values]
        if each.type is float:
            feature = tf.train.Feature(float_list=tf.train.FloatList(value=values))
        elif each.type is int:
            feature = _ints(values)
        else:
            feature = _bytes(values)
        features[_key(each.name)] = feature
    for name, value in record.values.items():
        features[f"field/{name}"] = _bytes([_to_npy(value)])
    images = {_key("frames"): record.frames} | {f"stream/{name}": each for name, each in record.streams.items()}
    tails, length = [], 0
    for key, frames in images.items():
        tails.append(_serialize({key: _bytes(frames)}))
        length += len(tails[-1])
        sizes = np.array([len(frame) for frame in frames], np.int64)
        # The frames end their part, each behind a tag and its length, which takes a byte for every seven bits.
        heads = np.array([1 + max(-(-len(frame).bit_length() // 7), 1) for frame in frames], np.int64)
        starts = length - np.cumsum((heads + sizes)[::-1])[::-1] + heads
        features[f"place/{key}"] = _ints(np.stack([starts, sizes], axis=1).ravel())
    return _serialize(features) + b"".join(tails)


def decode_record(data: "bytes | StoredBytes", id: str) -> Record:
    """The inverse of `encode_record`; raises DecodeError with `id` in the message.

    The frames are read from `data` when they are used. Records of older versions do not have their places, and are read
    completely.
    """
    head = data[:HEAD]
    end = _end_of_message(head)
    features, values = parse_example(head[:end] if end <= len(head) else data[:end], id), {}
    images = {
        key.removeprefix("place/"): Images(data, end, np.array(feature.int64_list.value, np.int64).reshape(-1, 2))
        for key, feature in features.items()
        if key.startswith("place/")
    }
    for key, feature in features.items():  # of older versions
        if key.startswith("stream/") or key == _key("frames"):
            images[key] = list(feature.bytes_list.value)
    if (frames := images.pop(_key("frames"), None)) is None:
        raise DecodeError(f"{id}: it was not written by write_tfrecords.py, as it has no '{_key('frames')}'")
    for each in _VIDEO:
        feature = features.get(_key(each.name))
        if feature is None:
            raise DecodeError(f"{id}: it was not written by write_tfrecords.py, as it has no '{_key(each.name)}'")
        if each.name == "captions":
            values[each.name] = texts(feature, id)
        else:
            kind = {float: "float_list", int: "int64_list"}.get(each.type, "bytes_list")
            value = getattr(feature, kind).value[0]
            values[each.name] = value.decode(errors="surrogateescape") if each.type is str else value
    arrays = {
        key.removeprefix("field/"): np.load(io.BytesIO(feature.bytes_list.value[0]), allow_pickle=False)
        for key, feature in features.items()
        if key.startswith("field/")
    }
    streams = {key.removeprefix("stream/"): each for key, each in images.items()}
    return Record(frames, **values, values=arrays, streams=streams)


HEAD = 1 << 14
"""Bytes of a record that are read first: everything but frames and long fields."""


@dataclass(frozen=True)
class Images(Sequence[bytes]):
    """The encoded images of a record, each read when it is used."""

    data: "bytes | StoredBytes"
    start: int
    """Of the images in the record, in bytes."""
    places: Int[np.ndarray, "n 2"]
    """First byte after `start`, and number of bytes, of each image."""

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> bytes:
        first, size = self.places[index].tolist()
        return self.data[self.start + first : self.start + first + size]


def _end_of_message(data: bytes) -> int:
    """Where the first field of a serialised message, of variable length, ends."""
    size = shift = 0
    for position, byte in enumerate(data[1:], 2):
        size |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return position + size
    return len(data)


def _serialize(features: Mapping[str, tf.train.Feature]) -> bytes:
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def _ints(values: Sequence[int] | np.ndarray) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def _bytes(values: Sequence[bytes]) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _to_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _key(field: str) -> str:
    return "video/caption" if field == "captions" else f"video/{field}"


def texts(feature: tf.train.Feature, id: str) -> tuple[str, ...]:
    """The non-empty texts in a feature; raises DecodeError with `id` in the message."""
    try:
        return tuple(value.decode() for value in feature.bytes_list.value if value)
    except UnicodeDecodeError as error:
        raise DecodeError(f"{id}: its caption is not valid UTF-8 ({error.reason})") from error


def parse_example(data: bytes, id: str) -> dict[str, tf.train.Feature]:
    """The features of a serialised `tf.train.Example`; raises DecodeError with `id` in the message."""
    try:
        return dict(tf.train.Example.FromString(data).features.feature)
    except Exception as error:  # protobuf's DecodeError, whose class depends on the installed backend
        raise DecodeError(f"{id}: the record is damaged ({error})") from error


@dataclass(frozen=True)
class StoredBytes:
    """The bytes of a record, read from its file when they are sliced."""

    file: BinaryIO
    offset: int
    length: int

    def __getitem__(self, part: slice) -> bytes:
        first, stop, _ = part.indices(self.length)
        self.file.seek(self.offset + first)
        return self.file.read(stop - first)


@dataclass(frozen=True)
class RecordIndex:
    """File, offset and length of each record of some TFRecord files."""

    paths: Sequence[str]
    file: Int[np.ndarray, "n"]
    """Index into `paths`."""
    offset: Int[np.ndarray, "n"]
    length: Int[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.file)

    def read(self, index: int) -> bytes:
        """The bytes of a record."""
        with self.open(index) as data:
            return data[:]

    @contextmanager
    def open(self, index: int) -> Iterator[bytes | StoredBytes]:
        """Opens the file of a record, whose bytes are read when they are sliced (from cloud storage, all at once)."""
        path = self.paths[self.file[index]]
        with _open(path) as file:
            data = StoredBytes(file, int(self.offset[index]), int(self.length[index]))
            yield data[:] if "://" in path else data

    def id(self, index: int) -> str:
        """The path of the file and the index of the record in it."""
        file = self.file[index]
        return f"{self.paths[file]}[{index - int(np.searchsorted(self.file, file))}]"


def find_files(pattern: str) -> list[str]:
    """The files that match a pattern, or the .tfrecord files in a folder, sorted.

    The name of an existing file or folder is taken literally, even if it contains special characters such as brackets.
    """
    remote = "://" in pattern
    is_folder, match = (tf.io.gfile.isdir, tf.io.gfile.glob) if remote else (os.path.isdir, glob.glob)
    if not remote and os.path.isfile(pattern):
        return [pattern]
    folder, name = (pattern, "*.tfrecord") if is_folder(pattern) else os.path.split(pattern)
    return sorted(match(os.path.join(glob.escape(folder) if is_folder(folder) else folder, name)))


def read_file(path: str) -> bytes | None:
    """The content of a file; None if it does not exist."""
    try:
        with _open(path) as file:
            return file.read()
    except (FileNotFoundError, tf.errors.NotFoundError):
        return None


def index_records(paths: Sequence[str]) -> RecordIndex:
    """Indexes the records of TFRecord files by reading only the record headers.

    Raises:
      UserError: a file is truncated or is not a TFRecord file.
    """
    rows = [(k, *row) for k, path in enumerate(paths) for row in _scan(path)]
    file, offset, length = np.array(rows, np.int64).reshape(-1, 3).T
    return RecordIndex(tuple(paths), file, offset, length)


def _scan(path: str) -> list[tuple[int, int]]:
    # Layout of a record: length (8 bytes), checksum of the length (4), content, checksum of the content (4).
    rows = []
    with _open(path) as file:
        size = tf.io.gfile.stat(path).length if "://" in path else os.path.getsize(path)
        position = 0
        while position < size:
            file.seek(position)
            header = file.read(12)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size
            if position + 16 + length > size:
                raise UserError(
                    f"{path} is truncated after {len(rows)} records or is not a TFRecord file: write it again"
                )
            rows.append((position + 12, length))
            position += 16 + length
    return rows


def _open(path: str) -> BinaryIO:
    # GFile supports cloud storage, but buffers half a megabyte after each seek.
    return tf.io.gfile.GFile(path, "rb") if "://" in path else open(path, "rb", buffering=0)
