"""Paint where a model looks, and what it reconstructs, over the frames of videos.

    python experiments/visualize.py --run runs/ft clip.mp4 more/*.mp4
    python experiments/visualize.py --run MCG-NJU/videomae-base-finetuned-kinetics clip.mp4 --block 5 --out looked_at
    python experiments/visualize.py --run r3d_18.pth --model r3d_18 clip.mp4 --target "playing drums"

`--run` is the work directory of a run, or a published checkpoint: a file, a directory or a hub id. A folder stands for
all videos below it. The clip in the middle of each is cut as in training, or as published; `--data.stride 2` and the
like say otherwise. What is painted follows from what the model has, each as a PNG of all frames and a moving GIF:

    attention         rollout: what the pooled feature is mixed from; heads_*: what each head of a block attends to
    feature maps      class_activation: what speaks for the predicted class, or for `--target`
    a pixel decoder   reconstruction_50, _75 and _90: the clip behind a mask of so many per cent

They go to OUT/NAME, a folder a video. A file that cannot be read is listed on stderr and the others are done; the exit
status is 2, with one line, where none could be read or the command cannot be meant.
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
from vidjax.runs.announce import print_notes
from vidjax.runs.results import name_classes
from vidjax.visualize.overlay import save_overlays
from vidjax.visualize.reconstruction import save_reconstructions

RATIOS = (0.5, 0.75, 0.9)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to look at, and with what."""

    paths: Positional[tuple[str, ...]]
    """Video files, folders of them, and lists: LIST or LIST:FOLDER (.csv .jsonl .txt .json)."""
    run: str
    """The work directory of a run, or a published checkpoint (file, directory or hub id)."""
    model: str | None = None
    """One of vidjax.list_models(), where the checkpoint does not say what it is."""
    which: Literal["best", "last"] = "best"
    """Of a run: the checkpoint that validated best, or the newest."""
    data: GivenClipConfig = GivenClipConfig()
    """How clips are cut."""
    target: str | None = None
    """The class whose activation is painted (default: the one predicted)."""
    layer: str | None = None
    """Whose feature map class activation looks at (default: the last of 7 rows or more); a wrong name lists them."""
    block: int = -1
    """Whose heads are painted: from 0 for the first block, or from -1 for the last."""
    out: str | None = None
    """Where the pictures go (default: visualize in the run's directory, or here for a checkpoint)."""
    seed: int = 0
    """Of the masks."""

    def __post_init__(self) -> None:
        """Refuses values that cannot be meant."""
        check_values(self)
        if not self.paths:
            raise UserError("no video is given: name files or folders")


def find_class(name: str, names: Sequence[str]) -> int:
    """Position of a class.

    Raises:
      UserError: there is none of this name.
    """
    if not names:
        raise UserError(f"target is '{name}', but the model has no classes: leave it out")
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3) or names[:3]
        raise UserError(
            f"target is '{name}', which is none of the {len(names)} classes: give one, such as {', '.join(near)}"
        )
    return list(names).index(name)


def make_look(config: Config, model: nn.Module, variables: dict, clip: jax.ShapeDtypeStruct) -> Callable:
    """A function of a clip's pixels `1 t h w c` to maps by picture and row, and probabilities if there are classes.

    Raises:
      UserError: the model cannot take such clips, or has nothing of what is asked for.
    """
    classes = getattr(model, "num_classes", None)
    target = None if config.target is None else find_class(config.target, name_classes(model))

    @jax.jit
    def look(variables: dict, pixels: jax.Array) -> tuple[dict[str, dict[str, jax.Array]], jax.Array | None]:
        video = model.card.preprocess(pixels)
        activates = classes is not None and bool(saliency.map_layers(model, variables, video))
        if (config.target or config.layer) and not activates:
            raise UserError(
                f"target and layer are of class activation, and {type(model).__name__} here has none: leave them out"
            )
        pictures = {}
        if saliency.attention_weights(model, variables, video):
            pictures["rollout"] = {"roll-out": saliency.rollout(model, variables, video)[0]}
            for name, maps in saliency.head_maps(model, variables, video, config.block).items():
                name = name.removesuffix("dot_product").strip("/_").replace("/", "_")
                pictures[f"heads_{name}"] = {f"head {i:02}": head for i, head in enumerate(maps[0])}
        if activates:
            activation = saliency.class_activation(model, variables, video, target, config.layer)
            pictures["class_activation"] = {"activation": activation[0]}
        if classes is None:
            return pictures, None
        return pictures, jax.nn.softmax(model.apply(variables, video)[0].astype(jnp.float32))

    jax.eval_shape(look, variables, clip)  # what cannot be is said before any video is read
    return partial(look, variables)


def make_reconstruct(config: Config, model: nn.Module, variables: dict) -> tuple[Callable, str]:
    """A function of a clip's pixels `1 t h w c` to the rows of one picture for each of `RATIOS`, and what to say."""
    trained = runs.read_config(config.run) if runs.is_run(config.run) else {}  # or as published
    mask, normalized = trained.get("mask", "tube"), trained.get("normalize_target", True)
    note = f"{mask} mask" + ("; the true mean and deviation are given back to each patch" if normalized else "")

    @jax.jit
    def reconstruct(variables: dict, pixels: jax.Array) -> list[tuple[jax.Array, ...]]:
        video = model.card.scale(pixels)
        grid = patches.grid(video.shape[1:4], model.patch_size)
        pictures = []
        for ratio in RATIOS:
            kept, masked, _ = masking.draw(jax.random.key(config.seed), 1, grid, mask, ratio)
            output = model.apply(variables, model.card.normalize(video), kept, masked)
            painted = reconstruction.paint(video, output, masked, model.patch_size, normalized)
            hidden = reconstruction.paint(video, jnp.full_like(output, 0.5), masked, model.patch_size, False)
            pictures.append((video, hidden, painted))
        return pictures

    return partial(reconstruct, variables), note


def main(config: Config) -> dict[str, list[str]]:
    """Looks, paints and prints; returns the PNG files made of each video."""
    from vidjax.data.decode import DecodeError
    from vidjax.data.windows import open_files

    videos = open_files(config.paths, runs.square_pixels(config.run, config.data))
    print_notes(videos.source)
    settings: dict[str, Any] = {"which": config.which, "strict": True, "verbose": False}
    model, variables = vidjax.load_pretrained(config.run, config.model, **settings)
    clips = runs.cut_clips(config.run, model, config.data)
    clip = jax.ShapeDtypeStruct((1, clips.frames, clips.size, clips.size, 3), jnp.uint8)
    look = make_look(config, model, variables, clip)
    # A masked autoencoder is what has a decoder.
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
        while folder.exists():  # another file of this name, or an earlier look
            number += 1
            folder = out / f"{Path(path).stem}_{number}"
        pixels, caption = window.frames, f"{Path(path).name}, {window.start:.2f} to {window.end:.2f} s"
        pictures, probabilities = jax.device_get(look(pixels))
        if probabilities is not None:
            best = int(probabilities.argmax())
            caption += f": {name_classes(model)[best]} {probabilities[best]:.1%}"
        files = []
        for name, maps in pictures.items():
            about = f"; activation of {config.target}" if config.target and name == "class_activation" else ""
            saved = save_overlays(folder / name, pixels[0] / 255, list(maps.values()), list(maps), caption + about)
            files.append(saved[0])
        if reconstruct:
            for ratio, rows in zip(RATIOS, jax.device_get(reconstruct(pixels)), strict=True):
                note = f"{caption}, {ratio:.0%} {masked}"
                files.append(save_reconstructions(folder / f"reconstruction_{ratio * 100:.0f}", rows, note)[0])
        print(f"{caption}\n  {folder}: {', '.join(file.name for file in files)} and .gif of each", flush=True)
        made[path] = [str(file) for file in files]

    if not made:
        raise UserError(f"none of the {len(videos.source)} files could be read: see above why")
    if bad:
        print(f"\n{bad} of {len(videos.source)} files could not be read", file=sys.stderr)
    return made


if __name__ == "__main__":
    cli.run(main, Config)
