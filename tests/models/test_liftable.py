"""Every family works with jit, pmap, vmap, checkpoint, bfloat16 and NNX, and rejects invalid input."""

import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

import vidjax
from vidjax.models import FAMILIES, VARIANTS, example_inputs

SMALLEST = {
    family.__name__.rsplit(".", 1)[-1]: min(name for name in family.VARIANTS if "_tiny" in name) for family in FAMILIES
}
AVERAGING = {"lrcn"}  # the probabilities of frames are averaged, not their features
# Video-text models have no classes; see test_clip.py.
TINY = {key: name for key, name in SMALLEST.items() if "num_classes" in VARIANTS[name]().__dataclass_fields__}


# A transformer and a network with batch norms represent all: compiling takes long, and what could be a family's own,
# Python that needs values or keeps state, is seen in tracing.
REPRESENTATIVES = ("vit", "resnet3d")
ALL = [name if name in REPRESENTATIVES else pytest.param(name, marks=pytest.mark.long) for name in TINY]


@pytest.fixture(scope="module", params=ALL, ids=TINY.get)
def family(request):
    """A tiny model of the family, its variables, two clips, the head of their embeddings, logits in bfloat16."""
    model = vidjax.create_model(TINY[request.param], num_classes=5)
    half = model.clone(dtype=jnp.bfloat16)
    shape = (2, *example_inputs(model)[0].shape[1:])
    video = jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
    # Random instead of initialised: zero heads and branches would hide differences, and `init` is slow to compile.
    draw = np.random.default_rng(1)
    shapes = jax.eval_shape(half.init, jax.random.key(0), video)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype("float32")}
    variables = jax.tree.map_with_path(lambda path, leaf: draw_leaf(draw, path[-1].key, leaf.shape), shapes)

    averaging = request.param in AVERAGING

    @jax.jit
    def outputs(variables, video):
        output = model.apply(variables, video, method=None if averaging else "embed")
        return output, half.apply(variables, video)

    output, in_bfloat16 = outputs(variables, video)
    head = variables["params"]["head"]
    logits = output if averaging else output @ head["kernel"] + head["bias"]
    return SimpleNamespace(model=model, variables=variables, video=video, logits=logits, in_bfloat16=in_bfloat16)


def draw_leaf(draw: np.random.Generator, name: str, shape: tuple[int, ...]) -> jax.Array:
    """Values as after training: scales and variances near one, kernels that preserve the scale of activations."""
    if name in ("scale", "var"):
        return jnp.asarray(draw.uniform(0.9, 1.1, shape), jnp.float32)
    fan_in = np.prod(shape[:-1]) if name == "kernel" else 2500.0
    return jnp.asarray(draw.standard_normal(shape) * fan_in**-0.5, jnp.float32)


def assert_close(actual, expected, within: float = 1e-4) -> None:
    scale = np.abs(np.asarray(expected, np.float32)).max()
    np.testing.assert_allclose(np.asarray(actual, np.float32), expected, atol=within * scale)


def test_jit(family):
    assert family.logits.shape == (2, 5) and jnp.isfinite(family.logits).all()
    assert not np.allclose(family.logits[0], family.logits[1])  # the output depends on the input


def test_bfloat16_is_close_with_float32_parameters(family):
    """Close to the head applied to what `embed` returns."""
    assert family.in_bfloat16.dtype == jnp.bfloat16
    assert_close(family.in_bfloat16, family.logits, within=0.1)


representatives = pytest.mark.parametrize("family", REPRESENTATIVES, indirect=True)
one_transformer = pytest.mark.parametrize("family", ["vit"], indirect=True)
one_convolutional_net = pytest.mark.parametrize("family", ["resnet3d"], indirect=True)  # with running statistics


@representatives
def test_pmap_over_devices_and_vmap_over_an_ensemble(family):
    devices = jax.local_devices()
    assert len(devices) == 8
    shards = jnp.stack([family.video[:1], family.video[1:]] * 4)
    ensemble = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.1 * leaf]), family.variables)
    both = jax.pmap(jax.vmap(family.model.apply, in_axes=(0, None)), in_axes=(None, 0))(ensemble, shards)
    logits, others = both[:, 0, 0], both[:, 1, 0]
    assert_close(logits[:2], family.logits)
    assert_close(logits[-1], family.logits[1])
    assert not np.allclose(others[:2], family.logits)


def gradient(family, wrap):
    """A function of parameters and video: the gradient of a loss in which `wrap` wraps the model."""
    rest = {name: tree for name, tree in family.variables.items() if name != "params"}

    def loss(params, video):
        return (family.model.apply({"params": params, **rest}, video) ** 2).sum()

    return jax.grad(wrap(loss))


@one_transformer
def test_checkpoint_does_not_change_gradients(family):
    both = jax.jit(lambda *args: (gradient(family, lambda f: f)(*args), gradient(family, jax.checkpoint)(*args)))
    plain, saving = both(family.variables["params"], family.video)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(saving), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * largest)
    assert all(leaf.any() for leaf in jax.tree.leaves(plain))


@pytest.mark.long
def test_every_family_is_traced_under_pmap_vmap_and_checkpoint(family):
    shards = jnp.stack([family.video] * 8)
    ensemble = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), family.variables)
    mapped = jax.pmap(jax.vmap(family.model.apply, in_axes=(0, None)), in_axes=(None, 0))
    assert jax.eval_shape(mapped, ensemble, shards).shape == (8, 3, 2, 5)
    params = family.variables["params"]
    saving = jax.eval_shape(gradient(family, jax.checkpoint), params, family.video)
    assert jax.tree.map(jnp.shape, saving) == jax.tree.map(jnp.shape, params)


@one_convolutional_net
def test_nnx(family):
    module = nnx.bridge.ToNNX(family.model, rngs=nnx.Rngs(0))
    nnx.bridge.lazy_init(module, family.video)
    flat = {path: leaf for tree in family.variables.values() for path, leaf in flatten_dict(tree).items()}
    for path, variable in nnx.to_flat_state(nnx.state(module, (nnx.Param, nnx.BatchStat))):
        variable.set_value(flat[path])
    assert_close(nnx.jit(lambda module, video: module(video))(module, family.video), family.logits)


@pytest.fixture(scope="module")
def errors():
    """Error messages of each family for invalid input, from a process without the tests' type checks."""
    code = """
import json, sys, jax, jax.numpy as jnp, vidjax
from vidjax.models import example_inputs
messages = {}
for name in json.loads(sys.argv[1]):
    model = vidjax.create_model(name, num_classes=5)
    b, t, h, w, c = example_inputs(model)[0].shape
    messages[name] = []
    for shape in [(t, h, w, c), (b, t, h, w, c + 1), (b, t, h + 1, w + 1, c), (b, t, 1, 1, c), (b, 0, h, w, c), None]:
        try:
            dtype = jnp.uint8 if shape is None else jnp.float32
            jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape or (b, t, h, w, c), dtype))
            messages[name].append(None)
        except ValueError as error:
            messages[name].append(str(error))
print(json.dumps(messages))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(list(TINY.values()))], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
@pytest.mark.parametrize("name", TINY.values())
def test_invalid_input_is_rejected_with_a_one_line_message(name, errors):
    rank, channels, indivisible, small, empty, integers = errors[name]
    assert "the video has dtype uint8: the model takes floats" in integers
    assert rank and channels and empty
    assert "the model takes (batch, frames, height, width, " in rank
    assert "the model takes (batch, frames, height, width, " in channels
    for message in filter(None, (rank, channels, empty, small, indivisible)):  # some families accept the last two
        assert "\n" not in message and len(message) < 250
        assert any(hint in message for hint in ("the model takes", "at least", "use a multiple", "such as", "fields"))
