"""Tuning a captioner by preferences: what captions name, whole runs of each method, and what the script refuses."""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import changed, interrupt_after, two_devices

from vidjax import runs
from vidjax.convert.checkpoint import save_pretrained
from vidjax.data import moving_shapes
from vidjax.data.preferences import PAIRS, with_pairs
from vidjax.data.sources import open_source, subset
from vidjax.data.text import open_tokenizer, tokenize
from vidjax.models import create_model, example_inputs
from vidjax.runs.preferences import Attribute, check_reference, check_reward, load_reward, require_writer
from vidjax.runs.workdir import describe_examples
from vidjax.training.checkpoint import load_variables
from vidjax.training.metrics import read_metrics

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import preference_tune as script
import vision_language_pretrain as pretrain

TOKENIZER = pretrain.RECIPES["demo_motion_not_told"].tokenizer
WORDS = open_tokenizer(TOKENIZER)
SMALL = changed(
    script.RECIPES["demo"],
    init_from="captioner",
    tokenizer=TOKENIZER,
    batch_size=8,
    steps=4,
    data__frames=4,
    data__size=16,
    data__short_side=16,
    data__workers=1,
    data__source="synthetic:moving_shapes",
    data__validation_examples=8,
    loop__log_every=1,
    loop__save_every=2,
    loop__evaluate_every=4,
)


def ids(*texts):
    return jnp.asarray(np.stack([tokenize(WORDS, text, 16)[0] for text in texts]))


def test_captions_name_the_first_phrase_and_the_longest_there():
    motion, color = (Attribute.read(text, WORDS) for text in SMALL.attributes)
    captions = ids("a red circle moves up and to the right over a blue background", "a circle moves up", "a square")
    phrases = [moving_shapes.PHRASES.index(phrase) for phrase in ("up and to the right", "up")]
    np.testing.assert_array_equal(motion.named(captions), [*phrases, -1])
    np.testing.assert_array_equal(color.named(captions), [list(moving_shapes.COLORS).index("red"), -1, -1])
    others = ids("a square moves up and to the right", "moves up and to the left", "a square")
    np.testing.assert_array_equal(motion.agrees(captions, others), [True, False, False])
    chosen = ids("a red square moves up and to the right", "a blue circle moves up", "a red square moves down")
    for name, expected in (("motion", [1, 1, 0]), ("motion+color", [1, 0.5, 0])):
        reward, _ = load_reward(name, (motion, color), WORDS, (), 16, (4, 16), jnp.float32)
        np.testing.assert_array_equal(reward({}, {}, captions, chosen), expected)


def test_a_caption_is_preferred_to_one_with_another_motion_and_else_the_same():
    motion, color = (Attribute.read(text, WORDS) for text in SMALL.attributes)
    source = with_pairs(subset(open_source("synthetic:moving_shapes"), range(56)), WORDS, 16)
    with source.open(3, (PAIRS,)) as example:
        pairs = example.values[PAIRS]
    assert pairs.shape == source.fields[PAIRS].shape == (3, 2, 16)
    texts = [source.captions(3), source.rejected(3)]
    np.testing.assert_array_equal(pairs, np.swapaxes([ids(*each) for each in texts], 0, 1))
    chosen, rejected = (ids(*(each(i)[0] for i in range(56))) for each in (source.captions, source.rejected))
    assert color.agrees(chosen, rejected).all() and not motion.agrees(chosen, rejected).any()
    turns = (motion.named(rejected) - motion.named(chosen)) % 8
    np.testing.assert_array_equal(np.bincount(turns), [0, *[8] * 7])  # every other direction equally often
    misled = open_source("synthetic:moving_shapes", "random_motion")
    named = motion.named(ids(*(misled.captions(i)[0] for i in range(400))))
    assert 0.05 < (named == jnp.arange(400) % 8).mean() < 0.2 and len(set(named.tolist())) == 8


def test_the_shorter_list_of_a_row_is_repeated(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    rows = ['{"path": "a.mp4", "caption": "a", "rejected": ["to", "up and down"]}', '{"path": "a.mp4", "caption": "a"}']
    (tmp_path / "list.jsonl").write_text(rows[0] + "\n")
    source = with_pairs(open_source(str(tmp_path / "list.jsonl")), WORDS, 6)
    assert source.fields[PAIRS].shape == (2, 2, 6) and source.rejected(0) == ("to", "up and down")
    with pytest.raises(ValueError, match="the context 3: give a longer --context, or cut it"):
        with_pairs(open_source(str(tmp_path / "list.jsonl")), WORDS, 3)
    (tmp_path / "list.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"1 of the 2 examples of .* have no rejected caption: .*column rejected"):
        with_pairs(open_source(str(tmp_path / "list.jsonl")), WORDS, 6)
    (tmp_path / "list.jsonl").write_text(rows[0].replace("to", "a"))
    with pytest.raises(ValueError, match="'a' is preferred to itself, change one of the two"):
        with_pairs(open_source(str(tmp_path / "list.jsonl")), WORDS, 6)
    (tmp_path / "list.jsonl").write_text(rows[0].replace("to", " "))
    with pytest.raises(ValueError, match="line 1: one of its rejecteds is empty"):
        open_source(str(tmp_path / "list.jsonl"))


def test_other_rejections_are_other_data_where_they_are_used():
    source = subset(open_source("synthetic:moving_shapes"), range(4))
    other = dataclasses.replace(source, rejected=lambda index: ("a square moves up",))
    first, second = (describe_examples(with_pairs(each, WORDS, 16))["sha256"] for each in (source, other))
    assert first != second and describe_examples(source) == describe_examples(other)


@pytest.fixture
def captioner(tmp_path, monkeypatch):
    """An untrained captioner, in the directory `captioner`."""
    monkeypatch.chdir(tmp_path)
    config = changed(
        pretrain.RECIPES["demo"], video_model="fr2d_tiny", queue_size=8, batch_size=8, data__frames=4, data__size=16
    )
    model = pretrain.make_model(config, WORDS)
    inputs = [jnp.zeros(each.shape, each.dtype) for each in example_inputs(model)]
    save_pretrained("captioner", model, jax.jit(model.init)(jax.random.key(0), *inputs))


@pytest.fixture
def few_devices():
    with two_devices():
        yield


def entries(workdir, name):
    return [entry[name] for entry in read_metrics(Path(workdir)) if name in entry]


@pytest.mark.long
@pytest.mark.usefixtures("captioner", "few_devices")
def test_every_method_runs_and_dpo_resumes_exactly():
    numbers = script.main(changed(SMALL, workdir="whole"))
    assert {"preferred", "kl", "motion", "color"} <= numbers.keys()
    np.testing.assert_allclose(entries("whole", "loss")[0], np.log(2), atol=1e-6)  # the policy starts as the reference
    margins = entries("whole", "margin")
    assert abs(margins[0]) < 1e-5 < abs(margins[-1])
    parts = changed(dataclasses.replace(SMALL, workdir="parts"), data__validation=None)
    interrupt_after(3, script.main, parts)
    script.main(parts)
    jax.tree.map(np.testing.assert_array_equal, *(load_variables(Path(name))[0] for name in ("whole", "parts")))
    _, tuned = runs.load_pretrained("whole", strict=True)  # the captioner alone, without the reference
    _, untuned = runs.load_pretrained("captioner", strict=True)
    assert jax.tree.structure(tuned) == jax.tree.structure(untuned)
    jax.tree.map(np.testing.assert_array_equal, tuned["batch_stats"], untuned["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, tuned["params"]["video"], untuned["params"]["video"])  # --freeze video

    numbers = script.main(changed(SMALL, method="reward", workdir="judge"))
    assert numbers.keys() >= {"preferred"}
    tuned = dataclasses.replace(parts, method="grpo", reward="judge", group=3, workdir="tuned")
    script.main(tuned)
    assert abs(entries("tuned", "kl")[0]) < 1e-6 < entries("tuned", "kl")[-1]
    with pytest.raises(ValueError, match="reward whole is a Blip: give a run of --method reward"):
        script.main(changed(tuned, reward="whole", workdir="other"))


def test_a_reference_that_has_changed_is_refused(tmp_path):
    reference = {"params": {"kernel": jnp.ones(3)}}
    for _ in range(2):  # begins, and resumes
        check_reference(tmp_path, "runs/vl", reference)
    with pytest.raises(ValueError, match=r"runs/vl has changed since .* began with it: restore it"):
        check_reference(tmp_path, "runs/vl", {"params": {"kernel": jnp.zeros(3)}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0: it must be above 0"),
        ({"smoothing": 0.5}, "smoothing is 0.5: it must be below 0.5"),
        ({"method": "grpo"}, "reward is what --method grpo increases, and no other method: give both or none"),
        ({"reward": "motion"}, "reward is what --method grpo increases"),
        ({"group": 1}, "group is 1: give 2 or more"),
        ({"context": 2}, "context is 2: it must be 3 or more"),
    ],
)
def test_wrong_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        changed(SMALL, **fields)


@pytest.mark.usefixtures("captioner")
def test_what_does_not_fit_the_captioner_is_refused():
    for fields, message in (
        ({"init_from": ""}, "init_from is missing: give a captioner"),
        ({"data__size": 32}, "captioner takes clips of 4x16: give --data.frames 4 --data.size 16"),
        ({"context": 17}, "context is 17, the captioner's 16: give at most that"),
        ({"context": 5}, "has 1. tokens, the context 5: give a longer --context, or cut it"),
        ({"tokenizer": "bytes"}, "tokenizer bytes is not that of captioner: give its own"),
        ({"attributes": ("motion=up",)}, "attributes: 'motion=up' is not NAME=PHRASE"),
        ({"attributes": ("a=zebra|yak",)}, "attributes: tokenizer .* does not tell the phrases of 'a' apart"),
        (
            {"attributes": ("a=red red|moves moves",)},
            "none of .* captions of synthetic.* names a phrase of a",
        ),
        ({"method": "grpo", "reward": "speed"}, "reward speed is neither a run nor one of the attributes"),
    ):
        nested = {name: value for name, value in fields.items() if "__" in name}
        whole = {name: value for name, value in fields.items() if "__" not in name}
        with pytest.raises(ValueError, match=message):
            script.main(changed(dataclasses.replace(SMALL, **whole), **nested))
    assert not Path(SMALL.workdir).exists()
    with pytest.raises(ValueError, match="some is a Albef: give a run of vision_language_pretrain"):
        require_writer("some", create_model("albef_tiny"))
    judge = script.RewardModel(create_model("blip_tiny"))
    clips = (judge.tower.num_frames, judge.tower.image_size)
    with pytest.raises(ValueError, match="reward judge has another tokenizer than the captioner"):
        check_reward("judge", judge, open_tokenizer("bytes"), WORDS, ("a",), 4, clips)
    with pytest.raises(ValueError, match=r"reward judge takes clips of .*x.*, the captioner 3x16: train one on its"):
        check_reward("judge", judge, open_tokenizer("bytes"), WORDS, ("a",), 4, (3, 16))
