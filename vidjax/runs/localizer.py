"""The model of temporal localisation: an encoder joined to it, the weights that it starts from, and trained ones."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import InvalidRngError
from flax.traverse_util import unflatten_dict

from vidjax.convert.checkpoint import NAME, read_model
from vidjax.data.config import ClipConfig
from vidjax.data.feature_files import examples
from vidjax.data.segments import SegmentConfig
from vidjax.errors import UserError
from vidjax.models import create_model
from vidjax.models.video_localizer import VideoLocalizer
from vidjax.runs.clips import trained_card
from vidjax.runs.computing import computing_fields
from vidjax.runs.embedding import Encode, make_encode
from vidjax.runs.weights import Which, class_names, read_weights, start_from
from vidjax.runs.workdir import read_config
from vidjax.training.sharding import is_main_process

PARTS = "localizer", "encoder"
"""Names of the parts of a `VideoLocalizer`."""

CLASSIFIER = "classes/out/"
"""The only layer of a localiser that has a width by its classes."""


def join_encoder(config: Any, localizer: nn.Module) -> VideoLocalizer:
    """The localiser of a config that trains an encoder too, behind this encoder.

    Args:
      localizer: of features of any width.

    Raises:
      UserError: there is no such encoder, or it makes no features of such windows.
    """
    data = config.data
    clips, known = data.clips, create_model(config.encoder).__dataclass_fields__
    fields: dict[str, Any] = {"num_frames": clips.frames, "image_size": clips.size, "num_classes": None}
    fields = {name: value for name, value in fields.items() if name in known}
    encoder = create_model(config.encoder, **fields, **computing_fields(config, config.encoder))
    encoder = encoder.clone(card=trained_card(encoder.card, clips))
    joined = VideoLocalizer(encoder, localizer, clips.frames, int(data.stride), clips.size)
    inputs = joined.example_inputs()
    variables = jax.eval_shape(partial(joined.init, method="features"), jax.random.key(0), *inputs)

    def features(variables: dict[str, Any], *inputs: jax.Array) -> jax.Array:
        rngs, kept = dict.fromkeys(("dropout", "drop_path"), jax.random.key(0)), [*variables.keys() - {"params"}]
        return joined.apply(variables, *inputs, True, rngs=rngs, mutable=kept, method="features")[0]

    try:
        width = jax.eval_shape(features, variables, *inputs).shape[-1]
    except InvalidRngError as error:
        raise UserError(
            f"{config.encoder} selects tokens or frames at random in training, which needs losses of its own: choose "
            "another encoder"
        ) from error
    return joined.clone(localizer=localizer.clone(channels=width))


def start_weights(config: Any, model: nn.Module, variables: dict[str, Any]) -> dict[str, Any]:
    """Replaces new variables by those of `init_encoder_from` and `init_from`; see `runs.weights.start_from`.

    `init_from` is a run of the same kind, or for the localiser of an end-to-end model also one on features. If its
    classes are others, the last layer that classifies stays new.
    """
    if config.init_from:
        new = _new_classes(config.init_from, model)
        whole = {kind: tree for kind, tree in variables.items() if kind != "running"}
        path = Path(config.init_from).expanduser()
        if not isinstance(model, VideoLocalizer) or (
            (path / NAME).is_file() and isinstance(read_model(path), VideoLocalizer)
        ):
            prefix = "localizer/" if isinstance(model, VideoLocalizer) else ""
            variables = variables | start_from(config.init_from, model, whole, new=[prefix + path for path in new])[0]
        else:
            variables = _start_part("localizer", config.init_from, model, variables, new)
    if config.init_encoder_from:
        variables = _start_part("encoder", config.init_encoder_from, model, variables)
    return variables


def _new_classes(source: str, model: nn.Module) -> tuple[str, ...]:
    """The layer that stays new because it is of other classes, if the source says which it has; prints the classes."""
    known, names = class_names(source), model.card.class_names
    if not known or known == names:
        return ()
    unknown = [name for name in names if name not in known]
    if is_main_process():
        print(
            f"classes   the {len(known)} of {source} are not the {len(names)} of the data, of which it does not know "
            f"{len(unknown)}{': ' * bool(unknown)}{examples(unknown)}; the last layer that classifies starts new"
        )
    return (CLASSIFIER,)


def _start_part(
    name: str, source: str, model: nn.Module, variables: dict[str, Any], new: Sequence[str] = ()
) -> dict[str, Any]:
    inside = {kind: tree[name] for kind, tree in variables.items() if name in tree}
    inside, _ = start_from(source, getattr(model, name), inside, new=new, label=name)
    return {kind: tree | ({name: inside[kind]} if kind in inside else {}) for kind, tree in variables.items()}


def describe_steps(model: nn.Module) -> str:
    """What a step of the sequence is, for the plan of a run."""
    if isinstance(model, VideoLocalizer):
        return f"windows of {model.frames} frames, {model.stride} apart, {model.size} pixels"
    return f"{model.channels} channels"


def open_run(run: str, which: Which) -> tuple[nn.Module, dict[str, Any], tuple[Encode, ClipConfig, int] | None]:
    """A trained localiser with its variables, and the encoder that was trained with it, if one was.

    Returns:
      The model on features; its variables; and the encoder as a function, how its clips are sampled, and the sampled
      frames from one to the next, for `untrimmed.embed_files`.

    Raises:
      UserError: it is no run of localize.py.
    """
    saved = read_config(run)
    if "selection" not in saved:
        raise UserError(f"{run} is no run of localize.py: give one")
    model, (weights, _) = read_model(Path(run)), read_weights(run, which)
    variables = unflatten_dict(weights, sep="/")
    variables.pop("running", None)
    if not isinstance(model, VideoLocalizer):
        return model.clone(dtype=jnp.float32), variables, None
    inner, encoder = ({kind: tree[name] for kind, tree in variables.items() if name in tree} for name in PARTS)
    data = SegmentConfig(**{**saved["data"], **{name: tuple(saved["data"][name]) for name in ("ignored", "crop")}})
    encode = make_encode(model.encoder, encoder, data.clips, "mean")
    return model.localizer.clone(dtype=jnp.float32), inner, (encode, data.clips, model.stride)
