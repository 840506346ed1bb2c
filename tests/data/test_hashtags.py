"""Hashtags in captions as labels: parsing, numbering, fields of batches, and square-root sampling."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from vidjax.data import moving_shapes, pipeline
from vidjax.data.batches import evaluation_batches
from vidjax.data.config import DataConfig
from vidjax.data.hashtags import find_hashtags, read_hashtags, square_root_weights, with_hashtags
from vidjax.data.pipeline import train_batches
from vidjax.data.sources import open_source, subset
from vidjax.errors import UserError
from vidjax.runs.records import RecordConfig, make_record
from vidjax.runs.workdir import describe_examples

TINY = DataConfig(frames=1, size=8, workers=2)
SHAPES = subset(open_source("synthetic:moving_shapes", "hashtags_train"), range(12))


def listed(folder, *captions):
    """A manifest of videos with these captions, which are never opened."""
    rows = []
    for number, caption in enumerate(captions):
        (folder / f"{number}.mp4").touch()
        rows.append({"path": f"{number}.mp4"} | ({} if caption is None else {"caption": caption}))
    (folder / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_source(str(folder / "web.jsonl"))


def test_hashtags_are_words_with_a_letter_in_lower_case_and_once():
    found = find_hashtags(["riding #Surfing,#beach! (#été_2024)", "more #surfing #24h #1 a#b &#39; # ##x"])
    assert found == ("surfing", "beach", "été_2024", "24h", "x")


def test_a_part_of_a_linked_page_is_no_hashtag():
    links = "https://x.y/z#part http://x.y/z/#one (www.x.y/#two) x.co.uk/a/?b=#three"
    found = find_hashtags([f"{links} #beach", "（https://x.y/#four）#sea, #sun.set/#sand"])
    assert found == ("beach", "sea", "sun", "sand")


def test_videos_are_labelled_by_the_hashtags_that_count_and_the_rest_is_counted(tmp_path):
    source = listed(tmp_path, "#b #a", ["no tag", "#a #c"], None, "#c #d #C", "#d")
    every = with_hashtags(source)
    assert every.class_names == ("a", "b", "c", "d") and every.fields["hashtags"].shape == (2,)
    assert [every.label(i) for i in range(len(every))] == [1, 0, 2, 3]
    assert [note.partition(": ")[2] for note in every.notes] == [
        "4 hashtags, 1.8 of a video; the most frequent is #a of 2, the rarest #b of 1",
        "1 of 5 videos have no hashtag that counts, left out",
    ]
    some = with_hashtags(source, ("c", "e", "a"))
    assert some.class_names == ("c", "e", "a") and [some.label(i) for i in range(len(some))] == [2, 2, 0]
    assert [note.partition(": ")[2] for note in some.notes] == [
        "3 hashtags, 1.3 of a video; the most frequent is #c of 2, the rarest #e of 0",
        "2 other hashtags do not count (#d 2, #b 1)",
        "2 of 5 videos have no hashtag that counts, left out",
    ]
    assert describe_examples(every) != describe_examples(some)


def test_batches_have_all_hashtags_padded_and_the_first_as_label():
    source = with_hashtags(SHAPES)
    expected = [[source.class_names.index(tag) for tag in find_hashtags(SHAPES.captions(i))] for i in range(12)]
    train = next(train_batches(source, TINY, batch_size=24, seed=0, fields=("hashtags",)))
    (whole,) = evaluation_batches(source, TINY, batch_size=13, fields=("hashtags",))
    assert train["hashtags"].shape == (24, 3) and {len(each) for each in expected} == {1, 2, 3}
    for batch in (train, whole):
        for index, label, tags in zip(batch["index"], batch["label"], batch["hashtags"], strict=True):
            numbers = [] if index < 0 else expected[index]
            assert tags.tolist() == [*numbers, *[-1] * (3 - len(numbers))] and label == tags[0]


def test_records_have_the_hashtags_of_their_source(tmp_path):
    config = RecordConfig("shapes", str(tmp_path), short_side=16, max_frames=1)
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        for index in range(len(SHAPES)):
            writer.write(make_record(SHAPES, index, config, ()))
        writer.write(b"damaged")
    ours, theirs = with_hashtags(SHAPES), with_hashtags(open_source(f"tfrecord:{tmp_path}"))
    assert theirs.class_names == ours.class_names and len(theirs) == len(ours) == 12
    assert theirs.notes[-1].endswith("1 of 13 videos have no hashtag that counts, left out; 1 of them cannot be read")
    for index in (0, 11):
        with ours.open(index, ("hashtags",)) as one, theirs.open(index, ("hashtags",)) as other:
            assert one.label == other.label and one.values["hashtags"].tolist() == other.values["hashtags"].tolist()


COUNTS = (1, 4, 16, 64, 100)
ONE_EACH = np.repeat(np.arange(5), COUNTS)
RARE = replace(subset(SHAPES, [0] * sum(COUNTS)), captions=lambda index: (f"#t{ONE_EACH[index]}",))
"""Videos with one of five hashtags each; the square roots of their numbers are 1, 2, 4, 8 and 10."""


def drawn(clips, seed=5):
    """The indices of the first clips of training."""
    order = pipeline._weighted_order(with_hashtags(RARE).weights, seed)
    return np.array(list(tf.data.Dataset.range(clips).map(order).as_numpy_iterator()))


def test_a_hashtag_is_drawn_by_the_square_root_of_its_frequency():
    epochs = drawn(50 * len(RARE)).reshape(50, len(RARE))
    shares = np.array([1, 2, 4, 8, 10]) / 25 * len(RARE)
    of_tags = [np.bincount(ONE_EACH[epoch], minlength=5) for epoch in epochs]
    assert (np.abs(np.array(of_tags) - shares) < 1).all()  # in every epoch
    expected = np.repeat(shares / COUNTS, COUNTS)
    times = np.stack([np.bincount(epoch, minlength=len(RARE)) for epoch in epochs])
    assert (times >= np.floor(expected)).all() and (times <= np.ceil(expected)).all()
    assert np.abs(times.mean(axis=0) - expected).max() < 0.35  # five standard deviations, or more
    assert (epochs[0] != epochs[1]).mean() > 0.8 and (epochs[0] != np.sort(epochs[0])).mean() > 0.8


def test_the_rarest_of_several_hashtags_decides():
    np.testing.assert_allclose(square_root_weights([[0], [1, 0], [0, 2], [0, 2]]), [0.5, 1, 0.5**0.5, 0.5**0.5])


def test_batch_n_of_a_weighted_source_depends_only_on_n_and_the_seed():
    source, whole = with_hashtags(RARE), drawn(40)
    for first in (0, 3):
        batch = next(train_batches(source, TINY, batch_size=10, seed=5, first_batch=first))
        np.testing.assert_array_equal(batch["index"], whole[10 * first : 10 * first + 10])
    halves = [
        next(train_batches(source, TINY, batch_size=10, seed=5, process_index=k, process_count=2)) for k in (0, 1)
    ]
    assert [*halves[0]["index"], *halves[1]["index"]] == whole[:10].tolist()
    assert (drawn(40, seed=6) != whole).mean() > 0.7
    np.testing.assert_array_equal(subset(source, [0, 1, 30]).weights, source.weights[[0, 1, 30]])


@pytest.mark.parametrize(
    ("captions", "names", "message"),
    [
        (("no", None), None, r"no caption of \S+ has a hashtag: write them into the captions, as in '#surfing'"),
        (("#a", "#b"), ("c", "d"), "has one of the 2 hashtags that count, such as #c: write them"),
        (("#a", "#A #a"), None, r"has the single hashtag #a: learning needs two or more"),
    ],
)
def test_captions_without_hashtags_are_one_line(captions, names, message, tmp_path):
    with pytest.raises(UserError, match=message) as raised:
        with_hashtags(listed(tmp_path, *captions), names)
    assert "\n" not in str(raised.value)


def test_a_list_of_hashtags_is_read_or_refused_in_one_line(tmp_path):
    path = tmp_path / "tags.json"
    path.write_text('["#Surfing", "beach_volley"]')
    assert read_hashtags(str(path)) == ("surfing", "beach_volley") and read_hashtags("all") is None
    for content, message in (
        ('["playing drums"]', "has 'playing drums', which is no hashtag: write it as one word, with a letter"),
        ('["a", "#A"]', "has #a twice: capitals do not count, remove one"),
        ('{"a": 1}', "must be a list of class names"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_hashtags(str(path))
    with pytest.raises(UserError, match=r"none.json cannot be read \(No such file"):
        read_hashtags(str(tmp_path / "none.json"))


def test_a_mix_is_refused():
    mix = open_source("mix:synthetic:moving_shapes=1,synthetic:many_shapes=1")
    with pytest.raises(UserError, match="is a mix, and hashtags are of one source: merge the lists, or omit"):
        with_hashtags(mix)


def test_the_embedded_videos_name_their_attributes():
    caption = moving_shapes.hashtags(11, every=True)
    assert set(find_hashtags(caption)) == {"up_and_left", "cyan", "triangle"}
    some = [find_hashtags(moving_shapes.hashtags(index, every=False)) for index in range(300)]
    assert all(set(tags) <= set(find_hashtags(moving_shapes.hashtags(i, every=True))) for i, tags in enumerate(some))
    counts = np.bincount([len(tags) for tags in some])
    assert counts[0] == 0 and (np.abs(counts[1:] - 100) < 30).all()


def test_the_long_tail_has_fewer_and_fewer_videos_of_each_colour_and_all_directions_of_each():
    numbers = moving_shapes.split_indices("hashtags_long_tail")
    assert set(numbers) < set(moving_shapes.SPLITS["train"]) and list(numbers) == sorted(numbers)
    counts = Counter(moving_shapes.scene_of(index).color for index in numbers)
    assert [color for color, _ in counts.most_common()] == list(moving_shapes.COLORS)
    shares = np.array([counts[color] for color in moving_shapes.COLORS])
    np.testing.assert_allclose(shares[1:] / shares[:-1], moving_shapes.TAIL, atol=0.12)
    assert {moving_shapes.label(i) for i in numbers if moving_shapes.scene_of(i).color == "pink"} == {*range(8)}
    source = open_source("synthetic:moving_shapes", "hashtags_long_tail")
    assert source.captions(7) == moving_shapes.hashtags(numbers[7], every=False)
