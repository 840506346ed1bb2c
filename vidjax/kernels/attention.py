"""Scaled dot-product attention over any leading axes, with a choice of implementations."""

import math
from functools import partial
from typing import Literal

import einops
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from vidjax.errors import UserError
from vidjax.kernels.chunked_attention import LOWEST, SAVE_ROWS, SAVED, over_queries, scores_of, weigh_by_exp
from vidjax.kernels.ring_attention import ring_attention

Implementation = Literal["auto", "xla", "cudnn", "chunked", "ring"]

# Number of query-key pairs per head and clip up to which `auto` computes all scores at once (without cuDNN). On a CPU,
# forward and backward pass in chunks of 128 took 1.0 to 1.26 times as long at 100 and 196 tokens, 0.83 to 1.01 at 392
# (with more compilation), 0.7 to 0.8 at 784, 0.7 at 1,568 and 0.8 at 3,136, where it needs 42 MB instead of 487
# (float32, 6 heads of 64); an encoder's forward pass alone 0.57 at 512 (4 heads of 24), so that this has chunks. Not
# measured on accelerators, where chunks are used if the scores of one head exceed 16 MB.
FEW_PAIRS_CPU, FEW_PAIRS = 2**18 - 1, 2**22
# Many windows of few tokens also fill the memory: Video Swin's first stage has 768 heads of 392 tokens for 64 frames of
# 224 pixels. In chunks its inference took half of the process's memory and, with other jobs on the machine, 0.7 of the
# time. With few scores in all, chunks of so few tokens took 1.14 times as long (a step of VideoMAE-S, 2 clips).
FEW_PAIRS_OF_MANY, MANY_SCORES = 2**17, 2**24


def few_pairs(query: Float[Array, "*b q k d"], key: Float[Array, "*b n k d"]) -> bool:
    """Whether `auto` computes all scores at once."""
    pairs = query.shape[-3] * key.shape[-3]
    if jax.default_backend() != "cpu":
        return pairs <= FEW_PAIRS
    many = math.prod(query.shape[:-1]) * key.shape[-3] > MANY_SCORES
    return pairs <= (FEW_PAIRS_OF_MANY if many else FEW_PAIRS_CPU)


def _fits_cudnn(query: Array, key: Array) -> bool:
    """Whether cuDNN's fused kernel accepts these inputs; it raises an error instead of falling back."""
    width = query.shape[-1]
    return query.dtype in (jnp.bfloat16, jnp.float16) and query.dtype == key.dtype and width % 8 == 0 and width <= 128


def attend(
    query: Float[Array, "*b q k d"],
    key: Float[Array, "*b n k d"],
    value: Float[Array, "*b n k d"],
    implementation: Implementation = "auto",
    mask: Bool[Array, "*#b #q n"] | None = None,
    bias: Float[Array, "k q n"] | None = None,
    cap: float | None = None,
) -> Float[Array, "*b q k d"]:
    """Scaled dot-product attention; `k` heads of width `d`; the softmax is computed in float32 or higher precision.

    Equals `jax.nn.dot_product_attention(query, key, value, bias, mask)` without a cap, for any leading axes.

    Without cuDNN, and so also with a mask on a GPU, gradients of the scores are float32; the cost of this on GPUs has
    not been measured.

    Args:
      query, key, value: any number of leading axes, the same in all three.
      implementation: `xla` materialises the scores of all pairs; `cudnn`, for bfloat16 or float16 on an NVIDIA GPU,
        none; `chunked` those of some queries at a time, on any device. `auto` is `cudnn` if it supports the inputs,
        otherwise `xla` for few tokens and `chunked` for many. `ring` splits the tokens over devices
        (`kernels.ring_attention`).
      mask: True where the query may attend to the key; the same for all heads. A query with no allowed key attends to
        all keys equally.
      bias: added to the scaled scores of each head, such as those of relative positions.
      cap: bound of the scores' absolute values, before the mask: they become `cap * tanh(scores / cap)` (VideoPrism).

    Raises:
      UserError: `ring` with a mask, a bias or a cap, or without a mesh; `cudnn` with a cap.
    """
    if implementation == "auto":
        # With a mask, cuDNN's kernel has no gradient for odd lengths such as CLIP's 77; with a bias it is untested.
        plain = mask is None and bias is None and cap is None
        fits = jax.default_backend() == "gpu" and plain and _fits_cudnn(query, key)
        implementation = "cudnn" if fits else "xla" if few_pairs(query, key) else "chunked"
    if implementation == "chunked":
        return _attend_in_chunks(query, key, value, mask, bias, cap)
    if implementation == "ring":
        if mask is not None or bias is not None or cap is not None:
            raise UserError("ring attention takes no mask, bias or cap: use the implementation 'chunked' or 'xla'")
        return ring_attention(query, key, value)
    if implementation == "xla":
        query, *pair = (einops.rearrange(x, "... n k d -> ... k n d") for x in (query, key, value))
        attended = _attend_to_all(query, tuple(pair), None if mask is None else mask[..., None, :, :], bias, cap)
        return einops.rearrange(attended, "... k n d -> ... n k d")
    if cap is not None:
        raise UserError(f"{implementation} attention takes no cap: use the implementation 'chunked' or 'xla'")
    leading = query.shape[:-3]
    flat = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*leading, query.shape[-3], key.shape[-3]))
        mask = mask.reshape(-1, 1, *mask.shape[-2:])  # the same for all heads
    bias = None if bias is None else bias[None].astype(query.dtype)
    attended = jax.nn.dot_product_attention(*flat, bias=bias, mask=mask, implementation=implementation)
    return attended.reshape(*leading, *query.shape[-3:])


@jax.jit  # so that layers of equal shapes are traced once
def _attend_to_all(
    query: Array, pair: tuple[Array, Array], mask: Array | None, bias: Array | None, cap: float | Array | None
) -> Array:
    """Attention of queries `*b q d` to keys `*b n d` with a mask and a bias `*#b q n`, materialising all scores."""
    scores = _capped(scores_of(query, pair[0]), cap)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, LOWEST)
    largest = checkpoint_name(jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)), SAVED)
    attended, total = weigh_by_exp(scores - largest, pair[1])
    total = checkpoint_name(total, SAVED)
    # Normalised last, over `d` values instead of `n`, so that no second array of all pairs is saved.
    return (attended / total).astype(pair[1].dtype)


def _capped(scores: Array, cap: float | Array | None) -> Array:
    return scores if cap is None else cap * jnp.tanh(scores / cap)


@partial(jax.checkpoint, policy=SAVE_ROWS)  # saves the inputs in their own dtype, not in float32
def _attend_in_chunks(
    query: Array, key: Array, value: Array, mask: Array | None, bias: Array | None, cap: float | Array | None
) -> Array:
    """Exact attention over chunks of queries; each query attends to all keys at once.

    Of each query the largest score and the sum are saved, as in FlashAttention, but forward-mode differentiation works
    as well. Also used on TPUs, because JAX's experimental kernels could not be tested.
    """

    one_row = mask is not None and mask.shape[-2] == 1  # the same for all queries

    def some_queries(queries: tuple[Array, Array | None], pair: tuple[Array, Array], rows: Array | None) -> Array:
        return _attend_to_all(queries[0], pair, mask if one_row else rows, queries[1], cap)

    bias = None if bias is None else jnp.swapaxes(bias, 0, 1)  # `q k n`, as queries
    return over_queries(some_queries, (query, bias), (key, value), None if one_row else mask)


def attention_weights(
    query: Float[Array, "*b q k d"],
    key: Float[Array, "*b n k d"],
    mask: Bool[Array, "*#b #q n"] | None = None,
    bias: Float[Array, "k q n"] | None = None,
    cap: float | None = None,
) -> Float[Array, "*b k q n"]:
    """The attention weights of `attend`: for each head and query, those of all keys, in float32 or higher precision.

    Equals `jax.nn.softmax(jnp.einsum("...qkd,...nkd->...kqn", query, key) / sqrt(d) + bias, where=mask)`.
    """
    query, key = (jnp.swapaxes(x, -2, -3) for x in (query, key))
    scores = _capped(scores_of(query, key), cap)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask[..., None, :, :], scores, LOWEST)
    return jax.nn.softmax(scores)
