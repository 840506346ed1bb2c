"""Pictures of texts: drawn token by token, decoded by a discrete VAE, and ordered by a contrastive model."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8
from PIL import Image, ImageDraw

from vidjax.errors import UserError
from vidjax.evaluation.generation import sample
from vidjax.models.aligned import Aligned
from vidjax.models.dalle import Autoencoder, Decoder, pixels
from vidjax.models.text_to_image import TextToImage
from vidjax.models.video_text import VideoText
from vidjax.objectives import tokens
from vidjax.runs.generation import begin
from vidjax.runs.run import Run
from vidjax.runs.tokens import Tokens
from vidjax.runs.video_text import tokenize_all
from vidjax.runs.weights import load_pretrained, require_source
from vidjax.training.sharding import is_main_process, jit_on_mesh, replicated
from vidjax.training.state import Aux, TrainState
from vidjax.training.step import valid_mean
from vidjax.visualize.lettering import draw_line, line_width

if TYPE_CHECKING:  # the tokenizers are imported when they are needed
    from vidjax.data.text import Tokenizer

Draw = Callable[[dict, dict, Int[Array, "b m"], Key[Array, ""]], Float[Array, "b h w c"]]
SMALLEST = 64
"""Pictures are shown at this size at least, in pixels."""


def make_loss(model: TextToImage, tokens_of: Tokens, text_weight: float) -> Callable:
    """The loss function: `objectives.tokens.text_to_image_loss` of clips of one frame and their captions.

    Args:
      tokens_of: see `runs.tokens.make_tokens`; its variables are the frozen ones.
    """

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array, train: bool = True) -> tuple:
        image = tokens_of(aux.frozen, batch["video"]).reshape(len(batch["ids"]), -1)
        logits = model.apply({"params": params}, batch["ids"], image, train=train)
        parts = tokens.text_to_image_loss(*logits, batch["ids"], image, text_weight)
        loss, words, drawn = (valid_mean(each, batch["valid"]) for each in parts)
        return loss, (aux.model_state, {"word_loss": words, "image_loss": drawn})

    return loss_fn


def load_decoder(source: str) -> tuple[Decoder, dict]:
    """What makes pictures of tokens, and its variables.

    Args:
      source: a run of a discrete VAE, of which the decoder is used, or a published checkpoint (`dalle_decoder`).

    Raises:
      UserError: there are no such weights, or they are no decoder's.
    """
    require_source("decoder", source)
    model, variables = load_pretrained(source, verbose=is_main_process())
    if isinstance(model, Autoencoder):
        names = [field.name for field in dataclasses.fields(Decoder) if field.name not in ("parent", "name")]
        model, variables = Decoder(**{n: getattr(model, n) for n in names}), {"params": variables["params"]["decoder"]}
    if not isinstance(model, Decoder):
        raise UserError(
            f"decoder: {source} is a {type(model).__name__}, which makes no pictures of tokens: give a run of "
            "token_pretrain.py with the objective tokenizer, or dalle_decoder"
        )
    return model, variables


def require_same_tokens(model: TextToImage, decoder: Decoder, source: str) -> None:
    """Raises UserError if the decoder knows other tokens than the model writes."""
    if decoder.vocabulary != model.tokens:
        raise UserError(
            f"decoder: {source} has {decoder.vocabulary} tokens, the model {model.tokens}: give the run whose tokens "
            "it was trained on"
        )


def picture_drawer(model: TextToImage, decoder: Decoder, temperature: float = 1.0, top_k: int | None = None) -> Draw:
    """The function of both models' variables, ids and a key that draws a picture for each text; pixels in [0, 1].

    Args:
      temperature, top_k: see `evaluation.generation.likely_words`.
    """
    side = model.side

    def draw(variables: dict, decoding: dict, ids: Int[Array, "b m"], key: Key[Array, ""]) -> Float[Array, "b h w c"]:
        settings = {"length": side**2, "end": model.tokens, "temperature": temperature, "top_k": top_k}
        drawn = sample(*begin(model, variables, ids), key, **settings)  # no token ends a picture
        one_hot = jax.nn.one_hot(drawn.reshape(-1, 1, side, side), model.tokens)
        return pixels(decoder.apply(decoding, one_hot))[:, 0]

    return draw


def make_observer(
    run: Run, loss_fn: Callable, tokenizer: "Tokenizer", decoder: tuple[Decoder, dict], count: int
) -> Callable | None:
    """An evaluation of the losses on the first clips, with their first captions, that also draws these captions.

    The pictures, beside the frames, are written to `pictures/` in the work directory; draws are always the same.

    Args:
      decoder: see `load_decoder`.
      count: number of validation clips (of training clips without any).
    """
    source, model = run.sources.get("validation", run.source), run.model
    indices = np.arange(min(count, len(source)))
    if not len(indices):
        return None
    settings = {"batch_size": len(indices), "indices": indices, "process_index": 0, "process_count": 1}
    batch = next(run.evaluation_batches(source, **settings))
    texts = [source.captions(int(index))[0] for index in indices]
    clips = {"video": batch["video"], "ids": tokenize_all(tokenizer, texts, model.context)[0], "valid": batch["valid"]}
    clips, decoding = jax.device_put((clips, decoder[1]), replicated(run.mesh))
    draw = picture_drawer(model, decoder[0])

    @partial(jit_on_mesh, mesh=run.mesh)
    def observe(params: Any, aux: Aux, clips: dict, decoding: dict, key: jax.Array) -> tuple:
        loss, (_, metrics) = loss_fn(params, aux, clips, key, train=False)
        drawn = [draw({"params": params}, decoding, clips["ids"], each) for each in jax.random.split(key, 3)]
        return {"loss": loss, **metrics}, jnp.stack(drawn, axis=1)

    key = jax.random.key(run.config.seed)

    def evaluate(state: TrainState, step: int) -> dict[str, float]:
        seen, drawn = jax.device_get(observe(state.evaluated_params, state.aux, clips, decoding, key))
        if is_main_process():
            frames = np.asarray(batch["video"][:, :1], np.float32) / 255
            path = run.workdir / "pictures" / f"step_{step:07d}.png"
            save_pictures(path, np.concatenate([frames, drawn], axis=1), texts, "the frame, and three draws")
        return {name: float(value) for name, value in seen.items()}

    return evaluate


def picture_ranker(model: VideoText | Aligned, count: int, size: int) -> Callable[[dict, Array, Array], Array]:
    """The function of a contrastive model's variables, pictures and embeddings of texts that gives their cosines.

    Args:
      count: frames of the model's clips; a picture is shown in all of them.
      size: their height and width in pixels.
    """

    def rank(variables: dict, pictures: Float[Array, "n k h w c"], texts: Float[Array, "n e"]) -> Float[Array, "n k"]:
        n, k, _, _, c = pictures.shape
        frames = jax.image.resize(pictures, (n, k, size, size, c), "linear").reshape(-1, 1, size, size, c)
        video = model.card.normalize(jnp.repeat(frames, count, axis=1))
        seen = model.apply(variables, video, method="embed_video").reshape(n, k, -1)
        return jnp.einsum("nke,ne->nk", seen, texts)

    return rank


def save_pictures(path: Path, pictures: Float[np.ndarray, "n k h w c"], texts: Sequence[str], caption: str) -> None:
    """Writes an image with a row of pictures, with pixels in [0, 1], below each text.

    Args:
      caption: a line above everything.
    """
    factor, shown = max(1, -(-SMALLEST // pictures.shape[2])), to_bytes(pictures)
    shown = shown.repeat(factor, axis=2).repeat(factor, axis=3)
    _, columns, height, width, _ = shown.shape
    gap, line = 4, 20
    across = max(columns * (width + gap), *(line_width(text) for text in (caption, *texts))) + gap
    sheet = Image.new("RGB", (across, line + len(texts) * (line + height + gap)), "white")
    drawing = ImageDraw.Draw(sheet)
    draw_line(drawing, (gap, 2), caption)
    for row, (text, own) in enumerate(zip(texts, shown, strict=True)):
        top = line + row * (line + height + gap)
        draw_line(drawing, (gap, top + 2), text)
        for column, picture in enumerate(own):
            sheet.paste(Image.fromarray(picture), (gap + column * (width + gap), top + line))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def to_bytes(pictures: Float[np.ndarray, "*b c"]) -> UInt8[np.ndarray, "*b c"]:
    """Pixels from 0 to 255, of those from 0 to 1."""
    return np.round(np.clip(pictures, 0, 1) * 255).astype(np.uint8)
