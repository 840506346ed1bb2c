"""Targets and loss of latent prediction, and watching the targets for a collapse."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from vidjax.errors import UserError
from vidjax.layers.transformer import Encoder
from vidjax.models.vjepa21 import Pretraining21
from vidjax.objectives import latent, multi_block
from vidjax.runs.run import Run
from vidjax.runs.weights import load_pretrained, require_source
from vidjax.training.sharding import is_main_process, jit_on_mesh, replicated
from vidjax.training.state import Aux, TrainState
from vidjax.training.step import valid_mean

Targets = Callable[[Aux, jax.Array], jax.Array]
Draw = Callable[[jax.Array, int], Sequence[multi_block.Mask]]


def load_teacher(
    source: str, clip: jax.ShapeDtypeStruct, layers: int | None = None
) -> tuple[nn.Module, dict, tuple[int, ...]]:
    """A frozen encoder, its variables, and the shape `t h w d` of its tokens for a clip of this shape.

    Args:
      layers: number of the last blocks whose outputs are the tokens, side by side; None for the encoder's own.

    Raises:
      UserError: there are no such weights, the encoder does not take such clips, or it has not so many equal blocks.
    """
    require_source("teacher", source)
    teacher, variables = load_pretrained(source, verbose=is_main_process())
    tokens = jax.eval_shape(partial(teacher.apply, method="encode"), variables, clip).shape
    if layers is None:
        return teacher, variables, tokens[1:]
    _, _, width = jax.eval_shape(partial(last_layers, teacher, count=layers), variables, clip).shape
    return teacher, variables, (*tokens[1:-1], width)


def last_layers(teacher: nn.Module, variables: dict, video: Float[Array, "b t h w c"], count: int) -> Array:
    """The outputs `b n (k d)` of the last blocks for all patches, normalised one by one (`normalize_tokens`).

    Class tokens are left out.

    Raises:
      UserError: the teacher has not so many transformer blocks, or they change the number of tokens.
    """

    def is_block(module: nn.Module, method: str) -> bool:
        return method == "__call__" and isinstance(module.parent, Encoder)

    apply = partial(teacher.apply, method="encode", mutable=["intermediates"], capture_intermediates=is_block)
    tokens, state = apply(variables, video)
    outputs = {
        path[:-1]: value[0] for path, value in flatten_dict(state["intermediates"]).items() if "__call__" in path
    }
    blocks = [outputs[path] for path in sorted(outputs, key=lambda path: (path[:-1], int(path[-1].rpartition("_")[2])))]
    patches = int(np.prod(tokens.shape[1:-1]))
    frames = [len(x) // len(video) for x in blocks]  # which are sequences of their own, or one
    more = [x.shape[1] - patches // f for x, f in zip(blocks, frames, strict=True)]
    if count > len(blocks) or len({x.shape for x in blocks}) > 1 or not 0 <= more[-1] < 2:
        raise UserError(f"teacher_layers is {count}: the teacher has not so many transformer blocks of the same tokens")
    return jnp.concatenate(
        [latent.normalize_tokens(x[:, more[-1] :].reshape(len(video), patches, -1)) for x in blocks[-count:]], axis=-1
    )


def make_targets(model: nn.Module, teacher: nn.Module | None, layers: int | None = None) -> Targets:
    """The function that makes targets `b n d` from uint8 pixels.

    Args:
      model: whose moving average, `aux.ema`, encodes all tokens.
      teacher: which encodes them instead, with the variables `aux.frozen`.
      layers: see `load_teacher`.
    """

    def targets(aux: Aux, pixels: jax.Array) -> jax.Array:
        if teacher is None:
            method = "hierarchy" if isinstance(model, Pretraining21) else "tokens"
            tokens = model.apply({"params": aux.ema}, model.card.preprocess(pixels), method=method)
            levels = latent.normalize_tokens(tokens.reshape(*tokens.shape[:2], -1, model.width))
            return jax.lax.stop_gradient(levels.reshape(tokens.shape))
        if layers is not None:
            return jax.lax.stop_gradient(last_layers(teacher, aux.frozen, teacher.card.preprocess(pixels), layers))
        tokens = teacher.apply(aux.frozen, teacher.card.preprocess(pixels), method="encode")
        return jax.lax.stop_gradient(latent.normalize_tokens(tokens.reshape(len(tokens), -1, tokens.shape[-1])))

    return targets


def context_weights(
    model: nn.Module, grid: multi_block.Grid, weight: float, warmup: tuple[float, float]
) -> Callable[[Array], latent.Weigh] | None:
    """The weights of the loss at the context's tokens at a step; None for a model that does not predict these.

    Args:
      weight: that of a token next to a predicted one, at the end.
      warmup: steps between which the weight grows linearly from 0.
    """
    if not isinstance(model, Pretraining21):
        return None
    start, end = warmup

    def at(step: Array) -> latent.Weigh:
        grown = jnp.clip((step - start) / max(end - start, 1e-6), 0, 1)
        scale = weight * jnp.where(step >= end, 1, grown)
        return lambda mask: scale * multi_block.nearness(mask, grid)

    return at


def make_loss(
    model: nn.Module,
    targets: Targets,
    draw: Draw,
    shapes: Sequence[tuple[tuple[int, int], ...]],
    weights: Callable[[Array], latent.Weigh] | None = None,
) -> Callable:
    """The loss function: prediction of the targets, encoded once, behind all masks.

    Args:
      draw: draws the masks for a number of clips.
      shapes: sizes of each mask, see `multi_block.smallest_loss`.
      weights: see `context_weights`.
    """

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        mask_key, drop_key = jax.random.split(key)
        apply = partial(model.apply, train=True, rngs={"drop_path": drop_key})
        video, masks = model.card.preprocess(batch["video"]), draw(mask_key, len(batch["video"]))
        inputs = (video, targets(aux, batch["video"]), masks, shapes, partial(valid_mean, valid=batch["valid"]))
        loss, spread = latent.training_loss(apply, {"params": params}, *inputs, weights and weights(aux.step))
        return loss, (aux.model_state, spread)

    return loss_fn


def make_observer(
    run: Run, targets: Targets, draw: Draw, clips: int, weights: Callable[[Array], latent.Weigh] | None = None
) -> Callable:
    """An evaluation on the same clips with the same masks, which stops a run whose targets have collapsed.

    Args:
      draw, weights: see `make_loss`.
      clips: number of clips, the first of the source.
    """
    model, indices = run.model, np.arange(min(clips, len(run.source)))
    settings = {"batch_size": len(indices), "indices": indices, "process_index": 0, "process_count": 1}
    video = jax.device_put(next(run.evaluation_batches(run.source, **settings))["video"], replicated(run.mesh))

    @partial(jit_on_mesh, mesh=run.mesh)
    def observe(params: Any, aux: Aux, video: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        apply, masks = partial(model.apply, {"params": params}), draw(key, len(video))
        inputs = (model.card.preprocess(video), targets(aux, video), masks, weights and weights(aux.step))
        losses, seen = latent.predict(apply, *inputs)
        return {"latent_loss": losses.mean(), **seen}

    key, untrained = jax.random.key(run.config.seed), {}

    def see(params: Any, aux: Aux) -> dict[str, float]:
        return {name: float(value) for name, value in observe(params, aux, video, key).items()}

    def evaluate(state: TrainState, step: int) -> dict[str, float]:
        if not untrained:  # initialised again: a copy would occupy memory during the whole training
            params = run.new_variables()["params"]
            untrained.update(see(params, state.aux.replace(ema=params)))
        seen = see(state.params, state.aux)
        if latent.has_collapsed(seen, untrained):
            numbers = [f"RankMe {each['target_rank']:.1f}, std {each['target_std']:.3f}" for each in (seen, untrained)]
            raise UserError(
                f"step {step}: the targets have collapsed ({numbers[0]}; untrained {numbers[1]}): start again with a "
                "lower --optim.learning_rate, a longer --optim.warmup_epochs or an --ema_decay nearer to 1, or with a "
                "--teacher, which cannot collapse"
            )
        return seen

    return evaluate
