"""Features of a frozen encoder, computed once and cached on disk."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from vidjax.cli import make_folder
from vidjax.data.config import ClipConfig
from vidjax.errors import UserError
from vidjax.runs.weights import fingerprint
from vidjax.runs.workdir import describe_examples
from vidjax.training.metrics import clock
from vidjax.training.sharding import jit_on_mesh, put_batch, replicated

if TYPE_CHECKING:  # PyAV and the tokenizers are imported when they are needed
    from vidjax.data.sources import Source

Encode = Callable[[dict, UInt8[Array, "b t h w c"]], dict[str, Float[Array, "b ..."]]]


class Features(NamedTuple):
    """Cached features of a source."""

    arrays: dict[str, np.memmap]
    """Features of every example, by kind."""
    rows: Int[np.ndarray, "n"]
    """The examples that have features and a label."""
    labels: Int[np.ndarray, "n"]
    """Their labels."""


def make_encode(model: nn.Module, kinds: tuple[str, ...]) -> Encode:
    """`(variables, pixels) -> features` by kind, a pure function for use under `jit`.

    Args:
      kinds: `model`, what the model's own head sees (for a video-text model its embedding, for an encoder without a
        head the mean token); `mean_std`, mean and std of the tokens; `tokens`, all tokens `b n d` in `(t h w)` order.

    Raises:
      UserError: the model has no `encode`.
    """
    if not hasattr(model, "encode"):
        raise UserError(f"a {type(model).__name__} does not encode videos, it has no `encode`: give a video model")
    own = next((name for name in ("embed", "embed_video") if hasattr(model, name)), None)

    def encode(variables: dict, video: UInt8[Array, "b t h w c"]) -> dict[str, Float[Array, "b ..."]]:
        video, features = model.card.preprocess(video), {}
        if "model" in kinds and own:
            features["model"] = model.apply(variables, video, method=own)
        tokens = model.apply(variables, video, method="encode")  # XLA computes what both need once
        tokens = tokens.reshape(len(tokens), -1, tokens.shape[-1]).astype(jnp.float32)
        pooled = {
            "tokens": tokens,
            "model": tokens.mean(axis=1),
            "mean_std": jnp.concatenate([tokens.mean(axis=1), tokens.std(axis=1)], axis=-1),
        }
        features = {kind: features.get(kind, pooled[kind]) for kind in kinds}
        return {kind: each.astype(jnp.float32) for kind, each in features.items()}

    return encode


def describe_features(model: nn.Module, variables: dict, clips: ClipConfig, dtype: Any, cache_dtype: str) -> dict:
    """What features depend on besides the videos: the weights, the clips, the normalisation and the types, for JSON."""
    card = {name: list(getattr(model.card, name)) for name in ("mean", "std")}
    data = {f"data.{name}": value for name, value in dataclasses.asdict(clips).items()}
    data = {name: value for name, value in data.items() if name not in ("data.workers", "data.max_bad_share")}
    weights = f"{type(model).__name__} {fingerprint(variables)[:16]}"
    return {"encoder": weights, **card, "dtype": jnp.dtype(dtype).name, "cache_dtype": cache_dtype, **data}


def cache_features(
    folder: Path,
    source: "Source",
    clips: ClipConfig,
    encode: Encode,
    variables: dict,
    mesh: Mesh,
    *,
    batch_size: int,
    meta: dict[str, Any],
) -> Features:
    """Computes the features of all examples that the cache in `folder` lacks.

    Args:
      encode: see `make_encode`; run on batches that are split over the mesh.
      meta: see `describe_features`.

    Raises:
      UserError: the model does not accept the clips; the cache has features of another encoder, other clips or other
        videos, or cannot be written; too many videos are unreadable.
    """
    from vidjax.data.batches import BadFiles, evaluation_batches
    from vidjax.data.example import field_specs
    from vidjax.data.feature_cache import FeatureCache

    spec = field_specs(source, clips, ())["video"]
    clip = jax.ShapeDtypeStruct((1, clips.frames, clips.size, clips.size, *spec.shape), spec.dtype)
    shapes = jax.eval_shape(encode, variables, clip)
    make_folder(folder, "--out", "the cache")
    examples = describe_examples(source)
    cache = FeatureCache(folder, {**meta, "videos": examples["examples"], "list": examples["sha256"]}, len(source))
    for kind, shape in shapes.items():
        cache.add(kind, shape.shape[1:], meta["cache_dtype"])
    missing = np.flatnonzero(~cache.done(*shapes))
    report = f"{source.name}: {len(source):,} videos, features of {len(source) - len(missing):,} in {folder}"
    print(report, flush=True)
    run, bad_files = jit_on_mesh(encode, mesh), BadFiles(source, clips.max_bad_share)
    variables = jax.device_put(variables, replicated(mesh)) if len(missing) else variables
    start = reported = time.monotonic()
    for number, batch in enumerate(
        evaluation_batches(source, clips, batch_size=batch_size, indices=missing, bad_files=bad_files), 1
    ):
        features = jax.device_get(run(variables, put_batch({"video": batch["video"]}, mesh)["video"]))
        valid = batch["valid"]
        features = {kind: values[valid] for kind, values in features.items()}
        cache.write(batch["index"][valid], batch["label"][valid], features)
        if time.monotonic() - reported > 15:
            reported, elapsed = time.monotonic(), time.monotonic() - start
            left = elapsed * (len(missing) / (number * batch_size) - 1)
            print(f"{number * batch_size:,} of {len(missing):,} videos, {clock(elapsed)} elapsed, {clock(left)} left")
    (folder / "bad_files.jsonl").unlink(missing_ok=True)  # of videos that may have been repaired since
    if bad_files.errors:
        lines = [json.dumps({"path": path, "error": error}) for path, error in bad_files.errors.items()]
        (folder / "bad_files.jsonl").write_text("\n".join(lines) + "\n")
        print(f"{len(bad_files)} videos could not be read: {folder / 'bad_files.jsonl'}")
    rows = np.flatnonzero(cache.done(*shapes) & (cache.labels >= 0))
    if not len(rows):
        raise UserError(f"no video of {source.name} was readable and has a label: look with experiments/check_data.py")
    return Features({kind: cache[kind] for kind in shapes}, rows, np.array(cache.labels[rows], np.int64))
