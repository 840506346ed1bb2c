"""The benchmark of temporal localisation: its PyTorch peer computes the same, and its rows are a table."""

import json
from functools import partial

import jax
import numpy as np
import pytest

from benchmark import commands, localization
from benchmark.localization import POSITIVES, Localization, draw, make_loss
from vidjax.convert import from_state_dict
from vidjax.errors import UserError
from vidjax.models.actionformer import LOCALIZERS
from vidjax.training.state import Aux


def test_the_loss_and_gradients_in_pytorch_are_ours():
    torch = pytest.importorskip("torch")
    from benchmark.torch_actionformer import ActionFormer, localize

    model = LOCALIZERS["actionformer_tiny"](dropout=0.0, drop_path=1e-9)  # with scales, but nothing is dropped
    peer, random = ActionFormer(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.1)
    params = from_state_dict(model, {name: value.numpy() for name, value in peer.state_dict().items()})["params"]
    batch = draw(model, 72, 2)
    loss_fn, aux = make_loss(model, 72), Aux({}, None, None, 0)
    loss, gradient = jax.jit(jax.value_and_grad(lambda p: loss_fn(p, aux, batch, jax.random.key(0))[0]))(params)
    given = {name: torch.from_numpy(value) for name, value in batch.items()}
    theirs = localize(*peer(given["features"], given["lengths"]), given["classes"], given["offsets"], POSITIVES)
    theirs.backward()
    np.testing.assert_allclose(loss, theirs.item(), rtol=1e-5)
    kernel = peer.backbone.stem[0].attn.query_conv.conv.weight.grad.numpy().transpose(2, 1, 0)
    ours = gradient["stem_0"]["attention"]["query_conv"]["kernel"]
    np.testing.assert_allclose(ours, kernel, atol=1e-4 * np.abs(kernel).max())


@pytest.mark.long
def test_lengths_are_rows_of_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(localization, "measure", lambda function, *args: function(*args))
    monkeypatch.setattr(localization, "keep_to", lambda threads: 1)
    row = partial(LOCALIZERS["actionformer_tiny"], depths=(1, 1, 1), width=16, neck_width=16, head_width=16, window=3)
    monkeypatch.setattr(localization, "LOCALIZERS", {"actionformer_tiny": row})  # compiles in half the time
    settings = {"model": "actionformer_tiny", "lengths": (16, 32), "rounds": 1, "steps": 1, "peers": False}
    rows = commands.main(Localization(**settings, json=str(tmp_path / "out.json")))
    assert [row["length"] for row in rows] == ["16", "32"] and 0 < rows[0]["program"] < rows[1]["program"]
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == rows
    assert "memory GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": "actionformer_anet_i3d"}, "choose actionformer_thumos_i3d or actionformer_tiny"),
        ({"lengths": (2304, 100)}, "lengths has 100: give multiples of 32"),
        ({"rounds": 0}, "rounds is 0: it must be 1 or more"),
    ],
)
def test_invalid_settings_are_one_line(wrong, message):
    with pytest.raises(UserError, match=message):
        Localization(**wrong)
