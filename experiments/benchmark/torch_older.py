"""C3D and I3D in PyTorch, reimplemented from the papers for comparisons of speed.

No package that is kept up provides them. Each has the layers, and so the number of parameters, of vidjax's model; a
video is `b c t h w`. ReLUs work in place.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidjax.models.inception3d import INCEPTION_V1, POOLS


class C3D(nn.Module):
    """Eight 3x3x3 convolutions, five max pools, three linear layers."""

    def __init__(self, width: int, hidden: int, dropout: float, frames: int, size: int, classes: int) -> None:
        super().__init__()
        widths, inputs = (1, 2, 4, 4, 8, 8, 8, 8), 3
        self.convs = nn.ModuleList()
        for times in widths:
            self.convs.append(nn.Conv3d(inputs, times * width, 3, padding=1))
            inputs = times * width
        self.fc6 = nn.Linear(inputs * (frames // 16) * ((size // 16 + 2) // 2) ** 2, hidden)
        self.fc7, self.head, self.dropout = nn.Linear(hidden, hidden), nn.Linear(hidden, classes), nn.Dropout(dropout)

    def forward(self, video: Tensor) -> Tensor:
        """Logits `b classes`."""
        x = video
        for i, conv in enumerate(self.convs):
            x = F.relu(conv(x), inplace=True)
            if i in (0, 1, 3, 5, 7):
                x = F.max_pool3d(x, (1, 2, 2) if i == 0 else 2, padding=(0, 1, 1) if i == 7 else 0)
        for linear in (self.fc6, self.fc7):
            x = self.dropout(F.relu(linear(x.flatten(1)), inplace=True))
        return self.head(x)


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int], value: float = 0.0) -> Tensor:
    """Pads as TensorFlow does: more at the end if the padding is uneven."""
    sides = []
    for length, size, step in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
        total = max((-(-length // step) - 1) * step + size - length, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides, value=value) if any(sides) else x


def pool(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """A max pool with TensorFlow's padding."""
    return F.max_pool3d(pad_same(x, kernel, stride, -torch.inf), kernel, stride)


class InceptionUnit(nn.Module):
    """A convolution, a batch norm without scale, and ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1) -> None:
        super().__init__()
        # Of stride 1, TensorFlow's padding is even.
        self.conv = nn.Conv3d(inputs, outputs, size, stride, 0 if stride > 1 else size // 2, bias=False)
        self.norm = nn.BatchNorm3d(outputs, eps=1e-3)
        del self.norm.weight
        self.norm.register_buffer("weight", torch.ones(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The output is `b d t h w`."""
        if self.conv.stride[0] > 1:
            x = pad_same(x, self.conv.kernel_size, self.conv.stride)
        return F.relu(self.norm(self.conv(x)), inplace=True)


class Inception(nn.Module):
    """Pointwise; twice a reduction and a 3x3x3 convolution; max pool and pointwise."""

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        width0, reduce1, width1, reduce2, width2, width3 = widths
        self.branch0 = InceptionUnit(inputs, width0)
        self.branch1 = nn.Sequential(InceptionUnit(inputs, reduce1), InceptionUnit(reduce1, width1, 3))
        self.branch2 = nn.Sequential(InceptionUnit(inputs, reduce2), InceptionUnit(reduce2, width2, 3))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, 1, 1), InceptionUnit(inputs, width3))

    def forward(self, x: Tensor) -> Tensor:
        """The branches, joined along the channels."""
        return torch.cat([branch(x) for branch in (self.branch0, self.branch1, self.branch2, self.branch3)], dim=1)


class I3D(nn.Module):
    """Inception-v1 with inflated kernels."""

    def __init__(self, factor: float, channels: int, dropout: float, classes: int) -> None:
        super().__init__()
        first, inputs = (max(1, round(width * factor)) for width in (64, 192))
        self.stem = InceptionUnit(channels, first, 7, 2)
        self.conv_2b, self.conv_2c = InceptionUnit(first, first), InceptionUnit(first, inputs, 3)
        self.mixed = nn.ModuleDict()
        for name, published in INCEPTION_V1.items():
            widths = [max(1, round(width * factor)) for width in published]
            self.mixed[name] = Inception(inputs, widths)
            inputs = sum(widths[index] for index in (0, 2, 4, 5))
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(inputs, classes)

    def forward(self, video: Tensor) -> Tensor:
        """Logits `b classes`."""
        x = pool(self.stem(video), (1, 3, 3), (1, 2, 2))
        x = pool(self.conv_2c(self.conv_2b(x)), (1, 3, 3), (1, 2, 2))
        for name, module in self.mixed.items():
            if name in POOLS:
                x = pool(x, POOLS[name], (2, 2, 2))
            x = module(x)
        windows = F.avg_pool3d(x, [min(most, side) for most, side in zip((2, 7, 7), x.shape[2:], strict=True)], 1)
        return self.head(self.dropout(windows).mean(dim=(2, 3, 4)))
