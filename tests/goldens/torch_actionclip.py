"""ActionCLIP's temporal heads in plain PyTorch, with parameters as the release names them; conv1d is the paper's.

Each takes frames `b t e` and gives `b e`. Two blocks; two attention heads in `transf`, eight in `transf_cls`.
"""

import torch
from torch import nn


class Block(nn.Module):
    """Pre-norm block with QuickGELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width, 1e-12), nn.LayerNorm(width, 1e-12)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))


class Head(nn.Module):
    """What every head holds."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.frame_position_embeddings = nn.Embedding(context, width)


class Conv1d(Head):
    """A depthwise convolution over time."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__(width, context)
        self.shift = nn.Conv1d(width, width, 3, padding=1, groups=width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.shift(x.transpose(1, 2)).transpose(1, 2)).mean(1)


class Lstm(Head):
    """An LSTM."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__(width, context)
        self.lstm_visual = nn.LSTM(width, width, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.lstm_visual(x)[0]).mean(1)


class Transf(Head):
    """A transformer over frames and their positions."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__(width, context)
        self.transformer = nn.ModuleDict({"resblocks": nn.Sequential(Block(width), Block(width))})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        positions = self.frame_position_embeddings.weight[: x.shape[1]]
        return (x + self.transformer["resblocks"](x + positions)).mean(1)


class TransfCls(Head):
    """PyTorch's encoder over a class token and frames."""

    def __init__(self, width: int, context: int, frames: int) -> None:
        super().__init__(width, context)
        layer = nn.TransformerEncoderLayer(width, 8, dropout=0.0, batch_first=True)
        stack = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.transformer = nn.ModuleDict({"transformer_enc": stack})
        self.transformer.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.transformer.pos_embed = nn.Parameter(torch.zeros(1, frames + 1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.transformer
        x = torch.cat([inner.cls_token.expand(len(x), -1, -1), x], 1) + inner.pos_embed
        return inner["transformer_enc"](x)[:, 0]


def heads(width: int, context: int, frames: int) -> nn.ModuleDict:
    """The four heads that have parameters."""
    made = {kind.__name__.lower(): kind(width, context) for kind in (Conv1d, Lstm, Transf)}
    return nn.ModuleDict(made | {"transf_cls": TransfCls(width, context, frames)})
