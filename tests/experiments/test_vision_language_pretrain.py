"""ALBEF's and BLIP's training steps against recordings of the originals', a whole run, and what the script refuses."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import recipe
import videos
from flax.traverse_util import flatten_dict
from small_runs import changed, interrupt_after

from vidjax import runs
from vidjax.convert import from_state_dict
from vidjax.data import moving_shapes
from vidjax.data.config import SourceConfig
from vidjax.data.text import open_tokenizer, tokenize
from vidjax.layers.card import Card
from vidjax.models import create_model, variable_shapes
from vidjax.models.albef import Albef
from vidjax.models.blip import Blip, Text
from vidjax.models.text import FusionBert
from vidjax.models.video_text import unit
from vidjax.models.vit import ViT
from vidjax.objectives import language_modeling
from vidjax.runs import vision_language
from vidjax.training.checkpoint import load_variables
from vidjax.training.state import create_state
from vidjax.training.step import make_train_step

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import caption
import retrieve
import vision_language_pretrain as script


def albef(c: dict) -> Albef:
    video = ViT(c["D"], c["L"], c["H"], patch_size=(1, c["P"], c["P"]), image_size=c["S"])
    return Albef(video, FusionBert(c["V"], c["ctx"], c["tD"], c["tL"], c["tH"], c["fusion"]), c["E"], c["queue"])


def blip(c: dict) -> Blip:
    video = ViT(c["D"], c["L"], c["H"], patch_size=(1, c["P"], c["P"]), image_size=c["S"], epsilon=1e-6)
    return Blip(video, Text(c["V"], c["ctx"], c["tD"], c["tL"], c["tH"]), c["E"], c["queue"])


@pytest.mark.parametrize(
    ("make", "words"),
    [pytest.param(albef, "mlm", id="albef", marks=pytest.mark.long), pytest.param(blip, "lm", id="blip")],
)
def test_a_training_step_equals_the_original(make, words, monkeypatch):
    golden = recipe.load(f"{make.__name__}_pretrain")
    c = golden.config
    model, weights = make(c), golden.weights | {"queue_ptr": np.array([0])}
    variables = from_state_dict(model, weights)
    copy = from_state_dict(model, weights, layout="momentum")["params"]
    ids = jnp.asarray(golden.inputs[1], jnp.int32)
    # As recorded: scaled pixels and masked words are given, and negatives are the likeliest ones.
    video = np.moveaxis(golden.inputs[0], 1, -1)[:, None]  # normalised
    pixels = jnp.asarray(video * model.card.std + model.card.mean, jnp.float32)
    monkeypatch.setattr(Card, "scale", lambda self, video: pixels)
    monkeypatch.setattr(jax.random, "categorical", lambda key, logits: logits.argmax(axis=1))
    if words == "mlm":
        masked = jnp.asarray(golden.inputs[3], jnp.int32), jnp.asarray(golden.inputs[4] != -100)
        monkeypatch.setattr(language_modeling, "mask_words", lambda *_: masked)

    loss_fn, tx = vision_language.make_loss(model, ("itc", "itm", words), 1.0, c["alpha"]), optax.sgd(1.0)
    step = jax.jit(make_train_step(loss_fn, tx, ema_decay=c["momentum"]))
    state = create_state(variables, tx, jax.random.key(0), ema=True)
    # The original updates the copy before a step, the state after it, which is the same but for the very first one.
    ema = optax.incremental_update(variables["params"], copy, 1 - c["momentum"])
    state = state.replace(ema=ema, step=jnp.int32(2))
    after, metrics = step(state, {"video": jnp.zeros(pixels.shape, jnp.uint8), "ids": ids})

    losses = [metrics[f"{name}_loss"] for name in ("itc", "itm", words)]
    np.testing.assert_allclose(losses, golden.outputs["output0"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(metrics["loss"], golden.outputs["output0"].sum(), rtol=1e-5)
    queue = after.model_state["queue"]
    np.testing.assert_allclose(queue["video_keys"].T, golden.outputs["output5"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(queue["text_keys"].T, golden.outputs["output6"], rtol=0, atol=1e-5)
    assert queue["position"] == len(ids)
    # The recorded temperature is above its bound, where it cannot grow.
    pairs = {"params": (after.params, state.params), "ema": (after.ema, state.ema)}
    for name, (new, old) in pairs.items():
        same = jax.tree_util.tree_leaves_with_path(jax.tree.map(jnp.array_equal, new, old))
        assert [jax.tree_util.keystr(path) for path, equal in same if equal] == ["['temperature']"], name


SMALL = changed(
    script.RECIPES["demo"],
    video_model="fr2d_tiny",  # batch norm, and quick to compile
    context=24,
    queue_size=24,
    batch_size=8,
    steps=4,
    matched_examples=6,
    candidates=3,
    caption_examples=5,
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


@pytest.mark.long
def test_a_run_resumes_exactly_and_its_weights_describe_match_and_retrieve(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    numbers = script.main(changed(SMALL, workdir="whole"))
    assert {"text_to_video_r1", "itm_r1", "itm_accuracy", "caption_exact"} <= numbers.keys()
    parts = changed(SMALL, workdir="parts", data__validation=None, data__validation_examples=None)
    interrupt_after(3, script.main, parts)
    script.main(parts)
    whole, parts = (load_variables(Path(workdir))[0] for workdir in ("whole", "parts"))
    assert whole["queue/position"] == 4 * 8 - 24
    assert any(path.startswith("batch_stats/video/tower/") for path in whole)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)  # the moving average depends on the parameters

    tower = script.make_model(SMALL, open_tokenizer("bytes")).video.tower
    started, _ = runs.start_from("whole", tower, variable_shapes(tower))
    path = next(path for path in whole if path.startswith("params/video/tower/"))
    np.testing.assert_array_equal(flatten_dict(started, sep="/")[path.replace("video/tower/", "")], whole[path])

    videos.write_video(tmp_path / "clip.mp4", np.full((16, 24, 24, 3), 90, np.uint8))
    settings = {"paths": (str(tmp_path / "clip.mp4"),), "run": "whole", "beams": 1, "length": 3}
    (file,) = caption.main(caption.Config(**settings, prompt="a red"))
    assert file["caption"].startswith("a red")
    with pytest.raises(ValueError, match="the Blip answers no question: give a BLIP for questions or a BLIP-2"):
        caption.main(caption.Config(**settings, question="what moves?"))
    (tmp_path / "list.jsonl").write_text('{"path": "clip.mp4", "caption": "a"}\n{"path": "clip.mp4", "caption": "b"}\n')
    found = retrieve.main(retrieve.Config(run="whole", data=SourceConfig(source="list.jsonl"), rerank=2, out="found"))
    assert found["reranked_text_to_video"]["r5"] == found["joint_text_to_video"]["r5"] == 1
    assert found["text_to_video"]["queries"] == 2


@pytest.mark.long
def test_the_texts_of_a_tiny_model_differ_from_the_start():
    text = create_model("blip_tiny").text
    ids = jax.random.randint(jax.random.key(1), (8, 20), 1, 256).at[:, 0].set(257)
    tokens = jax.jit(lambda key, ids: text.init_with_output(key, ids, method="tokens")[0])(jax.random.key(0), ids)
    embedded = unit(tokens[:, 0])
    assert 1 - (embedded @ embedded.T).min() > 1e-2  # with BERT's initial kernels 1e-4


def test_only_published_sizes_have_dropout():
    rates = {name: create_model(name).text.dropout for name in ("albef_base", "albef_tiny", "blip_base", "blip_tiny")}
    assert rates == {"albef_base": 0.1, "albef_tiny": 0.0, "blip_base": 0.1, "blip_tiny": 0.0}


def test_the_words_of_the_demo_are_those_of_its_captions():
    demo = script.RECIPES["demo"]
    tokenizer = open_tokenizer(demo.tokenizer)
    texts = {text for index in range(1000) for text in moving_shapes.describe(index)[1]}
    rows = {text: tokenize(tokenizer, text, demo.context) for text in texts}
    assert {text: (tokenizer.decode(ids), cut) for text, (ids, cut) in rows.items()} == {t: (t, False) for t in texts}


def test_what_texts_attend_to():
    model = script.make_model(changed(SMALL, video_model="vivit_tiny_joint"), open_tokenizer("bytes"))
    video = jax.ShapeDtypeStruct((2, 4, 16, 16, 3), jnp.float32)
    shapes = {}
    for how in ("concatenated", "averaged", "pooled"):
        one = model.clone(frame_tokens=how)
        shapes[how] = jax.eval_shape(
            lambda x, one=one: one.init_with_output(jax.random.key(0), x, method="seen")[0], video
        )
    tubes, places = model.video.tower.num_frames // model.video.tower.patch_size[0], (16 // 8) ** 2
    expected = {"concatenated": tubes * (1 + places), "averaged": 1 + places, "pooled": tubes}
    assert {how: shape.shape for how, shape in shapes.items()} == {how: (2, n, 96) for how, n in expected.items()}


def test_the_card_is_that_of_the_clips():
    config = changed(script.RECIPES["demo"], data__stride=3, data__short_side=64)
    card = script.make_model(config, open_tokenizer("bytes")).card
    assert (card.stride, card.crop_ratio) == (3, 0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 24}, "a batch of 24 does not divide the queue of 1024: change one"),
        ({"mask_token": 259}, "mask_token is 259, the tokenizer has 259 ids: omit it"),
        ({"model": "clip_tiny"}, "model clip_tiny is neither an ALBEF nor a BLIP: choose one such as"),
        ({"model": "blip_tiny"}, "objective mlm: blip_tiny has no head for masked words, give --model albef_tiny"),
        ({"objectives": ("itc", "lm")}, "objective lm: albef_tiny writes no captions, give a BLIP"),
        ({"objectives": ("itc", "mlm", "lm")}, "objectives are mlm and lm: .* choose one"),
        ({"objectives": ("itm",)}, "objective itm draws its negatives by the similarities that itc trains: give both"),
        ({"objectives": ()}, "objectives are none: give each"),
        ({"objectives": ("itc", "vtm")}, "objectives is 'vtm': choose one of itc, itm, mlm, lm"),
        ({"video_model": "clip_tiny"}, "video_model clip_tiny is more than an encoder of videos"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        script.make_model(script.Config(**{"model": "albef_tiny", "batch_size": 32} | fields), open_tokenizer("bytes"))


def test_videos_without_captions_are_refused(tmp_path):
    (tmp_path / "list.jsonl").write_text('{"path": "clip.mp4"}\n' * 2)
    config = changed(SMALL, data__source=str(tmp_path / "list.jsonl"), batch_size=2, workdir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="caption"):
        script.main(config)
    assert not (tmp_path / "run").exists()
