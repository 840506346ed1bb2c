"""SlowFast, X3D, CSN and TSM in PyTorch, reimplemented from the papers for comparisons of speed.

No package that is kept up provides them. Each has the layers, and so the number of parameters, of vidjax's model of the
same fields; a video is `b c t h w`, for TSM `b t c h w`. ReLUs work in place, as in the originals.
"""

from collections.abc import Sequence
from functools import partial
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidjax.models.x3d import squeezed_width

relu = partial(F.relu, inplace=True)


class Unit(nn.Sequential):
    """A convolution of the same output size, if not for the stride, and a batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple, stride: tuple = (1, 1, 1), groups: int = 1) -> None:
        padding = tuple(size // 2 for size in kernel)
        conv = nn.Conv3d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm3d(outputs))


class Bottleneck(nn.Module):
    """A residual block around given units, with a projected shortcut if the shape changes."""

    def __init__(self, units: Sequence[nn.Module], inputs: int, outputs: int, stride: tuple) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)
        projects = inputs != outputs or max(stride) > 1
        self.shortcut = Unit(inputs, outputs, (1, 1, 1), stride) if projects else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The output is `b d t h w`."""
        y = x
        for unit in self.units[:-1]:
            y = relu(unit(y))
        return relu(self.units[-1](y) + self.shortcut(x))


def stage(inputs: int, width: int, depth: int, kernels: Sequence[int], stride: int) -> nn.Sequential:
    """Blocks of a temporal, a spatial and a pointwise convolution."""
    blocks = []
    for i in range(depth):
        steps = (1, 1, 1) if i else (1, stride, stride)
        units = [
            Unit(4 * width if i else inputs, width, (kernels[i % len(kernels)], 1, 1)),
            Unit(width, width, (1, 3, 3), steps),
            Unit(width, 4 * width, (1, 1, 1)),
        ]
        blocks.append(Bottleneck(units, 4 * width if i else inputs, 4 * width, steps))
    return nn.Sequential(*blocks)


class SlowFast(nn.Module):
    """Lateral connections are convolutions with batch norm and ReLU."""

    def __init__(
        self, alpha: int, slow_kernels: Sequence, fast_kernels: Sequence, depths: Sequence[int], width: int,
        channel_ratio: int, lateral_kernel: int, dropout: float, classes: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.alpha = alpha
        stem, kernels = (1, 2, 2), zip(slow_kernels, fast_kernels, strict=True)
        widths = width, width // channel_ratio
        (slow, fast), *kernels = kernels
        self.stems = nn.ModuleList(Unit(3, n, (*k, 7, 7), stem) for n, k in zip(widths, (slow, fast), strict=True))
        self.laterals, self.stages, inputs = nn.ModuleList(), nn.ModuleList(), widths
        for i, (depth, (slow, fast)) in enumerate(zip(depths, kernels, strict=True)):
            inner, stride = [n * 2**i for n in widths], 2 if i else 1
            self.laterals.append(Unit(inputs[1], 2 * inputs[1], (lateral_kernel, 1, 1), (alpha, 1, 1)))
            pathways = [
                stage(inputs[0] + 2 * inputs[1], inner[0], depth, slow, stride),
                stage(inputs[1], inner[1], depth, fast, stride),
            ]
            self.stages.append(nn.ModuleList(pathways))
            inputs = [4 * n for n in inner]
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(sum(inputs), classes)

    def forward(self, video: Tensor) -> Tensor:
        """Logits `b classes`."""
        frames = video.shape[2]
        places = torch.linspace(0, frames - 1, frames // self.alpha).long()
        pathways = [stem(x) for stem, x in zip(self.stems, (video[:, :, places], video), strict=True)]
        slow, fast = (F.max_pool3d(relu(x), (1, 3, 3), (1, 2, 2), (0, 1, 1)) for x in pathways)
        for lateral, (slow_stage, fast_stage) in zip(self.laterals, self.stages, strict=True):
            slow = slow_stage(torch.cat([slow, relu(lateral(fast))], dim=1))
            fast = fast_stage(fast)
        features = torch.cat([x.mean(dim=(2, 3, 4)) for x in (slow, fast)], dim=1)
        return self.head(self.dropout(features))


class SqueezeExcitation(nn.Module):
    """A weight for each channel from the channels' means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        squeezed = squeezed_width(width)
        self.reduce, self.expand = nn.Conv3d(width, squeezed, 1), nn.Conv3d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The output has the shape of `x`."""
        weight = self.reduce(x.mean(dim=(2, 3, 4), keepdim=True))
        return x * torch.sigmoid(self.expand(relu(weight)))


class X3DBlock(nn.Module):
    """A pointwise, a depthwise and a pointwise convolution."""

    def __init__(self, inputs: int, width: int, inner: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        steps = (1, stride, stride)
        self.expand = Unit(inputs, inner, (1, 1, 1))
        self.depthwise = Unit(inner, inner, (3, 3, 3), steps, groups=inner)
        self.squeeze = SqueezeExcitation(inner) if squeeze else nn.Identity()
        self.reduce = Unit(inner, width, (1, 1, 1))
        projects = inputs != width or stride > 1
        self.shortcut = Unit(inputs, width, (1, 1, 1), steps) if projects else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The output is `b d t h w`."""
        y = self.squeeze(self.depthwise(relu(self.expand(x))))
        return relu(self.reduce(F.silu(y, inplace=True)) + self.shortcut(x))


class X3D(nn.Module):
    """With the head of a map of the training size."""

    def __init__(
        self, widths: Sequence[int], depths: Sequence[int], stem_width: int, expansion: float, head_width: int,
        dropout: float, classes: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.spatial = nn.Conv3d(3, stem_width, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False)
        self.temporal = Unit(stem_width, stem_width, (5, 1, 1), groups=stem_width)
        blocks, inputs = [], stem_width
        for width, depth in zip(widths, depths, strict=True):
            for i in range(depth):
                blocks.append(X3DBlock(inputs, width, int(expansion * width), 1 if i else 2, i % 2 == 0))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        inner = int(expansion * inputs)
        self.expand, self.hidden = Unit(inputs, inner, (1, 1, 1)), nn.Linear(inner, head_width, bias=False)
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(head_width, classes)

    def forward(self, video: Tensor) -> Tensor:
        """Logits `b classes`."""
        x = self.blocks(relu(self.temporal(self.spatial(video))))
        x = relu(self.expand(x)).mean(dim=(2, 3, 4))
        return self.head(self.dropout(relu(self.hidden(x))))


class CSN(nn.Module):
    """A ResNet whose 3x3x3 convolutions are depthwise; with `preserve`, after a pointwise one."""

    def __init__(self, preserve: bool, depths: Sequence[int], width: int, dropout: float, classes: int) -> None:
        super().__init__()
        self.stem = Unit(3, width, (3, 7, 7), (1, 2, 2))
        blocks, inputs = [], width
        for i, depth in enumerate(depths):
            for j in range(depth):
                inner, stride = width * 2**i, (2, 2, 2) if i and not j else (1, 1, 1)
                middle = Unit(inner, inner, (3, 3, 3), stride, groups=inner)
                middle = nn.Sequential(Unit(inner, inner, (1, 1, 1)), middle) if preserve else middle
                units = [Unit(inputs, inner, (1, 1, 1)), middle, Unit(inner, 4 * inner, (1, 1, 1))]
                blocks.append(Bottleneck(units, inputs, 4 * inner, stride))
                inputs = 4 * inner
        self.blocks, self.dropout, self.head = nn.Sequential(*blocks), nn.Dropout(dropout), nn.Linear(inputs, classes)

    def forward(self, video: Tensor) -> Tensor:
        """Logits `b classes`."""
        x = F.max_pool3d(relu(self.stem(video)), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        return self.head(self.dropout(self.blocks(x).mean(dim=(2, 3, 4))))


class Shift(nn.Module):
    """An eighth of the channels from the next frame, and an eighth from the previous one."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    def forward(self, x: Tensor) -> Tensor:
        """Frames `(b t) c h w`."""
        x = x.view(-1, self.frames, *x.shape[1:])
        fold, out = x.shape[2] // 8, torch.zeros_like(x)
        out[:, :-1, :fold] = x[:, 1:, :fold]
        out[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
        out[:, :, 2 * fold :] = x[:, :, 2 * fold :]
        return out.flatten(0, 1)


class SegmentNetwork(nn.Module):
    """torchvision's ResNet over frames, with a shift before the first convolution of blocks (TSM) or none (TSN)."""

    def __init__(
        self, resnet: ModuleType, depths: Sequence[int], frames: int, shift: bool, every: int, dropout: float,
        classes: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.net = resnet.ResNet(resnet.Bottleneck, list(depths))
        for blocks in (self.net.layer1, self.net.layer2, self.net.layer3, self.net.layer4):
            for i, block in enumerate(blocks):
                if shift and i % every == 0:
                    block.conv1 = nn.Sequential(Shift(frames), block.conv1)
        self.dropout, self.head, self.net.fc = nn.Dropout(dropout), nn.Linear(2048, classes), nn.Identity()

    def forward(self, video: Tensor) -> Tensor:
        """Logits `b classes`, the mean over frames."""
        logits = self.head(self.dropout(self.net(video.flatten(0, 1))))
        return logits.view(*video.shape[:2], -1).mean(dim=1)
