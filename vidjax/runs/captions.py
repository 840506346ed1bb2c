"""Captions of clips, and answers about them, from models that write: as a function, and in training."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from vidjax.convert import hub
from vidjax.errors import UserError
from vidjax.evaluation.captions import caption_scores, plain_words
from vidjax.evaluation.generation import beam_search
from vidjax.models.blip import Answerer, Blip, Captioner
from vidjax.models.blip2 import Blip2Language
from vidjax.models.chatglm import ChatGLM
from vidjax.models.t5 import T5
from vidjax.models.video_text import VideoText
from vidjax.runs.generation import begin
from vidjax.runs.run import Run
from vidjax.runs.validation import Validator
from vidjax.runs.video_text import load_tokenizer, tokenize_all
from vidjax.training.sharding import is_main_process, jit_on_mesh, put_batch
from vidjax.training.state import TrainState

LONGEST = 64
"""Words that a model without a context writes by default."""

if TYPE_CHECKING:  # PyAV and the tokenizers are imported when they are needed
    from vidjax.data.text import Tokenizer
    from vidjax.runs.preferences import Attribute

Describer = VideoText | Blip | Captioner | Answerer | Blip2Language
Writer = Callable[[dict, UInt8[Array, "b t h w c"]], Int[Array, "b m"]]
QUESTION = "Question: {} Answer:"
"""How BLIP-2 is asked (arXiv:2301.12597, section 4.2)."""
GLM_QUESTION = "问：{}\n答："
"""How VisualGLM is asked (THUDM/VisualGLM-6B), after the image."""
IMAGE = ("<img>", "</img>")
"""What VisualGLM reads before and after the image."""
INSTRUCTION_FOLDER = "qformer_tokenizer"
"""Where Hugging Face's InstructBLIP has the tokeniser of its Q-Former."""


def require_decoder(source: str | Path, model: nn.Module) -> Describer:
    """Returns the model if it writes about videos.

    Raises:
      UserError: it does not.
    """
    decoder, writes = getattr(model, "decoder", None) is not None, getattr(model, "writes", False)
    if not (decoder or writes or isinstance(model, Captioner | Blip2Language)):
        raise UserError(
            f"{source} is a {type(model).__name__} without a decoder of captions: give a run of "
            "video_language_pretrain.py, one of vision_language_pretrain.py with the objective lm or of "
            "blip2_pretrain.py with --stage 2, or a BLIP or BLIP-2"
        )
    return model


def follows_instructions(model: nn.Module) -> bool:
    """Whether the model is an InstructBLIP, whose Q-Former reads the prompt too."""
    return isinstance(model, Blip2Language) and model.qformer.vocabulary is not None


def instruction_tokenizer(source: str | Path, model: nn.Module, given: str | None = None) -> "Tokenizer | None":
    """The tokeniser of an InstructBLIP's Q-Former; None for other models.

    Args:
      source: of the model, a Hugging Face directory that contains it.
      given: a tokeniser to use instead.

    Raises:
      UserError: one is given for another model, or the source contains none.
    """
    if not follows_instructions(model):
        if given is not None:
            raise UserError(f"instruction_tokenizer: {source} is no InstructBLIP: omit it")
        return None
    found = hub.fetch(source) / INSTRUCTION_FOLDER
    if given is None and not found.is_dir():
        raise UserError(f"{source} has no {INSTRUCTION_FOLDER}/: give --instruction_tokenizer, a tokenizer.json")
    return load_tokenizer(given or str(found))


def caption_writer(
    model: Describer,
    tokenizer: "Tokenizer",
    beams: int = 1,
    prompt: str = "",
    length: int | None = None,
    question: str | None = None,
    instructions: "Tokenizer | None" = None,
) -> Writer:
    """`(variables, pixels) -> ids` of captions, after the prompt, or of answers, a pure function for use under `jit`.

    Args:
      beams: see `evaluation.generation.beam_search`; 1 takes the likeliest word each time.
      prompt: what every text begins with; a language model (BLIP-2) reads it after what it sees.
      length: maximum number of words, with the end; by default as many as the model's context allows.
      question: for a BLIP of questions, or a BLIP-2, whose prompt it becomes.
      instructions: the tokeniser of an InstructBLIP's Q-Former, which reads the prompt or the question too.

    Raises:
      UserError: the tokeniser has not the ids that the model needs, or the prompt leaves no room.
      UserError: the model answers no questions, or needs one.
    """
    speaks = isinstance(model, Blip2Language)
    glm = model.language if speaks and isinstance(model.language, ChatGLM) else None
    if isinstance(model, Answerer) != (question is not None) and not speaks:
        wants = "answers no question: give a BLIP for questions or a BLIP-2" if question else "needs one: give it"
        raise UserError(f"question: the {type(model).__name__} {wants}")
    asked, instructed = tokenizer.encode(question or ""), follows_instructions(model)
    if question is not None and speaks:
        prompt = question if instructed else (GLM_QUESTION if glm else QUESTION).format(question)
    instruction = _instruction(model, instructions, prompt) if instructed else None
    ids, end, after = tokenizer.encode(prompt), end_token(tokenizer), 0
    if glm:
        ids, after = _around_image(glm, tokenizer, prompt)
    if end is None or not ids or (ids[0] == end and not speaks):
        raise UserError(f"tokenizer {tokenizer.name} adds no start and end token, between which a caption is written")
    if ids[-1] == tokenizer.end and not (speaks and isinstance(model.language, T5)):  # whose encoder reads it
        ids = ids[:-1]
    last = model.language.vocabulary - 1 if speaks else model.text.vocabulary
    if tokenizer.vocabulary > last:
        raise UserError(f"tokenizer {tokenizer.name} has {tokenizer.vocabulary} ids, the model {last}: give its own")

    def write(variables: dict, video: UInt8[Array, "b t h w c"]) -> Int[Array, "b m"]:
        clips = model.card.preprocess(video)
        prompts, questions = (jnp.tile(jnp.array(each, jnp.int32), (len(video), 1)) for each in (ids, asked))
        if speaks:
            read = None if instruction is None else jnp.tile(jnp.array(instruction, jnp.int32), (len(video), 1))
            looked = model.apply(variables, clips, read, method="look")
            placed = model.placed(prompts, video.shape[1], after)
            count = _room(getattr(model.language, "context", None), placed.shape[1], length)
            read = (placed, looked, jnp.ones(placed.shape, bool), count)
        elif isinstance(model, Answerer):
            count = _room(model.decoder.context, len(ids), length)
            read = (model.apply(variables, clips, questions, method="read"), prompts, count)
        else:
            count = _room(model.text.context, len(ids), length)
            read = (model.apply(variables, clips, method="seen"), prompts, count)
        begun = begin(model, variables, *read, beams=beams)
        return beam_search(*begun, length=count, end=end, beams=beams)[0]

    return write


def _around_image(language: ChatGLM, tokenizer: "Tokenizer", prompt: str) -> tuple[list[int], int]:
    """The ids of what a VisualGLM reads, [gMASK] and the start token included, and how many are before the image."""
    if tokenizer.end != language.end_token:
        raise UserError(
            f"tokenizer {tokenizer.name} ends texts with the id {tokenizer.end}, the model with {language.end_token}: "
            "give its own"
        )
    added = len(tokenizer.encode("")) - 1  # tokens before a text
    before, after = (tokenizer.encode(text)[added:-1] for text in (IMAGE[0], IMAGE[1] + prompt))
    return [*before, *after, language.mask_token, language.start_token], len(before)


def _instruction(model: Blip2Language, tokenizer: "Tokenizer", prompt: str) -> list[int]:
    """The ids of what an InstructBLIP is told."""
    if not prompt:
        raise UserError("an InstructBLIP follows an instruction: give a question or a prompt")
    ids, qformer = tokenizer.encode(prompt), model.qformer
    if tokenizer.vocabulary > qformer.vocabulary:
        raise UserError(
            f"the tokenizer of instructions {tokenizer.name} has {tokenizer.vocabulary} ids, the Q-Former "
            f"{qformer.vocabulary}: give its own"
        )
    if len(ids) > qformer.context:
        raise UserError(f"the instruction has {len(ids)} tokens, the Q-Former reads {qformer.context}: shorten it")
    return ids


def _room(context: int | None, begun: int, length: int | None) -> int:
    """Number of words to write after `begun` tokens; a T5 has no context."""
    room = (LONGEST if length is None else length) if context is None else context - begun
    if room < 1:
        raise UserError(f"the prompt and what is seen have {begun} tokens of {context}: give a shorter prompt")
    return room if length is None else min(room, length)


def end_token(tokenizer: "Tokenizer") -> int | None:
    """The id that ends a text: the tokeniser's, or, as OPT's tokeniser adds none, the end of the line (BLIP-2)."""
    if tokenizer.end is not None:
        return tokenizer.end
    return (tokenizer.encode("\n") or [None])[-1]


def read_captions(tokenizer: "Tokenizer", ids: Int[np.ndarray, "b m"]) -> list[str]:
    """The texts of ids with, usually, an end token."""
    ends = [np.flatnonzero(row == end_token(tokenizer)) for row in ids]
    return [
        tokenizer.decode(row[: end[0] if len(end) else None].tolist()).strip()
        for row, end in zip(ids, ends, strict=True)
    ]


def caption_validator(
    run: Run, tokenizer: "Tokenizer", count: int, attributes: Sequence["Attribute"] = ()
) -> Validator:
    """Writes captions of the first `count` validation videos to `captions/` in the work directory.

    `caption_exact` is the fraction that equals one of the video's own captions, `caption_cider` their CIDEr-D, and
    `NAME` of each attribute the share, of those whose first caption names the attribute, that name the same.
    """
    source, write = run.sources["validation"], caption_writer(run.model, tokenizer)
    chosen = np.arange(min(count, len(source)))

    @partial(jit_on_mesh, mesh=run.mesh)
    def caption(variables: dict, batch: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        return write(variables, batch["video"]), batch["index"], batch["valid"]

    def validate(state: TrainState, step: int) -> dict[str, float]:
        params = run.merge(state.evaluated_params, state.frozen)
        variables: dict[str, Any] = {"params": params, **state.model_state}
        parts = []
        for batch in run.validation_batches(indices=chosen):
            used = {name: batch[name] for name in ("video", "index", "valid")}
            parts.append(jax.device_get(caption(variables, put_batch(used, run.mesh))))
        ids, index, valid = (np.concatenate(column) for column in zip(*parts, strict=True))
        texts = read_captions(tokenizer, ids[valid])
        references = [source.captions(int(i)) for i in index[valid]]
        if is_main_process():
            _save(run.workdir / "captions" / f"step_{step:07d}.txt", texts, references)
        if not texts:
            return {"caption_exact": 0.0}
        exact = np.mean([text in own for text, own in zip(texts, references, strict=True)])
        plain = [plain_words(text) for text in texts], [[plain_words(text) for text in own] for own in references]
        named = {each.name: _named(each, tokenizer, ids[valid], references) for each in attributes}
        return {"caption_exact": float(exact), "caption_cider": caption_scores(*plain).cider, **named}

    return validate


def _named(
    attribute: "Attribute", tokenizer: "Tokenizer", ids: Int[np.ndarray, "b m"], references: Sequence[Sequence[str]]
) -> float:
    """The share of texts that name an attribute as their first reference, of those whose reference names it."""
    longest = max(len(tokenizer.encode(own[0])) for own in references)
    first, _ = tokenize_all(tokenizer, [own[0] for own in references], longest)
    names = np.asarray(attribute.named(jnp.asarray(first))) >= 0
    agrees = np.asarray(attribute.agrees(jnp.asarray(ids), jnp.asarray(first)))
    return float(agrees[names].mean()) if names.any() else 0.0


def _save(path: Path, texts: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = [f"{text}\n    {' | '.join(own)}\n" for text, own in zip(texts, references, strict=True)]
    path.write_text("".join(lines), "utf-8", "backslashreplace")
