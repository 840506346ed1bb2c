"""ActionFormer in PyTorch, for comparison: the published layers, with attention in a band of overlapping chunks.

Names of parameters are those of the released checkpoints, so that a vidjax model has the same weights by conversion.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class ChannelNorm(nn.Module):
    """Layer norm of the channels of `b c t`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised `b c t`."""
        weight, bias = self.weight.flatten(), self.bias.flatten()
        return functional.layer_norm(x.transpose(1, 2), weight.shape, weight, bias, 1e-5).transpose(1, 2)


class MaskedConv(nn.Module):
    """A convolution over time, zero beyond the end of a video."""

    def __init__(self, inner: int, outer: int, size: int, stride: int = 1, groups: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inner, outer, size, stride, size // 2, groups=groups, bias=bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """The mask `b 1 t` is of the output."""
        return self.conv(x) * mask


def attend_in_band(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, reach: int) -> Tensor:
    """Attention of `b k t d` to valid tokens at most `reach` away, in chunks that see their two neighbours."""
    length = query.shape[2]
    chunks = -(-length // reach)
    after = chunks * reach - length
    query = functional.pad(query, (0, 0, 0, after)).unflatten(2, (chunks, reach))
    near = [
        functional.pad(x, (0, 0, reach, reach + after)).unfold(2, 3 * reach, reach) for x in (key, value)
    ]  # b k m d n
    usable = functional.pad(mask, (reach, reach + after)).unfold(2, 3 * reach, reach)[:, :, :, None]
    places = torch.arange(reach, device=query.device)[:, None] + reach - torch.arange(3 * reach, device=query.device)
    scores = (query * query.shape[-1] ** -0.5) @ near[0]
    scores = scores.masked_fill(~usable.bool(), -1e4).masked_fill(places.abs() > reach, float("-inf"))
    return (scores.softmax(dim=-1) @ near[1].transpose(-1, -2)).flatten(2, 3)[:, :, :length]


class Attention(nn.Module):
    """Attention whose queries, keys and values are convolved over time first."""

    def __init__(self, width: int, heads: int, window: int, stride: int) -> None:
        super().__init__()
        self.heads, self.reach = heads, window // 2
        for name in ("query", "key", "value"):
            size = stride + 1 if stride > 1 else 3
            setattr(self, f"{name}_conv", MaskedConv(width, width, size, stride, groups=width))
            setattr(self, f"{name}_norm", ChannelNorm(width))
            setattr(self, name, nn.Conv1d(width, width, 1))
        self.proj = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """The mask `b 1 t` is of the output."""

        def project(name: str) -> Tensor:
            y = getattr(self, f"{name}_norm")(getattr(self, f"{name}_conv")(x, mask))
            return getattr(self, name)(y).unflatten(1, (self.heads, -1)).transpose(2, 3)

        y = attend_in_band(project("query"), project("key"), project("value"), mask, self.reach)
        return self.proj(y.transpose(2, 3).flatten(1, 2)) * mask


class ScaledPath(nn.Module):
    """A branch with a learned scale, dropped for whole videos."""

    def __init__(self, width: int, rate: float) -> None:
        super().__init__()
        self.rate, self.scale = rate, nn.Parameter(torch.full((1, width, 1), 1e-4))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the scaled branch `b c t`."""
        x = self.scale * x
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, window: int, stride: int, rate: float, dropout: float) -> None:
        super().__init__()
        self.stride, self.dropout = stride, dropout
        self.ln1, self.ln2 = ChannelNorm(width), ChannelNorm(width)
        self.attn = Attention(width, heads, window, stride)
        self.mlp = nn.Sequential(
            nn.Conv1d(width, 4 * width, 1), nn.GELU(), nn.Dropout(dropout),
            nn.Conv1d(4 * width, width, 1), nn.Dropout(dropout),
        )  # fmt: skip
        self.drop_path_attn, self.drop_path_mlp = ScaledPath(width, rate), ScaledPath(width, rate)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `b c t / stride` and its mask."""
        mask = mask[:, :, :: self.stride]
        attended = functional.dropout(self.attn(self.ln1(x), mask), self.dropout, self.training)
        if self.stride > 1:
            x = functional.max_pool1d(x, self.stride + 1, self.stride, (self.stride + 1) // 2)
        x = x * mask + self.drop_path_attn(attended)
        return x + self.drop_path_mlp(self.mlp(self.ln2(x)) * mask), mask


class Head(nn.Module):
    """Two convolutions with norms, and one to the outputs, named `last`."""

    def __init__(self, inner: int, width: int, outputs: int, last: str) -> None:
        super().__init__()
        self.last = last
        self.head = nn.ModuleList([MaskedConv(inner if i == 0 else width, width, 3) for i in range(2)])
        self.norm = nn.ModuleList([ChannelNorm(width) for _ in range(2)])
        setattr(self, last, MaskedConv(width, outputs, 3, bias=True))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """The outputs at each point."""
        for conv, norm in zip(self.head, self.norm, strict=True):
            x = norm(conv(x, mask)).relu()
        return getattr(self, self.last)(x, mask)


class Scale(nn.Module):
    """A learned number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))


class Backbone(nn.Module):
    """Convolutions, blocks, and blocks that halve the length."""

    def __init__(self, channels: int, width: int, depths: Sequence[int], **block) -> None:
        super().__init__()
        convolutions, blocks, levels = depths
        self.embd = nn.ModuleList([MaskedConv(channels if i == 0 else width, width, 3) for i in range(convolutions)])
        self.embd_norm = nn.ModuleList([ChannelNorm(width) for _ in range(convolutions)])
        self.stem = nn.ModuleList([Block(width, stride=1, **block) for _ in range(blocks)])
        self.branch = nn.ModuleList([Block(width, stride=2, **block) for _ in range(levels)])

    def forward(self, x: Tensor, mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The levels and their masks."""
        for conv, norm in zip(self.embd, self.embd_norm, strict=True):
            x = norm(conv(x, mask)).relu()
        for block in self.stem:
            x, mask = block(x, mask)
        levels, masks = [x], [mask]
        for block in self.branch:
            x, mask = block(x, mask)
            levels.append(x)
            masks.append(mask)
        return levels, masks


class Neck(nn.Module):
    """A norm of each level."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.fpn_norms = nn.ModuleList([ChannelNorm(width) for _ in range(levels)])


class ActionFormer(nn.Module):
    """The peer of `vidjax.models.actionformer.ActionFormer` with one window, no feature pyramid network and no table.

    Args:
      model: the vidjax model, for its sizes.
    """

    def __init__(self, model) -> None:
        super().__init__()
        levels = model.depths[2] + 1
        self.backbone = Backbone(
            model.channels, model.width, model.depths, heads=model.heads, window=model.window, rate=model.drop_path,
            dropout=model.dropout,
        )  # fmt: skip
        self.neck = Neck(model.width, levels)
        self.cls_head = Head(model.width, model.head_width, model.num_classes, "cls_head")
        self.reg_head = Head(model.width, model.head_width, 2, "offset_head")
        self.reg_head.scale = nn.ModuleList([Scale() for _ in range(levels)])

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `b n classes` and offsets `b n 2` of features `b t c`, and which points are valid, `b n`."""
        mask = (torch.arange(features.shape[1], device=features.device) < lengths[:, None])[:, None].to(features.dtype)
        levels, masks = self.backbone(features.transpose(1, 2), mask)
        levels = [norm(level) for norm, level in zip(self.neck.fpn_norms, levels, strict=True)]
        logits = [self.cls_head(*each) for each in zip(levels, masks, strict=True)]
        scales = self.reg_head.scale
        offsets = [(self.reg_head(x, m) * s.scale).relu() for x, m, s in zip(levels, masks, scales, strict=True)]
        logits, offsets, masks = (torch.cat(each, dim=2).transpose(1, 2) for each in (logits, offsets, masks))
        return logits, offsets, masks[..., 0] > 0


def localize(logits: Tensor, offsets: Tensor, valid: Tensor, classes: Tensor, wanted: Tensor, count: float) -> Tensor:
    """Focal loss of the classes and distance IoU loss of the offsets, both divided by a number of positive points.

    Args:
      classes: targets `b n classes`.
      wanted: target offsets `b n 2`.
      count: the running number of positive points.
    """
    probability = logits.sigmoid()
    right = probability * classes + (1 - probability) * (1 - classes)
    balance = 0.25 * classes + 0.75 * (1 - classes)
    entropy = functional.binary_cross_entropy_with_logits(logits, classes, reduction="none")
    focal = (balance * (1 - right) ** 2 * entropy * valid[..., None]).sum()
    positive = (classes.sum(dim=-1) > 0) & valid
    count = 0.9 * count + 0.1 * positive.sum().clamp(min=1)
    found, wanted = offsets[positive], wanted[positive]
    shared = torch.minimum(found, wanted).sum(dim=-1)
    hull = torch.maximum(found, wanted).sum(dim=-1)
    union = found.sum(dim=-1) + wanted.sum(dim=-1) - shared
    centres = ((found[:, 1] - found[:, 0]) - (wanted[:, 1] - wanted[:, 0])) / 2
    regression = 1 - shared / union.clamp(min=1e-8) + (centres / hull.clamp(min=1e-8)) ** 2
    return (focal + regression.sum()) / count
