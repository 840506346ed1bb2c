"""AVA's files and the clips around key frames: what is read, cut and refused."""

import numpy as np
import pytest
import videos

from vidjax.data import box_tables, many_shapes
from vidjax.data.batches import evaluation_batches
from vidjax.data.config import AugmentConfig, DetectionConfig
from vidjax.data.key_frames import frames_of_video, open_key_frames
from vidjax.data.moving_shapes import CLASSES
from vidjax.data.pipeline import train_batches
from vidjax.data.sources import open_source
from vidjax.errors import UserError

TRAIN = """a,0903,0.1,0.2,0.5,0.9,12,1
a,0903,0.1,0.2,0.5,0.9,17,1
a,0903,0.6,0.1,1.004,0.5,4,2
a,0900,0,0,1,1,12,1
b,0901,0,0,0.5,1,4,7
b,0902,0.3,0.3,0.3,0.4,4,7
"""
FOUND = "a,0903,0.1,0.2,0.5,0.9,12,0.95\na,0903,0.1,0.2,0.5,0.9,,0.95\nb,0901,0,0,1,1,,0.5\n"
MAP = """item { name: "stand" id: 12 }
label { name: "sit" label_id: 17 label_type: PERSON_MOVEMENT }
label { name: 'lie' label_id: 4 }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two videos of 4 s at 10 frames per second, which begin at 900 s of their films."""
    folder = tmp_path_factory.mktemp("ava")
    for name in "ab":
        videos.write_video(folder / "videos" / f"{name}.mp4", videos.numbered(40, 32, 48), rate=10)
    (folder / "train.csv").write_text(TRAIN)
    (folder / "found.csv").write_text(FOUND)
    (folder / "map.pbtxt").write_text(MAP)
    (folder / "out.csv").write_text("a,0900\n")
    return folder


def config(folder, **fields):
    named = {name: str(folder / value) for name, value in fields.items() if isinstance(value, str)}
    usual = {"train": str(folder / "train.csv"), "videos": str(folder / "videos"), "start": 900.0, "workers": 1}
    clips = {"frames": 4, "stride": 2, "size": 32, "short_side": 32}
    return DetectionConfig(**usual | clips | fields | named)


def test_clips_lie_around_key_frames_with_their_boxes_and_actions(folder):
    opened, validation = open_key_frames(config(folder, classes="map.pbtxt", validation="train.csv"))
    assert opened.ids == ("4", "12", "17") and opened.source.class_names == ("lie", "stand", "sit")
    assert [frame.key for frame in opened.frames] == [("a", 900), ("a", 903), ("b", 901)]
    assert "boxes have no area and are left out: b at 902 s" in opened.source.notes[0]
    clips = config(folder)
    (batch,) = evaluation_batches(
        opened.source, clips, batch_size=3, view_counts=(1, 3), fields=("boxes", "actions")
    )  # fmt: skip
    assert batch["valid"].all() and batch["boxes"].shape == (3, 3, 2, 4)
    # The third frame of a clip is the key frame; before the video its first frame is repeated.
    places = np.round(10 * batch["times"][:, 0]).astype(int)
    shown = [videos.numbers(opened.source.read(index, places[index]).frames) for index in range(3)]
    assert shown == [[0, 0, 0, 2], [26, 28, 30, 32], [6, 8, 10, 12]]
    assert batch["actions"].tolist() == [[[0, 1, 0], [0, 0, 0]], [[0, 1, 1], [1, 0, 0]], [[1, 0, 0], [0, 0, 0]]]
    # Crops of 32 x 32 lie at 0, 8 and 16 of 48 pixels; 1.004 is cut to 1.
    np.testing.assert_allclose(batch["boxes"][1, 0], [[0.15, 0.2, 0.75, 0.9], [0.9, 0.1, 1, 0.5]], atol=1e-6)
    np.testing.assert_allclose(batch["boxes"][1, 2, 1], [0.4, 0.1, 1, 0.5], atol=1e-6)
    assert len(validation.truth) == len(validation.frames) == 3 and validation.evaluated == (0, 1, 2)


def test_boxes_follow_crop_and_flip_and_keep_their_actions(folder):
    data = config(folder, classes="map.pbtxt", augment=AugmentConfig("random_resized", flip=True))
    opened, _ = open_key_frames(data)
    batch = next(train_batches(opened.source, data, batch_size=24, seed=0, fields=("boxes", "actions")))
    hidden, flipped = 0, set()
    for row in range(24):
        frame, (_, left, _, width, _, frame_width, mirrored) = opened.frames[batch["index"][row]], batch["crop"][row]
        for n, actions in enumerate(frame.actions):
            assert np.flatnonzero(batch["actions"][row, n]).tolist() == sorted(actions)
            x = np.clip((frame.boxes[n, [0, 2]] * frame_width - left) / width, 0, 1)
            if x[1] > x[0] and batch["boxes"][row, n, 0] >= 0:
                expected = 1 - x[::-1] if mirrored else x
                np.testing.assert_allclose(batch["boxes"][row, n, [0, 2]], expected, atol=1e-5)
                flipped.add(int(mirrored))
            hidden += batch["boxes"][row, n, 0] < 0
    assert flipped == {0, 1} and hidden


def test_proposals_excluded_key_frames_and_evaluated_classes(folder):
    (folder / "some.csv").write_text("label_id,label_name,label_type\n12,stand,X\n4,lie,X\n")
    fields = {"validation": "train.csv", "proposals": "found.csv", "evaluated": "some.csv"}
    lists = {"train_excluded": "out.csv", "validation_excluded": "out.csv"}
    opened, validation = open_key_frames(config(folder, classes="map.pbtxt", max_bad_share=0.5, **fields, **lists))
    assert [frame.key for frame in opened.frames] == [("a", 903), ("b", 901)]
    assert [(frame.key, frame.boxes.tolist()) for frame in validation.frames] == [(("a", 903), [[0.1, 0.2, 0.5, 0.9]])]
    assert len(validation.truth) == 3 and validation.excluded == {("a", 900)}
    assert (
        validation.evaluated == (0, 1) and "1 boxes with a score below 0.8 are left out" in validation.source.notes[0]
    )
    (only,) = frames_of_video(str(folder / "found.csv"), "a")
    assert only.key == ("a", 903) and only.actions == ((),)
    with pytest.raises(UserError, match=r"has boxes of a, b, none of c: rename"):
        frames_of_video(str(folder / "found.csv"), "c")


def replaced(old, new):
    return TRAIN.replace(old, new, 1)


REFUSED = [
    (
        replaced("0.1,0.2,0.5", "48,64,210"),
        {},
        "1 of 6 boxes look like pixels: a at 903 s .48 64 210 0.9.; coordinates",
    ),
    (replaced("0.1,0.2,0.5", "0.1,0.2,1.3"), {}, "1 of 6 boxes lie outside the frame: a at 903 s .*correct or remove"),
    (replaced("b,", "c,"), {"max_bad_share": 0.0}, "1 of the 2 annotated videos have no file in .*: c; add them"),
    ("a,901,0,0,1,1,12,1\n", {"max_bad_share": 0.0}, r"1 of the 2 videos in .* have no annotation: b; add them, or"),
    (replaced(",17,", ",99,"), {"classes": "map.pbtxt"}, "has 1 classes that are not in .*map.pbtxt: 99; add them"),
    (TRAIN, {"start": 0.0}, "2 of 2 videos cannot be read at their last key frame: a: there is no key frame at 903 s"),
    ("video,time,x1,y1,x2,y2,id,p\n" + TRAIN, {}, "line 1: 'video,time,x1,y1,x2,y2,id,p' is no row of video_id, "),
    ("a,901,0,0,1,1\nb,901,0,0,1,1\n", {}, "has no actions: give their ids or names in the seventh column"),
    ("a,901,,,,,,\n", {}, "has no boxes: add some"),
    (TRAIN, {"evaluated": "map.pbtxt", "classes": "two.csv"}, "has 1 classes that are not in .*two.csv: 17"),
    (TRAIN, {"classes": "train.csv"}, "train.csv names no actions: give AVA's .pbtxt, or a .csv of label_id"),
]


@pytest.mark.parametrize(("rows", "fields", "message"), REFUSED)
def test_wrong_input_is_one_line_before_training(folder, rows, fields, message):
    (folder / "wrong.csv").write_text(rows)
    (folder / "two.csv").write_text("4,lie\n12,stand\n")
    with pytest.raises(UserError, match=message) as caught:
        open_key_frames(config(folder, train="wrong.csv", **fields))
    assert "\n" not in str(caught.value)


def test_label_maps_of_both_forms_agree(folder):
    (folder / "map.csv").write_text("label_id,label_name,label_type\n17,sit,M\n4,lie,M\n12,stand,M\n")
    maps = [box_tables.read_label_map(str(folder / f"map.{kind}")) for kind in ("pbtxt", "csv")]
    assert list(maps[0].items()) == list(maps[1].items()) == [("4", "lie"), ("12", "stand"), ("17", "sit")]


def test_several_shapes_are_where_their_boxes_are_and_move_in_their_directions():
    opened, _ = open_key_frames(DetectionConfig(frames=2, stride=1, size=64, short_side=64, workers=1))
    counts = [len(frame.boxes) for frame in opened.frames]
    assert min(counts) == 2 and max(counts) == opened.most == 4
    compared = 0
    for index in range(30):
        frame = opened.frames[index]
        with opened.source.open(index, ("boxes",)) as example:
            before, now = example.streams["video"].read([0, 1], 64)[0]
        bright = now.max(axis=-1) > 120  # true for shapes, false for backgrounds
        cells = (np.arange(64) + 0.5) / 64

        def within(margin, sides=frame.boxes.T[..., None], cells=cells):
            x1, y1, x2, y2 = sides
            across, down = (cells > x1 - margin) & (cells < x2 + margin), (cells > y1 - margin) & (cells < y2 + margin)
            return across[:, None, :] & down[:, :, None]  # n h w

        inside = list(within(0))
        if (frame.boxes.min() > 0.02) and (frame.boxes.max() < 0.98):  # none re-enters on the other side
            assert not bright[~np.any(within(1 / 64), axis=0)].any()  # edges are smoothed
        alone = [each & ~np.any([o for o in inside if o is not each], axis=0) for each in inside]
        for mask, box, (direction,) in zip(alone, frame.boxes, frame.actions, strict=True):
            if mask.sum() < 0.8 * 64**2 * np.prod(box[2:] - box[:2]) or box.min() < 0.1 or box.max() > 0.9:
                continue
            wide = slice(int(64 * box[1]) - 4, int(64 * box[3]) + 5), slice(int(64 * box[0]) - 4, int(64 * box[2]) + 5)
            places = [np.argwhere(each[wide].max(axis=-1) > 120).mean(axis=0) for each in (before, now)]
            y, x = places[1] - places[0]
            compared += round(np.arctan2(-y, x) / (np.pi / 4)) % 8 == direction
    assert compared > 8


def test_tracks_of_the_videos_contain_the_boxes_of_key_frames():
    source = open_source("synthetic:many_shapes", "validation")
    with source.open(2, ("tracks",)) as example:
        tracks = example.values["tracks"]
    index = many_shapes.SPLITS["validation"][2]
    boxes, directions = many_shapes.boxes(index, 2.0)
    np.testing.assert_allclose(tracks[tracks[:, 1] == 2.0, 2:], boxes)
    assert set(directions) <= set(range(len(CLASSES)))
