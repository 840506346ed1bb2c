"""PyTorch implementations to compare with. A test that asks for one is skipped where it is not installed."""

import importlib.util
from unittest import mock

import numpy as np
import pytest
import recipe


def torchvision():
    """torchvision without its compiled operators: `pip install --no-deps torchvision` beside a CPU PyTorch."""
    torch = pytest.importorskip("torch")
    register = torch.library.register_fake

    def register_what_exists(name, *args, **kwargs):
        def decorate(function):
            try:
                return register(name, *args, **kwargs)(function)
            except RuntimeError:  # an operator of the compiled part, which no model of ours needs
                return function

        return decorate

    with mock.patch.object(torch.library, "register_fake", register_what_exists):
        return pytest.importorskip("torchvision", exc_type=ImportError)


def timm():
    """timm, which imports torchvision."""
    torchvision()
    return pytest.importorskip("timm")


def transformers():
    """transformers, which imports torchvision where it finds it."""
    pytest.importorskip("torch")
    if importlib.util.find_spec("torchvision"):
        torchvision()
    return pytest.importorskip("transformers")


def perturb(module) -> dict[str, np.ndarray]:
    """Gives every entry of a PyTorch module's state dict the recipe's value; returns them as numpy arrays."""
    import torch

    weights = {name: recipe.parameter(name, tuple(value.shape)) for name, value in module.state_dict().items()}
    module.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()})
    return weights
