"""A training step of V-JEPA 2 in PyTorch, from the layers of transformers.

transformers has no training: its model encodes all tokens before it selects those of the context. Here, as in the
original, the encoder sees only the context, and the targets are a moving average's tokens of the whole clip, encoded
once for both masks.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def pick(tokens: Tensor, indices: Tensor) -> Tensor:
    """The tokens `b m d` at the indices `b m`."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))


class LatentPrediction(nn.Module):
    """The context's encoder and the predictor; the target's encoder, which is not trained, is made by `follow`.

    Args:
      model: a `VJEPA2Model`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.encoder, self.predictor, self.config = model.encoder, model.predictor, model.config
        self._targets: list[nn.Module] = []  # in a list, so that their parameters do not count as trained ones

    def encode(self, encoder: nn.Module, video: Tensor, kept: Tensor | None = None) -> Tensor:
        """Tokens of a video `b t c h w`, of the patches at the indices `kept` or of all."""
        x = encoder.embeddings(video)
        x = x if kept is None else pick(x, kept)
        for layer in encoder.layer:
            x = layer(x, kept)[0]
        return encoder.layernorm(x)

    def predict(self, context: Tensor, kept: Tensor, predicted: Tensor) -> Tensor:
        """The tokens at the indices `predicted`, from those at `kept`; all pass in the order of their indices."""
        parts = self.predictor.embeddings
        context, masked = parts.predictor_embeddings(context), parts.mask_tokens[0]
        x = torch.cat([context, masked.to(context.dtype).expand(*predicted.shape, -1)], dim=1)
        indices = torch.cat([kept, predicted], dim=1)
        order = indices.argsort(dim=1)
        x, indices = pick(x, order), indices.gather(1, order)
        for layer in self.predictor.layer:
            x = layer(x, indices)[0]
        x = pick(self.predictor.layernorm(x), order.argsort(dim=1))
        return self.predictor.proj(x[:, kept.shape[1] :])

    def forward(self, video: Tensor, masks: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The mean L1 loss over pairs of kept and predicted indices."""
        with torch.no_grad():
            targets = self.encode(self._targets[0], video)
            targets = nn.functional.layer_norm(targets.float(), targets.shape[-1:])
        losses = [
            (self.predict(self.encode(self.encoder, video, kept), kept, predicted) - pick(targets, predicted))
            .abs()
            .mean()
            for kept, predicted in masks
        ]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Moves the target's encoder, a copy at the first call, towards the trained one."""
        if not self._targets:
            self._targets.append(copy.deepcopy(self.encoder).requires_grad_(False))
        averages, values = (list(each.parameters()) for each in (self._targets[0], self.encoder))
        torch._foreach_mul_(averages, decay)
        torch._foreach_add_(averages, values, alpha=1 - decay)


def make(library: Any, model: Any) -> LatentPrediction:
    """The peer of vidjax's `vjepa.Pretraining`, of its sizes.

    Args:
      library: transformers.
    """
    tubelet, patch, _ = model.patch_size
    config = library.VJEPA2Config(
        patch_size=patch,
        tubelet_size=tubelet,
        crop_size=model.image_size,
        frames_per_clip=model.num_frames,
        hidden_size=model.width,
        num_hidden_layers=model.depth,
        num_attention_heads=model.heads,
        mlp_ratio=model.mlp_ratio,
        pred_hidden_size=model.predictor_width,
        pred_num_hidden_layers=model.predictor_depth,
        pred_num_attention_heads=model.predictor_heads,
        pred_num_mask_tokens=model.mask_tokens,
    )
    return LatentPrediction(library.VJEPA2Model._from_config(config, attn_implementation="sdpa"))
