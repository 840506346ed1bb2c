"""Initialisation that compiles fast: all random numbers of a model are drawn by one loop per distribution.

XLA compiles a random draw for every parameter: 39 s of CPU time for UniFormer-S (JAX 0.10), 10 s here. Threefry's bits
depend only on the key and the position in the flattened array, so that one loop over pieces of fixed length draws the
same numbers for arrays of all shapes.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.random import define_prng_impl, threefry_2x32, threefry_prng_impl

PIECE = 2**14
"""Numbers drawn in one step of the loop."""

# Names of jax.random's jitted functions in a jaxpr, whose arguments are a key and scalars.
DRAWS: dict[str, Callable[..., jax.Array]] = {
    "_normal": lambda key, shape: jax.random.normal(key, shape),
    "_uniform": lambda key, low, high, shape: jax.random.uniform(key, shape, minval=low, maxval=high),
    "_truncated_normal": lambda key, low, high, shape: jax.random.truncated_normal(key, low, high, shape),
}


def _bits_from(key: jax.Array, bit_width: int, shape: Sequence[int]) -> jax.Array:
    """The bits that a Threefry key (the first two words) gives from a position (the third word) on."""
    if bit_width != 32:
        raise NotImplementedError(f"{bit_width} bits per number: only float32 is drawn in pieces")
    positions = key[2] + jnp.arange(shape[0], dtype=jnp.uint32)
    high, low = jnp.split(threefry_2x32(key[:2], jnp.concatenate([jnp.zeros_like(positions), positions])), 2)
    return high ^ low


# Only bits are drawn from these keys.
_PIECES = define_prng_impl(
    key_shape=(3,),
    seed=threefry_prng_impl.seed,
    split=threefry_prng_impl.split,
    random_bits=_bits_from,
    fold_in=threefry_prng_impl.fold_in,
    name="vidjax_pieces",
    tag="pieces",
)


def fast_to_compile(traced: core.ClosedJaxpr, variables: Any) -> Callable[[jax.Array], Any]:
    """A function that returns the same as `init(key)` to rounding, and compiles several times faster.

    For large models sharded over devices use `init` itself: here all random numbers pass through every device.

    Args:
      traced, variables: `jax.make_jaxpr(init, return_shape=True)(key)`.
    """

    def fast(key: jax.Array) -> Any:
        if jax.random.key_impl(key) != "threefry2x32" or not jax.config.jax_threefry_partitionable:
            outputs = core.jaxpr_as_fun(traced)(key)
        else:
            outputs = _evaluate(traced, [key])
        return jax.tree.unflatten(jax.tree.structure(variables), outputs)

    return fast


class _Key(NamedTuple):
    """One of the keys in an array."""

    keys: jax.Array
    row: int


def _evaluate(traced: core.ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    """Evaluates a program, all draws of a distribution together as soon as their keys are known."""
    jaxpr = traced.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*traced.consts, *args], strict=True))

    def read(atom: Any) -> Any:
        value = atom.val if isinstance(atom, core.Literal) else values[atom]
        return value.keys[value.row] if isinstance(value, _Key) else value

    waiting = _needed(jaxpr)
    while waiting:
        ready = [
            equation
            for equation in waiting
            if all(isinstance(atom, core.Literal) or atom in values for atom in equation.invars)
        ]
        groups = defaultdict(list)
        for equation in ready:
            groups[_distribution(equation)].append(equation)
        for (kind, *_), equations in groups.items():
            if kind == "random_fold_in":
                key = read(equations[0].invars[0])
                words = np.array([equation.invars[1].val for equation in equations])
                keys = jax.lax.map(partial(jax.random.fold_in, key), words)
                results = [[_Key(keys, row)] for row in range(len(equations))]
            elif kind in DRAWS:
                keys = [values[equation.invars[0]] for equation in equations]
                bounds = [read(atom) for atom in equations[0].invars[1:]]
                results = _draw(DRAWS[kind], keys, bounds, [equation.outvars[0].aval for equation in equations])
            else:
                results = [_run(equation, [read(atom) for atom in equation.invars]) for equation in equations]
            for equation, result in zip(equations, results, strict=True):
                values.update(zip(equation.outvars, result, strict=True))
        done = set(map(id, ready))
        waiting = [equation for equation in waiting if id(equation) not in done]
    return [read(atom) for atom in jaxpr.outvars]


def _needed(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
    """The equations that the outputs depend on: the forward pass is not among them."""
    needed, equations = {atom for atom in jaxpr.outvars if not isinstance(atom, core.Literal)}, []
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            needed.update(atom for atom in equation.invars if not isinstance(atom, core.Literal))
            equations.append(equation)
    return equations[::-1]


def _distribution(equation: core.JaxprEqn) -> tuple:
    """What is drawn: equations with the same one are evaluated together."""
    name, inputs = equation.primitive.name, equation.invars
    if name == "random_fold_in" and isinstance(inputs[1], core.Literal):
        return name, inputs[0]
    name = equation.params.get("name") if name in ("jit", "pjit") else None
    is_float32 = equation.outvars[0].aval.dtype == jnp.float32  # other types take other numbers of bits
    if name in DRAWS and is_float32 and all(isinstance(atom, core.Literal) for atom in inputs[1:]):
        return name, *(float(atom.val) for atom in inputs[1:])
    return ("",)


def _run(equation: core.JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    result = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
    return result if equation.primitive.multiple_results else [result]


def _draw(
    draw: Callable[..., jax.Array], keys: Sequence["jax.Array | _Key"], bounds: Sequence[Any], outputs: Sequence[Any]
) -> list[list[jax.Array]]:
    """The arrays of one distribution, drawn in pieces."""
    pieces = np.array([-(-output.size // PIECE) for output in outputs])
    ends = np.cumsum(pieces)
    starts = np.arange(ends[-1]) - np.repeat(ends - pieces, pieces)
    if all(isinstance(key, _Key) and key.keys is keys[0].keys for key in keys):
        each = keys[0].keys[np.repeat([key.row for key in keys], pieces)]
    else:
        each = jnp.stack([key.keys[key.row] if isinstance(key, _Key) else key for key in keys])
        each = each[np.repeat(np.arange(len(keys)), pieces)]
    words = jnp.concatenate([jax.random.key_data(each), (starts * PIECE).astype(np.uint32)[:, None]], axis=1)
    drawn = jax.lax.map(lambda row: draw(jax.random.wrap_key_data(row, impl=_PIECES), *bounds, (PIECE,)), words)
    rows = zip(ends - pieces, ends, outputs, strict=True)
    return [[drawn[a:b].reshape(-1)[: output.size].reshape(output.shape)] for a, b, output in rows]
