"""LoRA and DoRA as functions of the parameters, and the choice of parameters by their paths.

LoRA (Hu et al. 2021, arXiv:2106.09685) adds to a frozen kernel W a product of rank r, `W + s A B`, with s = alpha / r,
or alpha / sqrt(r) if rank-stabilised (Kalajdzievski 2023, arXiv:2312.03732). DoRA (Liu et al. 2024, arXiv:2402.09353)
scales each output of that sum to a trained norm, which starts at that of W; no gradient passes through the division.

The parameters of a layer are named as in peft: `lora_a` (in, r), `lora_b` (r, out) and `lora_magnitude` (out), beside
the kernel in the same module. Kernels of convolutions are matrices here, with all axes but the last as inputs. As the
kernels change rather than the modules, any model can be adapted, and the merged model has the cost of the original.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Key, PyTree

from vidjax.errors import UserError

A, B, MAGNITUDE = NAMES = ("lora_a", "lora_b", "lora_magnitude")


def meets(path: str, pattern: str) -> bool:
    """Whether the pattern matches the path of a parameter, or names of it that follow one another.

    `query` and `attention/q*` match `encoder/block_0/attention/query/kernel`. `*` stands for any characters.
    """
    return any(fnmatchcase(path, each) for each in (pattern, f"{pattern}/*", f"*/{pattern}", f"*/{pattern}/*"))


def choose(params: PyTree, patterns: Sequence[str], flag: str, leaf: str | None = None) -> list[str]:
    """The paths of the parameters that meet any of the patterns.

    Args:
      params: arrays or their shapes.
      flag: name of the setting, for the error message.
      leaf: last name of the parameters to choose from, such as `kernel`; by default all.

    Raises:
      UserError: a pattern meets no parameter.
    """
    paths = [path for path in flatten_dict(params, sep="/") if leaf is None or path.endswith(f"/{leaf}")]
    for pattern in patterns:
        if not any(meets(path, pattern) for path in paths):
            place = -1 if leaf is None else -2
            known = ", ".join(sorted({path.split("/")[place] for path in paths}))
            raise UserError(f"{flag}: '{pattern}' meets no {leaf or 'parameter'} of the model: they are in {known}")
    return [path for path in paths if any(meets(path, pattern) for pattern in patterns)]


def scale_of(rank: int, alpha: float, stabilized: bool = False) -> float:
    """The factor of the product."""
    return alpha / (rank**0.5 if stabilized else rank)


def start(
    kernels: Mapping[str, Float[Array, "*k i o"]], rank: int, key: Key[Array, ""], magnitude: bool = False
) -> dict[str, Array]:
    """The initial factors of these kernels, all by path: A as the kernel of a linear layer in PyTorch, B zero.

    Args:
      rank: columns of A; may exceed the size of the kernel.
      magnitude: also the norms of DoRA.
    """
    few = {}
    for number, (path, kernel) in enumerate(kernels.items()):
        module, inputs = path.removesuffix("kernel"), kernel.size // kernel.shape[-1]
        bound = inputs**-0.5
        own_key = jax.random.fold_in(key, number)
        few[module + A] = jax.random.uniform(own_key, (inputs, rank), minval=-bound, maxval=bound)
        few[module + B] = jnp.zeros((rank, kernel.shape[-1]))
        if magnitude:
            few[module + MAGNITUDE] = norms(kernel)
    return few


def norms(kernel: Float[Array, "*k i o"]) -> Float[Array, "o"]:
    """The norm of the weights of each output."""
    return jnp.sqrt(jnp.square(kernel.reshape(-1, kernel.shape[-1])).sum(axis=0))


def adapted(kernel: Float[Array, "*k i o"], factors: Mapping[str, Array], scale: float) -> Float[Array, "*k i o"]:
    """The kernel with the product added and, if there are norms, with these norms.

    Args:
      factors: `lora_a`, `lora_b` and optionally `lora_magnitude`.
    """
    product = jnp.matmul(factors[A], factors[B], precision="highest")
    kernel = kernel + scale * product.reshape(kernel.shape)
    if MAGNITUDE not in factors:
        return kernel
    return kernel * (factors[MAGNITUDE] / jax.lax.stop_gradient(norms(kernel)))


def merge(base: PyTree, few: PyTree, scale: float) -> dict[str, PyTree]:
    """The parameters of the adapted model: those of the base, with changed kernels and with further parameters.

    Args:
      base: parameters without those that `few` has, arrays of JAX or NumPy.
      few: factors of kernels, and any other parameters of the model.
    """
    flat, factors = flatten_dict(base, sep="/"), {}
    for path, value in flatten_dict(few, sep="/").items():
        module, _, name = path.rpartition("/")
        if name in NAMES:
            factors.setdefault(f"{module}/kernel", {})[name] = jnp.asarray(value)
        else:
            flat[path] = value
    flat |= {path: adapted(jnp.asarray(flat[path]), each, scale) for path, each in factors.items()}
    return unflatten_dict(flat, sep="/")
