"""A pre-training step of BLIP in PyTorch, from the layers of transformers.

transformers has neither a model with BLIP's encoder and decoder, which share all but self-attention and its norm, nor
its training: contrast with a momentum copy and queues, matching with hard negatives, and captions.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ALPHA, FLOOR, SMOOTHING = 0.4, 1e-4, 0.1
"""Weight of the copy's predictions in the targets, addition to the negatives' probabilities, label smoothing."""


class Towers(nn.Module):
    """What has a momentum copy: the towers of images and of texts with their projections."""

    def __init__(self, vision: nn.Module, text: nn.Module, features: int) -> None:
        super().__init__()
        self.vision_model, self.text_encoder = vision, text
        self.vision_proj = nn.Linear(vision.config.hidden_size, features)
        self.text_proj = nn.Linear(text.config.hidden_size, features)

    def forward(self, video: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit embeddings of videos `b t c h w` and of texts, and the tokens of all frames of a video."""
        tokens = self.vision_model(video.flatten(0, 1)).last_hidden_state
        tokens = tokens.unflatten(0, video.shape[:2])
        text = self.text_encoder(ids, attention_mask=(ids != 0).long()).last_hidden_state
        embedded = self.vision_proj(tokens[:, :, 0].mean(dim=1)), self.text_proj(text[:, 0])
        return *(functional.normalize(each.float(), dim=-1) for each in embedded), tokens.flatten(1, 2)


class Blip(nn.Module):
    """BLIP and its queues; the momentum copy, which is not trained, is made by `follow`."""

    def __init__(self, towers: Towers, decoder: nn.Module, temperature: float, queue_size: int) -> None:
        super().__init__()
        self.towers, self.text_decoder = towers, decoder
        encoder, bert, width = towers.text_encoder, decoder.bert, towers.text_encoder.config.hidden_size
        bert.embeddings = encoder.embeddings
        for own, shared in zip(bert.encoder.layer, encoder.encoder.layer, strict=True):
            own.crossattention, own.intermediate, own.output = shared.crossattention, shared.intermediate, shared.output
        words = decoder.cls.predictions
        words.decoder.weight, words.decoder.bias = encoder.embeddings.word_embeddings.weight, words.bias
        self.itm_head, self.temp = nn.Linear(width, 2), nn.Parameter(torch.tensor(temperature))
        for name in ("video_keys", "text_keys"):
            keys = torch.randn(queue_size, towers.text_proj.out_features)
            self.register_buffer(name, functional.normalize(keys, dim=-1))
        self.position, self._copies = 0, []  # in a list, so that their parameters do not count as trained ones

    def started(self, ids: Tensor, writing: bool) -> Tensor:
        """The ids with [DEC] or [ENC] as the first token."""
        first = self.text_decoder.config.vocab_size - (2 if writing else 1)
        return torch.cat([torch.full_like(ids[:, :1], first), ids[:, 1:]], dim=1)

    def contrast(self, query: Tensor, momentum_query: Tensor, keys: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of one direction, and the logits of the batch's own keys."""
        keys = torch.cat([keys, queue])
        logits, soft = query @ keys.T / self.temp, (momentum_query @ keys.T / self.temp).detach().softmax(dim=-1)
        target = ALPHA * soft + (1 - ALPHA) * torch.eye(*logits.shape, device=logits.device)
        return -(target * logits.log_softmax(dim=-1)).sum(dim=1).mean(), logits[:, : len(query)].detach()

    def negatives(self, logits: Tensor) -> Tensor:
        """Another column for each row, the likelier the more similar it is."""
        return (logits.softmax(dim=-1) + FLOOR).fill_diagonal_(0).multinomial(1)[:, 0]

    def forward(self, video: Tensor, ids: Tensor) -> Tensor:
        """The sum of the three losses; the queues take the copy's embeddings."""
        with torch.no_grad():
            self.temp.clamp_(0.001, 0.5)
            video_keys, text_keys, _ = self._copies[0](video, ids)
        embedded, text, seen = self.towers(video, ids)
        to_text, text_logits = self.contrast(embedded, video_keys, text_keys, self.text_keys.clone())
        to_video, video_logits = self.contrast(text, text_keys, video_keys, self.video_keys.clone())
        with torch.no_grad():
            for queue, rows in ((self.video_keys, video_keys), (self.text_keys, text_keys)):
                queue[self.position : self.position + len(ids)] = rows
            self.position = (self.position + len(ids)) % len(self.video_keys)
        texts = torch.cat([ids, ids, ids[self.negatives(text_logits)]])
        videos = torch.cat([seen, seen[self.negatives(video_logits)], seen])
        read = self.towers.text_encoder(
            self.started(texts, writing=False), attention_mask=(texts != 0).long(), encoder_hidden_states=videos
        )
        match = (torch.arange(len(texts), device=ids.device) < len(ids)).long()
        matching = functional.cross_entropy(self.itm_head(read.last_hidden_state[:, 0]).float(), match)
        words = self.text_decoder(
            self.started(ids, writing=True), attention_mask=(ids != 0).long(), encoder_hidden_states=seen,
            use_cache=False,
        ).logits  # fmt: skip
        captions = functional.cross_entropy(
            words[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), ignore_index=0, label_smoothing=SMOOTHING
        )
        return (to_text + to_video) / 2 + matching + captions

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Moves the copy, which is made at the first call, towards the trained towers."""
        if not self._copies:
            self._copies.append(copy.deepcopy(self.towers).requires_grad_(False))
        averages, values = (list(each.parameters()) for each in (self._copies[0], self.towers))
        torch._foreach_mul_(averages, decay)
        torch._foreach_add_(averages, values, alpha=1 - decay)


def make(library: Any, model: Any) -> Blip:
    """The peer of vidjax's `blip.Blip`, of its sizes.

    Args:
      library: transformers.
    """
    video, text = model.video, model.text
    vision_config = library.BlipVisionConfig(
        hidden_size=video.width,
        intermediate_size=int(video.width * video.mlp_ratio),
        num_hidden_layers=video.depth,
        num_attention_heads=video.heads,
        image_size=video.image_size,
        patch_size=video.patch_size[-1],
        layer_norm_eps=video.epsilon,
        initializer_range=0.02,
    )
    text_config = library.BlipTextConfig(
        vocab_size=text.vocabulary,
        hidden_size=text.width,
        encoder_hidden_size=video.width,
        intermediate_size=int(text.width * text.mlp_ratio),
        num_hidden_layers=text.depth,
        num_attention_heads=text.heads,
        max_position_embeddings=text.context,
        hidden_dropout_prob=text.dropout,
        bos_token_id=None,
        eos_token_id=None,
        sep_token_id=None,
    )
    from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel, BlipTextModel

    towers = Towers(
        library.BlipVisionModel(vision_config), BlipTextModel(text_config, add_pooling_layer=False), model.features
    )
    return Blip(towers, BlipTextLMHeadModel(text_config), 0.07, model.queue_size)
