"""PyTorch peers with the names and the computation of PyTorchVideo's and mmaction2's Slow and SlowFast networks.

Written from the facts of their code (pytorchvideo/models/resnet.py, slowfast.py; mmaction/models/backbones/resnet3d.py,
resnet3d_slowfast.py; mmcv/cnn/bricks/non_local.py), at any width, for tests that need neither library.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, kernel: tuple, stride: tuple = (1, 1, 1), bias: bool = False) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, kernel, stride, tuple(size // 2 for size in kernel), bias=bias)


class Unit(nn.Module):
    """A convolution and a batch norm with the names that a publisher gives them."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple, stride: tuple = (1, 1, 1), names=("conv", "norm")):
        super().__init__()
        self.names = names
        self.add_module(names[0], conv(inputs, outputs, kernel, stride))
        self.add_module(names[1], nn.BatchNorm3d(outputs))

    def forward(self, x):
        for name in self.names:
            x = getattr(self, name)(x)
        return x


def stem_pool(x, stride: int = 1):
    return F.max_pool3d(torch.relu(x), (1, 3, 3), (stride, 2, 2), (0, 1, 1))


class VideoBranch(nn.Module):
    def __init__(self, inputs: int, width: int, kernel: int, stride: int):
        super().__init__()
        shapes = [(inputs, width, (kernel, 1, 1)), (width, width, (1, 3, 3)), (width, 4 * width, (1, 1, 1))]
        for letter, (c, d, size) in zip("abc", shapes, strict=True):
            strides = (1, stride, stride) if letter == "b" else (1, 1, 1)
            self.add_module(f"conv_{letter}", conv(c, d, size, strides))
            self.add_module(f"norm_{letter}", nn.BatchNorm3d(d))

    def forward(self, x):
        x = torch.relu(self.norm_a(self.conv_a(x)))
        x = torch.relu(self.norm_b(self.conv_b(x)))
        return self.norm_c(self.conv_c(x))


class VideoBlock(nn.Module):
    def __init__(self, inputs: int, width: int, kernel: int, stride: int):
        super().__init__()
        self.branch1_conv = None
        if inputs != 4 * width or stride > 1:
            self.branch1_conv = conv(inputs, 4 * width, (1, 1, 1), (1, stride, stride))
            self.branch1_norm = nn.BatchNorm3d(4 * width)
        self.branch2 = VideoBranch(inputs, width, kernel, stride)

    def forward(self, x):
        shortcut = x if self.branch1_conv is None else self.branch1_norm(self.branch1_conv(x))
        return torch.relu(shortcut + self.branch2(x))


class VideoStage(nn.Module):
    def __init__(self, inputs: int, width: int, depth: int, kernels: Sequence[int], stride: int):
        super().__init__()
        self.res_blocks = nn.ModuleList(
            VideoBlock(4 * width if i else inputs, width, kernels[i % len(kernels)], 1 if i else stride)
            for i in range(depth)
        )

    def forward(self, x):
        for block in self.res_blocks:
            x = block(x)
        return x


class VideoHead(nn.Module):
    def __init__(self, features: int, classes: int):
        super().__init__()
        self.proj = nn.Linear(features, classes)

    def forward(self, x):
        return self.proj(x.permute(0, 2, 3, 4, 1)).mean(dim=(1, 2, 3))


class VideoResNet(nn.Module):
    """PyTorchVideo's ResNet, without non-local blocks, with a pool after the first stage."""

    def __init__(self, kernels, depths, width: int, classes: int, window: tuple):
        super().__init__()
        self.window = window
        stages, inputs = [], width
        for i, depth in enumerate(depths):
            stages.append(VideoStage(inputs, width * 2**i, depth, kernels[i + 1], 2 if i else 1))
            inputs = 4 * width * 2**i
        pool = nn.MaxPool3d((2, 1, 1))
        stem = Unit(3, width, (*kernels[0], 7, 7), (1, 2, 2))
        self.blocks = nn.ModuleList([stem, stages[0], pool, *stages[1:], VideoHead(inputs, classes)])

    def forward(self, x):
        stem, *others, head = self.blocks
        x = stem_pool(stem(x))
        for block in others:
            x = block(x)
        return head(F.avg_pool3d(x, self.window, 1))


class VideoFusion(nn.Module):
    def __init__(self, fast: int, alpha: int, kernel: int):
        super().__init__()
        self.conv_fast_to_slow = conv(fast, 2 * fast, (kernel, 1, 1), (alpha, 1, 1))
        self.norm = nn.BatchNorm3d(2 * fast)

    def forward(self, slow, fast):
        return torch.cat([slow, torch.relu(self.norm(self.conv_fast_to_slow(fast)))], dim=1)


class VideoPathways(nn.Module):
    def __init__(self, pathways: list[nn.Module], fusion: nn.Module):
        super().__init__()
        self.multipathway_blocks = nn.ModuleList(pathways)
        self.multipathway_fusion = fusion


class VideoSlowFast(nn.Module):
    """PyTorchVideo's SlowFast."""

    def __init__(self, slow_kernels, fast_kernels, depths, width: int, alpha: int, lateral: int, classes: int, windows):
        super().__init__()
        self.windows, beta = windows, 8
        stems = [
            Unit(3, n, (*k, 7, 7), (1, 2, 2)) for n, k in ((width, slow_kernels[0]), (width // beta, fast_kernels[0]))
        ]
        blocks, inputs = [VideoPathways(stems, VideoFusion(width // beta, alpha, lateral))], width
        for i, depth in enumerate(depths):
            inner, stride = width * 2**i, 2 if i else 1
            stages = [
                VideoStage(inputs + 2 * inputs // beta, inner, depth, slow_kernels[i + 1], stride),
                VideoStage(inputs // beta, inner // beta, depth, fast_kernels[i + 1], stride),
            ]
            inputs = 4 * inner
            fusion = nn.Identity() if i == 3 else VideoFusion(inputs // beta, alpha, lateral)
            blocks.append(VideoPathways(stages, fusion))
        blocks += [nn.Identity(), VideoHead(inputs + inputs // beta, classes)]  # the former stands for the pools
        self.blocks = nn.ModuleList(blocks)

    def forward(self, slow, fast):
        for n, block in enumerate(self.blocks[:5]):
            slow, fast = (pathway(x) for pathway, x in zip(block.multipathway_blocks, (slow, fast), strict=True))
            if n == 0:
                slow, fast = stem_pool(slow), stem_pool(fast)
            if n < 4:
                slow = block.multipathway_fusion(slow, fast)
        pooled = [F.avg_pool3d(x, window, 1) for x, window in zip((slow, fast), self.windows, strict=True)]
        return self.blocks[6](torch.cat(pooled, dim=1))


def module(*args) -> Unit:
    """mmcv's ConvModule with a norm."""
    return Unit(*args, names=("conv", "bn"))


class Conv(nn.Module):
    """mmcv's ConvModule without a norm."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.conv = conv(*args, **kwargs)

    def forward(self, x):
        return self.conv(x)


class MmNonLocal(nn.Module):
    """mmcv's NonLocal3d with pools: dot_product or gaussian, of which the latter has neither theta nor phi."""

    def __init__(self, channels: int, mode: str):
        super().__init__()
        self.mode, inner = mode, channels // 2
        pool = nn.MaxPool3d((1, 2, 2))
        self.g = nn.Sequential(Conv(channels, inner, (1, 1, 1), bias=True), pool)
        self.conv_out = module(inner, channels, (1, 1, 1))
        if mode == "gaussian":
            self.theta, self.phi = nn.Identity(), pool
        else:
            self.theta = Conv(channels, inner, (1, 1, 1), bias=True)
            self.phi = nn.Sequential(Conv(channels, inner, (1, 1, 1), bias=True), pool)

    def forward(self, x):
        theta, phi, g = (part(x).flatten(2) for part in (self.theta, self.phi, self.g))
        scores = torch.einsum("bcq,bcn->bqn", theta, phi)
        weights = scores.softmax(dim=-1) if self.mode == "gaussian" else scores / scores.shape[-1]
        y = torch.einsum("bqn,bcn->bcq", weights, g).reshape(len(x), -1, *x.shape[2:])
        return x + self.conv_out(y)


class MmBlock(nn.Module):
    def __init__(self, inputs: int, width: int, kernel: int, stride: int, mode: str | None):
        super().__init__()
        strides = (1, stride, stride)
        self.conv1 = module(inputs, width, (kernel, 1, 1))
        self.conv2 = module(width, width, (1, 3, 3), strides)
        self.conv3 = module(width, 4 * width, (1, 1, 1))
        projects = inputs != 4 * width or stride > 1
        self.downsample = module(inputs, 4 * width, (1, 1, 1), strides) if projects else None
        self.non_local_block = None if mode is None else MmNonLocal(4 * width, mode)

    def forward(self, x):
        y = self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x)))))
        x = torch.relu(y + (x if self.downsample is None else self.downsample(x)))
        return x if self.non_local_block is None else self.non_local_block(x)


class MmResNet(nn.Module):
    """mmaction2's ResNet3d: all strides of I3D; `more` are channels that lateral connections add to each stage."""

    def __init__(
        self, kernels, depths, width: int, strides=(1, 1), pool=False, nonlocal_after=((),) * 4, mode="", more=(0,) * 4
    ):
        super().__init__()
        self.strides, self.pool = strides, pool
        self.conv1 = module(3, width, (*kernels[0], 7, 7), (strides[0], 2, 2))
        inputs = width
        for i, depth in enumerate(depths):
            inner, pattern = width * 2**i, kernels[i + 1]
            blocks = [
                MmBlock(
                    4 * inner if n else inputs + more[i], inner, pattern[n % len(pattern)], 1 if n or not i else 2,
                    mode if n in nonlocal_after[i] else None,
                )
                for n in range(depth)
            ]  # fmt: skip
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            inputs = 4 * inner

    def forward(self, x):
        x = self.layer1(stem_pool(self.conv1(x), self.strides[1]))
        x = F.max_pool3d(x, (2, 1, 1)) if self.pool else x
        return self.layer4(self.layer3(self.layer2(x)))


class MmClassifier(nn.Module):
    def __init__(self, backbone: nn.Module, features: int, classes: int):
        super().__init__()
        self.backbone, self.cls_head = backbone, nn.Module()
        self.cls_head.fc_cls = nn.Linear(features, classes)

    def forward(self, *clips):
        return self.cls_head.fc_cls(self.backbone(*clips).mean(dim=(2, 3, 4)))


class MmPathways(nn.Module):
    def __init__(self, slow_kernels, fast_kernels, depths, width: int, alpha: int, lateral: int):
        super().__init__()
        fast = [width // 8, *(width // 2 * 2**i for i in range(3))]  # before each stage
        self.slow_path = MmResNet(slow_kernels, depths, width, more=[2 * n for n in fast])
        self.fast_path = MmResNet(fast_kernels, depths, width // 8)
        for name, n in zip(("conv1", "layer1", "layer2", "layer3"), fast, strict=True):
            self.slow_path.add_module(f"{name}_lateral", Conv(n, 2 * n, (lateral, 1, 1), (alpha, 1, 1)))
        self.alpha = alpha

    def forward(self, video):
        pathways = (self.slow_path, self.fast_path)
        clips = F.interpolate(video, scale_factor=(1 / self.alpha, 1, 1), mode="nearest"), video
        slow, fast = (stem_pool(path.conv1(clip)) for path, clip in zip(pathways, clips, strict=True))
        for i, before in enumerate(("conv1", "layer1", "layer2", "layer3"), 1):
            lateral = getattr(self.slow_path, f"{before}_lateral")(fast)
            slow, fast = torch.cat([slow, lateral], dim=1), fast
            slow, fast = (getattr(path, f"layer{i}")(x) for path, x in zip(pathways, (slow, fast), strict=True))
        fast, slow = (x.mean(dim=(2, 3, 4), keepdim=True) for x in (fast, slow))
        return torch.cat([fast, slow], dim=1)
