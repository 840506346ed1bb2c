"""The embedded data set: a function of the index, with a label that only motion determines."""

import itertools
import re

import numpy as np
import pytest

from vidjax.data import moving_shapes


def test_a_video_is_a_function_of_its_index():
    frames = np.array([5, 0, 63])
    again = moving_shapes.render(7, np.arange(64), 32)[frames]
    np.testing.assert_array_equal(moving_shapes.render(7, frames, 32), again)
    assert (moving_shapes.render(8, frames, 32) != again).any()


def test_splits_are_disjoint_and_balanced():
    train, validation = moving_shapes.SPLITS["train"], moving_shapes.SPLITS["validation"]
    assert not set(train) & set(validation)
    for split in (train, validation):
        counts = np.bincount([index % 8 for index in split])
        assert (counts == len(split) / 8).all()
        assert all(moving_shapes.describe(index)[0] == index % 8 for index in split[:16])


def test_captions_describe_the_video():
    label, (full, short, vague) = moving_shapes.describe(11)
    assert moving_shapes.CLASSES[label] == "up and left"
    assert full == "a large cyan triangle moves up and to the left over a purple background"
    assert (
        short == "a cyan triangle moves up and to the left" == moving_shapes.COMPOSITIONS[moving_shapes.composition(11)]
    )
    assert vague == "a triangle moves up and to the left"
    every = [caption for index in range(400) for caption in moving_shapes.describe(index)[1]]
    assert {"an orange circle moves up", "a red square moves down"} <= set(every)
    assert not any(f"a {word}" in caption for caption in every for word in ("orange",))


def test_compositions_are_held_out_but_all_their_attribute_pairs_are_in_training():
    train, held_out = (
        [moving_shapes.composition(index) for index in moving_shapes.split_indices(split)]
        for split in ("compositions_train", "compositions_held_out")
    )
    assert set(moving_shapes.split_indices("compositions_train")) < set(moving_shapes.SPLITS["train"])
    assert set(moving_shapes.split_indices("compositions_held_out")) < set(moving_shapes.SPLITS["validation"])
    assert {moving_shapes.COMPOSITIONS[position] for position in held_out} == set(moving_shapes.compositions(True))
    assert {moving_shapes.COMPOSITIONS[position] for position in train} == set(moving_shapes.compositions(False))
    assert len(set(train)) == 144 and len(set(held_out)) == 48 and not set(train) & set(held_out)

    def pairs(positions):
        words = [re.match(r"an? (\w+) (\w+) moves (.+)", moving_shapes.COMPOSITIONS[p]).groups() for p in positions]
        return {pair for word in words for pair in itertools.combinations(word, 2)}

    assert len(pairs(train)) == 8 * 3 + 8 * 8 + 3 * 8
    assert len(pairs(held_out)) == 8 * 3 + 48 + 3 * 8  # two of eight for each pair, and at most one shape


def test_open_set_splits_part_the_classes_and_name_them():
    splits = {split: moving_shapes.split_indices(split) for split in moving_shapes.OPEN_SPLITS}
    assert {split: len(indices) for split, indices in splits.items()} == {
        "known_train": 6144, "known_validation": 768, "unknown_validation": 256
    }  # fmt: skip
    whole = {*splits["known_validation"], *splits["unknown_validation"]}
    assert whole == set(moving_shapes.SPLITS["validation"])
    for split, indices in splits.items():
        for index in indices[:16]:
            name = moving_shapes.class_names(split)[moving_shapes.label_in(split, index)]
            assert name == moving_shapes.CLASSES[moving_shapes.label(index)]
            assert (name in moving_shapes.UNKNOWN) == (split == "unknown_validation")


def shape_mask(index, frames, size=64):
    """Mask of the shape: the difference from the background, which is the darkest value over time of each pixel."""
    video = moving_shapes.render(index, np.arange(64), size).astype(int)
    return (np.abs(video[frames] - video.min(axis=0)).sum(axis=-1) > 60).astype(float)


@pytest.mark.parametrize("label", range(8))
def test_motion_determines_the_label(label):
    """The shift between two frames, by phase correlation on the torus, points in the label's direction."""
    for index in (label, label + 8, label + 80):
        now, later = (np.fft.fft2(mask) for mask in shape_mask(index, [0, 3]))
        peak = np.unravel_index(np.fft.ifft2(later * now.conj()).real.argmax(), (64, 64))
        down, right = ((p + 32) % 64 - 32 for p in peak)
        angle = np.arctan2(-down, right)
        assert round(angle / (2 * np.pi / 8)) % 8 == label


def test_a_single_frame_has_no_information_about_the_label():
    """The position is uniform for every class: its mean on the circle vanishes, in x and in y."""
    for frame in (0, 40):
        for label in range(8):
            phases = []
            for index in range(label, 8 * 150, 8):
                scene = moving_shapes.scene_of(index)
                phases.append(np.exp(2j * np.pi * ((scene.start + frame * scene.velocity) % 1)))
            assert (np.abs(np.mean(phases, axis=0)) < 3 / np.sqrt(150)).all()
    appearance = [moving_shapes.scene_of(index)[1:6] for index in range(800)]
    by_label = [np.mean([scene[2] for scene in appearance[label::8]]) for label in range(8)]
    assert np.ptp(by_label) < 0.02


def test_frames_are_periodic_and_the_same_at_every_size():
    """The background is as smooth across the border as inside, and sizes agree."""
    video = moving_shapes.render(3, np.arange(64), 48).astype(int)
    background = video.min(axis=0)
    inside = np.abs(np.diff(background, axis=1)).max()
    assert np.abs(background[:, 0] - background[:, -1]).max() <= inside + 2
    large = moving_shapes.render(3, np.array([10]), 96).reshape(48, 2, 48, 2, 3).mean((1, 3))
    assert np.abs(large - video[10]).mean() < 2


def test_shapes_are_brighter_than_every_background():
    for index in range(40):
        video = moving_shapes.render(index, np.arange(0, 64, 8), 32)
        scene = moving_shapes.scene_of(index)
        assert moving_shapes.render_background(scene, 32).max() <= 90 <= min(moving_shapes.COLORS[scene.color])
        assert (video.max(axis=(1, 2)) >= 90).all()
