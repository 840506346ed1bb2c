"""Probe a frozen encoder: how well do simple classifiers of its features recognise labelled videos?

    python experiments/probe.py --run runs/mae_pretrain --data.validation synthetic:moving_shapes
    python experiments/probe.py --run vjepa2_large --data.train train.csv --data.validation val.csv --out runs/ssv2

`--run` is the work directory of a run, or a published checkpoint: a name, a file, a directory or a hub id. There is one
clip per video, the central one, cut and normalised as in the encoder's training, or as published, unless flags such as
`--data.frames 32` are given. Three probes: logistic regression (linear) and weighted nearest neighbours (knn) on one
vector per clip (`--pooling`), and on all tokens the attentive probe of V-JEPA 2 (attentive), trained side by side for
all pairs of a learning rate and a weight decay.

Features are computed once, and cached in OUT/features: after an interruption the same command computes only those that
are missing, and other probes need no encoder's time. Prints a table and writes OUT/PROBE.json for each probe: the best
of its hyperparameters by validation, with a 95 % interval (Wilson), and the accuracy of all. As in published numbers,
the best is chosen on the videos on which it is reported, which the interval does not cover: with many hyperparameters
and few videos it is too high.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

import vidjax
from vidjax import cli, runs
from vidjax.data.config import LabelledSourceConfig
from vidjax.errors import UserError
from vidjax.fields import check_values, require_positive
from vidjax.models import example_inputs
from vidjax.runs.announce import print_notes
from vidjax.runs.features import cache_features, describe_features, make_encode
from vidjax.runs.probe import (
    AttentiveConfig,
    describe_probes,
    probe_attentive,
    probe_knn,
    probe_linear,
    require_neighbours,
    require_points,
)
from vidjax.runs.sources import open_labelled
from vidjax.training.sharding import check_batch_size, make_mesh


@dataclasses.dataclass(frozen=True)
class Config:
    """Probes of a frozen encoder."""

    run: str
    """The work directory of a run, or a published checkpoint (name, file, directory or hub id)."""
    model: str | None = None
    """One of vidjax.list_models(); needed if the checkpoint does not specify its model."""
    which: Literal["best", "last"] = "best"
    """Checkpoint of a run: the one that validated best, or the newest."""
    untrained: bool = False
    """Probe the same model with newly initialised weights, for comparison."""
    data: LabelledSourceConfig = LabelledSourceConfig()
    """The labelled videos: data.train for the probes to learn, data.validation for measuring."""
    probes: tuple[Literal["linear", "knn", "attentive"], ...] = ("linear", "knn", "attentive")
    """Which probes."""
    pooling: Literal["model", "mean_std"] = "model"
    """linear, knn: what the model's head sees (without one the mean token), or the mean and the std of the tokens."""
    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)
    """linear: half of the weight of the squared norm, which is added to the mean cross-entropy."""
    k: tuple[int, ...] = (10, 20)
    """knn: numbers of neighbours."""
    temperature: float = 0.07
    """knn: of the weights of the votes, exp(cosine similarity / temperature)."""
    attentive: AttentiveConfig = AttentiveConfig()
    """The attentive probe and its grid."""
    batch_size: int = 16
    """Clips per batch of the encoder over all devices; does not affect the results."""
    cache_dtype: Literal["float16", "float32"] = "float16"
    """Type of the cached features."""
    seed: int = 0
    """Of the attentive probe's parameters and batches, of --untrained and of data.train_examples."""
    out: str = "runs/probe"
    """Folder of the cached features and the results."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type of encoder and attentive probe: auto is bfloat16 on accelerators, float32 on a CPU."""

    def __post_init__(self) -> None:
        check_values(self)
        if self.data.validation is None:
            raise UserError("there are no videos to measure on: give --data.validation, of the classes of data.train")
        for name in ("probes", "penalties", "k"):
            require_points(name, getattr(self, name))
        if min(self.penalties) < 0 or min(self.k) < 1:
            raise UserError("penalties must be 0 or more, and k 1 or more")
        require_positive(self, "temperature")


def load(config: Config) -> tuple[nn.Module, dict]:
    """The encoder and its variables."""
    dtype = runs.computing_type(config.dtype)
    model, variables = vidjax.load_pretrained(config.run, config.model, which=config.which, dtype=dtype)
    if config.untrained:
        inputs = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in example_inputs(model)]
        variables = jax.jit(model.init)(jax.random.key(config.seed), *inputs)
        print(f"untrained: all weights of the {type(model).__name__} are newly initialised")
    return model, variables


def main(config: Config, devices: Sequence[jax.Device] | None = None) -> dict[str, dict[str, Any]]:
    """Probes, prints and writes the results; returns the contents of the JSON files by probe.

    Args:
      devices: all of this process by default; they do not affect the results, up to rounding.
    """
    mesh = make_mesh(devices=devices)
    check_batch_size(config.batch_size)
    data = dataclasses.replace(config.data, square_pixels=runs.square_pixels(config.run, config.data))
    sources = dict(zip(("train", "validation"), open_labelled(data, config.seed), strict=True))
    print_notes(*sources.values())
    if "knn" in config.probes:
        require_neighbours(config.k, len(sources["train"]))  # before the features are computed
    model, variables = load(config)
    kinds = (config.pooling,) if {"linear", "knn"} & set(config.probes) else ()
    kinds += ("tokens",) if "attentive" in config.probes else ()
    encode, clips = make_encode(model, kinds), runs.cut_clips(config.run, model, data)
    out, dtype = Path(config.out), runs.computing_type(config.dtype)
    settings = {"batch_size": config.batch_size}
    settings["meta"] = describe_features(model, variables, clips, dtype, config.cache_dtype)
    train, validation = (
        cache_features(out / "features" / name, source, clips, encode, variables, mesh, **settings)
        for name, source in sources.items()
    )
    names = sources["train"].class_names
    probes = {
        "linear": lambda: probe_linear(train, validation, config.pooling, len(names), config.penalties),
        "knn": lambda: probe_knn(train, validation, config.pooling, len(names), config.k, config.temperature),
        "attentive": lambda: probe_attentive(
            train, validation, len(names), config.attentive, config.seed, dtype, devices
        ),
    }
    common = {"train_videos": len(train.rows), "classes": list(names), "features": settings["meta"]}
    results = {}
    for name in dict.fromkeys(config.probes):
        results[name] = probes[name]() | common | {"config": cli.as_dict(config)}
        (out / f"{name}.json").write_text(json.dumps(results[name], indent=2) + "\n")
    videos = f"{len(train.rows):,} training and {len(validation.rows):,} validation videos of {len(names)} classes"
    print(
        f"\n{config.run}{', untrained' if config.untrained else ''}: {videos}\n{describe_probes(results, len(names))}"
    )
    print(f"\nwritten to {out}: {', '.join(f'{name}.json' for name in results)}")
    return results


if __name__ == "__main__":
    cli.run(main, Config)
