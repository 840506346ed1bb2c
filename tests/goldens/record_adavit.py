"""Records AdaViT from its released code: `python record_adavit.py CLONE`, a clone of MengLcool/AdaViT.

Of timm only three parts are needed, which stand in here, so that no version of it has to be found.
"""

import json
import sys
from functools import partial
from types import ModuleType

import numpy as np
import recipe
import torch
from torch import nn

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 7}


class PatchEmbed(nn.Module):
    """timm's: a convolution whose places become tokens."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


def stand_in(name: str, **parts: object) -> None:
    """A module with these parts."""
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__dict__.update(parts)


def main(clone: str) -> None:
    """Writes adavit.json and adavit.npz beside this file, and prints the parameters of the published size."""
    for name in ("timm", "timm.models"):
        stand_in(name)
    stand_in("timm.models.layers", DropPath=nn.Identity, trunc_normal_=nn.init.trunc_normal_)
    stand_in("timm.models.helpers", load_pretrained=None)
    stand_in("timm.models.registry", register_model=lambda function: function)
    stand_in(
        "timm.models.vision_transformer",
        PatchEmbed=PatchEmbed, VisionTransformer=nn.Module, _cfg=dict, Mlp=nn.Module, Attention=nn.Module,
    )  # fmt: skip
    stand_in("models")
    sys.modules["models"].__path__ = [f"{clone}/models"]
    from models.ada_t2t_vit import AdaStepT2T_ViT

    flags = {"ada_head": True, "ada_layer": True, "ada_token": True, "ada_token_with_mlp": True, "qkv_bias": True}
    make = partial(AdaStepT2T_ViT, use_t2t=False, norm_layer=partial(nn.LayerNorm, eps=1e-6), **flags)
    model = make(**SIZE).eval()
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    weights = {name: torch.tensor(recipe.parameter(name, tuple(shape))) for name, shape in shapes.items()}
    for number in range(1, SIZE["depth"]):  # else hardly any attention or MLP is used
        weights[f"blocks.{number}.layer_select.mlp_head.bias"] += 1
    model.load_state_dict(weights)
    shape = [6, 3, 32, 32]
    with torch.no_grad():
        outputs = model(torch.tensor(recipe.floats("input0", tuple(shape))))
    names = ("logits", "heads", "branches", "tokens")
    recorded = dict(zip(names, (value.numpy() for value in outputs[:4]), strict=True))
    print({name: value.mean(axis=0) for name, value in recorded.items() if name != "tokens"})
    inputs = [{"kind": "floats", "name": "input0", "shape": shape}]
    description = {"model": "MengLcool/AdaViT", "config": SIZE, "inputs": inputs, "state_dict": shapes}
    here = recipe.HERE / "adavit"
    here.with_suffix(".json").write_text(json.dumps(description))
    np.savez_compressed(here.with_suffix(".npz"), **recorded)
    full = make(img_size=224, patch_size=16, embed_dim=384, depth=12, num_heads=6, num_classes=1000)
    print(sum(value.numel() for value in full.parameters()))


if __name__ == "__main__":
    main(sys.argv[1])
