import itertools
import json
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import videos

from vidjax.data.batches import BadFiles, evaluation_batches
from vidjax.data.config import AugmentConfig, ClipConfig, DataConfig
from vidjax.data.crop import center_crop
from vidjax.data.decode import VideoInfo, decode
from vidjax.data.example import Example
from vidjax.data.pipeline import train_batches
from vidjax.data.sources import open_source, subset
from vidjax.data.text import open_tokenizer, tokenize

RANDOM = AugmentConfig(flip=True, color_jitter=0.4, grey=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven videos in two classes; c/5.mp4 is damaged."""
    folder = tmp_path_factory.mktemp("folder")
    video = videos.write_video(folder / "a" / "0.mp4", videos.numbered(50))
    for i in range(1, 7):
        copy = folder / ("a" if i < 3 else "c") / f"{i}.mp4"
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(video, copy)
    videos.truncate(folder / "c" / "5.mp4", 0.5)
    return folder


def settings(source, **changes):
    values = {"source": str(source), "frames": 4, "size": 32, "stride": 3, "max_bad_share": 1.0}
    return DataConfig(**(values | changes))


@pytest.fixture(scope="module")
def captioned(folder):
    """The same videos with 20 captions each, made of the numbers of video and caption; every second one is long."""
    lines = [
        {"path": str(path), "caption": [f"{i} {j}" + " is long" * (j % 2) for j in range(20)]}
        for i, path in enumerate(sorted(folder.rglob("*.mp4")))
    ]
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "list.jsonl"


WORDS = {"tokenizer": open_tokenizer("bytes"), "context": 8}


def read_ids(ids):
    return ["".join(chr(i - 1) for i in row if 0 < i < 257) for row in ids]


def train(config, count, **changes):
    batches = train_batches(
        open_source(config.source, config.split), config, **({"batch_size": 4, "seed": 3} | changes)
    )
    return list(itertools.islice(batches, count))


def evaluate(config, **changes):
    return list(evaluation_batches(open_source(config.source, config.split), config, **({"batch_size": 4} | changes)))


def join(batches):
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def test_arrays_of_a_batch(folder):
    (batch,) = train(settings(folder), 1)
    assert {key: (value.shape, str(value.dtype)) for key, value in batch.items()} == {
        "video": ((4, 4, 32, 32, 3), "uint8"),
        "label": ((4,), "int32"),
        "valid": ((4,), "bool"),
        "index": ((4,), "int32"),
        "times": ((4, 4), "float32"),
        "crop": ((4, 7), "int32"),
    }


def test_every_example_occurs_once_per_epoch_in_a_different_order():
    config = settings("synthetic:moving_shapes", split="validation", frames=1, size=8)
    count = 200
    source = subset(open_source(config.source, config.split), range(count))
    small = train_batches(source, config, batch_size=48, seed=0)
    order = np.concatenate([batch["index"] for batch in itertools.islice(small, 3 * count // 48 + 1)])
    epochs = order[: 3 * count].reshape(3, count)
    assert (np.sort(epochs) == np.arange(count)).all()
    assert (epochs[0] != epochs[1]).mean() > 0.9 and (epochs[0] != np.arange(count)).mean() > 0.9
    other = next(train_batches(source, config, batch_size=48, seed=1))["index"]
    assert (other != order[:48]).mean() > 0.9


def test_batches_can_span_two_epochs(folder):
    order = join(train(settings(folder), 7))["index"]  # 28 rows are 4 epochs of 7 examples
    assert (np.sort(order.reshape(4, 7)) == np.arange(7)).all()


def test_a_batch_may_contain_several_epochs(folder):
    (batch,) = train(settings(folder), 1, batch_size=21)
    assert (np.sort(batch["index"].reshape(3, 7)) == np.arange(7)).all()


def test_batch_n_is_the_same_after_resuming(folder):
    config = settings(folder, augment=RANDOM)
    uninterrupted = train(config, 5)
    for first in (1, 4):
        for later, batch in zip(train(config, 5 - first, first_batch=first), uninterrupted[first:], strict=True):
            assert_same(later, batch)


def test_batches_do_not_depend_on_the_number_of_workers(folder):
    one, three = (train(settings(folder, augment=RANDOM, workers=workers), 3) for workers in (1, 3))
    for a, b in zip(one, three, strict=True):
        assert_same(a, b)


def test_the_batches_of_two_processes_are_parts_of_those_of_one(folder):
    config = settings(folder, augment=RANDOM)
    parts = [train(config, 3, process_index=k, process_count=2) for k in range(2)]
    for whole, *halves in zip(train(config, 3), *parts, strict=True):
        assert_same(whole, join(halves))
    parts = [evaluate(config, process_index=k, process_count=2) for k in range(2)]
    for whole, *halves in zip(evaluate(config), *parts, strict=True):
        assert_same(whole, join(halves))


def test_the_clips_of_two_epochs_differ(folder):
    batches = join(train(settings(folder, frames=1, augment=AugmentConfig(crop="center")), 7))
    clips = {video.tobytes() for video, index in zip(batches["video"], batches["index"], strict=True) if index == 2}
    assert (batches["index"] == 2).sum() == 4
    assert len(clips) > 1


def test_unreadable_clips_are_black_listed_and_not_replaced(folder, tmp_path):
    config = settings(folder)
    source, listed = open_source(config.source, config.split), tmp_path / "bad_files.jsonl"
    bad = BadFiles(source, 1.0, listed)
    batch = join(list(itertools.islice(train_batches(source, config, batch_size=7, seed=0, bad_files=bad), 3)))
    np.testing.assert_array_equal(~batch["valid"], batch["index"] == 5)
    assert (batch["index"] == 5).sum() == 3
    assert not batch["video"][~batch["valid"]].any()
    assert batch["video"][batch["valid"]].any(axis=(1, 2, 3, 4)).all()
    assert batch["label"][batch["index"] == 6].tolist() == [1] * 3
    (line,) = listed.read_text().splitlines()
    assert json.loads(line).keys() == {"path", "error"}
    assert json.loads(line)["path"] == source.ids[5] == str(folder / "c" / "5.mp4")
    assert "5.mp4: " in json.loads(line)["error"]
    # A restarted run continues the list.
    resumed = BadFiles(source, 1.0, listed)
    assert len(resumed) == 1
    next(train_batches(source, config, batch_size=7, seed=0, bad_files=resumed))
    assert len(listed.read_text().splitlines()) == 1


def test_too_many_bad_files_stop_the_run(folder, tmp_path):
    config = settings(folder)
    source = open_source(config.source, config.split)
    with pytest.raises(ValueError, match=r"^1 of the 7 examples of .* more than data.max_bad_share 0.1 allows: .*list"):
        for _ in evaluation_batches(source, config, batch_size=4, bad_files=BadFiles(source, 0.1, tmp_path / "list")):
            pass
    for _ in evaluation_batches(source, config, batch_size=4, bad_files=BadFiles(source, 0.2)):
        pass


def test_a_bad_part_of_a_file_does_not_affect_others(folder, tmp_path):
    starts = (0, 0, 900)  # seconds; the last one is after the end
    rows = [f"{folder}/a/0.mp4,{start}" for start in starts] + [f"{folder}/a/0.mp4,{i / 100}" for i in range(5)]
    (tmp_path / "list.csv").write_text("path,start\n" + "\n".join(rows) + "\n")
    source = open_source(str(tmp_path / "list.csv"))
    bad = BadFiles(source, 0.2)
    clips = ClipConfig(frames=2, size=16, stride=1, workers=1)
    (batch,) = evaluation_batches(source, clips, batch_size=8, bad_files=bad)
    assert batch["valid"].sum() == 7 and len(bad) == 1
    assert list(bad.errors) == [f"{folder}/a/0.mp4#t=900"]


def test_evaluation_contains_every_example_once_in_order_and_pads_the_last_batch(folder):
    batches = evaluate(settings(folder))
    assert [len(batch["index"]) for batch in batches] == [4, 4]
    whole = join(batches)
    assert whole["index"].tolist() == [0, 1, 2, 3, 4, 5, 6, -1]
    assert whole["valid"].tolist() == [True] * 5 + [False, True, False]
    assert whole["label"].tolist() == [0, 0, 0, 1, 1, -1, 1, -1]
    assert not whole["video"][-1].any()
    middle = decode(folder / "a" / "0.mp4", [20, 23, 26, 29], short_side=37)
    for video in whole["video"][whole["valid"]]:
        np.testing.assert_array_equal(video, center_crop(middle, 32))


def test_a_slow_file_does_not_change_the_order(folder):
    config = settings(folder, workers=3)
    source = open_source(config.source, config.split)

    def open_slowly(index, names):
        time.sleep(0.3 * (index == 1))
        return source.open(index, names)

    batch = join(list(evaluation_batches(replace(source, open=open_slowly), config, batch_size=7)))
    assert batch["index"].tolist() == list(range(7))


def test_evaluation_of_selected_examples(folder):
    (batch,) = evaluate(settings(folder), indices=[6, 0])
    assert batch["index"].tolist() == [6, 0, -1, -1]
    assert evaluate(settings(folder), indices=[]) == []
    pair = [evaluate(settings(folder), indices=[6, 0], process_index=k, process_count=2) for k in range(2)]
    assert [len(batches) for batches in pair] == [1, 1]
    assert [batches[0]["index"].tolist() for batches in pair] == [[6, 0], [-1, -1]]


def test_the_batch_size_must_be_divisible_by_the_number_of_processes(folder):
    config = settings(folder)
    for batches in (train_batches, evaluation_batches):
        seed = {"seed": 0} if batches is train_batches else {}
        with pytest.raises(ValueError, match="batch size 5 is not divisible by the 2 processes"):
            next(batches(open_source(config.source, config.split), config, batch_size=5, process_count=2, **seed))


def test_user_errors_are_raised_and_do_not_count_as_bad_files(tmp_path):
    videos.write_shards(tmp_path)
    config = settings(f"tfrecord:{tmp_path}", fps=5.0)
    source = open_source(config.source, config.split)
    assert len(next(evaluation_batches(source, config, batch_size=4))["index"]) == 4

    @contextmanager
    def without_rate(index, names):
        with source.open(index, names) as example:
            video = example.streams["video"]
            video = replace(video, record=replace(video.record, rate=float("nan")))
            yield replace(example, streams={"video": video})

    bad = BadFiles(source, 0.0)
    with pytest.raises(ValueError, match=r"data.fps needs the frame rate"):
        next(evaluation_batches(replace(source, open=without_rate), config, batch_size=4, bad_files=bad))
    assert len(bad) == 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("batches", "end"),
    [
        ("pipeline import train_batches", "print('done')"),
        ("batches import evaluation_batches", "raise SystemExit('done')"),
    ],
)
def test_a_script_can_exit_with_open_batches(batches, end):
    """Soon, though many examples are still to be read."""
    module, _, name = batches.partition(" import ")
    code = (
        "import atexit, sys, time; from dataclasses import replace\n"
        "read = []\n"
        "atexit.register(lambda: print(len(read) < 96, file=sys.stderr))\n"
        f"from vidjax.data.config import DataConfig; from vidjax.data.{module} import {name}\n"
        "from vidjax.data.sources import open_source\n"
        "config = DataConfig(size=16, frames=2, workers=2)\n"
        "source = open_source(config.source, config.split)\n"
        "def open(*args):\n    time.sleep(0.05)\n    read.append(args)\n    return source.open(*args)\n"
        f"batches = {name}(replace(source, open=open), config, batch_size=32{', seed=0' * (module == 'pipeline')})\n"
        "next(batches)\n"
        f"{end}"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    lines = [line for line in (run.stdout + run.stderr).splitlines() if line in ("True", "False", "done")]
    assert sorted(lines) == ["True", "done"] and "Traceback" not in run.stderr, run.stderr


def test_the_rest_of_an_evaluation_that_is_closed_is_not_read(folder):
    source, read = open_source(str(folder)), []

    def open_example(index, names):
        read.append(index)
        return source.open(index, names)

    config = settings(folder, workers=1)
    many = subset(replace(source, open=open_example), [0] * 100)
    batches = evaluation_batches(many, config, batch_size=2)
    next(batches)
    batches.close()
    assert len(read) < 20
    with pytest.raises(ZeroDivisionError):  # not the file's fault: with its traceback
        list(evaluation_batches(replace(source, open=lambda index, names: 1 / 0), config, batch_size=2))


@pytest.mark.skipif(not videos.CLIPS.exists(), reason="the real clips are not available")
def test_real_clips_and_their_damaged_file():
    config = settings(videos.CLIPS, frames=8, size=64)
    source = open_source(config.source, config.split)
    bad = BadFiles(source, 0.2)
    batch = join(list(evaluation_batches(source, config, batch_size=3, bad_files=bad)))
    assert batch["valid"].sum() == 8
    assert [path.rpartition("/")[2] for path in bad.errors] == ["corrupted.mp4"]
    assert batch["video"][batch["valid"]].std(axis=(1, 2, 3, 4)).min() > 10


def test_captions_are_tokenised_and_do_not_affect_other_arrays(captioned):
    config = settings(captioned, augment=RANDOM)
    plain, written = (join(train(config, 7, **words)) for words in ({}, WORDS))
    assert plain.keys() == written.keys() - {"ids", "truncated"}
    assert_same(plain, {name: written[name] for name in plain})
    assert written["ids"].shape == (28, 8) and written["ids"].dtype == np.int32
    assert written["truncated"].shape == (28,) and written["truncated"].dtype == bool
    texts = read_ids(written["ids"])
    for text, index, valid, truncated in zip(
        texts, written["index"], written["valid"], written["truncated"], strict=True
    ):
        assert text.startswith(f"{index} ") if valid else text == ""
        assert truncated == (valid and int(text.split()[1]) % 2)
    assert len(set(texts)) > 20  # captions are drawn for each row
    source = open_source(str(captioned))
    row = int(np.argmax(written["valid"]))
    index = int(written["index"][row])
    ids = [tokenize(WORDS["tokenizer"], caption, 8)[0].tolist() for caption in source.captions(index)]
    assert written["ids"][row].tolist() in ids


def test_the_captions_of_a_batch_are_a_function_of_its_number(captioned):
    config = settings(captioned, augment=RANDOM)
    uninterrupted = train(config, 5, **WORDS)
    for first in (1, 4):
        for later, batch in zip(
            train(config, 5 - first, first_batch=first, **WORDS), uninterrupted[first:], strict=True
        ):
            assert_same(later, batch)
    parts = [train(config, 5, process_index=k, process_count=2, **WORDS) for k in range(2)]
    for whole, *halves in zip(uninterrupted, *parts, strict=True):
        assert_same(whole, join(halves))
    other = join(train(config, 5, **WORDS, seed=4))
    assert (other["ids"] != join(uninterrupted)["ids"]).any()


def test_captions_are_drawn_uniformly_and_independently_of_frames(captioned):
    clips = {"frames": 1, "size": 8, "augment": AugmentConfig(crop="center")}
    source, info = open_source(str(captioned)), VideoInfo(1000, 25.0, 8, 8, 40.0, "none")
    positions = []

    def read(indices, short_side):
        positions.extend(indices)
        return np.zeros((1, 8, 8, 3), np.uint8), info

    example = Example({"video": SimpleNamespace(info=info, read=read, iterate=read)}, captions=tuple("abcd"))
    config = settings(captioned, workers=1, **clips)
    source = replace(source, open=lambda index, names: nullcontext(example))
    batches = itertools.islice(train_batches(source, config, batch_size=100, seed=0, **WORDS), 20)
    letters = np.array(read_ids(join(list(batches))["ids"]))
    counts = np.array([(letters == letter).sum() for letter in "abcd"])
    assert counts.sum() == 2000 and (np.abs(counts - 500) < 4 * np.sqrt(2000 * 3 / 16)).all()
    drawn, order = np.array(positions[:2000]), np.array(["abcd".index(letter) for letter in letters])
    assert abs(np.corrcoef(drawn, order)[0, 1]) < 4 / np.sqrt(2000)


def test_each_repeat_draws_its_own_caption(captioned):
    config = settings(captioned, augment=RANDOM, repeats=4)
    batch = join(train(config, 5, batch_size=28, **WORDS))
    assert batch["ids"].shape == (140, 8) and batch["truncated"].shape == (140,)
    groups = np.array(read_ids(batch["ids"])).reshape(35, 4)
    numbers = batch["index"].reshape(35, 4)[:, 0]
    for texts, number in zip(groups, numbers, strict=True):
        assert all(text.startswith(f"{number} ") for text in texts) or number == 5
    assert np.mean([len(set(texts)) for texts, number in zip(groups, numbers, strict=True) if number != 5]) > 3


def test_several_texts_of_a_row_follow_one_another_or_are_the_nearest_in_time(folder):
    paths = sorted(map(str, folder.glob("a/*.mp4")))  # of 50 frames at 25 per second
    rows = [
        {
            "path": path,
            "caption": [f"{i} {j}" for j in range(count)],
            "said": [[0.4 * j, 0.4 * j + 0.2] for j in range(count)],
        }
        for i, (path, count) in enumerate(zip(paths, (5, 5, 2), strict=True))
    ]
    (folder / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "fields.json").write_text('{"said": {"kind": "segments", "shape": [1, 2]}, "score": {"kind": "numbers"}}')
    config = settings(folder / "said.jsonl", stride=1)
    plain, batch = (join(train(config, 5, batch_size=8, **WORDS, texts=k)) for k in (1, 3))
    assert batch["ids"].shape == (40, 3, 8) and batch["truncated"].shape == (40, 3)
    np.testing.assert_array_equal(batch["ids"][:, 0], plain["ids"])
    firsts = set()
    for number, ids in zip(batch["index"], batch["ids"], strict=True):
        texts, count = read_ids(ids), (5, 5, 2)[number]
        first = int(texts[0].split()[1])
        firsts.add((number, first))
        assert texts == [f"{number} {(first + j) % count}" for j in range(min(count, 3))] + [""] * (3 - min(count, 3))
    assert len(firsts) > 8
    near = join(train(config, 5, batch_size=8, **WORDS, texts=2, fields=("said",), text_times="said"))
    for number, times, ids in zip(near["index"], near["times"], near["ids"], strict=True):
        distances = [abs(0.4 * j + 0.1 - times.mean()) for j in range((5, 5, 2)[number])]
        assert read_ids(ids) == [f"{number} {j}" for j in np.argsort(distances)[:2]]
    rows[1]["said"].pop()
    (folder / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"1\.mp4 has 5 captions, but times of 4: give a start and an end of each$"):
        train(config, 2, **WORDS, texts=2, fields=("said",), text_times="said")
    with pytest.raises(ValueError, match="video has frames: give a field of segments, the times of captions"):
        train(config, 1, **WORDS, texts=2, text_times="video")


def test_evaluation_uses_the_first_caption(captioned):
    for views, shape in ((None, (4, 4)), ((2, 1), (4, 2, 4))):
        batch = join(evaluate(settings(captioned), view_counts=views, **WORDS))
        assert read_ids(batch["ids"]) == ["0 0", "1 0", "2 0", "3 0", "4 0", "", "6 0", ""]
        assert not batch["truncated"].any() and batch["video"].shape[1 : len(shape)] == shape[1:]
    assert join(evaluate(settings(captioned), **WORDS | {"context": 4}))["truncated"].sum() == 6


def test_an_example_without_a_caption_is_refused(folder, captioned):
    with pytest.raises(ValueError, match=r"/\d\.mp4 has no caption: add one, or remove the example$"):
        train(settings(folder), 1, **WORDS)
    with pytest.raises(ValueError, match="a tokenizer needs a context"):
        train(settings(captioned), 1, tokenizer=WORDS["tokenizer"])
    with pytest.raises(ValueError, match="the context is 2: it must be 3 or more"):
        evaluate(settings(captioned), **WORDS | {"context": 2})


def test_rows_must_be_a_multiple_of_repeats(folder):
    with pytest.raises(ValueError, match="4 clips per process are not a multiple of 3 repeats: change one of them"):
        next(train_batches(open_source(str(folder)), settings(folder, repeats=3), batch_size=4, seed=0))
