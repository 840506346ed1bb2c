"""Learning from a frozen teacher of the same classes, which may see another stream (D3D)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def match(student: Float[Array, "b d"], teacher: Float[Array, "b d"]) -> Float[Array, "b"]:
    """Mean squared difference of each clip's logits, or of its features, to the teacher's.

    Distilled 3-D networks (D3D, Stroud et al. 2018, arXiv:1812.08249) learn the labels and, by the squared difference
    to the logits of a network of optical flow, its representation of motion, so that no flow is needed at test. The
    teacher gets no gradient.

    Example:
      >>> match(jnp.array([[1.0, 3.0]]), jnp.array([[1.0, 1.0]]))
      Array([2.], dtype=float32)
    """
    target = jax.lax.stop_gradient(teacher).astype(jnp.float32)
    return jnp.square(student.astype(jnp.float32) - target).mean(axis=-1)
