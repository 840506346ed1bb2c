"""Training steps that no PyTorch library has, made from its layers, have our losses."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmark import ours
from benchmark.ours import draw_inputs, make_model
from benchmark.peers import NoPeerError, make_peer
from benchmark.settings import Job
from vidjax.convert import blip, from_state_dict
from vidjax.convert.conversion import apply
from vidjax.convert.rules import Rule, strip
from vidjax.objectives import multi_block
from vidjax.training.state import Aux

HAS_TORCH = importlib.util.find_spec("torch") is not None


def job(name: str, **fields) -> Job:
    """A measurement of two clips."""
    return Job(name, True, batch_size=2, dtype="float32", threads=None, steps=1, **fields)


@pytest.mark.skipif(not HAS_TORCH, reason="needs PyTorch")
def test_a_step_of_latent_prediction_has_our_loss_in_pytorch(monkeypatch):
    """With our weights, on the same masks, and with targets of a moving average that differs from the encoder."""
    import torch

    from benchmark import pytorch

    small = job("vjepa2_tiny_pretrain", frames=4, size=64)
    model = make_model(small)
    masks = [
        multi_block.Mask(*map(jnp.asarray, pair), jnp.ones((2, sum(each.shape[1] for each in pair)), bool))
        for pair in pytorch.drawn_blocks(model, 2, draws=3)[2]
    ]
    assert all(25 < mask.kept.shape[1] + mask.predicted.shape[1] <= 32 for mask in masks)  # cut to the fewest
    try:
        peer, _ = make_peer(small.model, model)
    except NoPeerError as error:
        pytest.skip(str(error))
    peer.follow(0.0)
    with torch.no_grad():
        for parameter in peer.encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.05)
    weights = [dict(part.state_dict()) for part in (peer, peer._targets[0])]
    names = {f"encoder.{name}": value for name, value in weights[1].items()}
    params, ema = (
        from_state_dict(model, {name: value.numpy() for name, value in each.items()})["params"]
        for each in (weights[0], weights[0] | names)
    )
    video = draw_inputs(model, 2)["video"]
    shapes = [((mask.kept.shape[1], mask.predicted.shape[1]),) for mask in masks]
    monkeypatch.setattr(ours, "block_masks", lambda *_: (lambda key: masks, shapes))
    aux = Aux({}, ema, None, 0)
    loss, _ = jax.jit(ours.make_loss(model, True, 2))(params, aux, {"video": video}, jax.random.key(0))
    pairs = [tuple(torch.from_numpy(np.array(each)).long() for each in mask[:2]) for mask in masks]
    expected = peer(torch.from_numpy(video).permute(0, 1, 4, 2, 3), pairs)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-4)


@pytest.mark.skipif(not HAS_TORCH, reason="needs PyTorch")
def test_a_step_of_blip_has_our_loss_in_pytorch():
    """With our weights, another momentum copy and two pairs, of which each has one negative; also in the second step.

    The second step also compares with what the first one put into the queues.
    """
    import torch

    small = job("blip_tiny", frames=2, size=16)
    model = make_model(small)
    try:
        peer, _ = make_peer(small.model, model)
    except NoPeerError as error:
        pytest.skip(str(error))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
        peer.follow(0.0)
        for parameter in peer.towers.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    layout = dataclasses.replace(
        blip.HUGGING_FACE,
        prepare=lambda weights: blip.without_repeats(strip(weights, "towers.")),
        rules=(*blip.HUGGING_FACE.rules, *blip.DECODER_RULES, Rule("temp", "temperature")),
        absent=("queue/",),
    )
    weights = [dict(part.state_dict()) for part in (peer, peer._copies[0])]
    initial = model.init(jax.random.key(0), jnp.zeros((1, 2, 16, 16, 3)))
    params, ema = (
        apply(layout, layout.prepare({name: value.numpy() for name, value in each.items()}), initial)[0]["params"]
        for each in (weights[0], weights[0] | {f"towers.{name}": value for name, value in weights[1].items()})
    )
    queue = {name: jnp.asarray(getattr(peer, name).numpy().copy()) for name in ("video_keys", "text_keys")}
    batch = draw_inputs(model, 2)
    batch["ids"][1, 20:] = 0  # padding
    video = np.array(model.card.preprocess(batch["video"]))
    state, loss_fn = {"queue": queue | {"position": 0}}, jax.jit(ours.make_loss(model, True, 2))
    for _ in range(2):
        loss, (state, _) = loss_fn(params, Aux(state, ema, None, 1), batch, jax.random.key(0))
        expected = peer(torch.from_numpy(video).permute(0, 1, 4, 2, 3), torch.from_numpy(batch["ids"]).long())
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
