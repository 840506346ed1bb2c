"""BLIP-2's losses against recordings of the originals', the stages one after the other, and what is refused."""

import dataclasses
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
import videos
from flax.traverse_util import flatten_dict
from small_runs import changed, draw_variables, interrupt_after

from vidjax import runs
from vidjax.convert import from_state_dict
from vidjax.data.config import CaptionedDataConfig, SourceConfig
from vidjax.data.text import open_tokenizer
from vidjax.layers.card import Card
from vidjax.models import create_model
from vidjax.models.blip2 import Blip2, Blip2Language
from vidjax.models.language import LanguageModel
from vidjax.models.qformer import QFormer
from vidjax.models.t5 import T5
from vidjax.models.vit import ViT
from vidjax.objectives import language_modeling
from vidjax.runs import blip2
from vidjax.runs.frozen import FrozenParts
from vidjax.training.checkpoint import load_variables
from vidjax.training.int8 import dequantized, quantized
from vidjax.training.optimizer import OptimizerConfig, make_optimizer
from vidjax.training.state import Aux, create_state

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import blip2_pretrain as script
import caption
import finetune
import retrieve
import zero_shot

BYTES = open_tokenizer("bytes")


def qformer_of(c: dict, **fields) -> QFormer:
    fields = {"vocabulary": c["V"], "context": c["ctx"], "writes": False} | fields
    return QFormer(c["Q"], width=c["qD"], depth=c["qL"], heads=c["qH"], mlp_ratio=c["qF"] / c["qD"], **fields)


def batch_of(ids: np.ndarray, video: np.ndarray | None = None) -> dict[str, jax.Array]:
    video = np.zeros((len(ids), 1, 2, 2, 3), np.uint8) if video is None else video
    return {"video": jnp.asarray(video), "ids": jnp.asarray(ids, jnp.int32), "valid": jnp.ones(len(ids), bool)}


@pytest.mark.long
def test_the_loss_of_the_first_stage_equals_the_original(monkeypatch):
    golden = recipe.load("blip2_stage1")
    c = golden.config
    model = Blip2(ViT(c["D"], 1, 2, patch_size=(1, 8, 8), image_size=16), qformer_of(c, writes=True), c["E"])
    variables = from_state_dict(model, golden.weights)  # the recording has no image tower
    monkeypatch.setattr(Blip2, "seen", lambda *_: jnp.asarray(golden.inputs[0]))
    monkeypatch.setattr(jax.random, "categorical", lambda key, logits: logits.argmax(axis=1))  # as recorded
    aux = Aux({}, None, None, 0)
    loss, (_, metrics) = jax.jit(blip2.first_loss(model))(
        variables["params"], aux, batch_of(golden.inputs[1]), jax.random.key(0)
    )
    expected = golden.outputs["output0"]
    actual = [metrics[f"{name}_loss"] for name in ("itc", "itm", "lm")]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(loss, expected.sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ["blip2_opt", pytest.param("blip2_t5", marks=pytest.mark.long)])
def test_the_loss_of_the_second_stage_equals_the_original(name, monkeypatch):
    golden = recipe.load(name)
    c = golden.config
    if name == "blip2_opt":
        language = LanguageModel(c["V"], c["ctx"], c["tD"], c["tL"], c["tH"], activation="relu", offset=2)
    else:
        language = T5(c["V"], c["tD"], c["tL"], c["tH"], c["tD"] // c["tH"], 64)
    video = ViT(c["D"], c["L"], c["H"], c["F"] / c["D"], (1, c["P"], c["P"]), image_size=c["S"])
    model = Blip2Language(video, qformer_of(c, vocabulary=None), language)
    variables = from_state_dict(model, golden.weights, strict=True)
    pixels = jnp.asarray(np.moveaxis(golden.inputs[0], -3, -1)[:, None])  # normalised
    monkeypatch.setattr(Card, "preprocess", lambda *_: pixels)
    texts, mask, labels = (np.asarray(x) for x in golden.inputs[1:])
    # Padding is on the right here, and the places of the queries are not in the batch.
    kept = [row[(row != model.place_token) & (m == 1)] for row, m in zip(texts, mask, strict=True)]
    ids = np.stack([np.pad(row, (0, 7 - len(row))) for row in kept])
    written = np.pad(np.maximum(labels, 0), ((0, 0), (1, 0)))
    monkeypatch.setattr(language_modeling, "cut_texts", lambda key, ids, *_: (ids, jnp.asarray(written)))
    loss_fn, aux = jax.jit(blip2.second_loss(model, BYTES)), Aux({}, None, None, 0)
    loss, _ = loss_fn(variables["params"], aux, batch_of(ids), jax.random.key(0))
    np.testing.assert_allclose(loss, golden.outputs["output1"][0], rtol=1e-5)


def test_the_loss_of_captions_alone_is_their_likelihood():
    model = create_model("opt_tiny", vocabulary=260)
    params, ids = draw_variables(model)["params"], np.array([[257, 5, 9, 258, 0], [257, 7, 258, 0, 0]])
    loss, _ = blip2.language_loss(model, BYTES)(params, Aux({}, None, None, 0), batch_of(ids), jax.random.key(0))
    losses = []
    for row in ids:
        text = row[row != 0]
        likelihood = jax.nn.log_softmax(model.apply({"params": params}, jnp.asarray(text[None])))[0]
        losses += [-likelihood[i, word] for i, word in enumerate(text[1:])]
    assert len(losses) == 5
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)


def test_frozen_parts_have_no_optimiser_state_and_no_gradient():
    model = create_model("blip2_tiny_language")
    variables, parts = draw_variables(model), FrozenParts(model.frozen_parts, "bfloat16")
    few, frozen = parts.split(variables["params"], jax.random.key(0))
    assert few.keys() == {"qformer", "projection", "video"} and few["video"].keys() == {"norm"}
    assert frozen["language"]["token_embedding"]["embedding"].dtype == jnp.bfloat16
    assert frozen["language"]["norm"]["scale"].dtype == jnp.float32  # one axis
    merged = parts.merge(few, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(variables["params"])
    tx = make_optimizer(OptimizerConfig(), lambda step: 1e-3)
    state = create_state({"params": few}, tx, jax.random.key(0), frozen=(frozen, None))
    count = sum(leaf.size for leaf in jax.tree.leaves(few))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) <= 2 * count + 2
    loss_fn = parts.loss(blip2.second_loss(model, BYTES))
    batch = batch_of(np.array([[257, 5, 258]]), np.full((1, 4, 32, 32, 3), 90, np.uint8))
    grads = jax.eval_shape(lambda few: jax.grad(loss_fn, has_aux=True)(few, state.aux, batch, state.key)[0], few)
    assert jax.tree.structure(grads) == jax.tree.structure(few)


def test_parts_in_int8_take_a_quarter_and_give_nearly_the_same_loss_and_gradient():
    model = create_model("blip2_tiny_language")
    variables, loss_fn = draw_variables(model), blip2.second_loss(model, BYTES)
    pixels = np.random.default_rng(0).integers(256, size=(2, 4, 32, 32, 3), dtype=np.uint8)
    batch, found = batch_of(np.array([[257, 5, 9, 258], [257, 7, 258, 0]]), pixels), {}
    for kind in ("float32", "int8"):
        parts = FrozenParts(model.frozen_parts, kind)
        few, frozen = parts.split(variables["params"], jax.random.key(0))
        aux = Aux({}, None, (frozen, None), 0)
        grad = jax.jit(jax.value_and_grad(parts.loss(loss_fn), has_aux=True))
        (loss, _), grads = grad(few, aux, batch, jax.random.key(0))
        found[kind] = loss, grads, sum(leaf.nbytes for leaf in jax.tree.leaves(frozen))
    (exact, expected, floats), (loss, grads, small) = found.values()
    assert 0.25 < small / floats < 0.28
    assert frozen["language"]["token_embedding"]["embedding"]["int8"].dtype == jnp.int8
    assert exact != loss and abs(exact - loss) < 0.01 * exact
    expected, grads = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(each)]) for each in (expected, grads))
    assert np.dot(expected, grads) > 0.99 * np.linalg.norm(expected) * np.linalg.norm(grads)


SMALL = changed(
    script.RECIPES["demo"],
    tokenizer="bytes",
    attributes=("shape=circle|square|triangle",),
    context=24,
    batch_size=8,
    steps=4,
    caption_examples=5,
    video_model="fr2d_tiny",  # batch norm, and quick to compile
    init_video_from="encoder",
    frozen_type="int8",
    data__frames=4,
    data__size=16,
    data__short_side=16,
    data__workers=1,
    data__validation_examples=8,
    loop__log_every=1,
    loop__save_every=2,
    loop__evaluate_every=4,
)
ENCODER = changed(
    finetune.RECIPES["demo_attributes"],
    model="fr2d_tiny",
    batch_size=8,
    steps=2,
    workdir="encoder",
    data__frames=4,
    data__size=16,
    data__short_side=16,
    data__workers=1,
    data__validation=None,
    data__validation_examples=None,
)


@pytest.mark.long
def test_the_stages_follow_one_another_and_resume_exactly(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    finetune.main(ENCODER)
    numbers = script.main(changed(SMALL, workdir="whole"))
    assert {"caption_exact", "caption_cider", "shape"} <= numbers.keys()
    assert "text to video" in capsys.readouterr().out
    first, second = Path("whole/stage1"), Path("whole/stage2")

    without = {"data__validation": None, "data__validation_examples": None}
    stages = {
        "1": (first, {}),
        "2": (second, {"init_video_from": None, "init_from": str(first), "init_language_from": "whole/language"}),
    }
    for stage, (whole, fields) in stages.items():
        parts = changed(SMALL, stage=stage, workdir=f"parts{stage}", **fields, **without)
        interrupt_after(3, script.main, parts)
        script.main(parts)
        expected, actual = (load_variables(Path(workdir))[0] for workdir in (whole, parts.workdir))
        jax.tree.map(np.testing.assert_array_equal, actual, expected)

    trained, encoder, spoken = (load_variables(Path(each))[0] for each in (first, "encoder", "whole/language"))
    assert not any(path.startswith("params/video/tower") for path in trained)  # frozen, and written once
    model, variables = runs.load_pretrained(first, verbose=False)
    _, loaded = runs.load_pretrained(second, strict=True, verbose=False)
    assert isinstance(model, Blip2)
    tower, language = variables["params"]["video"]["tower"], loaded["params"]["language"]
    for name, leaf in (flatten_dict(tower, sep="/") | flatten_dict(language, sep="/")).items():
        source = encoder.get(f"params/{name}", spoken.get(f"params/{name}"))
        (kept,) = dequantized(quantized({name: jnp.asarray(source)})).values()
        np.testing.assert_array_equal(leaf, kept, err_msg=name)

    videos.write_video(tmp_path / "clip.mp4", np.full((16, 24, 24, 3), 90, np.uint8))
    settings = {"paths": (str(tmp_path / "clip.mp4"),), "beams": 1, "length": 3}
    (file,) = caption.main(caption.Config(**settings, run=str(second), prompt="a red"))
    assert file["caption"].startswith("a red")
    with pytest.raises(ValueError, match=r"a Blip2 without a decoder of captions: .* of blip2_pretrain.py with"):
        caption.main(caption.Config(**settings, run=str(first)))
    (tmp_path / "list.jsonl").write_text('{"path": "clip.mp4", "caption": "a"}\n{"path": "clip.mp4", "caption": "b"}\n')
    data = SourceConfig(source="list.jsonl")
    with pytest.raises(ValueError, match=r"is a Blip2, .*: give a run of contrastive_pretrain"):
        retrieve.main(retrieve.Config(run=str(first), data=data, out="found"))
    with pytest.raises(ValueError, match=r"is a Blip2Language, .*: give a run of contrastive_pretrain"):
        zero_shot.main(zero_shot.Config(run=str(second), data=SourceConfig(source="synthetic:moving_shapes")))


LANGUAGE = changed(SMALL, stage="language", language_model="t5_tiny", workdir="language", init_video_from=None)


@pytest.mark.long
def test_captions_alone_train_a_t5_and_resume_exactly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert script.main(LANGUAGE)["caption_loss"] > 0
    read = blip2.caption_batches

    def three(*args):
        yield from itertools.islice(read(*args), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(blip2, "caption_batches", three)
    parts = changed(LANGUAGE, workdir="parts")
    with pytest.raises(KeyboardInterrupt):
        script.main(parts)
    monkeypatch.setattr(blip2, "caption_batches", read)
    script.main(parts)
    jax.tree.map(np.testing.assert_array_equal, *(load_variables(Path(each))[0] for each in ("language", "parts")))


class Captions(dict):
    """A source of captions alone, by position."""

    ids = ("a", "b")
    captions = dict.__getitem__


def test_captions_alone_are_read_again_within_a_row():
    source = Captions({0: ("p", "q", "r", "s"), 1: ("t",)})  # each of a start, a letter and an end
    run = SimpleNamespace(
        source=source, batch={"ids": np.zeros((32, 15))}, config=SimpleNamespace(batch_size=32, seed=0)
    )
    ids = next(blip2.caption_batches(run, BYTES, 5, 0))["ids"]
    rows = {BYTES.decode(row[row < 256].tolist()).strip("\0") for row in ids}
    assert {"pqrpq", "qrsqr", "rsprs", "spqsp", "tptp"} <= rows


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 1}, "batch_size must be 2 or more and data.repeats 1"),
        ({"context": 2}, "context is 2: it must be 3 or more"),
        ({"sequence": 2}, "sequence and distributed are not supported"),
        ({"stage": "all", "dry_run": True}, "stage all trains what it starts from: omit dry_run"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        script.Config(**fields)


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (blip2.make_first, {"model": "blip2_tiny_language"}, "model blip2_tiny_language is no first stage of BLIP-2"),
        (blip2.make_first, {"context": 97}, "context is 97, the Q-Former of blip2_tiny reads 96"),
        (
            blip2.make_first,
            {"video_model": "fr2d_tiny", "scan": True},
            "scan is True, but fr2d_tiny has no ",
        ),
        (blip2.make_language, {"language_model": "bert_base_mlm"}, "language_model bert_base_mlm is none that BLIP-2"),
        (blip2.make_language, {"context": 97}, "0 queries and captions of 97 tokens are longer than .* context of 96"),
        (blip2.load_second, {}, "init_from is missing: stage 2 begins with a run of stage 1"),
        (blip2.load_second, {"dry_run": True}, "model blip2_tiny is no second stage of BLIP-2: give one such as"),
    ],
)
def test_models_that_do_not_fit_are_refused(make, fields, message):
    with pytest.raises(ValueError, match=message):
        make(script.Config(**{"model": "blip2_tiny"} | fields), BYTES)


@pytest.mark.parametrize(
    ("names", "fields", "message"),
    [
        (("blip2_tiny", None), {}, "init_language_from is missing: give a language model"),
        (("vit_tiny", None), {}, "init_from first is a ViT: give a run of stage 1, or a BLIP-2"),
        (("visualglm_tiny", None), {}, "VisualGLM and InstructBLIP are not trained here"),
        (("blip2_tiny", "vit_tiny"), {}, "init_language_from language is a ViT: give an OPT"),
        (("blip2_tiny", "opt_tiny"), {}, "tokenizer bytes has 259 ids, the language model 259, of which the last"),
        (
            ("blip2_tiny_language", "opt_tiny"),
            {"width": 32},
            "the projection of first has 96 channels, the language model language 32: give one of that width",
        ),
        (("blip2_tiny_language", None), {"context": 80}, "32 queries and captions of 80 tokens are longer than"),
    ],
)
def test_parts_of_the_second_stage_that_do_not_fit_are_refused(names, fields, message, monkeypatch):
    sources = dict(zip(("first", "language"), names, strict=True))
    context = fields.pop("context", 16)

    def load(source, **_):
        return create_model(sources[source], **(fields if source == "language" else {})), {"params": {}}

    monkeypatch.setattr(blip2, "load_pretrained", load)
    config = script.Config(
        model="blip2_tiny", init_from="first", context=context,
        init_language_from="language" if sources["language"] else None, data=CaptionedDataConfig(frames=4),
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        blip2.load_second(config, BYTES)


def test_an_encoder_without_weights_is_refused():
    with pytest.raises(ValueError, match="the encoder of stage 1, a ViT, is frozen: give its weights"):
        blip2.require_encoder(None, ViT(8, 1, 1))


def test_a_tokenizer_without_an_end_ends_with_the_line():
    plain = dataclasses.replace(BYTES, end=None, encode=lambda text: [257, *(ord(x) + 1 for x in text)])
    ended = blip2.ending(plain)
    assert ended.encode("ab") == [257, 98, 99, 11] and ended.end == 11
    with pytest.raises(ValueError, match="has neither an end token nor a line's end"):
        blip2.ending(dataclasses.replace(plain, encode=lambda text: [257]))


def test_videos_without_captions_are_refused(tmp_path):
    (tmp_path / "list.jsonl").write_text('{"path": "clip.mp4"}\n' * 2)
    data = {"data__source": str(tmp_path / "list.jsonl"), "init_video_from": None}
    config = changed(SMALL, stage="1", batch_size=2, workdir=str(tmp_path / "run"), **data)
    with pytest.raises(ValueError, match="caption"):
        script.main(config)
    assert not (tmp_path / "run").exists()
