"""Building and training ALBEF and BLIP: contrast, matching, masked words and captions, by name."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from vidjax.errors import UserError
from vidjax.layers.normalization import valid_clips
from vidjax.models import create_model, example_inputs
from vidjax.models.albef import Albef
from vidjax.models.aligned import VideoTokens
from vidjax.models.blip import Blip
from vidjax.models.video_text import VideoText
from vidjax.objectives import contrastive, language_modeling, matching
from vidjax.training.state import Aux

Objective = Literal["itc", "itm", "mlm", "lm"]
FLOOR = 1e-4
"""BLIP's addition to the probability of each negative."""
SMOOTHING = 0.1
"""BLIP's label smoothing of words."""


def check_objectives(objectives: Sequence[Objective]) -> None:
    """Checks that the objectives can be trained together.

    Raises:
      UserError: none, one twice, both kinds of words, or matching without contrast.
    """
    if not objectives or len(set(objectives)) < len(objectives):
        raise UserError(f"objectives are {' '.join(objectives) or 'none'}: give each of those that you want once")
    if {"mlm", "lm"} <= set(objectives):
        raise UserError("objectives are mlm and lm: ALBEF predicts masked words, BLIP writes captions, choose one")
    if "itm" in objectives and "itc" not in objectives:
        raise UserError("objective itm draws its negatives by the similarities that itc trains: give both")


def check_model(name: str, model: Any, objectives: Sequence[Objective]) -> None:
    """Checks that a model has the heads of the objectives.

    Raises:
      UserError: it has not.
    """
    if not isinstance(model, Albef | Blip):
        raise UserError(f"model {name} is neither an ALBEF nor a BLIP: choose one such as albef_tiny or blip_base")
    if "mlm" in objectives and not isinstance(model, Albef):
        raise UserError(f"objective mlm: {name} has no head for masked words, give --model albef_tiny or albef_base")
    if "lm" in objectives and not getattr(model, "writes", False):
        raise UserError(f"objective lm: {name} writes no captions, give a BLIP as --model, such as blip_tiny")


def video_tokens(name: str, **fields: Any) -> VideoTokens:
    """A video model by name in place of an image tower.

    Args:
      fields: of the video model.

    Raises:
      UserError: it is no encoder of videos.
    """
    tower = create_model(name, **fields)
    if isinstance(tower, VideoText) or name.endswith("_pretrain") or "num_classes" not in tower.__dataclass_fields__:
        raise UserError(f"video_model {name} is more than an encoder of videos: choose one such as videomae_base")
    tower = tower.clone(num_classes=None)
    create = partial(tower.init_with_output, method="encode")
    tokens, _ = jax.eval_shape(create, jax.random.key(0), *example_inputs(tower))
    return VideoTokens(tower, tokens.shape[-1], fields.get("dtype"))


def make_loss(
    model: Albef | Blip,
    objectives: Sequence[Objective],
    alpha_steps: float,
    alpha: float = 0.4,
    mask_token: int | None = None,
    mask_ratio: float = 0.15,
) -> Callable:
    """The loss function: the sum of the objectives, `(params, aux, batch, key) -> (loss, (model_state, metrics))`.

    A momentum copy of the parameters, `aux.ema`, gives the keys, of which the queues in `aux.model_state` keep the last
    ones, and soft targets. The running statistics of a video tower with batch norm are those of the copy, which is what
    is evaluated. Hard negatives are drawn from the global batch.

    Args:
      objectives: `itc`, contrast; `itm`, whether a video and a text match; `mlm`, masked words; `lm`, captions.
      alpha_steps: number of steps over which the weight of the soft targets grows from 0.
      alpha: this weight at the end.
      mask_token: id of the mask token; by default the last one.
      mask_ratio: fraction of words that are masked.
    """
    vocabulary = model.text.vocabulary
    mask_token = vocabulary - 1 if mask_token is None else mask_token
    floor = FLOOR if isinstance(model, Blip) else 0.0

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        keys, ids, valid = jax.random.split(key, 8), batch["ids"], batch["valid"]
        clips, copy = model.card.preprocess(batch["video"]), jax.lax.stop_gradient(aux.ema)
        statistics = dict(aux.model_state)
        queue = statistics.pop("queue")
        weight = alpha * jnp.minimum(1.0, aux.step / jnp.maximum(alpha_steps, 1))

        def apply(params: Any, method: str, key: jax.Array, *inputs: jax.Array) -> tuple[Any, dict]:
            settings = {"rngs": {"dropout": key, "drop_path": key}, "mutable": list(statistics)}
            return model.apply({"params": params, **statistics}, *inputs, True, method=method, **settings)

        # XLA leaves out what the objectives do not use.
        with valid_clips(valid):
            (video, seen, text, *read), _ = apply(params, "align", keys[0], clips, ids)
            (video_keys, seen_by_copy, text_keys, *_), changed = apply(copy, "align", keys[1], clips, ids)
        temperature = contrastive.clamp_temperature(params["temperature"])
        losses = {}
        if "itc" in objectives:
            contrast = partial(contrastive.momentum_info_nce, temperature=temperature, alpha=weight, valid=valid)
            to_text, text_logits = contrast(video, video_keys, text_keys, queue["text_keys"])
            to_video, video_logits = contrast(text, text_keys, video_keys, queue["video_keys"])
            losses["itc"] = (to_text + to_video) / 2
            enqueue = partial(contrastive.enqueue, position=queue["position"], valid=valid)
            queue = {
                "video_keys": enqueue(queue["video_keys"], rows=video_keys),
                "text_keys": enqueue(queue["text_keys"], rows=text_keys),
                "position": (queue["position"] + len(ids)) % model.queue_size,
            }
        if "itm" in objectives:
            other_video, has_video = matching.hard_negatives(keys[2], video_logits, valid, floor)
            other_text, has_text = matching.hard_negatives(keys[3], text_logits, valid, floor)
            texts = (jnp.concatenate([x, x, x[other_text]]) for x in (*read, ids))
            match, _ = apply(params, "match", keys[4], *texts, jnp.concatenate([seen, seen[other_video], seen]))
            counted = jnp.concatenate([valid, valid & has_video, valid & has_text])
            losses["itm"] = matching.matching_loss(match, jnp.arange(len(match)) < len(ids), counted)
        if "mlm" in objectives:
            masked, chosen = language_modeling.mask_words(keys[5], ids, mask_token, vocabulary, mask_ratio)
            words, _ = apply(params, "words", keys[6], masked, seen)
            soft, _ = apply(copy, "words", keys[7], masked, seen_by_copy)
            losses["mlm"] = language_modeling.masked_word_loss(words, soft, ids, chosen & valid[:, None], weight)
        if "lm" in objectives:
            words, _ = apply(params, "words", keys[6], ids, seen)
            losses["lm"] = language_modeling.caption_loss(words, ids, valid, SMOOTHING)
        metrics = {f"{name}_loss": loss for name, loss in losses.items()}
        metrics |= {"temperature": temperature, "alpha": weight}
        return sum(losses.values()), ({**changed, "queue": queue}, metrics)

    return loss_fn
