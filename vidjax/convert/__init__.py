"""Published weights into our models, in one line."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import jax

from vidjax.convert import files, rules, videomae
from vidjax.convert.rules import Report
from vidjax.models import create_model

__all__ = ["Report", "load_pretrained", "load_weights"]

FAMILIES = (videomae,)

TARGETS = {module: target for family in FAMILIES for module, target in family.TARGETS.items()}


def load_weights(
    path: str | Path, model: nn.Module, params: dict, *, fresh: Sequence[str] = (), unused: Sequence[str] = ()
) -> tuple[dict, Report]:
    """The published weights at `path` in the place of the model's parameters.

    The whole decoder may be missing from the weights, or the whole head: they stay as initialised, and the report says
    so. Weights of more than the model is (a decoder where only an encoder is wanted) are left out and reported too.
    Everything else that does not fit is an error.

    Args:
      path: a `.safetensors`, `.pth`, `.pt` or `.bin` file, or a Hugging Face directory.
      params: the model's parameters, or all its variables; arrays, or their shapes alone (`jax.eval_shape`).
      fresh: beginnings of parameter paths that stay as they are: `["head"]` gives a classifier of other classes a new
        head.
      unused: beginnings of names in the file that may be left out.

    Example:
      >>> params, report = load_weights("checkpoint.pth", model, params, fresh=["head"])
      >>> print(report)
    """
    if type(model) not in TARGETS:
        known = ", ".join(f"{module.__module__.rsplit('.', 1)[-1]}.{module.__name__}" for module in TARGETS)
        raise ValueError(f"no published weights are known for {type(model).__name__}: there are some for {known}")
    target, weights = TARGETS[type(model)], files.read(path)
    for layout in target.layouts:
        prepared = layout.prepare(weights)
        if layout.sign not in prepared:
            continue
        try:
            return rules.apply(
                layout.rules, prepared, params,
                optional=target.optional, surplus=target.surplus, fresh=fresh, unused=unused,
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"{path} ({layout.name}): {error}") from error
    signs = [layout.sign for layout in target.layouts]
    nearest = difflib.get_close_matches(signs[0], weights, n=3, cutoff=0.0)
    raise ValueError(
        f"{path} holds no weights of {type(model).__name__}: it lacks {' and '.join(signs)}, "
        f"the nearest names in it are {', '.join(nearest)}"
    )


def load_pretrained(name: str, path: str | Path, **overrides) -> tuple[nn.Module, dict]:
    """A model by its name with the published weights at `path`: `model.apply(variables, video)` is ready.

    Nothing is left as initialised: weights without a head are an error for a model with one.

    Args:
      name: see `vidjax.list_models`.
      path: see `load_weights`.
      **overrides: fields of the model, such as `num_classes=174`; None gives features.

    Example:
      >>> model, variables = load_pretrained("videomae_base", "videomae-base-finetuned-kinetics", dtype=jnp.bfloat16)
    """
    model = create_model(name, **overrides)
    if type(model) not in TARGETS:
        raise ValueError(f"no published weights are known for '{name}'")
    shapes = jax.eval_shape(model.init, jax.random.key(0), *TARGETS[type(model)].example(model))
    variables, report = load_weights(path, model, shapes)
    if report.missing:
        raise ValueError(
            f"{path} fills only a part of '{name}' ({report}): num_classes=None gives features without a head, "
            "and load_weights leaves parameters as initialised"
        )
    return model, variables
