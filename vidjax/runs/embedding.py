"""Features of clips by a trained encoder, as `experiments/embed.py` writes them."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from vidjax.data.config import ClipConfig
from vidjax.errors import UserError
from vidjax.models import with_classes
from vidjax.runs.weights import fingerprint, load_pretrained
from vidjax.training.sharding import jit_on_mesh, make_mesh, put_batch, replicated

Pooling = Literal["mean", "model", "tokens"]
Encode = Callable[[UInt8[np.ndarray, "b 1 t h w c"]], Float[np.ndarray, "b ..."]]


def pooling_model(model: nn.Module, pooling: Pooling) -> nn.Module:
    """The model whose output is its own pooling, if this is asked for.

    Raises:
      UserError: it has none.
    """
    if pooling != "model":
        return model
    if not hasattr(model, "num_classes"):
        raise UserError(f"{type(model).__name__} has no pooling: use --pooling mean or tokens")
    return model if model.num_classes is None else with_classes(model, None)  # features before the head's norm


def make_encode(model: nn.Module, variables: dict, clips: ClipConfig, pooling: Pooling) -> Encode:
    """A function of pixels (b 1 t h w c) to float32 features on the host, over all devices, compiled once per shape.

    Raises:
      UserError: the model does not accept clips of this size.
    """

    def apply(variables: dict, video: jax.Array) -> jax.Array:
        video = model.card.preprocess(video[:, 0])
        if pooling == "model":
            return model.apply(variables, video).astype(jnp.float32)
        grid = model.apply(variables, video, method="encode").astype(jnp.float32)
        tokens = grid.reshape(grid.shape[0], -1, grid.shape[-1])  # in the order (t h w)
        return tokens if pooling == "tokens" else tokens.mean(axis=1)

    mesh = make_mesh()
    jitted = jit_on_mesh(apply, mesh)
    clip = (1, 1, clips.frames, clips.size, clips.size, len(model.card.mean))
    jax.eval_shape(apply, variables, jax.ShapeDtypeStruct(clip, jnp.uint8))
    variables = jax.device_put(variables, replicated(mesh))
    return lambda video: np.asarray(jitted(variables, put_batch({"video": video}, mesh)["video"]))


def open_encoder(meta: Mapping[str, Any], source: str | None = None) -> tuple[Encode, ClipConfig]:
    """The encoder that features were made with, and how its clips are sampled.

    Args:
      meta: the settings in the file of features.
      source: where its weights are, if they were moved.

    Raises:
      UserError: the weights are others.
    """
    source = source or meta["run"]
    settings = {"which": meta["which"], "verbose": False, "dtype": jnp.dtype(meta["dtype"])}
    model, variables = load_pretrained(source, meta["model"], **settings)
    model = pooling_model(model, meta["pooling"])
    if fingerprint(variables) != meta["weights"]:
        raise UserError(f"{source} has other weights than those that the features were made with: give theirs")
    known = {field.name for field in fields(ClipConfig)}
    given = {name.removeprefix("data."): value for name, value in meta.items() if name.startswith("data.")}
    clips = ClipConfig(**{name: value for name, value in given.items() if name in known})
    return make_encode(model, variables, clips, meta["pooling"]), clips
