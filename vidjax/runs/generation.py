"""Writing texts with a model: its reading of a prompt, and its step from word to word.

A model that writes has two methods. `begin` reads a prompt and returns the logits of the first word and its place;
`extend(words, place)` reads a word of each text and returns the logits of the next. What they keep is in two
collections: "cache", whose rows belong to texts, and "context", which does not change after the prompt.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, PyTree

from vidjax.evaluation.generation import Step


def begin(model: nn.Module, variables: dict, *prompt: Any, beams: int = 1) -> tuple[Step, Float[Array, "b v"], PyTree]:
    """The first arguments of `evaluation.generation.beam_search` and `sample`.

    Example:
      >>> prompt = model.apply(variables, ids, method="embed")
      >>> ids, scores = beam_search(*begin(model, variables, prompt, valid, 20, beams=3), length=20, end=2, beams=3)

    Args:
      prompt: arguments of the model's method `begin`.
      beams: number of texts that are written for each row of the prompt.
    """
    (logits, first), kept = model.apply(variables, *prompt, method="begin", mutable=["cache", "context"])
    # Beams share a context's keys and values, see `layers.attention.with_beams`.
    context = {
        path: x if path[-1] in ("keys", "values") else jnp.repeat(x, beams, axis=0)
        for path, x in flatten_dict(kept.get("context", {})).items()
    }
    context = unflatten_dict(context)

    def step(words: Int[Array, "b"], count: Int[Array, ""], cache: PyTree) -> tuple[Float[Array, "b v"], PyTree]:
        variables_now = {**variables, "cache": cache, "context": context}
        logits, changed = model.apply(variables_now, words, first + count, method="extend", mutable=["cache"])
        return logits, changed["cache"]

    return step, logits, kept["cache"]
