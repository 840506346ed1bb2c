"""Ada3D: skipped against masked computation, its extremes against plain networks, its cost, and its loss by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from small_models import perturbed

import vidjax
from vidjax.layers.normalization import valid_clips
from vidjax.models.ada3d import Policy, Usage, layers_of
from vidjax.models.slow import C2D, SlowNetwork
from vidjax.objectives.adaptive import ENTROPY_WEIGHT, ada3d_loss, ada3d_rewards
from vidjax.training.cost import count_macs

COUNTS = {
    "ada3d_tiny": (172_113, None),
    "ada3d_i3d_50": (28_556_011, None),
}  # counted here: there is no released code


@pytest.fixture(scope="module")
def run():
    model = vidjax.create_model("ada3d_tiny", num_classes=3, model={"num_frames": 4})
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    video = recipe.floats("video", (3, 4, 32, 32, 3)) + 4 * recipe.floats("frames", (3, 4, 1, 1, 3))
    small = jnp.asarray(video).reshape(3, 4, 16, 2, 16, 2, 3).mean(axis=(3, 5))
    policy, factors = Policy(model.glance, 4), {"frames": 30, "convolutions": 300}
    parts = {kind: variables[kind]["policy_stem"] for kind in variables}
    for (name, factor), logits in zip(factors.items(), policy.apply(parts, small, False), strict=True):
        layer = parts["params"][name]  # frames and clips differ in what is used
        middle = logits.mean(axis=0) if name == "convolutions" else logits.mean()
        layer["kernel"], layer["bias"] = factor * layer["kernel"], factor * (layer["bias"] - middle)
    return model, variables, jnp.asarray(video)


@pytest.fixture(scope="module")
def passes(run):
    model, _, video = run

    @jax.jit
    def both(variables, usage):
        return [model.apply(variables, video, usage=usage, method=method) for method in ("masked", "pruned")]

    return both


def flattened(network, variables):
    """The network of 2-D convolutions, and its variables: the central frames of the kernels."""
    network = network.clone(kernels=C2D)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 4, 32, 32, 3)))
    theirs = {kind: {name: variables[kind][name] for name in shapes[kind]} for kind in shapes}  # without the policy

    def cut(leaf):
        return leaf[len(leaf) // 2][None] if leaf.ndim == 5 else leaf

    return network, jax.tree.map(cut, theirs)


def test_skipping_equals_masking(run, passes):
    model, variables, video = run
    decided, *_ = jax.jit(lambda v: model.apply(v, video, method="decide"))(variables)
    given = Usage(
        jnp.array([[0, 1, 0, 1], [1, 1, 1, 1], [1, 1, 0, 1]], jnp.float32),
        jnp.array([[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 1, 1]], jnp.float32),
    )
    for usage in (decided, given):
        masked, pruned = passes(variables, usage)
        np.testing.assert_allclose(pruned.logits, masked.logits, atol=1e-5)
    assert (decided.frames.sum(axis=1) >= 2).all()  # as the network halves time
    assert decided.frames.std(axis=0).max() > 0 and decided.convolutions.std(axis=0).max() > 0


def test_the_extremes_are_the_3d_network_and_that_of_the_central_kernels(run, passes):
    model, variables, video = run
    flat, central = flattened(model.model, variables)
    plain = jax.jit(model.model.apply)(variables, video)
    plain_flat = jax.jit(flat.apply)(central, video)
    assert jnp.abs(plain - plain_flat).max() > 1e-3
    for convolutions, expected in ((jnp.ones((3, 4)), plain), (jnp.zeros((3, 4)), plain_flat)):
        for each in passes(variables, Usage(jnp.ones((3, 4)), convolutions)):
            np.testing.assert_allclose(each.logits, expected, atol=1e-6)


def test_training_on_kept_frames_is_training_on_shorter_clips(run):
    model, variables, video = run
    usage = Usage(jnp.array([[0, 1, 0, 1], [1, 1, 0, 0], [1, 0, 1, 0]], jnp.float32), jnp.ones((3, 4)))
    short = jnp.stack([clip[np.flatnonzero(kept)] for clip, kept in zip(video, np.asarray(usage.frames), strict=True)])

    @jax.jit
    def both(variables):
        with valid_clips(jnp.array([True, True, False])):
            return (
                model.apply(
                    variables, video, True, usage, method="masked", rngs={"usage": jax.random.key(0)}, mutable=True
                ),
                model.model.apply(variables, short, True, mutable=True),
            )

    (masked, changed), (logits, expected) = both(variables)
    np.testing.assert_allclose(masked.logits[:2], logits[:2], atol=1e-3)  # norms of two numbers magnify rounding
    for name in ("stem", "stage_3"):
        jax.tree.map(
            lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3),
            changed["batch_stats"][name],
            expected["batch_stats"][name],
        )


def test_the_cost_of_what_is_used_is_exact():
    sizes = {"depths": (1, 1, 1, 1), "width": 4, "pool": True, "num_frames": 4, "image_size": 32}
    network = SlowNetwork(((5,), (3,), (3,), (1,), (1,)), **sizes)
    flat, layers = network.clone(kernels=C2D), layers_of(network)

    def cost(network, frames):
        video = jnp.zeros((1, frames, 32, 32, 3))
        return count_macs(network.apply, jax.eval_shape(network.init, jax.random.key(0), video), video)

    for frames in (2, 3, 4):
        kept = (jnp.arange(4) < frames).astype(jnp.float32)[None]
        assert Usage(kept, jnp.ones((1, 3))).macs(layers).item() == cost(network, frames)
        assert Usage(kept, jnp.zeros((1, 3))).macs(layers).item() == cost(flat, frames)
    outer = 4 * 16 * 16 * 4 * 4 * 7 * 7 * 3  # four of the stem's five taps
    assert Usage(kept, jnp.array([[0.0, 1, 1]])).macs(layers).item() == cost(network, 4) - outer


def test_rewards_and_loss_by_hand():
    logits = jnp.array([[2.0, 0.0], [0.0, 2.0]])
    frames, convolutions = jnp.array([[1.0, 0, 0, 0], [1, 1, 1, 0]]), jnp.array([[1.0, 1], [0, 0]])
    rewards = ada3d_rewards(logits, frames, convolutions, jnp.array([0, 0]), penalty=0.5)
    np.testing.assert_allclose(rewards, [[1 - 1 / 16, 0], [-0.5, -0.5]])
    likelihoods, baseline = jnp.array([[-1.0, -2.0], [-3.0, -4.0]]), jnp.array([[0.5, 0.5], [0.0, 0.25]])
    entropies = jnp.array([[0.5, 1.5], [1.0, 0.0]])
    terms = ada3d_loss(logits, frames, convolutions, likelihoods, entropies, jnp.array([0, 0]), 0.5, baseline)
    np.testing.assert_allclose(terms.frames, [0.4375, 3 * -0.5])
    np.testing.assert_allclose(terms.convolutions, [2 * -0.5, 4 * -0.75])
    np.testing.assert_allclose(terms.classification, [np.log1p(np.exp(-2)), np.log1p(np.exp(2))], rtol=1e-6)
    expected = terms.classification + terms.frames + terms.convolutions - ENTROPY_WEIGHT * np.array([2.0, 1.0])
    np.testing.assert_allclose(terms.total(), expected, rtol=1e-6)


def test_clips_that_use_everything_decide_nothing(run):
    model, variables, video = run
    whole = jnp.array([[True, False], [False, True], [False, False]])

    @jax.jit
    def both(variables):
        masked = model.apply(variables, video, whole=whole, method="masked")
        return masked, model.apply(variables, video, method="decide")

    masked, (usage, likelihoods, entropies) = both(variables)
    for number, (used, decided) in enumerate(zip(masked.usage, usage, strict=True)):
        np.testing.assert_array_equal(used, np.where(whole[:, number, None], 1.0, decided))
    np.testing.assert_allclose(masked.log_probabilities, np.where(whole, 0.0, likelihoods))
    assert (usage.frames[0].mean() < 1 or usage.convolutions[1].mean() < 1) and (likelihoods < 0).all()
    np.testing.assert_array_equal(masked.entropies, entropies)
    assert (entropies >= 0).all() and (entropies <= 4 * np.log(2) + 1e-6).all()


@pytest.mark.long  # seconds of compilation
def test_decisions_are_drawn_and_the_loss_reaches_them(run):
    model, variables, video = run
    stats, policy = {"batch_stats": variables["batch_stats"]}, variables["params"]["policy_stem"]
    unsure = {name: jax.tree.map(lambda leaf: leaf / 300, policy[name]) for name in ("frames", "convolutions")}
    params = variables["params"] | {"policy_stem": policy | unsure}

    @jax.jit
    def gradients(params, key):
        def losses(params):
            output, _ = model.apply(
                {"params": params} | stats, video, True, method="masked", rngs={"usage": key}, mutable=["batch_stats"]
            )
            decisions = (output.log_probabilities, output.entropies)
            terms = ada3d_loss(output.logits, *output.usage, *decisions, jnp.array([0, 1, 2]))
            return (terms.classification.mean(), (terms.frames + terms.convolutions).mean()), output.usage

        _, pullback, usage = jax.vjp(losses, params, has_aux=True)
        return pullback((1.0, 0.0))[0], pullback((0.0, 1.0))[0], usage

    network, chosen, usage = gradients(params, jax.random.key(0))
    _, _, others = gradients(params, jax.random.key(1))
    assert set(np.unique(usage.convolutions)) == {0.0, 1.0} and (usage.frames != others.frames).any()
    for name in ("frames", "convolutions", "network"):
        assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(chosen["policy_stem"][name])) > 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(chosen["stem"]))  # no gradient flows into the rewards
    assert not any(leaf.any() for leaf in jax.tree.leaves(network["policy_stem"]))
    assert jnp.abs(network["stage_1"]["block_0"]["conv1"]["kernel"]).max() > 0


def test_networks_that_mix_or_lack_frames_are_refused():
    model, video = vidjax.create_model("ada3d_tiny"), jnp.zeros((1, 4, 32, 32, 3))
    for wrong in ({"kernels": C2D}, {"temporal_strides": (2, 2)}, {"nonlocal_after": ((), (0,), (), ())}):
        with pytest.raises(ValueError, match="give a network that has some, without non-local blocks"):
            jax.eval_shape(model.clone(model=model.model.clone(**wrong)).init, jax.random.key(0), video)
    shifted = model.clone(glance=model.glance.clone(shift="both"))
    with pytest.raises(ValueError, match="give a network with shift='none'"):
        jax.eval_shape(shifted.init, jax.random.key(0), video)
