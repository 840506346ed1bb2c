"""UniFormerV2 in PyTorch, reimplemented from the paper with the state dict names of OpenGVLab/UniFormerV2.

For benchmarks of speed. Attention is PyTorch's, which fuses it if it can; fusion is sequential, and the ViT is trained.
Fields are named as in `vidjax.models.uniformerv2`; a video is `b c t h w`, tokens are `b t n c`.
"""

from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.torch_uniformer import drop_path


class QuickGELU(nn.Module):
    """The sigmoid approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Applied to each value."""
        return x * torch.sigmoid(1.702 * x)


def make_mlp(width: int, ratio: float, dropout: float = 0.0) -> nn.Sequential:
    """Two linear layers."""
    hidden = int(width * ratio)
    layers = {"c_fc": nn.Linear(width, hidden), "gelu": QuickGELU(), "dropout": nn.Dropout(dropout)}
    return nn.Sequential(OrderedDict(layers | {"c_proj": nn.Linear(hidden, width)}))


class LocalAggregation(nn.Module):
    """Local MHRA, added to the patch tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = int(width // 1.5)
        affinity = nn.Conv3d(inner, inner, (3, 1, 1), padding=(1, 0, 0), groups=inner)
        self.pos_embed = nn.Sequential(
            nn.BatchNorm3d(width), nn.Conv3d(width, inner, 1), affinity, nn.Conv3d(inner, width, 1)
        )

    def forward(self, x: Tensor, rate: float) -> Tensor:
        """Tokens in and out."""
        patches = self.pos_embed(x[:, :, 1:].permute(0, 3, 1, 2)[..., None])[..., 0].permute(0, 2, 3, 1)
        patches = x[:, :, 1:] + drop_path(patches, rate, self.training)
        return torch.cat([x[:, :, :1], patches], dim=2)


class Block(nn.Module):
    """A block of the ViT, with `local` a local UniBlock."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, rate: float, local: bool) -> None:
        super().__init__()
        self.rate = rate
        if local:
            self.lmhra1, self.lmhra2 = LocalAggregation(width), LocalAggregation(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = make_mlp(width, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens in and out."""
        x = self.lmhra1(x, self.rate) if hasattr(self, "lmhra1") else x
        y = self.ln_1(x).flatten(0, 1)
        x = x + drop_path(self.attn(y, y, y, need_weights=False)[0].view_as(x), self.rate, self.training)
        x = self.lmhra2(x, self.rate) if hasattr(self, "lmhra2") else x
        return x + drop_path(self.mlp(self.ln_2(x)), self.rate, self.training)


class GlobalBlock(nn.Module):
    """Cross-attention of the query to all tokens, and MLP."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, rate: float, dropout: float) -> None:
        super().__init__()
        self.rate = rate
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2, self.ln_3 = (nn.LayerNorm(width) for _ in range(3))
        self.mlp = make_mlp(width, mlp_ratio, dropout)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """The query `b 1 c` after attention to `b n c`."""
        context = self.ln_3(context)
        attended = self.attn(self.ln_1(query), context, context, need_weights=False)[0]
        query = query + drop_path(attended, self.rate, self.training)
        return query + drop_path(self.mlp(self.ln_2(query)), self.rate, self.training)


class Transformer(nn.Module):
    """The ViT and the global blocks."""

    def __init__(
        self, width: int, depth: int, heads: int, global_layers: tuple, mlp_ratio: float, local: bool, drop_path: float,
        global_drop_path: float, dropout: float, num_classes: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.global_layers = global_layers
        sizes = (width, heads, mlp_ratio)
        rates = np.linspace(0.0, drop_path, depth).tolist()
        self.resblocks = nn.ModuleList(Block(*sizes, rate, local) for rate in rates)
        rates = np.linspace(0.0, global_drop_path, len(global_layers)).tolist()
        self.dpe = nn.ModuleList(nn.Conv3d(width, width, 3, padding=1, groups=width) for _ in rates)
        self.dec = nn.ModuleList(GlobalBlock(*sizes, rate, dropout) for rate in rates)
        self.temporal_cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.balance = nn.Parameter(torch.zeros(width))
        self.proj = nn.Sequential(nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, num_classes))

    def forward(self, x: Tensor, sides: tuple) -> Tensor:
        """Logits of the normalised tokens; `sides` are those of the grid of patches."""
        query = self.temporal_cls_token.expand(len(x), 1, -1)
        stages = iter(zip(self.dpe, self.dec, strict=True))
        for i, block in enumerate(self.resblocks):
            x = block(x)
            if i in self.global_layers:
                position, decoder = next(stages)
                patches = x[:, :, 1:].permute(0, 3, 1, 2)
                encoded = position(patches.unflatten(3, sides)).flatten(3).permute(0, 2, 3, 1)
                context = torch.cat([x[:, :, :1], x[:, :, 1:] + encoded], dim=2)
                query = decoder(query, context.flatten(1, 2))
        weight = self.balance.sigmoid()
        return self.proj((1 - weight) * query[:, 0] + weight * x[:, :, 0].mean(1))


class UniFormerV2(nn.Module):
    """The classifier."""

    def __init__(self, width: int, patch_size: tuple, image_size: int, channels: int = 3, **fields) -> None:
        super().__init__()
        stride, patch, _ = patch_size
        seen, padding = (2 * stride - 1, patch, patch), (stride - 1, 0, 0)
        self.conv1 = nn.Conv3d(channels, width, seen, patch_size, padding, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(1 + (image_size // patch) ** 2, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, **fields)

    def forward(self, video: Tensor) -> Tensor:
        """Logits of a video `b c t h w`."""
        x = self.conv1(video)
        sides = x.shape[3:]
        x = x.flatten(3).permute(0, 2, 3, 1)
        x = torch.cat([self.class_embedding.expand(*x.shape[:2], 1, -1), x], dim=2) + self.positional_embedding
        return self.transformer(self.ln_pre(x), sides)
