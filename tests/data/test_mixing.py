"""A mix of sources: shares of every batch, epochs of each source, labels, fields, and invalid mixes."""

import itertools

import numpy as np
import pytest

from vidjax.data import mixing
from vidjax.data.config import DataConfig
from vidjax.data.example import Field
from vidjax.data.pipeline import train_batches
from vidjax.data.sources import draw, open_source, subset
from vidjax.errors import UserError
from vidjax.runs.workdir import describe_examples

SHAPES = open_source("synthetic:moving_shapes", "validation")
COUNTS, WEIGHTS = (5, 15, 40), (3, 1, 4)
SOURCES = [subset(SHAPES, range(count)) for count in COUNTS]
MIX = mixing.mix("mix:a=3,b=1,c=4", SOURCES, WEIGHTS)


def drawn(batches, size, **settings):
    """The indices of examples in the first batches."""
    config = DataConfig(frames=1, size=8, workers=2)
    stream = train_batches(MIX, config, **({"batch_size": size, "seed": 1} | settings))
    return [batch["index"] for batch in itertools.islice(stream, batches)]


def counts_of(indices):
    """How many of the examples are of each source."""
    return np.bincount(np.searchsorted(np.cumsum(COUNTS)[:-1], indices, side="right"), minlength=3)


def test_every_source_has_its_share_and_its_own_epochs():
    exact = drawn(30, 8)
    assert all((counts_of(batch) == WEIGHTS).all() for batch in exact)
    # 90, 30 and 120 clips: 18, 2 and 3 epochs of the sources.
    assert (np.bincount(np.concatenate(exact)) == np.repeat((18, 2, 3), COUNTS)).all()
    one, two = (np.concatenate(half) for half in (exact[:15], exact[15:]))
    one, two = (half[(half >= 5) & (half < 20)] for half in (one, two))
    assert (np.sort(one) == np.sort(two)).all() and (one != two).any()
    uneven = [counts_of(batch) for batch in drawn(12, 10)]  # 3.75, 1.25 and 5 of 10
    assert (sum(uneven) == np.asarray(WEIGHTS) * 15).all()
    assert (np.abs(uneven - np.array([3.75, 1.25, 5])) < 2).all()
    places = [np.flatnonzero(batch >= 20).tolist() for batch in exact[:5]]
    assert len({tuple(each) for each in places}) > 1  # not always the same rows


def test_batch_n_of_a_mix_depends_only_on_n_and_the_seed():
    whole = drawn(8, 12)
    for first in (3, 7):
        np.testing.assert_array_equal(drawn(8 - first, 12, first_batch=first), whole[first:])
    halves = [drawn(8, 12, process_index=k, process_count=2) for k in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), whole)
    assert (np.concatenate(drawn(8, 12, seed=2)) != np.concatenate(whole)).mean() > 0.9


def test_any_run_of_clips_has_the_shares_to_within_a_clip_or_two():
    for weights in ((1, 1), (67, 20, 113), (1, 999), (7, 5, 3, 2)):
        sources, before = mixing.slots(weights)
        counts = np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
        assert (counts[-1] == weights).all()
        assert (before == counts[np.arange(len(sources)), sources] - 1).all()
        expected = np.arange(1, len(sources) + 1)[:, None] * np.asarray(weights) / sum(weights)
        assert np.abs(counts - expected).max() <= len(weights) / 4 + 0.5  # twice that between any two places


def test_weights_are_read_as_whole_numbers_in_the_same_proportions():
    assert mixing.read_mix("mix:a.csv:/v=0.335, tfrecord:/r/*=.1,date=1/b.csv=0.565") == {
        "a.csv:/v": 67, "tfrecord:/r/*": 20, "date=1/b.csv": 113,
    }  # fmt: skip
    assert mixing.read_mix("mix:a=4,b=2") == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mix:a=0,b=1", "the weight of a is 0, it must be above 0: leave out"),
        ("mix:a=1,b=-0.5", "the weight of b is -0.5, it must be above 0"),
        ("mix:a=1,b=two", "the weight of b is 'two', not a number"),
        ("mix:a=1,b=nan", "the weight of b is 'nan', not a number"),
        ("mix:a,b=1", "'a' has no weight, write mix:SOURCE=WEIGHT,SOURCE=WEIGHT"),
        ("mix:", "'' has no weight"),
        ("mix:a=1", "has a single source"),
        ("mix:a=1,a=2", "names a twice"),
        ("mix:a=1,b=0.0000012345", "round the weights"),
        ("mix:synthetic:moving_shapes=1,nowhere.csv=1", "the manifest nowhere.csv does not exist"),
    ],
)
def test_invalid_mixes_raise(name, message):
    with pytest.raises(UserError, match=message):
        open_source(name)


def test_a_source_must_have_the_videos_of_its_share_of_a_batch():
    mixing.require_enough(MIX, 13)
    with pytest.raises(UserError, match="has 5 videos, but its weight gives it 6 of the 16 of every batch"):
        mixing.require_enough(MIX, 16)


def renamed(source, names, **fields):
    """The source with other class names, in the same order, and further fields."""
    return source.__class__(**vars(source) | {"class_names": names, "fields": source.fields | fields})


def test_labels_are_mapped_to_common_classes_and_unused_if_classes_differ():
    names = SHAPES.class_names
    backwards = subset(SHAPES, range(6))
    backwards = renamed(backwards, tuple(name.upper() for name in reversed(names)))
    mix = mixing.mix("mix:", [SOURCES[0], backwards], [1, 1])
    assert mix.class_names == names
    assert mix.label(3) == SHAPES.label(3) and mix.captions(7) == SHAPES.captions(2)
    assert [mix.label(5 + i) for i in range(6)] == [len(names) - 1 - SHAPES.label(i) for i in range(6)]
    with mix.open(5, ()) as example:
        assert example.label == mix.label(5)

    other = renamed(SOURCES[1], ("swimming", *names[1:]))
    few = subset(SHAPES, [index for index in range(40) if SHAPES.label(index) > 5][:3])
    mix = mixing.mix("mix:", [few, other], [1, 1])
    assert mix.class_names == () and {mix.label(i) for i in range(len(mix))} == {-1}
    assert "has 1 classes that synthetic:moving_shapes lacks, such as 'swimming'" in mix.notes[0]


def test_a_mix_has_the_fields_that_all_sources_have_in_common():
    mix = mixing.mix("mix:", [SOURCES[0], renamed(SOURCES[1], (), flow=Field("frames", (3,), "uint8"))], [1, 1])
    assert set(mix.fields) == {"video", "label", "tracks"} and "flow cannot be used" in mix.notes[1]
    with pytest.raises(UserError, match="has no field 'flow' that its sources share: choose among video"):
        mix.specs(["flow"])


def test_other_weights_are_other_data_and_a_part_of_a_mix_is_not_weighted():
    other = mixing.mix(MIX.name, SOURCES, (1, 1, 1))
    assert describe_examples(MIX)["sha256"] != describe_examples(other)["sha256"]
    assert draw(MIX, 20, 0).parts == ()
