"""UniFormer in PyTorch, reimplemented from the paper with the state dict names of Sense-X/UniFormer.

Tests compare gradients, batch statistics and drop path with it, and benchmarks compare speed. Fields are named as in
`vidjax.models.uniformer`; a video is `b c t h w`.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def drop_path(x: Tensor, rate: float, train: bool) -> Tensor:
    """Stochastic depth: drops examples of the residual branch and scales those kept."""
    if not train or rate == 0.0:
        return x
    keep = torch.full((x.shape[0],) + (1,) * (x.ndim - 1), 1.0 - rate, dtype=x.dtype, device=x.device)
    return x * torch.bernoulli(keep) / (1.0 - rate)


def depthwise(width: int, size: int) -> nn.Conv3d:
    """A depthwise convolution with the same output size."""
    return nn.Conv3d(width, width, size, padding=size // 2, groups=width)


class Attention(nn.Module):
    """Self-attention with fused query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Self-attention over tokens `b n c`."""
        b, n, width = x.shape
        query, key, value = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(b, n, width))


class Mlp(nn.Module):
    """Two layers with GELU in between: linear, or 1x1x1 convolutions."""

    def __init__(self, width: int, hidden: int, convolutions: bool) -> None:
        super().__init__()
        make = (lambda a, b: nn.Conv3d(a, b, 1)) if convolutions else nn.Linear
        self.fc1, self.fc2 = make(width, hidden), make(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Applied to each token or cell."""
        return self.fc2(F.gelu(self.fc1(x)))


class LocalBlock(nn.Module):
    """Convolutional block (local MHRA)."""

    def __init__(self, width: int, mlp_ratio: float, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.pos_embed = depthwise(width, 3)
        self.norm1 = nn.BatchNorm3d(width)
        self.conv1, self.conv2 = nn.Conv3d(width, width, 1), nn.Conv3d(width, width, 1)
        self.attn = depthwise(width, 5)
        self.norm2 = nn.BatchNorm3d(width)
        self.mlp = Mlp(width, int(width * mlp_ratio), convolutions=True)

    def forward(self, x: Tensor) -> Tensor:
        """Features `b c t h w` in and out."""
        x = x + self.pos_embed(x)
        x = x + drop_path(self.conv2(self.attn(self.conv1(self.norm1(x)))), self.rate, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.rate, self.training)


class GlobalBlock(nn.Module):
    """Attention block (global MHRA) over all tokens, or with `split` over time and then over space."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, rate: float, split: bool) -> None:
        super().__init__()
        self.rate, self.split = rate, split
        self.pos_embed = depthwise(width, 3)
        if split:
            self.t_norm = nn.LayerNorm(width, eps=1e-6)
            self.t_attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio), convolutions=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features `b c t h w` in and out."""
        x = x + self.pos_embed(x)
        b, c, t, h, w = x.shape
        if self.split:
            places = x.permute(0, 3, 4, 2, 1).reshape(b * h * w, t, c)
            places = places + drop_path(self.t_attn(self.t_norm(places)), self.rate, self.training)
            seen = places.view(b, h * w, t, c).transpose(1, 2).reshape(b * t, h * w, c)
            x = x.permute(0, 2, 3, 4, 1).reshape(b * t, h * w, c)
        else:
            seen = x = x.flatten(2).transpose(1, 2)
        x = x + drop_path(self.attn(self.norm1(seen)), self.rate, self.training)
        x = x.reshape(b, t * h * w, c)
        x = x + drop_path(self.mlp(self.norm2(x)), self.rate, self.training)
        return x.transpose(1, 2).reshape(b, c, t, h, w)


class PatchEmbedding(nn.Module):
    """Strided convolution followed by a layer norm over channels."""

    def __init__(self, channels: int, width: int, kernel_size: tuple, strides: tuple) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        padding = (kernel_size[0] // 2, 0, 0)
        self.proj = nn.Conv3d(channels, width, kernel_size, strides, padding)

    def forward(self, x: Tensor) -> Tensor:
        """Downsamples `b c t h w`."""
        return self.norm(self.proj(x).permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3).contiguous()


class UniFormer(nn.Module):
    """The classifier; with `num_classes=None` it returns the mean of the last features."""

    def __init__(
        self,
        widths: tuple = (64, 128, 320, 512),
        depths: tuple = (3, 4, 8, 3),
        head_width: int = 64,
        mlp_ratio: float = 4.0,
        split: bool = False,
        temporal_overlap: bool = False,
        num_classes: int | None = 400,
        drop_path: float = 0.0,
        channels: int = 3,
    ) -> None:
        super().__init__()
        rates = iter(np.linspace(0.0, drop_path, sum(depths)).tolist())
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
            later = ((3 if temporal_overlap else 1, 2, 2), (1, 2, 2))
            embedding = PatchEmbedding(channels, width, *(((3, 4, 4), (2, 4, 4)) if i == 1 else later))
            setattr(self, f"patch_embed{i}", embedding)
            blocks = [
                LocalBlock(width, mlp_ratio, next(rates))
                if i < 3
                else GlobalBlock(width, width // head_width, mlp_ratio, next(rates), split)
                for _ in range(depth)
            ]
            setattr(self, f"blocks{i}", nn.Sequential(*blocks))
            channels = width
        self.norm = nn.BatchNorm3d(channels)
        self.head = nn.Identity() if num_classes is None else nn.Linear(channels, num_classes)

    def forward(self, video: Tensor) -> Tensor:
        """Logits of a video `b c t h w`, or its mean features if there is no head."""
        x = video
        for i in range(1, 5):
            x = getattr(self, f"blocks{i}")(getattr(self, f"patch_embed{i}")(x))
        return self.head(self.norm(x).mean((2, 3, 4)))
