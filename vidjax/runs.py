"""The work directories of training runs as models: what a run leaves behind, and how it is opened again.

A work directory holds `config.json`, the run's whole config; `vidjax.json`, the model; `checkpoints/`, the newest
states; and, where the run validated, `best/`. Everything that reads weights takes one of these as well as a published
checkpoint.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vidjax import cli, convert
from vidjax.convert.checkpoint import NAME, read_model
from vidjax.convert.rules import Inflation, Report
from vidjax.data.config import ClipConfig, GivenClipConfig
from vidjax.errors import UserError
from vidjax.fields import matters
from vidjax.models import create_model, towers
from vidjax.training.sharding import join_processes, make_mesh

if TYPE_CHECKING:  # TensorFlow takes seconds, which models need not
    from vidjax.data.sources import Source

Which = Literal["best", "last"]


def is_run(path: str | Path) -> bool:
    """Whether `path` is the work directory of a run that trained a model."""
    return (Path(path) / "config.json").is_file() and (Path(path) / NAME).is_file()


def load_pretrained(
    source: str | Path,
    name: str | None = None,
    *,
    layout: str | None = None,
    which: Which = "best",
    strict: bool = False,
    inflation: Inflation = "average",
    key: jax.Array | None = None,
    verbose: bool = True,
    **overrides: Any,
) -> tuple[nn.Module, dict]:
    """A model with trained weights: `model.apply(variables, video)` is ready, and a report is printed.

    The classes are those of the weights unless `num_classes` says otherwise; then the head is new, as the report says.
    `model.card` tells how pixels are normalised, how frames are sampled and what the classes are called.

    Args:
      source: the name of a published checkpoint (`vidjax.list_pretrained`; a path here that is called so comes first),
        a Hugging Face id (through huggingface_hub), a Hugging Face directory, a vidjax checkpoint, the work directory
        of a run, or a file of safetensors, PyTorch (`.pth`, `.pyth`, `.pt`, `.bin`, `.pth.tar`), NumPy (`.npz`) or
        Flax (`.msgpack`, Scenic's `checkpoint`) in a published layout.
      name: see `vidjax.list_models`; not needed where the source says what it is, whose fields it must not contradict.
      layout: the publisher's naming that the weights are in (`transformers`, `torchvision`, `original`, ...), where
        their names are not to decide.
      which: of a run, the checkpoint that validated best (the newest where there was no validation), or the newest.
      strict: nothing may be newly initialised or unused.
      inflation: how kernels of images become kernels of clips: `average` or `central`.
      key: initialises what the weights may lack; `jax.random.key(0)` where not given.
      verbose: print the report.
      **overrides: fields of the model, such as `num_classes=174` (None gives features); they come before what the name
        and the source say, but must fit the weights.

    Raises:
      UserError: the source does not say what it is and there is no name, the name's fields contradict it, or its
        weights are damaged or do not fit the model.
      UserError: there are no weights.
      UserError: the source needs a library that is not installed: PyTorch, safetensors or huggingface_hub.

    Example:
      >>> model, variables = load_pretrained("videomae_base_k400")
      >>> model, variables = load_pretrained("MCG-NJU/videomae-base-finetuned-kinetics", dtype=jnp.bfloat16)
      >>> model, variables = load_pretrained("runs/finetune")
    """
    settings = {"layout": layout, "strict": strict, "inflation": inflation, "key": key, "verbose": verbose, **overrides}
    if which not in get_args(Which):
        raise UserError(f"which is '{which}': choose one of {', '.join(get_args(Which))}")
    if not is_run(source):
        return convert.load_pretrained(source, name, **settings)
    weights, step = read_weights(source, which)
    described = read_model(Path(source))
    said = f"{source}, step {step}"
    return convert.assemble(said, weights, described, asdict(described.card), name=name, **settings)


def read_weights(workdir: str | Path, which: Which = "best") -> tuple[dict, int]:
    """A run's variables by their paths, and the step they are of; see `training.checkpoint.load_variables`."""
    from vidjax.training.checkpoint import has_checkpoint, load_variables  # Orbax is no dependency of a model

    return load_variables(Path(workdir), which if has_checkpoint(Path(workdir), which) else "last")


def class_names(source: str | Path) -> tuple[str, ...]:
    """What the classes of a run's or a published checkpoint's head are called; empty where it does not say."""
    path = Path(source).expanduser()
    if (path / NAME).is_file():
        return read_model(path).card.class_names
    config = convert.hub.read_config(path) if path.exists() else None
    return tuple(convert.hub.read_card(config, path).get("class_names", ())) if config else ()


def start_from(
    source: str | Path, model: nn.Module, variables: dict, *, fresh: Sequence[str] = ()
) -> tuple[dict, Report]:
    """`variables` with those of a run (its best) or of a published checkpoint in their place, where there are any.

    Args:
      source: see `load_pretrained`.
      variables: of the model, or its parameters alone; arrays.
      fresh: beginnings of parameter paths that stay as they are.

    Raises:
      UserError: the run has saved nothing yet, or the weights do not fit the model.
      UserError: there are no weights.
    """
    if is_run(source):
        weights, step = read_weights(source)
        return convert.load_weights(f"{source}, step {step}", model, variables, weights=weights, fresh=fresh)
    return convert.load_weights(convert.hub.fetch(source), model, variables, fresh=fresh)


def fingerprint(variables: dict) -> str:
    """A hash of all values, by which work is known to be of the same weights."""
    weights = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        weights.update(np.ascontiguousarray(leaf))
    return weights.hexdigest()


def computing_type(dtype: Literal["auto", "float32", "bfloat16"]) -> Any:
    """The type of a script's `--dtype`: auto is bfloat16 on accelerators, float32 on a CPU."""
    auto = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(auto if dtype == "auto" else dtype)


def on_mesh(config: Any, job: Callable[[Any, Mesh], Any]) -> Any:
    """`job(config, mesh)` on the devices that a training script's `distributed`, `fsdp` and `sequence` ask for.

    Where devices share a clip the mesh is in context too, as ring attention wants it.
    """
    if config.distributed:
        join_processes()
    mesh = make_mesh(config.fsdp, config.sequence)
    with jax.set_mesh(mesh) if config.sequence > 1 else nullcontext():
        return job(config, mesh)


def computing_fields(config: Any, name: str) -> dict[str, Any]:
    """Fields of a model by a training script's `dtype`, `remat`, `scan` and `sequence`.

    Args:
      name: of the model; not all have the last three.

    Raises:
      UserError: the model has no blocks to run so, or no attention whose tokens devices could share.
    """
    fields = {"dtype": computing_type(config.dtype)}
    fields |= {"remat": config.remat} if config.remat != "none" else {}
    fields |= {"scan": True} if config.scan else {}
    fields |= {"implementation": "ring"} if config.sequence > 1 else {}
    model = create_model(name)
    for flag, field in (("remat", "remat"), ("scan", "scan"), ("sequence", "implementation")):
        if field in fields and not _has_field(model, field):
            raise UserError(
                f"{flag} is {getattr(config, flag)}, but {name} has no transformer blocks for it: leave it out"
            )
    return fields


def _has_field(model: nn.Module, field: str) -> bool:
    """Whether the model or a tower of it has it."""
    return field in type(model).__dataclass_fields__ or any(_has_field(each, field) for each in towers(model).values())


def require_source(flag: str, source: str | None) -> None:
    """Refuses a source of weights that does not exist; what may be an id of Hugging Face's is not asked for.

    Args:
      flag: of the command line, for the sentence.

    Raises:
      UserError: nothing is there.
    """
    if source is not None and not Path(source).expanduser().exists() and not convert.hub.is_id(source):
        raise UserError(f"{flag}: there are no weights at {source}, give a run, a file or an id of Hugging Face's")


def open_workdir(config: Any, state: Any, **sources: "Source") -> Path:
    """The work directory of a training script, see `cli.open_workdir`: what is in it fits the state and the data.

    `sources.json` knows the data by its examples, so that a run goes on where they were moved.

    Args:
      state: its shapes.
      sources: by the name of their field in `config.data`.
    """
    from vidjax.training.checkpoint import fits, has_checkpoint  # Orbax is no dependency of a model

    path, goes_on = Path(config.workdir) / "sources.json", has_checkpoint(Path(config.workdir))
    known = json.loads(path.read_text()) if path.exists() else {}
    found = {f"data.{name}": describe_examples(source) for name, source in sources.items()}
    same = [name for name in found if found[name] == known.get(name)]
    workdir = cli.open_workdir(config.workdir, config, same=same, fits=partial(fits, Path(config.workdir), state))
    if jax.process_index() == 0:
        for name in (found.keys() & known.keys() - set(same)) if goes_on else ():
            print(
                f"note: {name} has other examples than before ({known[name]['examples']:,} then, "
                f"{found[name]['examples']:,} now): from here on other clips come"
            )
        unfinished = path.with_suffix(".json.tmp")  # other processes may be reading
        unfinished.write_text(json.dumps(found, indent=2) + "\n")
        os.replace(unfinished, path)
    return workdir


def describe_examples(source: "Source") -> dict[str, Any]:
    """How many examples a source has, and a hash of their names below the folder that they share.

    And of their labels and captions, where these can be had without reading all of the data.
    """
    folders = (name.split("/")[:-1] for name in (min(source.ids), max(source.ids)))
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*folders, strict=False)))
    described = hashlib.sha256(repr(source.class_names).encode())
    for index, name in enumerate(source.ids):
        told = (source.label(index), source.captions(index)) if source.listed else ()
        described.update(repr((name.split("/", shared)[-1], *told)).encode())
    return {"examples": len(source), "sha256": described.hexdigest()}


def read_views(views: str) -> tuple[int, int]:
    """Clips over time and crops over space of a script's `--views`: `4x3` as (4, 3).

    Raises:
      UserError: it is not of this form.
    """
    clips, _, crops = views.partition("x")
    if not (clips.isdecimal() and crops.isdecimal() and int(clips) and int(crops)):
        raise UserError(f"views is {views}: write clips x crops, such as 4x3")
    return int(clips), int(crops)


def square_pixels(source: str | Path, data: GivenClipConfig) -> bool:
    """Whether pixels that are not square are stretched: as given, or as when a run was trained."""
    if data.square_pixels is not None:
        return data.square_pixels
    return cli.read_config(source).get("data", {}).get("square_pixels", True) if is_run(source) else True


def cut_clips(source: str | Path, model: nn.Module, data: GivenClipConfig, window: int | None = None) -> ClipConfig:
    """How clips are cut: as `data` says, else as usual; those of a window that runs through a video are dense.

    Args:
      source: of the model.
      window: sampled frames of a window; None for clips of whole videos.

    Raises:
      UserError: windows are not of dense sampling.
    """
    usual = usual_clips(source, model)
    clips = data.clips(usual)
    if window is not None:
        if clips.sampling != "dense":
            raise UserError(
                f"clips are sampled as {clips.sampling}, over the whole of a video: give "
                "--data.sampling dense and --data.stride, the distance of a window's frames"
            )
        clips = replace(clips, frames=window)
    if clips.frames != usual["frames"]:
        print(f"note: clips of {clips.frames} frames are given to a model that was made with {usual['frames']}")
    return clips


def usual_clips(source: str | Path, model: nn.Module) -> dict[str, Any]:
    """Fields of a `ClipConfig`: how clips were cut when a run was trained, or as a model's card and fields have it."""
    if is_run(source):
        saved: Mapping[str, Any] = cli.read_config(source)["data"]
        counting = {field.name for field in fields(ClipConfig) if matters(ClipConfig(), field.name) == "always"}
        return {name: value for name, value in saved.items() if name in counting}
    return {
        "frames": model.num_frames,
        "size": model.image_size,
        "stride": model.card.stride,
        "short_side": round(model.image_size / model.card.crop_ratio),
    }
