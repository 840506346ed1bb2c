"""Train a transformer that draws pictures of texts, token by token (DALL-E, arXiv:2102.12092).

First a tokenizer of images, then the transformer, tiny ones on rendered videos (settings are not tuned yet):
python experiments/token_pretrain.py
python experiments/text_to_image.py

On your own videos with captions, of which frames are the images: the tokenizer's recipe of token_pretrain.py, or
DALL-E's published one:
python experiments/text_to_image.py videos --data.source captions.jsonl --image_tokenizer dalle_encoder \
    --decoder dalle_decoder --tokenizer bpe_simple_vocab_16e6.txt.gz

Pictures of your own texts: python experiments/draw.py "a red circle" --run runs/text_to_image
Running the same command again resumes the run. Expected results: docs/results.md.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import recipes.text_to_image
from jax.sharding import Mesh

import vidjax
from vidjax import cli, runs
from vidjax.data.config import CaptionedDataConfig
from vidjax.errors import UserError
from vidjax.fields import require_not_negative
from vidjax.models import example_inputs
from vidjax.models.dalle import SIDE
from vidjax.models.text_to_image import TextToImage
from vidjax.runs.config import TrainConfig
from vidjax.runs.pairs import CaptionCounter
from vidjax.runs.run import Run
from vidjax.runs.sources import open_captioned
from vidjax.runs.text_to_image import load_decoder, make_loss, make_observer, require_same_tokens
from vidjax.runs.tokens import load_tokenizer as load_image_tokenizer
from vidjax.runs.tokens import make_tokens
from vidjax.runs.video_text import load_tokenizer
from vidjax.runs.workdir import keep_tokenizer
from vidjax.training.optimizer import OptimizerConfig
from vidjax.training.sharding import is_main_process


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """A run that learns to draw pictures of texts."""

    model: str = "dalle_gpt_small"
    """dalle_gpt_tiny, _small, _base or _12b."""
    image_tokenizer: str = "dalle_encoder"
    """Whose tokens are drawn: a run of token_pretrain.py with the objective tokenizer, or dalle_encoder."""
    decoder: str | None = None
    """What makes pictures of tokens: a run, or dalle_decoder (default: image_tokenizer)."""
    tokenizer: str = "bytes"
    """bytes, CLIP's vocabulary (file or directory), or any tokenizer.json."""
    context: int | None = None
    """Tokens per caption, with start and end; longer captions are truncated (default: the model's)."""
    text_weight: float = 1 / 8
    """Weight of the words in the loss; the rest is that of the image."""
    observed_clips: int = 8
    """Clips whose captions are drawn and on which the losses are observed; 0 disables it."""
    data: CaptionedDataConfig = recipes.text_to_image.FRAMES
    """The videos, of which frames are drawn, and their captions."""
    batch_size: int = 256
    workdir: str = "runs/text_to_image"
    epochs: float = 30
    optim: OptimizerConfig = recipes.text_to_image.OPTIMIZER

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "observed_clips", "text_weight")
        if self.text_weight > 1:
            raise UserError(f"text_weight is {self.text_weight}: it must be between 0 and 1")
        if self.optim.layer_decay != 1:
            raise UserError("optim.layer_decay is for encoders of videos: omit it")
        if self.context is not None and self.context < 3:
            raise UserError(f"context is {self.context}: it must be 3 or more, for a start, a token and an end")
        if self.data.size % SIDE:
            raise UserError(f"data.size is {self.data.size}: give a multiple of {SIDE}, the side of a token in pixels")
        if self.data.frames != 1:
            raise UserError(
                f"data.frames is {self.data.frames}: one frame of each video is drawn, give --data.frames 1"
            )


RECIPES = {name: Config(**values) for name, values in recipes.text_to_image.RECIPES.items()}
DATA_FLAG = "--data.source"


def make_model(config: Config, vocabulary: int, tokens: int, side: int) -> TextToImage:
    """The model for these words and image tokens, whose card has the clips."""
    if not config.model.startswith("dalle_gpt"):
        raise UserError(f"model {config.model} draws no pictures: choose dalle_gpt_tiny, _small, _base or _12b")
    fields = runs.computing_fields(config, config.model) | ({"context": config.context} if config.context else {})
    model = vidjax.create_model(config.model, vocabulary=vocabulary, tokens=tokens, side=side, **fields)
    return model.clone(card=runs.trained_card(model.card, config.data))


@runs.on_mesh
def main(config: Config, mesh: Mesh) -> dict[str, float]:
    """Runs the job; returns the first and last loss and the last observed ones, or the memory of a dry run."""
    run, tokenizer = Run(config, mesh), load_tokenizer(config.tokenizer)
    side = config.data.size // SIDE
    images, frozen, size = load_image_tokenizer(config.image_tokenizer, (side, side), None, "image_tokenizer")
    decoder_source = config.decoder or config.image_tokenizer
    decoder = load_decoder(decoder_source)
    model = make_model(config, tokenizer.vocabulary, images.vocabulary, side)
    require_same_tokens(model, decoder[0], decoder_source)
    source, validation = open_captioned(config.data, config.seed)
    run.plan(source=source, validation=validation)
    loss_fn = make_loss(model, make_tokens(images, size), config.text_weight)
    run.build(model, example_inputs(model), loss_fn, numbers={"ids": (model.context,)}, frozen=frozen)
    if config.dry_run:
        return run.dry_run()
    variables, starts = run.new_variables(), config.init_from is not None and not run.has_begun
    state = run.begin(runs.start_from(config.init_from, model, variables)[0] if starts else variables, frozen)
    del variables, frozen  # the state has its own copies
    if is_main_process():
        keep_tokenizer(config.tokenizer, run.workdir)
    run.announce(
        text=f"{tokenizer.name}: {tokenizer.vocabulary:,} ids, {model.context} tokens per caption",
        draws=f"{side}x{side} of {images.vocabulary:,} tokens; {run.describe_validation()}",
    )
    captions = CaptionCounter(model.context)

    def batches_from(first: int) -> Iterator[dict[str, np.ndarray]]:
        for batch in run.batches(first, tokenizer=tokenizer, context=model.context):
            captions.count(batch["truncated"])
            yield {name: batch[name] for name in ("video", "ids", "valid")}

    result = run.fit(state, batches_from, make_observer(run, loss_fn, tokenizer, decoder, config.observed_clips))
    if not (result.finished and is_main_process()):
        return {}
    last = next(reversed(run.evaluations().values()), {})
    lines = [f"observed  {', '.join(f'{name} {value:.4g}' for name, value in last.items())}"] if last else []
    advice = {"pictures": f'python experiments/draw.py "TEXT" --run {run.workdir}'}
    return run.finish(result, "evaluation/loss", lines + captions.describe(), advice) | last


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, DATA_FLAG)
