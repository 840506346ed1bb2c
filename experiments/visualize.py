"""Visualise attention, class activation and reconstructions of a model over the frames of videos.

    python experiments/visualize.py --run runs/ft clip.mp4 more/*.mp4
    python experiments/visualize.py --run MCG-NJU/videomae-base-finetuned-kinetics clip.mp4 --block 5 --out looked_at
    python experiments/visualize.py --run r3d_18.pth --model r3d_18 clip.mp4 --target "playing drums"

`--run` is the work directory of a run, or a published checkpoint: a file, a directory or a hub id. A folder selects all
videos below it. The central clip of each video is used, sampled and cropped as in training, or as published, unless
flags such as `--data.stride 2` are given. The images depend on the model; each is a PNG of all frames and a GIF:

    attention         rollout: contribution to the pooled feature; heads_*: the attention of each head of a block
    feature maps      class_activation: evidence for the predicted class, or for `--target`
    pixel decoder     reconstruction_50, _75 and _90: reconstructions with so many per cent of the tokens masked

They are written to OUT/NAME, one folder per video. Files that cannot be read are listed on stderr, and the others are
processed; the exit status is 2, with a one-line error, if none could be read or the arguments are invalid.
"""

import dataclasses
import difflib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from tyro.conf import Positional

import vidjax
from vidjax import cli, runs
from vidjax.data.config import GivenClipConfig
from vidjax.errors import UserError
from vidjax.evaluation import saliency
from vidjax.fields import check_values
from vidjax.layers import patches
from vidjax.objectives import masking, reconstruction
from vidjax.objectives.multi_task import softmax_of_tasks
from vidjax.runs.announce import print_notes
from vidjax.runs.results import name_classes
from vidjax.visualize.overlay import save_overlays
from vidjax.visualize.reconstruction import save_reconstructions

RATIOS = (0.5, 0.75, 0.9)


@dataclasses.dataclass(frozen=True)
class Config:
    """A visualisation job."""

    paths: Positional[tuple[str, ...]]
    """Video files, folders of videos, and lists: LIST or LIST:FOLDER (.csv .jsonl .txt .json)."""
    run: str
    """The work directory of a run, or a published checkpoint (file, directory or hub id)."""
    model: str | None = None
    """One of vidjax.list_models(); needed if the checkpoint does not specify its model."""
    which: Literal["best", "last"] = "best"
    """Checkpoint of a run: the one that validated best, or the newest."""
    data: GivenClipConfig = GivenClipConfig()
    """Sampling and cropping of the clips."""
    target: str | None = None
    """Class for class activation (default: the predicted class)."""
    layer: str | None = None
    """Layer for class activation (default: the last one with 7 or more rows); an unknown name lists the layers."""
    block: int = -1
    """Block whose attention heads are shown, counted from 0, or from -1 backwards."""
    out: str | None = None
    """Output directory (default: visualize in the work directory, or ./visualize for a checkpoint)."""
    seed: int = 0
    """Random seed of the masks."""

    def __post_init__(self) -> None:
        check_values(self)
        if not self.paths:
            raise UserError("no video is given: give files or folders")


def find_class(name: str, names: Sequence[str]) -> int:
    """The index of a class.

    Raises:
      UserError: there is no class of this name.
    """
    if not names:
        raise UserError(f"target is '{name}', but the model has no classes: omit --target")
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=3) or names[:3]
        raise UserError(
            f"target '{name}' is not among the {len(names)} classes: give one, such as {', '.join(nearest)}"
        )
    return list(names).index(name)


def make_look(config: Config, model: nn.Module, variables: dict, clip: jax.ShapeDtypeStruct) -> Callable:
    """A function of a clip's pixels `1 t h w c` to maps by image and row, and probabilities (None without classes).

    Raises:
      UserError: the model does not accept clips of this size, or has no class activation although it is requested.
    """
    classes = getattr(model, "num_classes", None)
    target = None if config.target is None else find_class(config.target, name_classes(model))

    @jax.jit
    def look(variables: dict, pixels: jax.Array) -> tuple[dict[str, dict[str, jax.Array]], jax.Array | None]:
        video = model.card.preprocess(pixels)
        activates = classes is not None and bool(saliency.map_layers(model, variables, video))
        if (config.target or config.layer) and not activates:
            raise UserError(
                f"target and layer apply to class activation, which this {type(model).__name__} does not support: omit "
                "them"
            )
        images = {}
        if saliency.attention_weights(model, variables, video):
            images["rollout"] = {"roll-out": saliency.rollout(model, variables, video)[0]}
            for name, maps in saliency.head_maps(model, variables, video, config.block).items():
                name = name.removesuffix("dot_product").strip("/_").replace("/", "_")
                images[f"heads_{name}"] = {f"head {i:02}": head for i, head in enumerate(maps[0])}
        if activates:
            activation = saliency.class_activation(model, variables, video, target, config.layer)
            images["class_activation"] = {"activation": activation[0]}
        if classes is None:
            return images, None
        sizes = model.card.head_sizes or (model.num_classes,)
        return images, softmax_of_tasks(model.apply(variables, video)[0].astype(jnp.float32), sizes)

    jax.eval_shape(look, variables, clip)  # fails before any video is read
    return partial(look, variables)


def make_reconstruct(config: Config, model: nn.Module, variables: dict) -> tuple[Callable, str]:
    """A function of a clip's pixels `1 t h w c` to the rows of one image for each of `RATIOS`, and a caption."""
    trained = runs.read_config(config.run) if runs.is_run(config.run) else {}  # defaults as published
    mask = trained.get("mask", "tube")
    normalized, epsilon = trained.get("normalize_target", True), trained.get("target_epsilon", 1e-6)
    note = f"{mask} mask" + ("; each patch has its true mean and std" if normalized else "")

    @jax.jit
    def reconstruct(variables: dict, pixels: jax.Array) -> list[tuple[jax.Array, ...]]:
        video = model.card.scale(pixels)
        grid = patches.grid(video.shape[1:4], model.patch_size)
        images = []
        for ratio in RATIOS:
            kept, masked, _ = masking.draw(jax.random.key(config.seed), 1, grid, mask, ratio)
            output = model.apply(variables, model.card.normalize(video), kept, masked)
            painted = reconstruction.paint(video, output, masked, model.patch_size, normalized, epsilon)
            hidden = reconstruction.paint(video, jnp.full_like(output, 0.5), masked, model.patch_size, False)
            images.append((video, hidden, painted))
        return images

    return partial(reconstruct, variables), note


def main(config: Config) -> dict[str, list[str]]:
    """Writes the images; returns the PNG files of each video."""
    from vidjax.data.decode import DecodeError
    from vidjax.data.windows import open_files

    videos = open_files(config.paths, runs.square_pixels(config.run, config.data))
    print_notes(videos.source)
    settings: dict[str, Any] = {"which": config.which, "strict": True, "verbose": False}
    model, variables = vidjax.load_pretrained(config.run, config.model, **settings)
    if len(model.card.mean) != 3:
        raise UserError(f"{config.run} takes {len(model.card.mean)} channels, and images can be made of RGB clips only")
    clips = runs.cut_clips(config.run, model, config.data)
    clip = jax.ShapeDtypeStruct((1, clips.frames, clips.size, clips.size, 3), jnp.uint8)
    look = make_look(config, model, variables, clip)
    # Masked autoencoders are the models with a decoder.
    reconstruct, masked = make_reconstruct(config, model, variables) if hasattr(model, "decoder_width") else (None, "")
    default = Path(config.run) / "visualize" if runs.is_run(config.run) else Path("visualize")
    out = default if config.out is None else Path(config.out)
    cli.make_folder(out, "--out")

    made: dict[str, list[str]] = {}
    bad = 0
    for index, path in enumerate(videos.source.ids):
        try:
            (window,) = videos.clip(index, clips)
        except DecodeError as error:
            print(f"cannot be read: {error}", file=sys.stderr, flush=True)
            bad += 1
            continue
        folder, number = out / Path(path).stem, 1
        while folder.exists():  # from another file with this name, or from an earlier call
            number += 1
            folder = out / f"{Path(path).stem}_{number}"
        pixels, caption = window.frames, f"{Path(path).name}, {window.start:.2f} to {window.end:.2f} s"
        images, probabilities = jax.device_get(look(pixels))
        if probabilities is not None:
            best = int(probabilities.argmax())
            caption += f": {name_classes(model)[best]} {probabilities[best]:.1%}"
        files = []
        for name, maps in images.items():
            target = f"; activation of {config.target}" if config.target and name == "class_activation" else ""
            saved = save_overlays(folder / name, pixels[0] / 255, list(maps.values()), list(maps), caption + target)
            files.append(saved[0])
        if reconstruct:
            for ratio, rows in zip(RATIOS, jax.device_get(reconstruct(pixels)), strict=True):
                note = f"{caption}, {ratio:.0%} {masked}"
                files.append(save_reconstructions(folder / f"reconstruction_{ratio * 100:.0f}", rows, note)[0])
        print(f"{caption}\n  {folder}: {', '.join(file.name for file in files)}, each also as .gif", flush=True)
        made[path] = [str(file) for file in files]

    if not made:
        raise UserError(f"none of the {len(videos.source)} files could be read: see the reasons above")
    if bad:
        print(f"\n{bad} of {len(videos.source)} files could not be read", file=sys.stderr)
    return made


if __name__ == "__main__":
    cli.run(main, Config)
