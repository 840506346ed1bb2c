"""Training BLIP-2: a language model, the Q-Former on a frozen encoder, and soft prompts for a frozen language model."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, PyTree

from vidjax.convert.checkpoint import read_model
from vidjax.errors import UserError
from vidjax.evaluation.retrieval import ranked
from vidjax.layers.attention import within_text
from vidjax.models import create_model, override
from vidjax.models.aligned import VideoTokens
from vidjax.models.blip2 import Blip2, Blip2Language
from vidjax.models.chatglm import ChatGLM
from vidjax.models.language import LanguageModel
from vidjax.models.t5 import T5
from vidjax.objectives import contrastive, language_modeling, matching
from vidjax.runs.computing import computing_fields
from vidjax.runs.run import Run
from vidjax.runs.validation import Validator
from vidjax.runs.vision_language import SMOOTHING, video_tokens
from vidjax.runs.weights import load_pretrained
from vidjax.training.checkpoint import has_checkpoint, load_frozen
from vidjax.training.sharding import is_main_process, jit_on_mesh, put_batch
from vidjax.training.state import Aux, TrainState

if TYPE_CHECKING:  # PyAV and the tokenizers are imported when they are needed
    from vidjax.data.sources import Source
    from vidjax.data.text import Tokenizer

Language = LanguageModel | T5


def ending(tokenizer: "Tokenizer") -> "Tokenizer":
    """A tokeniser that ends texts: with its own end token, or, as OPT's has none, the end of the line (BLIP-2).

    Raises:
      UserError: it knows neither.
    """
    if tokenizer.end is not None:
        return tokenizer
    line = tokenizer.encode("\n")
    if len(line) <= len(tokenizer.encode("")):
        raise UserError(f"tokenizer {tokenizer.name} has neither an end token nor a line's end: give another one")
    return dataclasses.replace(tokenizer, encode=lambda text: tokenizer.encode(f"{text}\n"), end=line[-1])


def make_language(config: Any, tokenizer: "Tokenizer") -> Language:
    """A new language model for this tokeniser, with one more id, for what a second stage puts in front of texts.

    Raises:
      UserError: there is no such model, or captions are longer than its context.
    """
    name = config.language_model
    model = create_model(name, vocabulary=tokenizer.vocabulary + 1, **computing_fields(config, name))
    if not isinstance(model, Language):
        raise UserError(f"language_model {name} is none that BLIP-2 reads by: choose one such as opt_tiny or t5_tiny")
    _require_room(model, 0, config.context)
    return model


def make_first(config: Any, tokenizer: "Tokenizer") -> Blip2:
    """The first stage for these clips and this tokeniser.

    Raises:
      UserError: the model is no first stage that writes, or captions are longer than its context.
    """
    clips = {"num_frames": config.data.frames, "image_size": config.data.size}
    model = create_model(config.model, **clips, **computing_fields(config, config.model))
    if not isinstance(model, Blip2) or not model.qformer.writes:
        raise UserError(f"model {config.model} is no first stage of BLIP-2: choose one such as blip2_tiny, blip2_giant")
    if config.context > model.qformer.context:
        raise UserError(f"context is {config.context}, the Q-Former of {config.model} reads {model.qformer.context}")
    model = model.clone(qformer=model.qformer.clone(vocabulary=tokenizer.vocabulary + 1))  # [DEC]
    if config.video_model:
        video = video_tokens(config.video_model, **clips, **computing_fields(config, config.video_model))
        model = model.clone(video=video, card=video.tower.card)
    return model


def load_second(config: Any, tokenizer: "Tokenizer") -> tuple[Blip2Language, dict[str, Any]]:
    """The second stage from a first one, or from a second one, and a language model, and the variables that these give.

    The projection is new if `config.init_from` is a first stage. A run that is resumed is described in its work
    directory, and a dry run without sources is one of `config.model`; nothing is loaded for either.

    Raises:
      UserError: a source is missing or something else, or the two do not fit one another or the tokeniser.
    """
    workdir, fields = Path(config.workdir), computing_fields(config, config.model)
    if has_checkpoint(workdir) and isinstance(begun := read_model(workdir), Blip2Language):
        model, given = begun, {}
    elif config.dry_run and not (config.init_from or config.init_language_from):
        model, given = create_model(config.model), {}
        if not isinstance(model, Blip2Language):
            raise UserError(f"model {config.model} is no second stage of BLIP-2: give one such as blip2_opt_2_7b")
    else:
        model, given = _join(config, fields["dtype"])
    if isinstance(model.language, ChatGLM) or model.qformer.vocabulary is not None:
        raise UserError("VisualGLM and InstructBLIP are not trained here: give a BLIP-2")
    check_language(model, tokenizer, config.data.frames, config.context)
    return override("the second stage", model, fields), given


def _join(config: Any, dtype: DTypeLike) -> tuple[Blip2Language, dict[str, Any]]:
    """The second stage from the sources that a config names; see `load_second`."""
    if not config.init_from:
        raise UserError("init_from is missing: stage 2 begins with a run of stage 1, or a published BLIP-2")
    settings = {"verbose": is_main_process(), "dtype": dtype}
    model, given = load_pretrained(config.init_from, **settings)
    flat, spoken = flatten_dict(given, sep="/"), None
    if not isinstance(model, Blip2 | Blip2Language):
        raise UserError(f"init_from {config.init_from} is a {type(model).__name__}: give a run of stage 1, or a BLIP-2")
    if config.init_language_from:
        spoken, words = load_pretrained(config.init_language_from, **settings)
        if not isinstance(spoken, Language):
            raise UserError(
                f"init_language_from {config.init_language_from} is a {type(spoken).__name__}: give an OPT, a GPT-2 or "
                "a T5, or a run of --stage language"
            )
        own = {path for path in flat if path.startswith("params/language/")}
        flat = {path: leaf for path, leaf in flat.items() if path not in own}
        named = flatten_dict(words["params"], sep="/").items()
        flat |= {f"params/language/{path}": leaf for path, leaf in named}
    if isinstance(model, Blip2):
        if spoken is None:
            raise UserError("init_language_from is missing: give a language model, such as a run of --stage language")
        qformer = model.qformer.clone(vocabulary=None, writes=False)
        joint = isinstance(model.video, VideoTokens)  # which sees time, as the queries of an image tower do not
        model = Blip2Language(model.video, qformer, spoken, card=model.card, joint=joint, dtype=model.dtype)
    elif spoken is not None:
        if spoken.width != model.language.width:
            raise UserError(
                f"the projection of {config.init_from} has {model.language.width} channels, the language model "
                f"{config.init_language_from} {spoken.width}: give one of that width, or a run of stage 1 as init_from"
            )
        model = model.clone(language=spoken)
    return model, unflatten_dict(flat, sep="/")


def check_language(model: Blip2Language, tokenizer: "Tokenizer", frames: int, context: int) -> None:
    """Checks that the language model has the tokeniser's ids and room for the queries and a caption.

    Raises:
      UserError: it has not.
    """
    if tokenizer.vocabulary > model.place_token:
        raise UserError(
            f"tokenizer {tokenizer.name} has {tokenizer.vocabulary} ids, the language model {model.language.vocabulary}"
            ", of which the last is for what is seen: give the tokenizer that the language model was trained with"
        )
    _require_room(model.language, model.qformer.queries * (1 if model.joint else frames), context)


def _require_room(language: Language, queries: int, context: int) -> None:
    longest = getattr(language, "context", None)  # T5 has none
    if longest is not None and queries + context > longest:
        raise UserError(
            f"{queries} queries and captions of {context} tokens are longer than the language model's context of "
            f"{longest}: lower --context or --data.frames"
        )


def fill(variables: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """New variables with those that are given instead; what the model does not have is left out."""
    new, given = (flatten_dict(each, sep="/") for each in (variables, given))
    return unflatten_dict({path: given.get(path, leaf) for path, leaf in new.items()}, sep="/")


def with_frozen(run: Run, variables: dict[str, Any]) -> dict[str, Any]:
    """New variables with the frozen ones of a run that is resumed."""
    return fill(variables, {"params": load_frozen(run.workdir)})


def predicted_words(
    model: Language, tokenizer: "Tokenizer", params: PyTree, ids: Int[Array, "b m"], key: Key[Array, ""], train: bool
) -> tuple[Float[Array, "b _ v"], Int[Array, "b _"]]:
    """Logits of a caption's next words, and the ids that these are of; a T5 writes the rest of a text from its prefix.

    Args:
      key: where the texts of a T5 are cut.
    """
    if not isinstance(model, T5):
        return model.apply({"params": params}, ids, within_text(ids), train=train), ids
    start = len(tokenizer.encode("")) - 1
    read, written = language_modeling.cut_texts(key, ids, start, tokenizer.end)
    return model.apply({"params": params}, read, written, within_text(read), train), written


def language_loss(model: Language, tokenizer: "Tokenizer") -> Callable:
    """The loss of captions alone: of each word from those before it."""

    def loss_fn(params: PyTree, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        words, ids = predicted_words(model, tokenizer, params, batch["ids"], key, train=True)
        return language_modeling.caption_loss(words, ids, batch["valid"]), (aux.model_state, {})

    return loss_fn


def first_loss(model: Blip2) -> Callable:
    """The loss of the first stage: contrast, matching with hard negatives of the global batch, and captions, added."""

    def loss_fn(params: PyTree, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        keys, ids, valid = jax.random.split(key, 4), batch["ids"], batch["valid"]
        variables = {"params": params, **aux.model_state}
        apply = partial(model.apply, variables, train=True)
        seen = model.apply(variables, model.card.preprocess(batch["video"]), method="seen")
        queries, text, words = apply(seen, ids, method="align", rngs={"dropout": keys[0]})
        itc, logits = contrastive.query_info_nce(queries, text, params["temperature"], valid)
        other_video, has_video = matching.hard_negatives(keys[1], logits.T, valid)
        other_text, has_text = matching.hard_negatives(keys[2], logits, valid)
        videos = jnp.concatenate([seen, seen[other_video], seen])
        texts = jnp.concatenate([ids, ids, ids[other_text]])
        match = apply(videos, texts, method="match", rngs={"dropout": keys[3]})
        counted = jnp.concatenate([valid, valid & has_video, valid & has_text])
        itm = matching.matching_loss(match, jnp.arange(len(match)) < len(ids), counted)
        lm = language_modeling.caption_loss(words, ids, valid, SMOOTHING)
        metrics = {"itc_loss": itc, "itm_loss": itm, "lm_loss": lm, "temperature": params["temperature"]}
        return itc + itm + lm, (aux.model_state, metrics)

    return loss_fn


def second_loss(model: Blip2Language, tokenizer: "Tokenizer") -> Callable:
    """The loss of the second stage: of the words of captions after what is seen.

    All tokens of a caption count, a start token too, as in LAVIS. A T5 reads what is seen and a prefix of the caption,
    cut at random, and writes the rest.
    """
    start = len(tokenizer.encode("")) - 1

    def loss_fn(params: PyTree, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        drop_key, cut_key = jax.random.split(key)
        ids, valid, written = batch["ids"], batch["valid"], None
        variables, video = {"params": params, **aux.model_state}, model.card.preprocess(batch["video"])
        looked = model.apply(variables, video, train=True, method="look", rngs={"dropout": drop_key})
        if isinstance(model.language, T5):
            ids, written = language_modeling.cut_texts(cut_key, ids, start, tokenizer.end)
        placed = model.placed(ids, video.shape[1])
        words = model.apply(variables, placed, looked, within_text(placed), written, method="words")
        if written is not None:
            return language_modeling.caption_loss(words, written, valid), (aux.model_state, {})
        counted = (placed != model.place_token) & valid[:, None]
        return language_modeling.caption_loss(words, placed, counted), (aux.model_state, {})

    return loss_fn


def caption_example(model: Language, context: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """The shape and type of what `caption_batches` has of an example: four long captions, or what the model reads."""
    return {"ids": ((min(4 * context, getattr(model, "context", 4 * context)),), np.int32)}


def caption_batches(run: Run, tokenizer: "Tokenizer", context: int, first: int) -> Iterator[dict[str, np.ndarray]]:
    """This process's part of batches of captions without their videos, each drawn by the seed and its number.

    Up to three captions of a video, or, of one that has a single caption, this and another video's, follow one another
    and then again, cut at the length of an example. So the model learns positions after those of a caption, where it
    will find one behind the queries, and to write what it has read: frozen, it could not be told by its prompt what to
    write otherwise.
    """
    from vidjax.data.text import CaptionWriter

    source, size, seed = run.source, run.config.batch_size, run.config.seed
    part, length = size // jax.process_count(), run.batch["ids"].shape[1]
    write = CaptionWriter(tokenizer, context, texts=3)
    for number in itertools.count(first):
        random = np.random.default_rng([seed, number])
        rows, draws = random.integers(len(source), size=(2, size)), random.random((size, 1))
        local = slice(part * jax.process_index(), part * (jax.process_index() + 1))
        ids = np.zeros((part, length), np.int32)
        for place, (row, other, draw) in enumerate(zip(*rows[:, local].tolist(), draws[local], strict=True)):
            texts = source.captions(row)
            texts = [*texts, source.captions(other)[0]] if len(texts) == 1 else texts
            drawn = write(source.ids[row], texts, draw)["ids"][0]
            text = np.concatenate([np.trim_zeros(each, "b") for each in drawn] * 2)[:length]
            ids[place, : len(text)] = text
        yield {"ids": ids, "valid": np.ones(part, bool)}


def language_validator(run: Run, tokenizer: "Tokenizer", context: int, source: "Source") -> Validator:
    """`caption_loss` of the validation captions: the mean over their words, in nats."""
    from vidjax.data.text import tokenize

    texts = [text for index in range(len(source)) for text in source.captions(index)]
    size, model = run.config.batch_size, run.model
    ids = np.stack([tokenize(tokenizer, text, context)[0] for text in texts])

    @partial(jit_on_mesh, mesh=run.mesh)
    def judge(params: PyTree, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        words, ids = predicted_words(model, tokenizer, params, batch["ids"], jax.random.key(0), train=False)
        count = (within_text(ids)[:, 1:] & batch["valid"][:, None]).sum()
        return language_modeling.caption_loss(words, ids, batch["valid"]) * count, count

    def validate(state: TrainState, step: int) -> dict[str, float]:
        sums = np.zeros(2)
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            rest = size - len(part)  # rows that do not count
            batch = {"ids": np.pad(part, ((0, rest), (0, 0)), mode="edge"), "valid": np.arange(size) < len(part)}
            sums += jax.device_get(judge(state.evaluated_params, put_batch(batch, run.mesh)))
        return {"caption_loss": float(sums[0] / max(sums[1], 1))}

    return validate


def first_validator(run: Run, tokenizer: "Tokenizer", context: int) -> Validator:
    """Retrieval of the validation videos by their first captions, matching, and the loss of captions.

    `score` is the mean R@1 of both directions, `itm_accuracy` the fraction of right answers for each video with its own
    caption and with one of another video in its batch: chance is 0.5.
    """
    model: Blip2 = run.model

    @partial(jit_on_mesh, mesh=run.mesh)
    def judge(state: TrainState, batch: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        params = run.merge(state.evaluated_params, state.frozen)
        variables, ids, valid = {"params": params, **state.model_state}, batch["ids"], batch["valid"]
        seen = model.apply(variables, model.card.preprocess(batch["video"]), method="seen")
        queries, text, words = model.apply(variables, seen, ids, method="align")
        other = jnp.roll(ids, len(ids) // 2, axis=0)
        match = [jnp.diff(model.apply(variables, seen, each, method="match"))[:, 0] > 0 for each in (ids, other)]
        told = valid & jnp.roll(valid, len(ids) // 2) & (ids != other).any(axis=1)
        tokens = (within_text(ids)[:, 1:] & valid[:, None]).sum()
        sums = {
            "right": jnp.where(told, match[0], 0).sum() + jnp.where(told, ~match[1], 0).sum(),
            "pairs": 2 * told.sum(),
            "loss": language_modeling.caption_loss(words, ids, valid) * tokens,
            "tokens": tokens,
        }
        return {"queries": queries, "text": text, "valid": valid}, sums

    def validate(state: TrainState, step: int) -> dict[str, float]:
        parts = []
        for batch in run.validation_batches(tokenizer=tokenizer, context=context):
            used = {name: batch[name] for name in ("video", "ids", "valid")}
            parts.append(jax.device_get(judge(state, put_batch(used, run.mesh))))
        rows = {name: np.concatenate([row[name][row["valid"]] for row, _ in parts]) for name in ("queries", "text")}
        sums = {name: float(sum(each[name] for _, each in parts)) for name in parts[0][1]}
        cosines = np.stack([(query @ rows["text"].T).max(axis=0) for query in rows["queries"]])
        result = ranked(cosines, np.arange(len(cosines)))
        recalls = {"text_to_video_r1": result.text_to_video.r1, "video_to_text_r1": result.video_to_text.r1}
        told = {"itm_accuracy": sums["right"] / max(sums["pairs"], 1)}
        told |= {"caption_loss": sums["loss"] / max(sums["tokens"], 1)}
        return {**recalls, "score": sum(recalls.values()) / 2, **told}

    return validate


def require_encoder(source: str | None, model: nn.Module) -> None:
    """Raises `UserError` without weights for the encoder, which is frozen."""
    if source is None:
        raise UserError(
            f"the encoder of stage 1, a {type(model).__name__}, is frozen: give its weights as --init_video_from, or "
            "those of a whole first stage as --init_from"
        )
