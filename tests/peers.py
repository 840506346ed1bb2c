"""PyTorch implementations to compare with. A test that uses one is skipped if it is not installed."""

import importlib.util

import numpy as np
import pytest
import recipe

from benchmark.peers import NoPeerError, import_torchvision


def torchvision():
    """torchvision without its compiled operators: `pip install --no-deps torchvision` with a CPU PyTorch."""
    pytest.importorskip("torch")
    try:
        return import_torchvision()
    except (NoPeerError, ImportError) as error:
        pytest.skip(str(error))


def timm():
    """timm, which imports torchvision."""
    torchvision()
    return pytest.importorskip("timm")


def transformers():
    """transformers, which imports torchvision if installed."""
    pytest.importorskip("torch")
    if importlib.util.find_spec("torchvision"):
        torchvision()
    return pytest.importorskip("transformers")


def perturb(module) -> dict[str, np.ndarray]:
    """Sets every entry of a PyTorch module's state dict to the values of `goldens/recipe.py`, and returns these."""
    import torch

    weights = {name: recipe.parameter(name, tuple(value.shape)) for name, value in module.state_dict().items()}
    module.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()})
    return weights


def peft():
    """peft, which imports transformers."""
    transformers()
    return pytest.importorskip("peft")
