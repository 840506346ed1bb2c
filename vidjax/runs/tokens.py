"""Discrete tokens of a frozen tokenizer, the masks of both streams, and evaluations of what is predicted."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from vidjax.errors import UserError
from vidjax.models import bevt
from vidjax.models.dalle import SIDE, Autoencoder, Encoder, pixels
from vidjax.objectives import tokens
from vidjax.runs.run import Run
from vidjax.runs.weights import load_pretrained, require_source, start_from
from vidjax.runs.workdir import is_run, read_config
from vidjax.training.sharding import is_main_process, jit_on_mesh, replicated
from vidjax.training.state import Aux, TrainState
from vidjax.training.step import valid_mean

Tokens = Callable[[Any, jax.Array], jax.Array]


def load_tokenizer(
    source: str, grid: tuple[int, int], size: int | None, flag: str = "tokenizer"
) -> tuple[Encoder, dict, int]:
    """A frozen tokenizer, its variables, and the side of the frames that it sees in pixels.

    Args:
      source: a run of a discrete VAE, of which the encoder is used, or a published checkpoint.
      grid: rows and columns of the places whose tokens are predicted.
      size: side of the frames; None for that with a token for each place.
      flag: the command-line flag of the source, for error messages.

    Raises:
      UserError: there are no such weights, they are no tokenizer's, or the tokens lie on another grid.
    """
    require_source(flag, source)
    tokenizer, variables = load_pretrained(source, verbose=is_main_process())
    if isinstance(tokenizer, Autoencoder):
        names = [field.name for field in dataclasses.fields(Encoder) if field.name not in ("parent", "name")]
        variables = {"params": variables["params"]["encoder"]}
        tokenizer = Encoder(**{name: getattr(tokenizer, name) for name in names})
    if not isinstance(tokenizer, Encoder):
        raise UserError(
            f"{flag}: {source} is a {type(tokenizer).__name__}, which has no tokens: give a run of token_pretrain.py's "
            "recipe demo or tokenizer, or dalle_encoder"
        )
    size = size or SIDE * grid[0]
    if size % SIDE or (size // SIDE, size // SIDE) != grid:
        raise UserError(
            f"the tokenizer's tokens of frames of {size} pixels lie on a grid of {size / SIDE:g} places a side, the "
            f"model's on {grid[0]}x{grid[1]}: use --token_size {SIDE * grid[0]}"
        )
    return tokenizer, variables, size


def make_tokens(tokenizer: Encoder, size: int) -> Tokens:
    """The function of the tokenizer's variables and uint8 frames `b t h w c` that gives tokens `b t h w`.

    Args:
      size: side to which frames are resized, by Lanczos's filter as in BEiT.
    """

    def tokens_of(variables: Any, frames: UInt8[Array, "b t h w c"]) -> Int[Array, "b t _ _"]:
        scaled = tokenizer.card.scale(frames)
        b, t, h, w, c = frames.shape
        if (h, w) != (size, size):
            scaled = jnp.clip(jax.image.resize(scaled, (b, t, size, size, c), "lanczos3"), 0, 1)
        return jax.lax.stop_gradient(tokenizer.apply(variables, tokenizer.card.normalize(scaled), method="tokens"))

    return tokens_of


def make_tokenizer_loss(config: Any, model: nn.Module) -> Callable:
    """The loss function of a tokenizer: reconstruction from relaxed tokens, and their divergence from uniform ones.

    Args:
      config: of the script, with the last `temperature`, the last `divergence_weight`, and the steps until they are
        reached.
    """

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        video = model.card.preprocess(batch["video"])
        logits = model.apply({"params": params}, video, method="logits")
        temperature = tokens.annealed(aux.step, 1.0, config.temperature, config.temperature_steps)
        relaxed = tokens.relaxed_tokens(key, logits, temperature)
        statistics = model.apply({"params": params}, relaxed, method="decode")
        weight = tokens.warmed_up(aux.step, config.divergence_weight, config.divergence_steps)
        losses = tokens.autoencoder_loss(logits, statistics, video, weight)
        loss, reconstruction, divergence = (valid_mean(each, batch["valid"]) for each in losses)
        seen = {"reconstruction": reconstruction, "divergence": divergence, "temperature": temperature}
        return loss, (aux.model_state, seen)

    return loss_fn


def start_streams(source: str, model: nn.Module, variables: dict) -> dict:
    """`start_from`, where the video stream starts as the image stream if the source has trained that alone."""
    variables, _ = start_from(source, model, variables)
    of_images = is_run(source) and read_config(source).get("objective") == "images"
    if isinstance(model, bevt.Pretraining) and of_images:
        started = jax.jit(bevt.from_image_stream)(variables["params"])
        placed = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), started, variables["params"])
        variables = variables | {"params": placed}
    return variables


def fixed_clips(run: Run, count: int) -> UInt8[Array, "b t h w c"] | None:
    """The first readable clips of the source, on all devices; None if there are none."""
    indices = np.arange(min(count, len(run.source)))
    if not len(indices):
        return None
    settings = {"batch_size": len(indices), "indices": indices, "process_index": 0, "process_count": 1}
    batch = next(run.evaluation_batches(run.source, **settings))
    return jax.device_put(batch["video"][batch["valid"]], replicated(run.mesh)) if batch["valid"].any() else None


def make_reconstructor(run: Run, count: int) -> Callable | None:
    """An evaluation of a discrete VAE that writes images of reconstructions from tokens, always of the same clips."""
    clips, model = fixed_clips(run, count), run.model
    if clips is None:
        return None

    @partial(jit_on_mesh, mesh=run.mesh)
    def reconstruct(params: Any, clips: jax.Array) -> tuple[jax.Array, ...]:
        variables, video = {"params": params}, model.card.preprocess(clips)
        ids = model.apply(variables, video, method="tokens")
        frames, decoded = model.card.scale(clips), pixels(model.apply(variables, video))
        error = jnp.square(frames - decoded).mean()
        used = (jnp.zeros(model.vocabulary).at[ids.reshape(-1)].set(1.0)).sum()
        return frames, decoded, error, used

    def evaluate(state: TrainState, step: int) -> dict[str, float]:
        *rows, error, used = jax.device_get(reconstruct(state.evaluated_params, clips))
        if is_main_process():
            from vidjax.visualize.reconstruction import save_reconstructions  # imports Matplotlib

            path, note = run.workdir / "reconstructions" / f"step_{step:07d}", f"step {step}, from tokens alone"
            save_reconstructions(path, rows, note, rows=("input", "reconstruction"))
        return {"squared_error": float(error), "used_tokens": float(used)}

    return evaluate


def make_observer(run: Run, loss_of: Callable, count: int) -> Callable | None:
    """An evaluation of the loss and the accuracy on the same clips with the same masks.

    Args:
      loss_of: the script's loss function.
    """
    clips = fixed_clips(run, count)
    if clips is None:
        return None

    @partial(jit_on_mesh, mesh=run.mesh)
    def observe(params: Any, aux: Any, clips: jax.Array, key: jax.Array) -> dict[str, Float[Array, ""]]:
        batch = {"video": clips, "valid": jnp.ones(len(clips), bool)}
        loss, (_, metrics) = loss_of(params, aux, batch, key, train=False)
        return {"token_loss": loss, **metrics}

    key = jax.random.key(run.config.seed)

    def evaluate(state: TrainState, step: int) -> dict[str, float]:
        seen = observe(state.evaluated_params, state.aux, clips, key)
        return {name: float(value) for name, value in seen.items()}

    return evaluate
