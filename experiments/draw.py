"""Draw pictures of texts, by a run of text_to_image.py.

    python experiments/draw.py "a large red circle" "a blue square" --run runs/text_to_image
    python experiments/draw.py "a small green triangle" --run runs/text_to_image --samples 16 --shown 4 \\
        --ranked_by runs/contrastive_pretrain

Several pictures are drawn of each text. With `--ranked_by`, a contrastive model such as CLIP orders them by how well
they fit the text (DALL-E, arXiv:2102.12092, section 2.6). `OUT/pictures.png` shows the best of each text, and all
of them are in `OUT/000` and so on, the best first.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from tyro.conf import Positional

from vidjax import cli, runs
from vidjax.data.config import GivenClipConfig
from vidjax.errors import UserError
from vidjax.fields import check_values, require_positive
from vidjax.models.text_to_image import TextToImage
from vidjax.runs.text_to_image import (
    load_decoder,
    picture_drawer,
    picture_ranker,
    require_same_tokens,
    save_pictures,
    to_bytes,
)
from vidjax.runs.video_text import require_video_text, text_encoder, tokenize_all, tokenizer_of
from vidjax.runs.workdir import read_config
from vidjax.training.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class Config:
    """Texts to draw."""

    texts: Positional[tuple[str, ...]]
    """What to draw, as the captions that the model was trained on say it."""
    run: str
    """The work directory of a run of text_to_image.py."""
    decoder: str | None = None
    """What makes pictures of tokens (default: that of the run's config)."""
    ranked_by: str | None = None
    """A contrastive model that orders the pictures: a run of contrastive_pretrain.py, or a published CLIP."""
    samples: int = 8
    """Pictures of each text."""
    shown: int = 8
    """Pictures of each text in pictures.png."""
    temperature: float = 1.0
    """Lower values draw likelier tokens."""
    top_k: int | None = None
    """Number of likeliest tokens that are drawn from (default: all)."""
    seed: int = 0
    """Seed of the draws."""
    out: str = "pictures"
    """A new folder for the pictures."""

    def __post_init__(self) -> None:
        check_values(self)
        require_positive(self, "samples", "shown", "temperature", "top_k")
        if not self.texts or not all(text.strip() for text in self.texts):
            raise UserError("no text is given, or an empty one: say what to draw")
        if Path(self.out).exists():
            raise UserError(f"{self.out} already exists, and nothing is overwritten: give another --out")


def main(config: Config) -> np.ndarray:
    """Draws the pictures, writes them, and returns them, `n k h w c` with pixels in [0, 1], the best first."""
    model, variables = runs.load_pretrained(config.run, strict=True, verbose=False)
    if not isinstance(model, TextToImage):
        raise UserError(f"run {config.run} is a {type(model).__name__}: give a run of text_to_image.py")
    saved = read_config(config.run)
    source = config.decoder or saved["decoder"] or saved["image_tokenizer"]
    decoder, decoding = load_decoder(source)
    require_same_tokens(model, decoder, source)
    ids, cut = tokenize_all(tokenizer_of(config.run), config.texts, model.context)
    if cut:
        print(f"note: {cut} of {len(config.texts)} texts are longer than {model.context} tokens and were truncated")
    ranked = None if config.ranked_by is None else load_ranker(config.ranked_by, config.texts)
    draw, parts = jax.jit(picture_drawer(model, decoder, config.temperature, config.top_k)), []
    variables, decoding = jax.device_put((variables, decoding))  # once, not for each sample
    for key in jax.random.split(jax.random.key(config.seed), config.samples):
        parts.append(np.asarray(draw(variables, decoding, ids, key)))
    pictures = np.stack(parts, axis=1)
    if ranked is not None:
        scores = ranked(pictures)
        order = np.argsort(-scores, axis=1, kind="stable")
        pictures = np.take_along_axis(pictures, order[..., None, None, None], axis=1)
    for row, (text, own) in enumerate(zip(config.texts, pictures, strict=True)):
        folder = Path(config.out) / f"{row:03d}"
        folder.mkdir(parents=True)
        (folder / "text.txt").write_text(f"{text}\n")
        for number, picture in enumerate(own):
            Image.fromarray(to_bytes(picture)).save(folder / f"{number:03d}.png")
    note = "the best of" if config.ranked_by else "some of"
    caption = f"{note} {config.samples} pictures of each text" if config.shown < config.samples else "all pictures"
    save_pictures(Path(config.out) / "pictures.png", pictures[:, : config.shown], config.texts, caption)
    print(f"{len(config.texts) * config.samples} pictures are in {config.out}; see pictures.png")
    return pictures


def load_ranker(source: str, texts: Sequence[str]) -> Callable[[np.ndarray], np.ndarray]:
    """The function that gives the cosine of each picture and its text, `n k`.

    Raises:
      UserError: the source is no contrastive model.
    """
    model, variables = runs.load_pretrained(source, strict=True, verbose=False)
    model = require_video_text(source, model)
    embedded = text_encoder(model, tokenizer_of(source), make_mesh())(variables, texts)
    clips = runs.cut_clips(source, model, GivenClipConfig())
    rank = jax.jit(picture_ranker(model, clips.frames, clips.size))
    return lambda pictures: np.asarray(rank(variables, pictures, embedded))


if __name__ == "__main__":
    cli.run(main, Config)
