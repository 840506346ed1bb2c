"""A frozen CLIP as the teacher of a student that sees a few tokens (`objectives.unmasked`)."""

from functools import partial

import jax
from jaxtyping import Array, Float

from vidjax.errors import UserError
from vidjax.layers.patches import grid
from vidjax.models.clip import ImageTower
from vidjax.models.video_text import VideoText
from vidjax.runs.weights import load_pretrained, require_source
from vidjax.training.sharding import is_main_process


def load_clip(source: str, clip: jax.ShapeDtypeStruct, layers: int) -> tuple[VideoText, dict, tuple[int, int, int]]:
    """A frozen CLIP without its text tower's parameters, these, and the grid of its tokens for a clip of this shape.

    Raises:
      UserError: there are no such weights, they are not CLIP's, or its tower has fewer layers or takes no such clips.
    """
    require_source("teacher", source)
    teacher, variables = load_pretrained(source, verbose=is_main_process())
    tower = getattr(teacher, "video", None)
    if not isinstance(teacher, VideoText) or type(tower) is not ImageTower or tower.joint:
        raise UserError(
            f"teacher {source} is no CLIP: its masks need the attention of a class token in each frame, give a CLIP"
        )
    if layers > tower.depth:
        raise UserError(f"layers is {layers}, but the teacher has {tower.depth}: use {tower.depth} or fewer")
    return teacher, {"params": variables["params"]["video"]}, grid(clip.shape[1:4], tower.patch_size)


def see(
    teacher: VideoText, variables: dict, pixels: Array, layers: int
) -> tuple[Float[Array, "k b n e"], Float[Array, "b f m"]]:
    """The features of the last layers, and the class token's attention to each frame's patches in the last one.

    The attention is the mean over heads.

    Args:
      variables: see `load_clip`.
      pixels: uint8.
    """
    tower = teacher.video.clone(scan=False)
    apply = partial(tower.apply, method="layers", mutable=["intermediates"])
    features, state = apply(variables, teacher.card.preprocess(pixels), layers)
    last = state["intermediates"]["transformer"][f"block_{tower.depth - 1}"]["attention"]["dot_product"]
    (weights,) = last["weights"]
    attention = weights.mean(axis=1)[:, 0, 1:]
    return jax.lax.stop_gradient((features, attention.reshape(len(pixels), -1, attention.shape[-1])))
