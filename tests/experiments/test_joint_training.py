"""Images and clips in one step of fine-tuning."""

import dataclasses
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import videos
from PIL import Image
from small_runs import changed, draw_variables, interrupt_after, two_devices

import vidjax
from vidjax import runs
from vidjax.data.config import AugmentConfig, LabelledDataConfig
from vidjax.errors import UserError
from vidjax.layers.stills import sum_over_time
from vidjax.runs.joint import Joint
from vidjax.training.loop import LoopConfig
from vidjax.training.metrics import read_metrics
from vidjax.training.optimizer import OptimizerConfig
from vidjax.training.state import Aux

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import evaluate
import finetune
import predict

DATA = LabelledDataConfig(
    frames=2, size=32, short_side=32, workers=1, augment=AugmentConfig(crop="center"), train="mix:photos=1,clips=2"
)
CONFIG = finetune.Config(
    model="r3d_tiny", data=DATA, heads=("photos", "clips"), stills=("photos",), batch_size=6, steps=3, mixup=0.0,
    cutmix=0.0, label_smoothing=0.0, optim=OptimizerConfig(learning_rate=1e-3, warmup_epochs=0),
    loop=LoopConfig(log_every=1, save_every=1, evaluate_every=3),
)  # fmt: skip
NAMES = ("photos: cat", "photos: dog", "clips: up", "clips: down", "clips: left")


@pytest.fixture(scope="module")
def model():
    model = vidjax.create_model("r3d_tiny", num_classes=5, num_frames=2, image_size=32)
    card = dataclasses.replace(model.card, class_names=NAMES, heads=CONFIG.heads, stills=CONFIG.stills)
    return model.clone(card=card)


@pytest.mark.long
def test_the_gradient_of_a_joint_step_is_the_sum_of_both_and_only_clips_move_the_statistics(model):
    variables, draw = draw_variables(model), np.random.default_rng(0)
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    batch = {
        "video": draw.integers(0, 256, (6, 2, 32, 32, 3), np.uint8),
        "label": np.array([3, 1, 2, 0, 4, -1]),
        "valid": np.array([True, True, True, False, True, False]),  # one of two images, three of four clips
    }
    batch = jax.tree.map(jnp.asarray, batch)
    loss_fn, video = finetune.make_loss(CONFIG, model, None), model.card.preprocess(batch["video"])

    def together(params):
        return loss_fn(params, Aux(state, None, None, 0), batch, jax.random.key(0))

    def alone(params, rows, first, last, images):
        seen, values = (video[:, :1], sum_over_time(params)) if images else (video, params)
        logits, after = model.apply({"params": values, **state}, seen[rows], train=True, mutable=["batch_stats"])
        scores = jax.nn.log_softmax(logits[:, first:last])
        return -scores[np.arange(len(rows)), batch["label"][rows] - first].mean(), after

    @jax.jit
    def everything(params):
        of_images = partial(alone, rows=np.array([1]), first=0, last=2, images=True)
        of_clips = partial(alone, rows=np.array([0, 2, 4]), first=2, last=5, images=False)
        steps = [jax.value_and_grad(loss, has_aux=True)(params) for loss in (together, of_images, of_clips)]
        logits = Joint(CONFIG, model).evaluate(variables, video[:2], jnp.asarray(batch["label"][:2]))
        summed = {**variables, "params": sum_over_time(params)}
        return steps, logits, model.apply(variables, video[:1]), model.apply(summed, video[1:2, :1])

    steps, logits, of_clip, of_image = everything(params)
    ((loss, (now, _)), gradient), ((first, moved), of_images), ((second, after), of_clips) = steps
    np.testing.assert_allclose(loss, first + second, rtol=1e-5)
    for both, one, other in zip(*map(jax.tree.leaves, (gradient, of_images, of_clips)), strict=True):
        np.testing.assert_allclose(both, one + other, rtol=1e-3, atol=1e-5 * max(1, np.abs(both).max()))
    for ours, clips, images in zip(*map(jax.tree.leaves, (now, after, moved)), strict=True):
        np.testing.assert_allclose(ours, clips, rtol=1e-5, atol=1e-6)
        assert np.abs(np.asarray(ours) - images).max() > 1e-4
    np.testing.assert_allclose(logits, jnp.concatenate([of_clip, of_image]), rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_images_and_trimmed_and_untrimmed_clips_learn_in_one_step():
    heads = ("photos", "trimmed", "untrimmed")
    data = dataclasses.replace(DATA, train="mix:photos=2,trimmed=1,untrimmed=1")
    config = changed(CONFIG, heads=heads, data=data, batch_size=8)
    model = vidjax.create_model("r3d_tiny", num_classes=7, num_frames=2, image_size=32)
    names = tuple(f"{head}: {n}" for head, count in zip(heads, (2, 3, 2), strict=True) for n in range(count))
    model = model.clone(card=dataclasses.replace(model.card, class_names=names, heads=heads, stills=config.stills))
    variables, draw = draw_variables(model), np.random.default_rng(3)
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    video = draw.integers(0, 256, (8, 2, 32, 32, 3), np.uint8)
    batch = jax.tree.map(
        jnp.asarray, {"video": video, "label": np.array([5, 0, 3, 1, 6, 0, 2, 1]), "valid": np.ones(8, bool)}
    )
    loss_fn, seen = finetune.make_loss(config, model, None), model.card.preprocess(batch["video"])
    images, trimmed, untrimmed = np.array([1, 3, 5, 7]), np.array([2, 6]), np.array([0, 4])

    @jax.jit
    def everything(params):
        together = loss_fn(params, Aux(state, None, None, 0), batch, jax.random.key(0))
        settings = {"train": True, "mutable": ["batch_stats"]}
        of_images, _ = model.apply({"params": sum_over_time(params), **state}, seen[images, :1], **settings)
        of_clips, after = model.apply({"params": params, **state}, seen[np.r_[trimmed, untrimmed]], **settings)
        return together, of_images, of_clips, after

    (loss, (now, _)), of_images, of_clips, after = everything(params)
    wanted = 0.0
    for rows, logits, first, last in (
        (images, of_images, 0, 2), (trimmed, of_clips[:2], 2, 5), (untrimmed, of_clips[2:], 5, 7),
    ):  # fmt: skip
        scores = jax.nn.log_softmax(logits[:, first:last])
        wanted -= scores[np.arange(len(rows)), batch["label"][rows] - first].mean()
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    # Both kinds of clips are normalised as one batch, which alone moves the running statistics.
    for ours, clips in zip(*map(jax.tree.leaves, (now, after)), strict=True):
        np.testing.assert_allclose(ours, clips, rtol=1e-5, atol=1e-6)


def test_the_chosen_head_of_images_sees_them_as_in_training(model):
    variables, labels = draw_variables(model), jnp.zeros(2, int)
    video = np.random.default_rng(2).normal(size=(2, 1, 32, 32, 3)).astype(np.float32).repeat(2, axis=1)  # of images
    heads = [runs.choose_head(model, variables, head, "the run") for head in CONFIG.heads]
    seen, expected, clips, plain = jax.jit(
        lambda video: (
            heads[0][0].apply(heads[0][1], video),
            Joint(CONFIG, model).evaluate(variables, video, labels)[:, :2],
            heads[1][0].apply(heads[1][1], video),
            model.apply(variables, video),
        )
    )(video)
    np.testing.assert_allclose(seen, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(clips, plain[:, 2:], rtol=1e-4, atol=1e-4)
    assert np.abs(seen - plain[:, :2]).max() > 1e-2
    assert heads[0][0].card.stills == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stills": ("drawings",)}, "stills are drawings and the heads are photos, clips: name some of them"),
        ({"stills": ("photos", "clips")}, "name some of them, and one of clips"),
        ({"heads": ()}, "stills are photos and there are no heads"),
        ({"mixup": 0.8}, "stills cannot be mixed with clips: give --mixup 0 --cutmix 0"),
        ({"teacher": "runs/flow"}, "stills are no clips, as teacher needs them: omit --teacher"),
        ({"sequence": 2}, "omit --sequence"),
        ({"batch_size": 8}, "give a --batch_size that is a multiple of 3, the sum of the weights of the mix"),
    ],
)
def test_wrong_stills_are_one_line(model, fields, message):
    with pytest.raises(UserError, match=message) as raised:
        Joint(changed(CONFIG, **fields), model)
    assert "\n" not in str(raised.value)


@pytest.mark.long
def test_a_killed_run_on_images_and_trimmed_and_untrimmed_clips_resumes_with_the_same_losses(tmp_path):
    for number, name in enumerate(("cat", "dog", "cat", "dog")):
        (tmp_path / "photos").mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}_{name}.jpg")
    rows = "".join(f"{file.name},{file.stem[2:]}\n" for file in sorted((tmp_path / "photos").iterdir()))
    (tmp_path / "photos" / "all.csv").write_text(f"path,label\n{rows}")
    for number, name in enumerate(("up", "up", "down", "down")):
        frames = videos.numbered(4, 32, 32, first=number)
        videos.write_video(tmp_path / "clips" / name / f"{number}.mp4", frames)
    for number, name in enumerate(("jump", "run")):  # long videos, of which any part may be seen
        videos.write_video(tmp_path / "web" / name / "0.mp4", videos.numbered(40, 32, 32, first=8 * number))
    mix = f"mix:{tmp_path / 'photos' / 'all.csv'}=1,{tmp_path / 'clips'}=2,{tmp_path / 'web'}=1"
    data = dataclasses.replace(DATA, train=mix, validation=mix)

    losses = []
    with two_devices():
        for name in ("whole", "killed"):
            heads = (*CONFIG.heads, "web")
            config = changed(CONFIG, data=data, heads=heads, batch_size=8, workdir=str(tmp_path / name))
            if name == "killed":
                interrupt_after(2, finetune.main, config)
            finetune.main(config)
            entries = read_metrics(tmp_path / name)
            losses.append([entry["loss"] for entry in entries if "loss" in entry])
    assert losses[0] == losses[1] and len(losses[0]) == 3
    assert abs(losses[0][0] - 3 * np.log(2)) < 1  # of the three, as the sum
    (last,) = [entry for entry in entries if "evaluation/top1" in entry]
    assert {f"evaluation/{head}_top1" for head in heads} <= last.keys()

    run, images = str(tmp_path / "killed"), tmp_path / "photos"
    source = evaluate.SourceConfig(source=str(images / "all.csv"), workers=1)
    numbers = evaluate.main(evaluate.Config(run=run, data=source, head="photos", out=str(tmp_path / "photos_only")))
    assert numbers["top1"] == last["evaluation/photos_top1"] and numbers["counted"] == 4
    with pytest.raises(UserError, match="killed has the heads photos, clips, web: give --head with one of them"):
        predict.main(predict.Config((str(images / "0_cat.jpg"),), run))
