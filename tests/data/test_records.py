import dataclasses
import io
import math

import numpy as np
import pytest
import tensorflow as tf
import videos
from PIL import Image

from vidjax.data import images, records
from vidjax.data.decode import DecodeError


def record(count=5, number=0, **changes):
    frames = images.encode_frames(videos.numbered(count, first=number), quality=90)
    values = {"frames": frames, "rate": 12.5, "height": 48, "width": 80, "label": 2, "label_name": "a b"}
    return records.Record(**(values | {"captions": ("a caption – ü",), "id": f"clip {number}"} | changes))


def write(path, contents):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for content in contents:
            writer.write(content)
    return str(path)


@pytest.mark.parametrize("changes", [{}, {"captions": ("one", "two")}, {"label": -1, "label_name": "", "captions": ()}])
def test_records_round_trip(changes):
    written = record(**changes)
    assert listed(records.decode_record(records.encode_record(written), "x")) == written


def listed(record):
    """The record with its frames in memory."""
    streams = {name: list(images) for name, images in record.streams.items()}
    return dataclasses.replace(record, frames=list(record.frames), streams=streams)


class Counting(io.BytesIO):
    """A file that counts the bytes that are read from it."""

    count = 0

    def read(self, size):
        self.count += size
        return super().read(size)


def test_a_clip_reads_only_the_bytes_of_its_frames():
    frames = [bytes([k]) * (7 * k**3) for k in range(40)]  # lengths of none, one, two and three bytes
    written = record(frames=frames, streams={"flow": [b"a", b"bc"]})
    content = records.encode_record(written)
    file = Counting(b"before" + content + b"after")
    read = records.decode_record(records.StoredBytes(file, 6, len(content)), "x")
    chosen = [39, 0, 12]
    assert [read.frames[k] for k in chosen] == [frames[k] for k in chosen]
    assert file.count == records.HEAD + sum(len(frames[k]) for k in chosen)
    assert listed(read) == written


def test_records_are_serialised_examples_as_in_older_versions():
    """Which have all frames as one feature, and no places."""
    written = record(streams={"flow": [b"a", b"bc"]})
    example = tf.train.Example.FromString(records.encode_record(written))
    assert list(example.features.feature["video/frames"].bytes_list.value) == written.frames
    for key in ("place/video/frames", "place/stream/flow"):
        del example.features.feature[key]
    assert listed(records.decode_record(example.SerializeToString(), "x")) == written


def test_records_of_the_same_clip_are_equal_bytes_in_every_process():
    """Protobuf 7.36 (upb) writes a map in another order in each process, unless asked for that of the names."""
    content = records.encode_record(record(streams={"flow": [b"a", b"bc"], "audio": [b"d"]}))
    heads = [content.index(f"video/{name}".encode()) for name in ("caption", "height", "id", "rate", "width")]
    assert heads == sorted(heads)


@pytest.mark.parametrize(("stored", "captions"), [([b"a text"], ("a text",)), ([b""], ()), ([], ())])
def test_captions_of_older_records_are_read(stored, captions):
    """Older records have one text, which is empty for none."""
    example = tf.train.Example.FromString(records.encode_record(record()))
    del example.features.feature["video/caption"].bytes_list.value[:]
    example.features.feature["video/caption"].bytes_list.value.extend(stored)
    assert records.decode_record(example.SerializeToString(), "x").captions == captions
    example.features.feature["video/caption"].bytes_list.value.append(b"\xff")
    with pytest.raises(DecodeError, match=r"^x: its caption is not valid UTF-8"):
        records.decode_record(example.SerializeToString(), "x")


def test_an_unknown_rate_stays_unknown():
    assert math.isnan(records.decode_record(records.encode_record(record(rate=math.nan)), "x").rate)


def test_only_requested_frames_are_decoded():
    encoded = images.encode_frames(videos.numbered(6), quality=90)
    encoded[2] = b"damaged"
    frames = images.decode_frames(encoded, [5, 0, 5, 3], None, "x")
    assert videos.numbers(frames) == [5, 0, 5, 3]
    for indices in ([1, 2], [2, 3]):  # the first frame tells the size
        with pytest.raises(DecodeError, match=r"^x: frame 2 is not an image that can be decoded$"):
            images.decode_frames(encoded, indices, None, "x")


def encoded_as(image, kind):
    if kind in ("4:2:0", "4:4:4"):
        return tf.io.encode_jpeg(image, quality=90, chroma_downsampling=kind == "4:2:0").numpy()
    file = io.BytesIO()
    picture = Image.fromarray(image if kind != "grey" else image[..., 0])
    picture.save(file, "PNG" if kind == "png" else "JPEG", **({"subsampling": kind} if ":" in kind else {}))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["4:2:0", "4:2:2", "4:4:4", "grey", "png"])
def test_decoding_a_part_gives_the_pixels_of_decoding_everything(kind):
    """To the last digit, also at the edges, where colours are interpolated from outside the part."""
    rng = np.random.default_rng(0)
    pictures = tf.image.resize(rng.integers(0, 256, (3, 33, 44, 3), np.uint8), (128, 171)).numpy().astype(np.uint8)
    frames = images.EncodedFrames([encoded_as(picture, kind) for picture in pictures], [2, 0, 1, 0], None, "x")
    whole = frames[:, :, :]
    assert frames.shape == whole.shape == (4, 128, 171, 3)
    for _ in range(25):
        top, bottom = np.sort(rng.choice(129, 2, replace=False))
        left, right = np.sort(rng.choice(172, 2, replace=False))
        np.testing.assert_array_equal(frames[:, top:bottom, left:right], whole[:, top:bottom, left:right])


def test_images_are_shrunk_but_not_enlarged():
    encoded = images.encode_frames(videos.numbered(6), quality=90)
    assert images.decode_frames(encoded, [1], 24, "x").shape == (1, 24, 40, 3)
    assert videos.numbers(images.decode_frames(encoded, [4], 24, "x")) == [4]
    assert images.decode_frames(encoded, [1], 100, "x").shape == (1, 48, 80, 3)


def test_jpeg_is_decoded_as_by_pillow():
    """By default TensorFlow 2.21 uses a fast transform, whose output is 0.8 levels darker on average."""
    rng = np.random.default_rng(0)
    image = (128 + 60 * np.sin(np.arange(96)[:, None, None] / 9) + rng.normal(0, 9, (96, 128, 3))).clip(0, 255)
    (encoded,) = images.encode_frames(image.astype(np.uint8)[None], quality=90)
    frames = images.decode_frames([encoded], [0], None, "x")[0]
    np.testing.assert_array_equal(frames, np.asarray(Image.open(io.BytesIO(encoded))))


@pytest.mark.parametrize("width", [40, 41])
def test_shrinking_preserves_colour(width):
    (encoded,) = images.encode_frames(np.full((1, 48, 2 * width, 3), (250, 200, 40), np.uint8), quality=100)
    whole = images.decode_frames([encoded], [0], None, "x")[0, 0, 0].astype(int)
    assert np.abs(images.decode_frames([encoded], [0], 24, "x")[0] - whole).max() <= 1


def test_png_and_greyscale_images_are_decoded():
    grey = tf.io.encode_png(np.full((8, 8, 1), 77, np.uint8)).numpy()
    np.testing.assert_array_equal(images.decode_frames([grey], [0], None, "x"), np.full((1, 8, 8, 3), 77))


def test_the_index_contains_every_record_of_every_file(tmp_path):
    contents = [[bytes([k, i]) * (i * 7) for i in range(4 + k)] for k in range(3)]
    paths = [write(tmp_path / f"{k}.tfrecord", part) for k, part in enumerate(contents)]
    index = records.index_records(paths)
    flat = [content for part in contents for content in part]
    assert len(index) == len(flat) == 15
    for i in np.random.default_rng(0).permutation(15).tolist():
        assert index.read(i) == flat[i]
    assert index.id(0) == f"{paths[0]}[0]"
    assert index.id(14) == f"{paths[2]}[5]"


def test_an_empty_file_has_no_records(tmp_path):
    paths = [write(tmp_path / "a.tfrecord", []), write(tmp_path / "b.tfrecord", [b"x"])]
    assert records.index_records(paths).read(0) == b"x"


def test_truncated_and_other_files_are_refused(tmp_path):
    path = write(tmp_path / "a.tfrecord", [b"x" * 100, b"y" * 100])
    videos.truncate(tmp_path / "a.tfrecord", 0.9)
    with pytest.raises(ValueError, match=r"truncated after 1 records"):
        records.index_records([path])
    (tmp_path / "b.tfrecord").write_text("text instead of records")
    with pytest.raises(ValueError, match="is not a TFRecord file"):
        records.index_records([str(tmp_path / "b.tfrecord")])


def test_other_and_damaged_records_are_refused():
    with pytest.raises(
        DecodeError, match=r"^x: it was not written by write_tfrecords.py, as it has no 'video/frames'$"
    ):
        records.decode_record(tf.train.Example().SerializeToString(), "x")
    with pytest.raises(DecodeError, match=r"^x: the record is damaged"):
        records.decode_record(b"\xff" * 50, "x")
