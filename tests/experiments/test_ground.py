"""Moment retrieval: the loss against the original's, examples and their times, a run that resumes, and a question."""

import itertools
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import recipe
import videos
from small_runs import draw_variables, two_devices

from vidjax import cli
from vidjax.convert import from_state_dict, save_pretrained
from vidjax.data.config import SourceConfig
from vidjax.data.moments import MomentConfig, Query, open_moments
from vidjax.errors import UserError
from vidjax.evaluation.segments import Clock
from vidjax.layers.card import Card
from vidjax.models.moment_detr import RETRIEVERS, MomentDETR
from vidjax.models.text import TextTower
from vidjax.models.video_text import Projected, VideoText
from vidjax.models.videomae import VideoMAE
from vidjax.runs import grounding, untrimmed
from vidjax.runs.queries import QueryFeatures, mean_of_words
from vidjax.training.checkpoint import load_variables
from vidjax.training.state import Aux

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import embed
import ground
import ground_predict

NAMES = "v0", "v1", "v2", "v3"
SECONDS = 10.0
"""Of each training video: 100 frames at 10 per second, features of 4 frames, 2 frames apart."""


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """A model with one layer each, on two of the simulated devices, which compiles in a fraction of the time."""
    row = partial(RETRIEVERS["moment_detr_tiny"], layers=(1, 1), width=16, hidden=16)
    with pytest.MonkeyPatch.context() as patch, two_devices():
        patch.setattr(ground, "RETRIEVERS", {**RETRIEVERS, "moment_detr_tiny": row})
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A video-text model, features of videos by it in which channel 0 is high in a moment, and annotations."""
    folder = tmp_path_factory.mktemp("ground")
    video = VideoMAE(8, 1, 2, patch_size=(2, 8, 8), num_classes=None, num_frames=4, image_size=16)
    text = TextTower(259, 24, 8, 1, 2, features=6)
    model = VideoText(Projected(video, 6), text, card=Card(stride=2))
    save_pretrained(folder / "towers", model, draw_variables(model))
    scenes = videos.numbered(50, 32, 32)
    for name in NAMES:
        videos.write_video(folder / "v" / f"{name}.mp4", scenes, options={"crf": "0"})
    data = SourceConfig(source=str(folder / "v"), fps=12.5)
    settings = {"pooling": "model", "data": data, "out": str(folder / "f"), "window": 4, "stride": 2}
    embed.main(embed.Config(run=str(folder / "towers"), **settings))
    rows = [
        {"qid": i, "vid": name, "query": f"{word} it", "duration": 2.0, "relevant_windows": [[low, low + 0.6]]}
        for i, (name, (word, low)) in enumerate(itertools.product(NAMES, (("see", 0.2), ("hear", 1.0))))
    ]
    for row in rows:
        row |= {"relevant_clip_ids": [0], "saliency_scores": [[3, 4]]}
    for name, part in (("train", rows[:6]), ("val", rows[6:])):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in part))
    return folder


FLAGS = """
demo --max_length 12 --words 16 --tokenizer bytes --batch_size 4 --steps 4 --loop.log_every 1 --loop.save_every 2
--loop.evaluate_every 4
""".split()


def parse(folder, *flags):
    argv = [*FLAGS, "--data.features", str(folder / "f"), "--text", str(folder / "towers")]
    argv += ["--data.train", str(folder / "train.jsonl"), "--data.validation", str(folder / "val.jsonl"), *flags]
    return cli.parse(ground.Config, ground.RECIPES, ground.DATA_FLAG, argv)


def test_the_loss_is_that_of_the_original_with_contrastive_alignment():
    golden, c = recipe.load("moment_detr_contrastive"), recipe.load("moment_detr_contrastive").config
    described = json.loads((recipe.HERE / "moment_detr_contrastive.json").read_text())
    model = MomentDETR(
        c["v_feat_dim"], c["t_feat_dim"], c["hidden_dim"], c["nheads"], c["dim_feedforward"], queries=c["num_queries"],
        embeddings=c.get("n_input_proj", 2), text_positions=c.get("use_txt_pos", False),
        pre_norm=c.get("pre_norm", False), align=c["contrastive_hdim"], dropout=0.0, input_dropout=0.0,
    )  # fmt: skip
    variables = from_state_dict(model, golden.weights, strict=True)
    truth, lengths = described["targets"], {name: np.array(each) for name, each in described["lengths"].items()}
    spans, annotated = np.full((2, grounding.MOST, 2), 0.5, np.float32), np.zeros((2, grounding.MOST), bool)
    for video, each in enumerate(truth["spans"]):
        spans[video, : len(each)], annotated[video, : len(each)] = each, True
    text, video = (
        each * (np.arange(each.shape[1]) < lengths[name][:, None])[..., None]
        for name, each in zip(("text", "video"), golden.inputs, strict=True)
    )
    batch = {
        "video": video, "text": text, "steps": lengths["video"], "words": lengths["text"], "spans": spans,
        "annotated": annotated, "positive": np.array(truth["positive"]), "negative": np.array(truth["negative"]),
        "valid": np.ones(2, bool),
    }  # fmt: skip
    loss_fn = jax.jit(ground.make_loss(ground.Config(align=64), model))
    loss, _ = loss_fn(variables["params"], Aux({}, None, None, 0), batch, jax.random.key(0))
    assert loss == pytest.approx(described["losses"]["weighted total"], rel=1e-5)


def test_an_example_has_its_moments_as_parts_of_the_features_and_pairs_of_steps(folder, tmp_path):
    features = np.random.default_rng(0).normal(0, 0.01, (30, 4))
    features[6:12, 0] = 1  # steps of 2 s from 12 to 24 s
    (tmp_path / "f").mkdir()
    np.save(tmp_path / "f" / "v.npy", features)
    row = {"qid": 1, "vid": "v", "query": "x", "duration": 60, "relevant_windows": [[12, 24]]}
    row |= {"relevant_clip_ids": [6, 7, 8], "saliency_scores": [[2], [4], [1]]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    source, _ = open_moments(MomentConfig(str(tmp_path / "a.jsonl"), None, (str(tmp_path / "f"),), 2.0))
    texts = QueryFeatures(3, lambda query: np.ones((4, 3), np.float32))
    model = MomentDETR(6, 3, words=3)
    for length, best in ((40, 7), (30, 7), (10, 2)):  # padded, as it is, and stretched: 3 times shorter
        seen = set()
        for seed in range(30):
            example = grounding.train_example(source, texts, model, length, 0, np.random.default_rng(seed))
            steps = int(example["steps"])
            assert steps == min(length, 30) and (example["video"][steps:] == 0).all() and example["words"] == 3
            assert example["annotated"].tolist() == [True] + [False] * (grounding.MOST - 1)
            np.testing.assert_allclose(example["spans"][0], [0.3, 0.2], atol=1e-6)
            (first, inside), (last, outside) = example["positive"], example["negative"]
            assert first == best and example["video"][[first, inside], 0].min() > 0.8 > example["video"][outside, 0]
            assert last != first
            seen |= {int(inside), int(outside)}
        assert len(seen) > steps // 3
        np.testing.assert_allclose(
            example["video"][:steps, 4:], np.stack([np.arange(steps), np.arange(1, steps + 1)], 1) / steps
        )


def test_moments_are_those_of_the_model_in_seconds_by_score():
    """A model that says: from the second to the fourth of five parts, best, and the first part."""
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "sequence"), devices=jax.devices()[:1])
    spans, probabilities = np.array([[[0, 0.2], [0.2, 0.8]]]), np.array([[0.3, 0.9]])

    def oracle(_, batch):
        return np.repeat(probabilities, 2, 0), np.repeat(spans, 2, 0), np.asarray(batch["video"])[..., 0]

    track = untrimmed.Track(np.arange(10.0)[:, None], Clock(8, 16, 16, 19.5))
    model, words = MomentDETR(3, 2), np.ones((3, 2))
    for length, rounded, end in ((16, False, 16), (5, False, 16), (10, True, 16)):
        asked = [lambda: (track, words)] * 3
        found = grounding.find_moments(asked, model, {}, length, rounded, mesh, 2, oracle)
        assert len(found) == 3
        np.testing.assert_allclose(found[2].windows, [[4, end], [0, 4]], atol=1e-6)
        assert found[2].scores.tolist() == [0.9, 0.3] and len(found[0].saliency) == min(length, 10)
    saliency = grounding.clip_saliency(found[0], 12)
    np.testing.assert_allclose(saliency[:10], np.arange(10.0))
    coarse = grounding.Found(found[0].windows, found[0].scores, np.array([1.0, 5.0]), np.array([5.0, 15.0]))
    np.testing.assert_allclose(grounding.clip_saliency(coarse, 10), [1] * 5 + [5] * 5)


def test_a_moment_between_two_steps_has_the_nearest_and_one_of_the_whole_video_no_pair():
    times = np.arange(5.0)
    assert grounding.steps_inside(np.array([[2.2, 2.4]]), times).tolist() == [False, False, True, False, False]
    clock, random = Clock(1, 1, 0, 4.0), np.random.default_rng(0)
    query = Query("1", "x", "v", np.array([[0.0, 5.0]]), 5.0)
    positive, negative = grounding.saliency_pairs(query, clock, 5, random)
    assert positive.tolist() == negative.tolist()


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, ground.main(parse(folder, "--workdir", str(workdir)))


@pytest.mark.long
def test_a_run_that_is_killed_resumes_to_the_same_numbers(folder, trained, tmp_path, monkeypatch):
    workdir, numbers = trained
    assert {"r1_50", "r1_70", "average_map", "hit1", "chance_r1_50"} <= numbers.keys()
    assert (workdir / "moments.png").stat().st_size > 1000
    read = grounding.train_batches

    def dying(*arguments, **settings):
        yield from itertools.islice(read(*arguments, **settings), 3)
        raise KeyboardInterrupt

    config = parse(folder, "--workdir", str(tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr(grounding, "train_batches", dying)
        with pytest.raises(KeyboardInterrupt):
            ground.main(config)
    made = (tmp_path / "run" / "queries.npy").stat().st_mtime_ns
    ground.main(config)
    assert (tmp_path / "run" / "queries.npy").stat().st_mtime_ns == made  # the sentences are encoded once
    whole, resumed = (load_variables(each)[0] for each in (workdir, tmp_path / "run"))
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(value, resumed[name])
    with pytest.raises(UserError, match="the features have 6 channels, the recipe is for 512"):
        ground.main(replace(config, channels=512, workdir=str(tmp_path / "other")))


def test_a_video_is_asked_a_sentence_and_frames_have_their_times_also_at_a_variable_rate(folder, trained, tmp_path):
    """The same pictures at the same times: each frame stored, or only those that differ from the one before."""
    shown = np.where(np.arange(40) % 7 == 3, 6, 1)
    scenes, pictures = np.repeat(np.arange(40), shown), videos.numbered(40, 32, 32)
    changes = np.flatnonzero(np.diff(scenes, prepend=-1))
    videos.write_video(tmp_path / "constant.mp4", pictures[scenes], options={"crf": "0"})
    videos.write_video(
        tmp_path / "variable.mkv", pictures, times=changes / 25, options={"crf": "0"}, last=len(scenes) - changes[-1]
    )
    config = ground_predict.Config(str(tmp_path / "constant.mp4"), "see it", run=str(trained[0]), tokenizer="bytes")
    reports = [
        ground_predict.main(replace(config, video=str(tmp_path / name), least_score=0.0, out=str(tmp_path / name[:3])))
        for name in ("constant.mp4", "variable.mkv")
    ]
    one, other = (report["moments"] for report in reports)
    assert len(one) == 5 and max(each["end"] for each in one) <= len(scenes) / 25
    for first, second in zip(one, other, strict=True):
        assert first == pytest.approx(second, abs=0.01)
    assert json.loads((tmp_path / "con" / "moments.json").read_text()) == reports[0]
    assert (tmp_path / "con" / "moments.png").stat().st_size > 1000
    with pytest.raises(UserError, match="the query ' ' has no words"):
        replace(config, query=" ")
    with pytest.raises(UserError, match=r"was not trained on features in a folder that embed.py wrote"):
        ground_predict.main(replace(config, run=str(folder / "towers")))


def test_published_features_of_sentences(folder, tmp_path):
    (tmp_path / "t").mkdir()
    for number in range(7):
        np.savez(tmp_path / "t" / f"qid{number}.npz", last_hidden_state=np.full((5, 3), 2.0, np.float16))
    config = parse(folder, "--data.text_features", str(tmp_path / "t"), "--text", "None", "--dry_run")
    with pytest.raises(UserError, match=r"1 of 8 queries have no file qidID.npz in .*: 7; add them, or give --text"):
        ground.main(config)
    np.savez(tmp_path / "t" / "qid7.npz", last_hidden_state=np.ones((5, 3)))
    sources = [each for each in open_moments(config.data) if each]
    texts = ground.queries.published_features(str(tmp_path / "t"), sources)
    np.testing.assert_allclose(texts.read(sources[0].queries[0]), 3**-0.5, rtol=1e-4)
    assert texts.channels == 3
    for words, message in (
        (np.ones((5, 4)), "qid7.npz has 4 channels, that of 0 3: make all by the same text tower"),
        (np.full((5, 3), np.nan), "qid7.npz has no words x width of finite numbers, but 5x3"),
        (np.ones((0, 3)), "qid7.npz has no words x width of finite numbers, but 0x3"),
    ):
        np.savez(tmp_path / "t" / "qid7.npz", last_hidden_state=words)
        with pytest.raises(UserError, match=message):
            ground.queries.published_features(str(tmp_path / "t"), sources)


REFUSED = [
    ({"model": "detr"}, "there is no model of moments 'detr': choose one of moment_detr_slowfast_clip, "),
    ({"max_length": 0}, "max_length is 0: it must be above 0"),
    ({"text": "runs/c", "data": MomentConfig(text_features="f")}, "give one of them"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_invalid_values_are_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        ground.Config(**fields)


@pytest.mark.parametrize("name", ["qvhighlights", "qvhighlights_clip"])
def test_recipes_train_the_published_models(name):
    config = ground.RECIPES[name]
    model = ground.make_model(config, partial(ground.MomentSource, "x", (), {})((config.channels,)), 512)
    row = RETRIEVERS[config.model]()
    assert (model.video_channels, model.text_channels, model.words) == (row.video_channels, 512, 32)
    assert config.optim.schedule(32, 100, 10)(50) == pytest.approx(1e-4) and config.optim.weight_decay == 1e-4


@pytest.mark.parametrize(
    "encoder",
    ["import pathlib; pathlib.Path('begun').touch()", "import os, time; os.kill(os.getppid(), 15); time.sleep(60)"],
    ids=["it saved its state and stopped", "this process got SIGTERM"],
)
def test_the_demo_stops_when_its_encoder_is_stopped(tmp_path, monkeypatch, encoder):
    monkeypatch.chdir(tmp_path)
    for name, code in (("encoder.py", encoder), ("embed.py", "import os; os.mkdir('features')")):
        (tmp_path / name).write_text(code)
    commands = ("encoder.py --seed SEED --workdir WORKDIR/encoder", "embed.py")
    with pytest.raises(SystemExit, match="stopped"):
        untrimmed.make_demo_features(commands, tmp_path, "run", 0, "ground.py")
    assert not (tmp_path / "features").exists()


def test_bytes_of_a_word_are_averaged():
    tokens = np.arange(9.0)[:, None]  # start, "a bé d" in seven bytes, end
    np.testing.assert_allclose(mean_of_words("a bé d", tokens)[:, 0], [0, 1, 3.5, 6.5, 8])
    np.testing.assert_allclose(mean_of_words("a bé d", tokens[[0, 1, 2, 8]])[:, 0], [0, 1, 2, 8])
