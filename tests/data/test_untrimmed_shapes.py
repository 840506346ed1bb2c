"""Untrimmed videos of moving shapes: what the pixels show is what the segments say."""

import numpy as np

from vidjax.data import untrimmed_shapes
from vidjax.data.moving_shapes import CLASSES, RATE
from vidjax.data.sources import open_source


def center(frame):
    """The centre of the shape, which is brighter than any background, on the torus: as angles of x and y."""
    shape = frame.max(axis=-1) > 120
    turns = np.exp(2j * np.pi * np.arange(len(frame)) / len(frame))
    return np.angle((shape.sum(axis=0) * turns).sum()), np.angle((shape.sum(axis=1) * turns).sum())


def test_the_shape_moves_within_segments_in_their_direction_and_stands_still_between_them():
    source = open_source("synthetic:untrimmed_shapes", "validation")
    with source.open(3, ["segments"]) as example:
        segments, frames = example.values["segments"], example.streams["video"].read(np.arange(480), 48)[0]
    centers = np.array([center(frame) for frame in frames])
    step = np.angle(np.exp(1j * np.diff(centers, axis=0)))  # radians from each frame to the next
    covered = np.zeros(479, bool)
    for start, end, label in segments:
        inside = slice(round(start * RATE), min(round(end * RATE), 479))
        x, y = step[inside].sum(axis=0)
        assert round(np.arctan2(-y, x) / (np.pi / 4)) % 8 == label
        covered[inside] = True
    assert len(segments) > 3 and np.abs(step[~covered]).max() == 0 and (np.abs(step[covered]).max(axis=1) > 0).all()


def test_a_longer_video_begins_like_a_shorter_one_and_names_and_classes_are_those_of_the_annotations():
    index = untrimmed_shapes.SPLITS["train"][5]
    frames = np.array([470, 3])
    longer = untrimmed_shapes.render(index, np.append(frames, 100_000), 16)
    np.testing.assert_array_equal(untrimmed_shapes.render(index, frames, 16), longer[:2])
    assert untrimmed_shapes.segments(index, 100_000)[-1, 1] > 6000
    database = untrimmed_shapes.annotations()["database"]
    source = open_source("synthetic:untrimmed_shapes", "train")
    entry = database[source.ids[5].rpartition("/")[2]]
    assert entry["subset"] == "training" and entry["duration"] == 30
    expected = [(start, end, CLASSES[int(label)]) for start, end, label in untrimmed_shapes.segments(index, 480)]
    assert [(*each["segment"], each["label"]) for each in entry["annotations"]] == expected


def test_the_sentences_of_a_video_ask_for_each_of_its_motions_once_and_rate_how_much_of_a_clip_moves():
    rows = untrimmed_shapes.queries("moments_validation")
    index = untrimmed_shapes.SPLITS["moments_validation"][7]
    asked = [row for row in rows if row["vid"] == untrimmed_shapes.video_name("moments_validation", 7)]
    windows = {tuple(window): row for row in asked for window in row["relevant_windows"]}
    found = untrimmed_shapes.segments(index, 256)
    assert len(windows) == sum(len(row["relevant_windows"]) for row in asked) == len(found) > len(asked) > 1
    for start, end, label in found:
        row = windows[start, end]
        phrase = CLASSES[int(label)].replace("right", "to the right").replace("left", "to the left")
        assert row["query"].split(" moves ")[1].split(" over ")[0] == phrase
        ratings = np.zeros(8)
        ratings[row["relevant_clip_ids"]] = np.array(row["saliency_scores"])[:, 0]
        moving = np.zeros(256)
        for first, last in row["relevant_windows"]:
            moving[round(first * RATE) : round(last * RATE)] = 1
        np.testing.assert_array_equal(ratings, np.rint(4 * moving.reshape(8, 32).mean(axis=1)))
