"""Pre-train by masked prediction of discrete tokens: BEiT (arXiv:2106.08254) and BEVT (arXiv:2112.01529).

First a tokenizer, a tiny one on rendered videos (settings are not tuned yet): python experiments/token_pretrain.py

Then a tiny BEVT, on images and videos together:
python experiments/token_pretrain.py bevt_tiny --tokenizer runs/tokenizer --data.source synthetic:moving_shapes

On your own videos: the recipe tokenizer, or DALL-E's published one (--tokenizer dalle_encoder), then bevt_base_images
(the image stream alone) and bevt_base with --init_from its run. Images are frames of the videos. Runs are resumed.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import recipes.token_pretrain
from jax.sharding import Mesh

import vidjax
from vidjax import cli, runs
from vidjax.data.config import DataConfig
from vidjax.errors import UserError
from vidjax.fields import require_not_negative, require_positive
from vidjax.layers import patches
from vidjax.objectives import block_masks, masking, tokens
from vidjax.runs.announce import require_length
from vidjax.runs.config import TrainConfig
from vidjax.runs.run import Run
from vidjax.runs.tokens import (
    Tokens,
    load_tokenizer,
    make_observer,
    make_reconstructor,
    make_tokenizer_loss,
    make_tokens,
    start_streams,
)
from vidjax.runs.validation import probe_labels
from vidjax.training.loop import FitResult
from vidjax.training.optimizer import OptimizerConfig
from vidjax.training.sharding import is_main_process
from vidjax.training.state import Aux


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """A run that trains a tokenizer, or predicts the tokens of one."""

    objective: Literal["tokenizer", "images", "both"] = "both"
    """Train a tokenizer, predict tokens of images (BEiT, BEVT's image stream), or of videos and images (BEVT)."""
    model: str = "bevt_base"
    """bevt_tiny or _base, beit_tiny, beit_base_16 or beit_large_16; a tokenizer is dalle_tiny, dalle_small or dalle."""
    data: DataConfig = recipes.token_pretrain.CLIPS
    """The training videos."""
    tokenizer: str = "dalle_encoder"
    """Whose tokens are predicted: a run of the objective tokenizer, or a published checkpoint."""
    token_size: int | None = None
    """Side of the frames that the tokenizer sees (default: with a token for each place; half of data.size in BEVT)."""
    mask_ratio: float = 0.5
    """Masked share of the places of an image, or of the masked frames of a video."""
    least_patches: int = 16
    """Places in the smallest block of a mask."""
    images_per_clip: int = 8
    """Frames of each clip that are used as images."""
    temperature: float = 1 / 16
    """Last temperature of the tokenizer's relaxed tokens; the first is 1."""
    temperature_steps: int = 150_000
    """Steps until it is reached."""
    divergence_weight: float = 6.6
    """Last weight of the divergence of the tokenizer's tokens from a uniform distribution; the first is 0."""
    divergence_steps: int = 5000
    """Steps until it is reached."""
    observed_clips: int = 8
    """Clips on which predictions or reconstructions are observed; 0 disables it."""
    probe_clips: int = 1024
    """Labelled clips for the linear probe at the end, half for fitting and half for scoring; 0 disables it."""
    accumulation: int = 1
    """Micro-batches per step, to save memory."""
    workdir: str = "runs/token_pretrain"
    epochs: float = 150
    optim: OptimizerConfig = recipes.token_pretrain.BEVT

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = ("temperature_steps", "divergence_steps")
        require_positive(self, "token_size", "least_patches", "images_per_clip", "temperature", *steps)
        require_not_negative(self, "divergence_weight", "observed_clips", "probe_clips")
        if self.objective != "tokenizer" and self.images_per_clip > self.data.frames:
            raise UserError(f"images_per_clip is {self.images_per_clip}, but clips have {self.data.frames} frames")


RECIPES = {name: Config(**values) for name, values in recipes.token_pretrain.RECIPES.items()}
DATA_FLAG = "--data.source"


def make_model(config: Config, **fields: Any) -> nn.Module:
    """The tokenizer, or the encoder with what predicts tokens."""
    needed = {"tokenizer": "decode", "images": "predict_images", "both": "predict_video"}[config.objective]
    names = (each for each in vidjax.list_models() if hasattr(vidjax.create_model(each), needed))
    known = {each.removesuffix("_pretrain"): each for each in names}
    if config.model not in known:
        choices = ", ".join(known)
        raise UserError(f"model {config.model} is not for the objective {config.objective}: choose one of {choices}")
    name = known[config.model]
    clip = {"num_frames": config.data.frames, "image_size": config.data.size}
    return vidjax.create_model(name, **runs.computing_fields(config, name), **clip, **fields)


def make_loss(config: Config, model: nn.Module, grid: masking.Grid, count: int, tokens_of: Tokens) -> Callable:
    """The loss function: cross-entropy of the tokens of `count` masked places, of images and for `both` of videos."""

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array, train: bool = True) -> tuple:
        frame_key, image_key, video_key, drop_key = jax.random.split(key, 4)
        video, valid = batch["video"], batch["valid"][:, None, None, None]
        chosen = block_masks.draw_frames(frame_key, *video.shape[:2], config.images_per_clip)
        images = jnp.take_along_axis(video, chosen[..., None, None, None], axis=1)
        masked = block_masks.draw_images(image_key, chosen.shape, grid[1:], count, config.least_patches)
        apply = partial(model.apply, {"params": params}, train=train, rngs={"drop_path": drop_key})
        pixels = model.card.preprocess
        if config.objective == "images":
            logits = apply(pixels(images), masked, method="predict_images")
            loss, accuracy = tokens.masked_token_loss(logits, tokens_of(aux.frozen, images), masked & valid)
            return loss, (aux.model_state, {"image_accuracy": accuracy})
        hidden = block_masks.draw_videos(video_key, len(video), grid, count, config.least_patches)
        video_logits, logits = apply(pixels(video), hidden, pixels(images), masked)
        targets = tokens_of(aux.frozen, video)
        hidden = hidden.repeat(video.shape[1] // grid[0], axis=1)  # a token for each frame of a tubelet
        video_loss, video_accuracy = tokens.masked_token_loss(video_logits, targets, hidden & valid)
        targets = jnp.take_along_axis(targets, chosen[..., None, None], axis=1)
        loss, accuracy = tokens.masked_token_loss(logits, targets, masked & valid)
        seen = {"image_loss": loss, "image_accuracy": accuracy, "video_loss": video_loss}
        return loss + video_loss, (aux.model_state, seen | {"video_accuracy": video_accuracy})

    return loss_fn


def summarize(run: Run, result: FitResult, accuracy: dict[str, float]) -> dict[str, float]:
    """Prints the results, the files written and suggested next steps."""
    config, seen = run.config, next(reversed(run.evaluations().values()), {})
    lines = [f"{'observed':<9} " + ", ".join(f"{name} {value:.4g}" for name, value in seen.items())] if seen else []
    numbers = "{trained:.1%} linear, {untrained:.1%} untrained, {chance:.1%} by chance"
    lines += [f"probe     {numbers.format(**accuracy)}"] if accuracy else []
    advice = {
        "tokenizer": {"predicting its tokens": f"python experiments/token_pretrain.py --tokenizer {run.workdir}"},
        "images": {"then with videos": f"python experiments/token_pretrain.py bevt_base --init_from {run.workdir}"},
        "both": {"fine-tuning": f"python experiments/finetune.py --model video_swin_b --init_from {run.workdir}"},
    }[config.objective]
    curve = "squared_error" if config.objective == "tokenizer" else "token_loss"
    return run.finish(result, f"evaluation/{curve}", lines, advice) | accuracy


@runs.on_mesh
def main(config: Config, mesh: Mesh) -> dict[str, float]:
    """Runs the job; returns the first and last loss and the probe's accuracies, or the memory of a dry run."""
    from vidjax.data.sources import open_source

    run, data, frozen = Run(config, mesh), config.data, None
    clip = jax.ShapeDtypeStruct((1, data.frames, data.size, data.size, 3), jnp.float32)
    model, notes, inputs = make_model(config), {}, (clip,)
    if config.objective == "tokenizer":
        loss_fn = make_tokenizer_loss(config, model)
    else:
        grid = patches.grid(clip.shape[1:4], model.cell_size)
        count = block_masks.count_masked(*grid[1:], config.mask_ratio, config.least_patches)
        tokenizer, frozen, size = load_tokenizer(config.tokenizer, grid[1:], config.token_size)
        model = make_model(config, vocabulary=tokenizer.vocabulary)
        inputs = model.example_inputs(clip)
        loss_fn = make_loss(config, model, grid, count, make_tokens(tokenizer, size))
        places = f"{grid[1]}x{grid[2]} places a frame, {config.mask_ratio:.0%} masked"
        notes["tokens"] = f"{places}, {tokenizer.vocabulary} tokens of {config.tokenizer} at {size} pixels"
    run.plan(source=open_source(data.source, data.split, data.square_pixels))
    require_length(data, run.source)
    run.build(model, inputs, loss_fn, frozen=frozen)
    if config.dry_run:
        return run.dry_run()
    variables = run.new_variables()
    if config.init_from and not run.has_begun:
        variables = start_streams(config.init_from, model, variables)
    state = run.begin(variables, frozen)
    del variables, frozen  # the state has its own copies
    run.announce(**notes)

    def batches_from(first: int) -> Iterator[dict[str, np.ndarray]]:
        return ({name: batch[name] for name in ("video", "valid")} for batch in run.batches(first))

    observe = make_reconstructor if config.objective == "tokenizer" else partial(make_observer, loss_of=loss_fn)
    result = run.fit(state, batches_from, observe(run, count=config.observed_clips))
    accuracy = probe_labels(run, result.state.evaluated_params, config.probe_clips) if result.finished else {}
    return summarize(run, result, accuracy) if result.finished and is_main_process() else accuracy


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, DATA_FLAG)
