"""Videos as lists of JPEG frames in TFRecord files: the one schema for writing and reading, with random access.

Only the frames that are asked for are decoded, so a record feeds four to six times as many clips a second as the
video it was made from. A record is a `tf.train.Example`; the fields of `Record` are its keys, under `video/`
(`captions` is `video/caption`, with a value for each; the empty one stands for none). Further fields of an example are
`field/NAME`, an array as a .npy file, or `stream/NAME`, the pictures of a further stream as PNG; older records have
none.
"""

import glob
import io
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import BinaryIO

import av
import numpy as np
import tensorflow as tf
from jaxtyping import Int, UInt8

from vidjax.data.container import DecodeError, blame_file
from vidjax.data.display import Resizer
from vidjax.errors import UserError

tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's


@dataclass(frozen=True)
class Record:
    """One stored video."""

    frames: Sequence[bytes]
    """Encoded pictures, JPEG or PNG, all of one size."""
    rate: float
    """Frames a second; nan if unknown."""
    height: int
    width: int
    label: int
    """Position in the list of class names, -1 for none."""
    label_name: str
    """Empty for none. A name of bytes that are no UTF-8 keeps them, as does the id."""
    captions: tuple[str, ...]
    """What is seen, in one sentence or several."""
    id: str
    """What the video was called where it came from."""
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Further fields that are no frames."""
    streams: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    """Further streams: for each stored frame of the video an encoded picture, PNG of 1 to 4 channels."""


_VIDEO = tuple(each for each in fields(Record) if each.name not in ("values", "streams"))


def encode_record(record: Record) -> bytes:
    """The record as a serialised `tf.train.Example`."""
    features = {}
    for each in _VIDEO:
        value = getattr(record, each.name)
        values = list(value) if each.name in ("frames", "captions") else [value]
        if each.name == "captions":
            values = values or [""]
        values = [value.encode(errors="surrogateescape") if isinstance(value, str) else value for value in values]
        if each.type is float:
            feature = tf.train.Feature(float_list=tf.train.FloatList(value=values))
        elif each.type is int:
            feature = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        else:
            feature = _bytes(values)
        features[_key(each.name)] = feature
    for name, value in record.values.items():
        features[f"field/{name}"] = _bytes([_to_npy(value)])
    for name, frames in record.streams.items():
        features[f"stream/{name}"] = _bytes(frames)
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def decode_record(data: bytes, id: str) -> Record:
    """The inverse of `encode_record`; raises DecodeError, in which the record is called `id`."""
    features, values = parse_example(data, id), {}
    for each in _VIDEO:
        feature = features.get(_key(each.name))
        if feature is None:
            raise DecodeError(f"{id}: it is no record of ours, as it has no '{_key(each.name)}'")
        kind = {float: "float_list", int: "int64_list"}.get(each.type, "bytes_list")
        value = list(getattr(feature, kind).value)
        if each.name == "captions":
            value = texts(feature, id)
        elif each.name != "frames":
            value = value[0].decode(errors="surrogateescape") if each.type is str else value[0]
        values[each.name] = value
    arrays, streams = {}, {}
    for key, feature in features.items():
        kind, _, name = key.partition("/")
        if kind == "field":
            arrays[name] = np.load(io.BytesIO(feature.bytes_list.value[0]), allow_pickle=False)
        elif kind == "stream":
            streams[name] = list(feature.bytes_list.value)
    return Record(**values, values=arrays, streams=streams)


def _bytes(values: Sequence[bytes]) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _to_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _key(field: str) -> str:
    return "video/caption" if field == "captions" else f"video/{field}"


def texts(feature: tf.train.Feature, id: str) -> tuple[str, ...]:
    """The texts of a feature without the empty ones; raises DecodeError naming `id`."""
    try:
        return tuple(value.decode() for value in feature.bytes_list.value if value)
    except UnicodeDecodeError as error:
        raise DecodeError(f"{id}: its caption is no text ({error.reason})") from error


def parse_example(data: bytes, id: str) -> dict[str, tf.train.Feature]:
    """The features of a serialised `tf.train.Example`; raises DecodeError, in which it is called `id`."""
    try:
        return dict(tf.train.Example.FromString(data).features.feature)
    except Exception as error:  # protobuf's DecodeError, whose class depends on the installed backend
        raise DecodeError(f"{id}: the record is damaged ({error})") from error


def encode_frames(frames: UInt8[np.ndarray, "t h w 3"], quality: int) -> list[bytes]:
    """Pictures as JPEG of a quality of 1 to 100."""
    return [tf.io.encode_jpeg(frame, quality=quality).numpy() for frame in frames]


def encode_stream(frames: UInt8[np.ndarray, "t h w c"]) -> list[bytes]:
    """Frames of 1 to 4 channels as PNG, without loss."""
    return [tf.io.encode_png(frame).numpy() for frame in frames]


def channels(encoded: bytes, id: str) -> int:
    """The channels of an encoded picture; raises DecodeError naming `id`."""
    with blame_file(id):
        return tf.io.decode_png(encoded).shape[-1]


def decode_frames(
    encoded: Sequence[bytes], indices: Sequence[int] | np.ndarray, short_side: int | None, id: str, channels: int = 3
) -> UInt8[np.ndarray, "t h w c"]:
    """The pictures at `indices`, RGB, shrunk to `short_side` unless smaller; raises DecodeError naming `id`.

    Pictures of another number of channels, as of optical flow, are PNG and stay as large as they are.
    """
    if not len(indices):
        return np.zeros((0, 1, 1, channels), np.uint8)
    wanted, order = np.unique(np.asarray(indices, np.int64), return_inverse=True)
    pictures, resize = [], Resizer()
    for position in wanted:
        try:
            # PNG too. The default, a fast transform, is 0.8 levels darker than what libjpeg and Pillow give (TF 2.21).
            if channels == 3:
                picture = tf.io.decode_jpeg(encoded[position], channels=3, dct_method="INTEGER_ACCURATE").numpy()
            else:
                picture = tf.io.decode_png(encoded[position]).numpy()
        except tf.errors.InvalidArgumentError as error:
            raise DecodeError(f"{id}: frame {position} is no picture that can be decoded") from error
        height, width = picture.shape[:2]
        if channels == 3 and short_side is not None and short_side < min(height, width):
            scale = short_side / min(height, width)
            picture = resize(av.VideoFrame.from_ndarray(picture), round(height * scale), round(width * scale))
        pictures.append(picture)
    with blame_file(id):  # pictures of several sizes
        return np.stack(pictures)[order]


def picture_size(encoded: bytes, id: str) -> tuple[int, int]:
    """(height, width) of an encoded picture; raises DecodeError naming `id`."""
    return decode_frames([encoded], np.zeros(1, np.int64), None, id).shape[1:3]


@dataclass(frozen=True)
class RecordIndex:
    """Where each record of some TFRecord files begins."""

    paths: Sequence[str]
    file: Int[np.ndarray, "n"]
    """Position in `paths`."""
    offset: Int[np.ndarray, "n"]
    length: Int[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.file)

    def read(self, index: int) -> bytes:
        """The content of a record."""
        with _open(self.paths[self.file[index]]) as file:
            file.seek(int(self.offset[index]))
            return file.read(int(self.length[index]))

    def id(self, index: int) -> str:
        """The file and the number of the record in it."""
        file = self.file[index]
        return f"{self.paths[file]}[{index - int(np.searchsorted(self.file, file))}]"


def find_files(pattern: str) -> list[str]:
    """The files that a pattern matches, sorted; of a folder, the .tfrecord files in it.

    What exists is meant as it is called: a name may hold brackets, which are signs of a pattern.
    """
    remote = "://" in pattern
    is_folder, match = (tf.io.gfile.isdir, tf.io.gfile.glob) if remote else (os.path.isdir, glob.glob)
    if not remote and os.path.isfile(pattern):
        return [pattern]
    folder, name = (pattern, "*.tfrecord") if is_folder(pattern) else os.path.split(pattern)
    return sorted(match(os.path.join(glob.escape(folder) if is_folder(folder) else folder, name)))


def read_file(path: str) -> bytes | None:
    """What a file holds; None where there is none."""
    try:
        with _open(path) as file:
            return file.read()
    except (FileNotFoundError, tf.errors.NotFoundError):
        return None


def index_records(paths: Sequence[str]) -> RecordIndex:
    """Finds the records of TFRecord files by their headers, without reading what is in them.

    Raises:
      UserError: a file is cut short or is no TFRecord file.
    """
    rows = [(k, *row) for k, path in enumerate(paths) for row in _scan(path)]
    file, offset, length = np.array(rows, np.int64).reshape(-1, 3).T
    return RecordIndex(tuple(paths), file, offset, length)


def _scan(path: str) -> list[tuple[int, int]]:
    # A record: its length (8 bytes), a checksum of that (4), the content, a checksum of that (4).
    rows = []
    with _open(path) as file:
        size = tf.io.gfile.stat(path).length if "://" in path else os.path.getsize(path)
        position = 0
        while position < size:
            file.seek(position)
            header = file.read(12)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size
            if position + 16 + length > size:
                raise UserError(f"{path} is cut short after {len(rows)} records or is no TFRecord file: write it again")
            rows.append((position + 12, length))
            position += 16 + length
    return rows


def _open(path: str) -> BinaryIO:
    # TensorFlow's files read buckets but buffer half a megabyte at each seek.
    return tf.io.gfile.GFile(path, "rb") if "://" in path else open(path, "rb")
