"""Masked prediction of tokens: the original's logits in the loss, a run of each objective, resuming, invalid input."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
import videos
from PIL import Image
from small_models import perturbed
from small_runs import interrupt_after, two_devices

import vidjax
from vidjax import cli, runs
from vidjax.convert import from_state_dict
from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.models.bevt import Pretraining, from_image_stream
from vidjax.models.dalle import Encoder
from vidjax.objectives import block_masks, tokens
from vidjax.runs.tokens import load_tokenizer, make_tokenizer_loss, make_tokens
from vidjax.training.checkpoint import load_variables
from vidjax.training.metrics import read_metrics
from vidjax.training.state import Aux

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import token_pretrain

KEY = jax.random.key(0)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def cross_entropy(logits, targets, counted):
    """The mean over the counted places, one by one."""
    scores = log_softmax(logits)
    return -np.mean([scores[place][targets[place]] for place in zip(*np.nonzero(counted), strict=True)])


# Losses


@pytest.mark.parametrize("name", ["bevt", "bevt_shifted"])
def test_the_loss_of_a_step_is_that_of_the_originals_logits(name, monkeypatch):
    """Both streams, of the recorded logits: a mean over all masked places of valid clips, summed 1:1."""
    golden = recipe.load(name)
    c, (video, image, masked, image_masked) = golden.config, golden.inputs
    card, video, image = Card(), np.moveaxis(video, 1, -1), np.moveaxis(image, 1, -1)[:, None]
    pixels = {pair.shape: jnp.asarray(pair) for pair in (video, image)}  # recorded after normalisation
    monkeypatch.setattr(Card, "preprocess", lambda self, each: pixels[each.shape])
    masks = {"draw_videos": masked.astype(bool), "draw_images": image_masked.astype(bool)[:, None]}
    for function, mask in masks.items():
        monkeypatch.setattr(block_masks, function, lambda *_, mask=mask: jnp.asarray(mask))
    model = Pretraining(
        c["D"], tuple(c["depths"]), tuple(c["heads"]), tuple(c["window"]), vocabulary=c["V"], drop_path=0.0, card=card
    )
    params = from_state_dict(model, golden.weights, strict=True)["params"]
    targets = np.random.default_rng(1).integers(0, c["V"], (2, c["T"], 4, 4))
    config = token_pretrain.Config(images_per_clip=1)
    loss_fn = token_pretrain.make_loss(config, model, (c["T"] // 2, 4, 4), 8, lambda *_: jnp.asarray(targets))
    chosen = np.asarray(block_masks.draw_frames(jax.random.split(KEY, 4)[0], 2, c["T"], 1))
    batch = {"video": jnp.zeros(video.shape, jnp.uint8)}
    step = jax.jit(loss_fn)
    for valid in ([True, True], [False, True]):
        loss, (_, seen) = step(params, Aux({}, None, None, 0), batch | {"valid": jnp.array(valid)}, KEY)
        clips = np.array(valid)[:, None, None, None]
        hidden = masks["draw_videos"].repeat(2, axis=1) & clips
        expected = cross_entropy(golden.outputs["output0"].reshape(2, -1, 4, 4, c["V"]), targets, hidden)
        assert abs(float(seen["video_loss"]) - expected) <= 1e-5 * expected
        of_images = np.take_along_axis(targets, chosen[..., None, None], axis=1)
        logits = golden.outputs["output1"].reshape(2, 1, 4, 4, c["V"])
        total = expected + cross_entropy(logits, of_images, masks["draw_images"] & clips)
        assert abs(float(loss) - total) <= 1e-5 * total


def test_the_loss_of_a_step_of_beit_is_that_of_the_originals_logits(monkeypatch):
    golden = recipe.load("beit")
    c, (image, masked) = golden.config, golden.inputs
    image, side = jnp.moveaxis(jnp.asarray(image), 1, -1)[:, None], c["S"] // c["P"]
    monkeypatch.setattr(Card, "preprocess", lambda self, each: image)
    hidden = masked.reshape(2, 1, side, side)
    monkeypatch.setattr(block_masks, "draw_images", lambda *_: jnp.asarray(hidden))
    model = vidjax.create_model(
        "beit_tiny_pretrain", width=c["D"], depth=c["L"], heads=c["H"], patch_size=(1, c["P"], c["P"]),
        image_size=c["S"], epsilon=1e-12, vocabulary=c["V"], encoder_norm=True,
    )  # fmt: skip
    params = from_state_dict(model, golden.weights, strict=True)["params"]
    targets = np.random.default_rng(1).integers(0, c["V"], hidden.shape)
    config = token_pretrain.RECIPES["beit_base"]
    loss_fn = token_pretrain.make_loss(config, model, (1, side, side), 8, lambda *_: jnp.asarray(targets))
    batch = {"video": jnp.zeros(image.shape, jnp.uint8), "valid": jnp.ones(2, bool)}
    loss = jax.jit(lambda *inputs: loss_fn(*inputs, train=False))(params, Aux({}, None, None, 0), batch, KEY)[0]
    expected = cross_entropy(golden.outputs["output0"].reshape(*hidden.shape, -1), targets, hidden)
    assert abs(float(loss) - expected) <= 1e-5 * expected


def test_a_tokenizers_loss_is_of_its_valid_clips_at_this_steps_temperature_and_weight():
    model = vidjax.create_model("dalle_tiny", vocabulary=32)
    params = jax.tree.map(jnp.asarray, perturbed(model))["params"]
    video = np.random.default_rng(1).integers(0, 256, (3, 2, 16, 16, 3)).astype(np.uint8)
    valid = np.array([True, False, True])
    config = token_pretrain.Config(
        objective="tokenizer", temperature=0.5, temperature_steps=100, divergence_weight=3.0, divergence_steps=200
    )
    batch = {"video": jnp.asarray(video), "valid": jnp.asarray(valid)}
    pixels = 0.1 + 0.8 * video / 255

    @jax.jit
    def compute(params, pixels):
        logits = model.apply({"params": params}, pixels, method="logits")
        relaxed = tokens.relaxed_tokens(KEY, logits, 0.75)  # half of the cosine
        statistics = model.apply({"params": params}, relaxed, method="decode")
        return make_tokenizer_loss(config, model)(params, Aux({}, None, None, 50), batch, KEY), logits, statistics

    (loss, (_, seen)), logits, statistics = compute(params, jnp.asarray(pixels, jnp.float32))
    assert seen["temperature"] == pytest.approx(0.75)
    statistics = np.asarray(statistics, np.float64)
    mean, scale = statistics[..., :3], np.exp(statistics[..., 3:])
    distance = np.abs(np.log(pixels / (1 - pixels)) - mean)
    reconstruction = np.log(2 * scale * pixels * (1 - pixels)) + distance / scale
    likelihood = log_softmax(logits)
    divergence = (np.exp(likelihood) * (likelihood + np.log(32))).sum(axis=-1)
    expected = reconstruction[valid].mean() + 3.0 * 50 / 200 / 192 * divergence[valid].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


# Tokens


def save_tokenizer(folder, **fields):
    model = vidjax.create_model("dalle_tiny", **({"vocabulary": 32} | fields))
    variables = perturbed(model)
    vidjax.save_pretrained(folder, model, variables)
    return model, variables


def test_tokens_are_those_of_frames_of_the_tokenizers_size(tmp_path):
    model, variables = save_tokenizer(tmp_path / "vae")
    tokenizer, frozen, size = load_tokenizer(str(tmp_path / "vae"), (4, 4), None)
    assert isinstance(tokenizer, Encoder) and size == 32
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 4, 4, 3)).astype(np.uint8)
    frames = frames.repeat(16, axis=2).repeat(16, axis=3)  # of 64 pixels, in blocks of 16
    ours = jax.jit(make_tokens(tokenizer, size))(frozen, frames)
    see = jax.jit(lambda pixels: model.apply(variables, pixels, method="tokens"))
    same = jnp.asarray(0.1 + 0.8 * frames / 255, jnp.float32)
    np.testing.assert_array_equal(jax.jit(make_tokens(tokenizer, 64))(frozen, frames), see(same))
    assert ours.shape == (1, 2, 4, 4)
    resized = [[Image.fromarray(frame).resize((32, 32), Image.Resampling.LANCZOS) for frame in clip] for clip in frames]
    pixels = jnp.asarray(0.1 + 0.8 * np.array([[np.asarray(each) for each in clip] for clip in resized]) / 255)
    agree = ours == see(pixels.astype(jnp.float32))
    assert agree.mean() > 0.9  # Pillow rounds to integers


def test_the_video_stream_starts_as_the_image_stream():
    """A clip of equal frames then has the first stage's map of the image, without shifted windows."""
    model = vidjax.create_model("bevt_tiny", depths=(1, 1), window=(2, 8, 8))
    params = from_image_stream(jax.tree.map(jnp.asarray, perturbed(model))["params"])
    frame = jnp.asarray(recipe.floats("frame", (1, 1, 32, 32, 3)))
    encoder = model.clone(parent=None)

    def first(kind, video):
        def run(module):
            if kind == "video":
                return module.encoder.maps(module.encoder.patches(video))[0]
            from vidjax.layers.patches import on_grid, patchify

            x = on_grid(module.image_embedding(patchify(video, (1, 4, 4))), (1, 8, 8))
            return module.encoder.maps(module.image_embedding_norm(x))[0]

        return jax.jit(lambda params: encoder.apply({"params": params}, method=run))(params)

    video, image = first("video", frame.repeat(4, axis=1)), first("image", frame)
    assert video.shape[1] == 2
    np.testing.assert_allclose(video, image.repeat(2, axis=1), atol=1e-5)


# Runs

SMALL = """--data.size 32 --data.short_side 32 --data.frames 4 --data.stride 1 --data.workers 1 --batch_size 8 --steps 4
--loop.log_every 1 --loop.save_every 2 --loop.evaluate_every 3 --observed_clips 4 --probe_clips 0
--optim.warmup_epochs 0""".split()


def run(recipe_name, workdir, *flags):
    argv = [recipe_name, "--data.source", "synthetic:moving_shapes", *SMALL, "--workdir", str(workdir), *flags]
    config = cli.parse(token_pretrain.Config, token_pretrain.RECIPES, token_pretrain.DATA_FLAG, argv)
    with two_devices():
        return token_pretrain.main(config)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tokens") / "tokenizer"
    run("demo", workdir, "--data.frames", "2")
    return workdir


@pytest.mark.long
def test_a_tokenizer_writes_reconstructions(tokenizer):
    entries = read_metrics(tokenizer)
    assert all(entry["reconstruction"] and entry["temperature"] <= 1 for entry in entries if "loss" in entry)
    assert [entry["step"] for entry in entries if "evaluation/used_tokens" in entry] == [3, 4]
    assert (tokenizer / "reconstructions" / "step_0000004.png").exists()


@pytest.fixture(scope="module")
def bevt(tokenizer, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("bevt") / "run"
    run("bevt_tiny", workdir, "--tokenizer", str(tokenizer))
    return workdir


@pytest.mark.long
def test_a_resumed_run_is_equal_bit_for_bit_and_its_predictions_are_observed(bevt, tokenizer, tmp_path):
    interrupt_after(2, run, "bevt_tiny", tmp_path / "run", "--tokenizer", str(tokenizer))
    run("bevt_tiny", tmp_path / "run", "--tokenizer", str(tokenizer))
    (expected, step), (resumed, _) = load_variables(bevt), load_variables(tmp_path / "run")
    assert step == 4 and expected.keys() == resumed.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(resumed[path], value, err_msg=path)
    losses = [[e["loss"] for e in read_metrics(each) if "loss" in e] for each in (bevt, tmp_path / "run")]
    assert len(losses[0]) == 4 and losses[0] == losses[1]
    observed = [entry for entry in read_metrics(bevt) if "evaluation/token_loss" in entry]
    assert [entry["step"] for entry in observed] == [3, 4]
    assert all(0 <= entry[f"evaluation/{kind}_accuracy"] <= 1 for entry in observed for kind in ("image", "video"))


@pytest.mark.long
def test_a_classifier_and_probes_start_from_a_run(bevt, tmp_path):
    import finetune
    import probe

    flags = "--model video_swin_tiny --data.frames 4 --data.size 32 --data.short_side 32 --data.stride 1 --steps 1"
    argv = ["demo", *flags.split(), "--batch_size", "8", "--data.workers", "1", "--data.validation", "None"]
    argv += ["--init_from", str(bevt), "--workdir", str(tmp_path / "ft"), "--optim.learning_rate", "1e-12"]
    with two_devices():
        finetune.main(cli.parse(finetune.Config, finetune.RECIPES, finetune.DATA_FLAG, argv))
    (trained, _), (tuned, _) = load_variables(bevt), load_variables(tmp_path / "ft")
    for path, value in tuned.items():
        if path.startswith("params/") and "/head/" not in path:
            np.testing.assert_allclose(value, trained[path.replace("params/", "params/encoder/", 1)], atol=1e-6)
    data = probe.LabelledSourceConfig(
        train_examples=64, validation="synthetic:moving_shapes", validation_examples=32, workers=1
    )
    config = probe.Config(run=str(bevt), data=data, probes=("knn",), k=(3,), out=str(tmp_path / "probe"))
    with two_devices():
        assert 0 <= probe.main(config)["knn"]["top1"] <= 1


@pytest.mark.long
def test_images_alone_then_both_streams(tokenizer, tmp_path):
    more = ["--tokenizer", str(tokenizer), "--steps", "1"]
    run("bevt_tiny", tmp_path / "images", *more, "--objective", "images")
    run(
        "bevt_tiny", tmp_path / "both", *more, "--init_from", str(tmp_path / "images"), "--optim.learning_rate", "1e-12"
    )
    images, both = (load_variables(tmp_path / name)[0] for name in ("images", "both"))
    kernel = images["params/image_embedding/kernel"]
    np.testing.assert_allclose(both["params/encoder/patch_embedding/kernel"], np.repeat(kernel / 2, 2, 0), atol=1e-6)
    run("beit_tiny", tmp_path / "beit", *more)
    assert runs.read_config(tmp_path / "beit")["objective"] == "images"
    assert "params/encoder/class_token" in load_variables(tmp_path / "beit")[0]


BAD = [
    (["--model", "beit_tiny"], "model beit_tiny is not for the objective both: choose one of bevt_base, bevt_tiny"),
    (["--objective", "tokenizer"], "model bevt_tiny is not for the objective tokenizer: choose one of dalle, dalle_sm"),
    (["--mask_ratio", "0.01"], "mask_ratio 0.01 of 8x8 patches leaves nothing to predict: 1 masked patches are fewer"),
    (["--mask_ratio", "1"], "mask_ratio 1 of 8x8 patches leaves nothing visible: lower the ratio or use larger clips"),
    (["--tokenizer", "nowhere/at/all"], "tokenizer: there are no weights at nowhere/at/all: give a run, a file or a H"),
    (["--tokenizer", "SWIN"], "tokenizer: SWIN is a VideoSwin, which has no tokens: give a run of token_pretrain.py"),
    (["--token_size", "32"], "of frames of 32 pixels lie on a grid of 4 places a side, the model's on 8x8: use --tok"),
    (["--data.frames", "5"], "5 frames cannot be cut into patches of 2: use a multiple of 2, such as 4 or 6"),
    (["--data.source", "SHORT", "--data.stride", "5"], "a clip needs 16 frames of a video, but the first of SHORT has"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("flags", "message"), BAD, ids=[" ".join(flags[:2]) for flags, _ in BAD])
def test_invalid_input_is_one_line_before_anything_is_written(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    videos.write_video(Path("SHORT") / "a.mp4", videos.numbered(12))
    if "SWIN" in flags:
        model = vidjax.create_model("video_swin_tiny")
        vidjax.save_pretrained("SWIN", model, perturbed(model))
    save_tokenizer("VAE")
    with pytest.raises(UserError, match=message) as error:
        run("bevt_tiny", "run", "--tokenizer", "VAE", *flags)
    assert "\n" not in str(error.value) and not Path("run").exists()


def test_recipes_follow_the_published_schedules():
    """BEVT: 5e-4 for 512 videos; BEiT: 1.5e-3 for 2048 images, of 75 masked patches."""
    for name, peak in (("bevt_base", 5e-4), ("beit_base", 1.5e-3)):
        config = token_pretrain.RECIPES[name]
        rate = config.optim.schedule(config.batch_size, 100_000, 1000)
        assert float(rate(10_000)) == pytest.approx(peak, rel=1e-3)
    beit, bevt = token_pretrain.RECIPES["beit_base"], token_pretrain.RECIPES["bevt_base"]
    counts = [block_masks.count_masked(14, 14, each.mask_ratio, each.least_patches) for each in (beit, bevt)]
    assert counts == [75, 98] and bevt.data.frames == 16 and bevt.data.stride == 8
