"""BLIP-2 and InstructBLIP against goldens: both stages, names both ways, and texts word by word."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe

from vidjax.convert import blip2, from_state_dict, layouts
from vidjax.convert.export import entries
from vidjax.models.blip2 import Blip2, Blip2Language
from vidjax.models.language import LanguageModel
from vidjax.models.qformer import QFormer
from vidjax.models.t5 import T5
from vidjax.models.vit import ViT
from vidjax.objectives import contrastive, language_modeling, matching
from vidjax.runs.generation import begin

# Parameters of each row, and GMACs per clip; see test_published.py.
COUNTS = {
    # From SYSTEMS-2.md: what is trained in the first stage, and the ViT without its last norm; transformers' models.
    "blip2_giant": (186_705_470 + 985_952_256 - 2_816, None),
    "blip2_opt_2_7b": (3_744_761_856, None),
    "blip2_opt_6_7b": (7_752_869_376, None),
    # The sum of its parts, of which the Q-Former is published.
    "blip2_flan_t5_xl": (985_952_256 + 105_137_664 + 24_576 + 2_849_757_184 + 769 * 2048, None),
    # transformers' model has no temperature.
    "blip2_giant_retrieval": (1_172_032_258 + 1, None),
    "blip2_tiny": (711_559, None),
    "blip2_tiny_language": (885_600, None),
}


def image_of(c: dict) -> ViT:
    return ViT(c["D"], c["L"], c["H"], c["F"] / c["D"], (1, c["P"], c["P"]), image_size=c["S"])


def qformer_of(c: dict, **fields) -> QFormer:
    fields = {"vocabulary": c["V"], "context": c["ctx"], "writes": False} | fields
    return QFormer(c["Q"], width=c["qD"], depth=c["qL"], heads=c["qH"], mlp_ratio=c["qF"] / c["qD"], **fields)


def video_of(images: np.ndarray) -> jax.Array:
    return jnp.moveaxis(jnp.asarray(images), -3, -1)


def assert_converts_back(layout, model, variables, weights, repeated=frozenset(), left_out=()):
    written = {name: x for name, x in entries(layout, model, variables).items() if not name.startswith(left_out)}
    assert written.keys() - repeated == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(written[name], value)


@pytest.mark.long
def test_the_losses_of_the_first_stage_equal_the_original(monkeypatch):
    golden = recipe.load("blip2_stage1")
    c = golden.config
    model = Blip2(ViT(c["D"], 1, 2, patch_size=(1, 8, 8), image_size=16), qformer_of(c, writes=True), c["E"])
    variables = from_state_dict(model, golden.weights)  # the recording has no image tower
    monkeypatch.setattr(jax.random, "categorical", lambda key, logits: logits.argmax(axis=1))  # as recorded

    @jax.jit
    def losses(variables, seen, ids):
        valid, key = jnp.ones(len(ids), bool), jax.random.key(0)
        queries, text, words = model.apply(variables, seen, ids, method="align")
        itc, logits = contrastive.query_info_nce(queries, text, variables["params"]["temperature"], valid)
        other_video, _ = matching.hard_negatives(key, logits.T, valid)
        other_text, _ = matching.hard_negatives(key, logits, valid)
        texts, videos = jnp.concatenate([ids, ids, ids[other_text]]), jnp.concatenate([seen, seen[other_video], seen])
        match = model.apply(variables, videos, texts, method="match")
        itm = matching.matching_loss(match, jnp.arange(9) < 3, jnp.ones(9, bool))
        lm = language_modeling.caption_loss(words, ids, valid, smoothing=0.1)
        looked = model.apply(variables, seen, method=lambda model, seen: model.qformer.look(seen))
        return jnp.stack([itc, itm, lm]), words, match, logits, logits.T, looked

    ids = jnp.asarray(golden.inputs[1], jnp.int32)
    for number, actual in enumerate(losses(variables, jnp.asarray(golden.inputs[0]), ids)):
        expected, counted = golden.outputs[f"output{number}"], golden.inputs[2] == 1 if number == 1 else slice(None)
        np.testing.assert_allclose(actual[counted], expected[counted], rtol=0, atol=1e-5, err_msg=str(number))
    repeated = {f"{blip2.LAVIS_HEAD}.decoder.{entry}" for entry in ("weight", "bias")}
    image = ("visual_encoder", "ln_vision")
    assert_converts_back(blip2.ORIGINAL, model, variables, golden.weights, repeated, image)


@pytest.mark.long
def test_the_first_stage_equals_transformers():
    golden = recipe.load("blip2_qformer")
    c = golden.config
    model = Blip2(image_of(c), qformer_of(c), c["E"])
    variables = from_state_dict(model, golden.weights, strict=True)

    @jax.jit
    def run(variables, images, ids):
        def all_of(model, video, ids):
            seen = model.seen(video)
            queries, text = model(video, ids)
            cosines = jnp.einsum("bqe,ce->bcq", queries, text).max(axis=-1)
            together = model.qformer.together(seen, ids)
            return model.qformer.look(seen), model.match(seen, ids), cosines, queries, text, together, seen

        return model.apply(variables, images, ids, method=all_of)

    ids = jnp.asarray(golden.inputs[1], jnp.int32)
    counted = np.pad(golden.inputs[2] == 1, ((0, 0), (c["Q"], 0)), constant_values=True)
    for number, actual in enumerate(run(variables, video_of(golden.inputs[0])[:, None], ids)):
        expected, which = golden.outputs[f"output{number}"], counted if number == 5 else slice(None)
        np.testing.assert_allclose(actual[which], expected[which], rtol=0, atol=1e-5, err_msg=str(number))
    assert_converts_back(blip2.HUGGING_FACE, model, variables, golden.weights)


def test_an_opt_reads_the_queries_and_writes_word_by_word():
    golden = recipe.load("blip2_opt")
    c = golden.config
    language = LanguageModel(c["V"], c["ctx"], c["tD"], c["tL"], c["tH"], activation="relu", offset=2)
    model = Blip2Language(image_of(c), qformer_of(c, vocabulary=None), language)
    variables = from_state_dict(model, golden.weights, strict=True)
    ids, mask, labels = (jnp.asarray(x, jnp.int32) for x in golden.inputs[1:])
    valid = mask == 1

    @jax.jit
    def run(variables, video, ids):
        looked = model.apply(variables, video, method="look")
        words = model.apply(variables, ids, looked, valid, method="words")
        step, first, cache = begin(model, variables, ids[:, :10], looked, valid[:, :10], 2)
        return words, looked, jnp.stack([first, step(ids[:, 10], jnp.int32(0), cache)[0]], axis=1)

    words, looked, parts = run(variables, video_of(golden.inputs[0])[:, None], ids)
    np.testing.assert_allclose(words * mask[..., None], golden.outputs["output0"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(looked, golden.outputs["output2"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(parts, words[:, 9:11], atol=1e-5)
    loss = language_modeling.caption_loss(words, ids, labels != -100)
    np.testing.assert_allclose(loss, golden.outputs["output1"][0], rtol=1e-5)
    np.testing.assert_array_equal(model.placed(ids[:1, 5:], 1), ids[:1])
    assert_converts_back(layouts(model)[0], model, variables, golden.weights)


@pytest.mark.long
def test_a_t5_reads_the_queries():
    golden = recipe.load("blip2_t5")
    c = golden.config
    language = T5(c["V"], c["tD"], c["tL"], c["tH"], c["tD"] // c["tH"], 64)
    model = Blip2Language(image_of(c), qformer_of(c, vocabulary=None), language)
    variables = from_state_dict(model, golden.weights, strict=True)
    ids, mask, labels = (jnp.asarray(x, jnp.int32) for x in golden.inputs[1:])
    labels = jnp.maximum(labels, 0)
    written = jnp.pad(labels, ((0, 0), (1, 0)))  # the padding id is the first

    @jax.jit
    def run(variables, video, ids):
        looked = model.apply(variables, video, method="look")
        words = model.apply(variables, ids, looked, mask == 1, written, method="words")
        step, first, cache = begin(model, variables, ids, looked, mask == 1, 3)
        return words, jnp.stack([first, step(labels[:, 0], jnp.int32(0), cache)[0]], axis=1)

    words, parts = run(variables, video_of(golden.inputs[0])[:, None], ids)
    np.testing.assert_allclose(words[:, :-1], golden.outputs["output0"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(parts, words[:, :2], atol=1e-5)
    loss = language_modeling.caption_loss(words, written, jnp.ones(2, bool))
    np.testing.assert_allclose(loss, golden.outputs["output1"][0], rtol=1e-5)
    assert_converts_back(layouts(model)[0], model, variables, golden.weights)


@pytest.mark.long
def test_instructblip_reads_the_instruction_with_every_frame():
    golden = recipe.load("instructblip_video")
    c = golden.config
    language = LanguageModel(c["V"], c["ctx"], c["tD"], c["tL"], c["tH"], activation="relu", offset=2)
    model = Blip2Language(image_of(c), qformer_of(c), language)
    variables = from_state_dict(model, golden.weights, strict=True)
    instruction, _, ids, mask = (jnp.asarray(x, jnp.int32) for x in golden.inputs[1:])

    @jax.jit
    def run(variables, video, instruction, ids):
        looked = model.apply(variables, video, instruction, method="look")
        return model.apply(variables, ids, looked, mask == 1, method="words"), looked

    words, looked = run(variables, video_of(golden.inputs[0]), instruction, ids)
    np.testing.assert_allclose(words, golden.outputs["output0"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(looked, golden.outputs["output1"], rtol=0, atol=1e-5)
    assert_converts_back(layouts(model)[0], model, variables, golden.weights)
    with pytest.raises(ValueError, match="the Q-Former reads an instruction: give one"):
        jax.eval_shape(lambda x: model.apply(variables, x, method="look"), jnp.zeros((1, 4, 16, 16, 3)))
