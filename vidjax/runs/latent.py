"""Targets of latent prediction, and watching them for a collapse."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vidjax.errors import UserError
from vidjax.objectives import latent, multi_block
from vidjax.runs.run import Run
from vidjax.runs.weights import load_pretrained, require_source
from vidjax.training.sharding import is_main_process, jit_on_mesh, replicated
from vidjax.training.state import Aux, TrainState

Targets = Callable[[Aux, jax.Array], jax.Array]
Draw = Callable[[jax.Array, int], Sequence[multi_block.Mask]]


def load_teacher(source: str, clip: jax.ShapeDtypeStruct) -> tuple[nn.Module, dict, tuple[int, ...]]:
    """A frozen encoder, its variables, and the shape `t h w d` of its tokens for a clip of this shape.

    Raises:
      UserError: there are no such weights, or the encoder does not take such clips.
    """
    require_source("teacher", source)
    teacher, variables = load_pretrained(source, verbose=is_main_process())
    tokens = jax.eval_shape(partial(teacher.apply, method="encode"), variables, clip)
    return teacher, variables, tokens.shape[1:]


def make_targets(model: nn.Module, teacher: nn.Module | None) -> Targets:
    """The function that makes targets `b n d` from uint8 pixels.

    Args:
      model: whose moving average, `aux.ema`, encodes all tokens.
      teacher: which encodes them instead, with the variables `aux.frozen`.
    """

    def targets(aux: Aux, pixels: jax.Array) -> jax.Array:
        if teacher is None:
            tokens = model.apply({"params": aux.ema}, model.card.preprocess(pixels), method="tokens")
        else:
            tokens = teacher.apply(aux.frozen, teacher.card.preprocess(pixels), method="encode")
        return jax.lax.stop_gradient(latent.normalize_tokens(tokens.reshape(len(tokens), -1, tokens.shape[-1])))

    return targets


def make_observer(run: Run, targets: Targets, draw: Draw, clips: int) -> Callable:
    """An evaluation on the same clips with the same masks, which stops a run whose targets have collapsed.

    Args:
      draw: draws the masks for a number of clips.
      clips: number of clips, the first of the source.
    """
    model, indices = run.model, np.arange(min(clips, len(run.source)))
    settings = {"batch_size": len(indices), "indices": indices, "process_index": 0, "process_count": 1}
    video = jax.device_put(next(run.evaluation_batches(run.source, **settings))["video"], replicated(run.mesh))

    @partial(jit_on_mesh, mesh=run.mesh)
    def observe(params: Any, aux: Aux, video: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        apply, masks = partial(model.apply, {"params": params}), draw(key, len(video))
        losses, seen = latent.predict(apply, model.card.preprocess(video), targets(aux, video), masks)
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
