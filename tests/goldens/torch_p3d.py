"""P3D in plain PyTorch, written from the paper, with the state dict's names of qijiezhao/pseudo-3d-pytorch."""

import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """One block; `turn` is A, B, C, or "" for a block of the last group, which is 2-D."""

    def __init__(self, inputs: int, width: int, turn: str, stride: int) -> None:
        super().__init__()
        self.turn = turn
        conv, norm = (nn.Conv3d, nn.BatchNorm3d) if turn else (nn.Conv2d, nn.BatchNorm2d)
        strides = (1, stride, stride) if turn else stride
        self.conv1, self.bn1 = conv(inputs, width, 1, strides, bias=False), norm(width)
        if turn:
            self.conv2, self.bn2 = conv(width, width, (1, 3, 3), padding=(0, 1, 1), bias=False), norm(width)
            self.conv3, self.bn3 = conv(width, width, (3, 1, 1), padding=(1, 0, 0), bias=False), norm(width)
        else:
            self.conv_normal, self.bn_normal = conv(width, width, 3, padding=1, bias=False), norm(width)
        self.conv4, self.bn4 = conv(width, 4 * width, 1, bias=False), norm(4 * width)
        self.downsample = None
        if stride > 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(conv(inputs, 4 * width, 1, strides, bias=False), norm(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        if self.turn == "A":
            y = self.time(self.space(y))
        elif self.turn == "B":
            y = self.space(y) + self.time(y)
        elif self.turn == "C":
            y = self.space(y)
            y = y + self.time(y)
        else:
            y = F.relu(self.bn_normal(self.conv_normal(y)))
        return F.relu(self.bn4(self.conv4(y)) + (x if self.downsample is None else self.downsample(x)))

    def space(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(x)))

    def time(self, x: Tensor) -> Tensor:
        return F.relu(self.bn3(self.conv3(x)))


class P3D(nn.Module):
    """The classifier of clips of 16 frames `b c t h w`."""

    def __init__(self, depths: tuple, width: int = 64, num_classes: int = 400) -> None:
        super().__init__()
        self.conv1_custom = nn.Conv3d(3, width, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        inputs, count = width, 0
        for group, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                turn = "ABC"[count % 3] if group < 3 else ""
                blocks.append(Bottleneck(inputs, width * 2**group, turn, 2 if group and not i else 1))
                inputs, count = 4 * width * 2**group, count + 1
            setattr(self, f"layer{group + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, video: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1_custom(video)))
        x = F.max_pool3d(x, (2, 3, 3), 2, (0, 1, 1))
        for group in (self.layer1, self.layer2, self.layer3):
            x = F.max_pool3d(group(x), (2, 1, 1))
        return self.fc(self.layer4(x.squeeze(2)).mean((2, 3)))
