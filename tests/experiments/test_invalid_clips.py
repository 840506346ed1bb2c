"""Invalid clips change nothing: loss, gradient, running statistics and metrics are those of the other clips.

In all three training scripts, for all families. Dropout and drop path draw numbers for the places in a batch, mixup
mixes places: what is compared with a batch of other places goes without them; with them the pixels are compared.
"""

import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from small_runs import changed, draw_variables

import vidjax
from vidjax.data.config import CaptionedDataConfig, DataConfig
from vidjax.data.text import open_tokenizer
from vidjax.models import FAMILIES, VARIANTS, example_inputs
from vidjax.training.sharding import make_mesh, put_batch
from vidjax.training.state import Aux

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import contrastive_pretrain  # noqa: E402
import finetune  # noqa: E402
import mae_pretrain  # noqa: E402

SMALLEST = [min(name for name in family.VARIANTS if "_tiny" in name) for family in FAMILIES]
CLASSIFIERS = [
    name
    for name in SMALLEST
    if "num_classes" in VARIANTS[name]().__dataclass_fields__ and not hasattr(VARIANTS[name](), "search")
]
"""Without AdaFrame, which finetune.py does not train."""
WITH_GRADIENT = ("fr2d_tiny", "lrcn_tiny", "uniformer_tiny", "videomae_tiny")
"""Families whose gradients are compiled too, which takes long: others have their batch norms, or where there are none,
logits of a clip that are its own, as a VideoMAE's."""
assert set(WITH_GRADIENT) < set(CLASSIFIERS)
PLAIN = finetune.Config(mixup=0.0, cutmix=0.0, train_accuracy=True)


class Loss:
    """A script's loss for a model with random variables, and its gradient unless it takes too long to compile."""

    def __init__(self, model, loss, gradient=True):
        self.clip = example_inputs(model)[0].shape[1:]
        variables = draw_variables(model)
        self.params, self.state = variables.pop("params"), variables
        self.program = jax.jit(jax.value_and_grad(loss, has_aux=True) if gradient else lambda *args: (loss(*args), ()))

    def __call__(self, batch):
        """The loss with state and metrics, and the gradient."""
        return self.program(self.params, Aux(self.state, None, None, 0), batch, jax.random.key(0))

    def assert_nothing_of(self, batch):
        """Without valid clips loss and gradient are zero, and running statistics do not change."""
        (loss, (state, _)), gradient = self(batch | {"valid": np.zeros_like(batch["valid"])})
        assert loss == 0 and not any(leaf.any() for leaf in jax.tree.leaves(gradient))
        chex.assert_trees_all_equal(state, self.state)


def make_batch(clip, valid, unreadable=0):
    """A batch with fixed valid clips, whose other clips have random pixels seeded by `unreadable`."""
    valid = np.array(valid, bool)
    good, bad = (
        np.random.default_rng(seed).integers(0, 256, (len(valid), *clip), np.uint8) for seed in (9, unreadable)
    )
    video = np.where(valid[:, None, None, None, None], good, bad)
    return {"video": video, "label": np.where(valid, np.arange(len(valid)) % 4, -1), "valid": valid}


def chosen(batch, rows):
    return {name: array[rows] for name, array in batch.items()}


def assert_same(result, expected, within=1e-3):
    """Compares whole gradients: some leaves are zero up to rounding errors, which batch norm amplifies."""
    chex.assert_trees_all_close(result[0], expected[0], rtol=within, atol=within)
    one, other = (ravel_pytree(jax.device_get(gradient))[0] for _, gradient in (result, expected))
    assert np.linalg.norm(one - other) <= within * np.linalg.norm(other)


def classify(name, config=PLAIN, **fields):
    model = vidjax.create_model(name, num_classes=4)
    model = model.clone(**{field: value for field, value in fields.items() if field in model.__dataclass_fields__})
    return Loss(model, finetune.make_loss(config, model, None), gradient=name in WITH_GRADIENT)


@pytest.mark.parametrize(
    "name", [name if name in WITH_GRADIENT else pytest.param(name, marks=pytest.mark.long) for name in CLASSIFIERS]
)
def test_fine_tuning_of_any_family_uses_only_valid_clips(name):
    loss = classify(name, dropout=0.0, drop_path=0.0)
    batch = make_batch(loss.clip, [True, False, True, False, False, True])
    result = loss(batch)
    # The same program on three clips, each repeated twice: all means are those of the three clips.
    assert_same(result, loss(chosen(batch, [0, 0, 2, 2, 5, 5])))
    chex.assert_trees_all_equal(loss(make_batch(loss.clip, batch["valid"], unreadable=1)), result)
    loss.assert_nothing_of(batch)


def test_pixels_of_invalid_clips_change_nothing_with_dropout_mixing_and_remat():
    config = changed(PLAIN, train_accuracy=False, mixup=0.8, cutmix=1.0)
    loss = classify("videomae_tiny", config, dropout=0.5, drop_path=0.2, remat="blocks")
    valid = [False, True, True, True, False, True]
    result = loss(make_batch(loss.clip, valid))
    chex.assert_trees_all_equal(loss(make_batch(loss.clip, valid, unreadable=1)), result)


def test_several_devices_of_which_some_have_no_valid_clip():
    loss = classify("fr2d_tiny")
    batch = make_batch(loss.clip, [False] * 4 + [True, True, False, True])
    alone = loss(chosen(batch, batch["valid"]))
    assert_same(loss(put_batch(batch, make_mesh(devices=jax.local_devices()))), alone)


def test_contrastive_pre_training_uses_only_valid_pairs():
    """Of each objective the values are compared in test_losses.py."""
    config = contrastive_pretrain.Config(
        video_model="fr2d_tiny",
        text_model="text_tiny",
        features=16,
        data=CaptionedDataConfig(frames=2, size=16, templates="plain"),
    )
    pair = contrastive_pretrain.make_model(config, open_tokenizer("bytes"))
    loss = Loss(pair, contrastive_pretrain.make_loss(config, pair))
    batch = make_batch(loss.clip, [True, False, True, True, False])
    batch["ids"] = np.random.default_rng(2).integers(1, 256, (5, pair.text.context)) * batch["valid"][:, None]
    result = loss(batch)
    assert_same(result, loss(chosen(batch, batch["valid"])))
    chex.assert_trees_all_equal(loss(batch | {"video": make_batch(loss.clip, batch["valid"], 1)["video"]}), result)
    loss.assert_nothing_of(batch)


def test_masked_pre_training_uses_only_valid_clips():
    model = vidjax.create_model("videomae_tiny_pretrain")
    data = DataConfig(frames=model.num_frames, size=model.image_size)
    task = mae_pretrain.make_task(mae_pretrain.Config(model="videomae_tiny", data=data, mask_ratio=0.75), model)
    loss = Loss(model, mae_pretrain.make_loss(model, task))
    batch = make_batch(loss.clip, [True, True, True, False])
    del batch["label"]
    # The masks of the first clips do not depend on the number of clips that follow.
    assert_same(loss(batch), loss(chosen(batch, batch["valid"])))
    loss.assert_nothing_of(batch)
