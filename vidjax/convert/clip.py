"""Layouts of CLIP and ViCLIP, for both towers or one: the official releases, and Hugging Face's CLIP directories.

ActionCLIP's release has OpenAI's names too, with an extra level in shifted blocks (`resblocks.0.net.`), as do ViCLIP's
towers, whose image tower has joint attention.
"""

from dataclasses import replace

import numpy as np

from vidjax.convert import clip_config
from vidjax.convert.blocks import block, packed_attention, separate_attention
from vidjax.convert.files import Weights
from vidjax.convert.fits import first, inflate, table
from vidjax.convert.rules import Fit, Layout, Rule, Transform, image_kernel, kernel, norm, strip
from vidjax.errors import UserError
from vidjax.models.clip import ImageTower
from vidjax.models.text import TextTower
from vidjax.models.video_text import VideoText


def openai_block(source: str, target: str) -> tuple[Rule, ...]:
    """A block with OpenAI's names."""
    attention = packed_attention(f"{source}.attn", f"{target}/attention")
    return block(source, target, attention, ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj"))


def hugging_face_block(source: str, target: str) -> tuple[Rule, ...]:
    """A block with the names of Hugging Face's CLIP."""
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    attention = {part: f"{source}.self_attn.{name}" for part, name in names.items()}
    names = ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")
    return block(source, target, separate_attention(f"{target}/attention", **attention), names)


def rows(table: np.ndarray) -> np.ndarray:
    """Flattens a table `(*grid, d)` to `(n, d)`."""
    return table.reshape(-1, table.shape[-1])


def image_tables(class_token: str, positions: str, target: str) -> tuple[Rule, ...]:
    """The class token `(d,)`, and a position table `(1 + n, d)` whose first entry is that of the class token."""
    return (
        Rule(class_token, f"{target}class_token", Transform(lambda value: value.reshape(1, 1, -1), np.ravel)),
        Rule(positions, f"{target}class_position", Transform(lambda value: value[None, :1], rows, 0, axis=0)),
        Rule(positions, f"{target}position/table", Transform(lambda value: value[1:], rows, 1, axis=0), table("cubic")),
    )


TIMES = Transform(lambda value: value.reshape(value.shape[-2:]), lambda table: table)
VICLIP_TIMES = Transform(TIMES.forward, lambda table: table[None])  # with a leading axis of size 1


def openai_image(
    source: str = "visual.",
    target: str = "",
    time: str = "time_embedding",
    times: Transform = TIMES,
    patches: Transform = image_kernel,
    fit: Fit = inflate,
) -> tuple[Rule, ...]:
    """The image tower with OpenAI's names.

    Args:
      source: prefix of the published names.
      target: prefix of our paths.
      time: name of the time embedding of a joint tower, by default that in ActionCLIP's release.
      times: transform of the time embedding.
      patches: transform of the patch embedding's kernel, by default an image kernel.
      fit: how that of an image becomes one of clips.
    """
    return (
        *image_tables(f"{source}class_embedding", f"{source}positional_embedding", target),
        Rule(f"{source}{time}", f"{target}time/table", times, table("linear")),
        Rule(f"{source}conv1.weight", f"{target}patch_embedding/kernel", patches, fit),
        *norm(f"{source}ln_pre", f"{target}norm_pre"),
        *openai_block(f"{source}transformer.resblocks.{{i}}", f"{target}transformer/block_{{i}}"),
        *norm(f"{source}ln_post", f"{target}norm_post"),
        Rule(f"{source}proj", f"{target}projection/kernel"),
    )


def openai_text(source: str = "", target: str = "") -> tuple[Rule, ...]:
    """The text tower with OpenAI's names."""
    return (
        Rule(f"{source}token_embedding.weight", f"{target}token_embedding/embedding"),
        Rule(f"{source}positional_embedding", f"{target}position", fit=first),
        *openai_block(f"{source}transformer.resblocks.{{i}}", f"{target}transformer/block_{{i}}"),
        *norm(f"{source}ln_final", f"{target}norm"),
        Rule(f"{source}text_projection", f"{target}projection/kernel"),
    )


def hugging_face_image(target: str = "", fit: Fit = inflate) -> tuple[Rule, ...]:
    """The image tower with Hugging Face's names, including their spelling of `pre_layrnorm`; see `openai_image`."""
    embeddings = "vision_model.embeddings"
    return (
        *image_tables(f"{embeddings}.class_embedding", f"{embeddings}.position_embedding.weight", target),
        Rule(f"{embeddings}.patch_embedding.weight", f"{target}patch_embedding/kernel", image_kernel, fit),
        *norm("vision_model.pre_layrnorm", f"{target}norm_pre"),
        *hugging_face_block("vision_model.encoder.layers.{i}", f"{target}transformer/block_{{i}}"),
        *norm("vision_model.post_layernorm", f"{target}norm_post"),
        Rule("visual_projection.weight", f"{target}projection/kernel", kernel),
    )


def hugging_face_text(target: str = "") -> tuple[Rule, ...]:
    """The text tower with Hugging Face's names."""
    return (
        Rule("text_model.embeddings.token_embedding.weight", f"{target}token_embedding/embedding"),
        Rule("text_model.embeddings.position_embedding.weight", f"{target}position", fit=first),
        *hugging_face_block("text_model.encoder.layers.{i}", f"{target}transformer/block_{{i}}"),
        *norm("text_model.final_layer_norm", f"{target}norm"),
        Rule("text_projection.weight", f"{target}projection/kernel", kernel),
    )


SCALE = Rule("logit_scale", "logit_scale", Transform(lambda value: value.reshape(()), lambda value: value))
MIN_TEMPERATURE = 0.01  # lower bound of ViCLIP's temperature, by which logits are divided


def scale_of(temperature: np.ndarray | np.floating) -> np.ndarray:
    """Converts ViCLIP's temperature to the logarithm of a factor."""
    return np.asarray(-np.log(np.maximum(temperature, MIN_TEMPERATURE, dtype=np.float64)), np.float32)


def temperature_of(scale: np.ndarray) -> np.ndarray:
    """The inverse of `scale_of`: the nearest float32 temperature that it converts to exactly this scale.

    Raises:
      UserError: there is none, because ViCLIP's temperature is at least 0.01, and because float32 values between 0.5
        and 1 are spaced more coarsely than their logarithms.
    """
    nearest = np.exp(-scale.astype(np.float64)).astype(np.float32)
    for temperature in (nearest, *(np.nextafter(nearest, np.float32(limit)) for limit in (0, np.inf))):
        if scale_of(temperature) == scale:
            return np.asarray(temperature)
    raise UserError(f"logit_scale is {scale}, which no temperature of ViCLIP gives: use openai or vidjax")


TEMPERATURE = Rule("temp", "logit_scale", Transform(scale_of, temperature_of))
VICLIP_TIME = "temporal_positional_embedding"
HEAD_WIDTH = 64  # in every release, which derives the number of heads from it
SIZES = ("input_resolution", "context_length", "vocab_size")  # numbers stored with OpenAI's weights


def prepare_openai(weights: Weights) -> Weights:
    """Removes the numbers that are not parameters, and the extra level in the names of shifted blocks."""
    weights = {name: value for name, value in strip(weights, "module.").items() if name not in SIZES}
    return {name.replace(".net.", "."): value for name, value in weights.items()}


def prepare_openai_image(weights: Weights) -> Weights:
    """As `prepare_openai`, and adds the image tower's prefix if it is missing."""
    weights = prepare_openai(weights)
    has_no_prefix = "class_embedding" in weights
    return {f"visual.{name}": value for name, value in weights.items()} if has_no_prefix else weights


def prepare_viclip_image(weights: Weights) -> Weights:
    """Adds the prefix of ViCLIP's image tower if it is missing."""
    has_no_prefix = VICLIP_TIME in weights
    return {f"vision_encoder.{name}": value for name, value in weights.items()} if has_no_prefix else weights


def check_heads(field: str, heads: int, width: int) -> None:
    """Raises `UserError` if the number of heads is not the release's, which the weights do not record.

    Args:
      field: the field in the message.
      heads: number of heads of the model.
      width: width from which the release derives its number of heads.
    """
    expected = width // HEAD_WIDTH
    if heads != expected:
        raise UserError(f"{field} is {heads}, but the release has {width} // {HEAD_WIDTH}: set it to {expected}")


def check_towers(model: VideoText) -> None:
    """Checks the heads of both towers."""
    check_heads("heads of the video tower", model.video.heads, model.video.width)
    check_heads("heads of the text tower", model.text.heads, model.text.width)


def check_tower(model: ImageTower | TextTower) -> None:
    """Checks the heads of one tower."""
    check_heads("heads", model.heads, model.width)


def prepare_hugging_face(weights: Weights) -> Weights:
    """Removes the indices 0, 1, 2, ... in older files."""
    return {name: value for name, value in weights.items() if not name.endswith(".position_ids")}


TIME, BIAS = "time/", "logit_bias"  # new if a joint tower starts from an image tower, or a sigmoid loss from CLIP

OPENAI = Layout(
    name="OpenAI's CLIP",
    key="openai",
    marker="visual.proj",
    prepare=prepare_openai,
    rules=(*openai_image(target="video/"), *openai_text(target="text/"), SCALE),
    optional=(f"video/{TIME}", BIAS),
    surplus=(),
)
HUGGING_FACE = Layout(
    name="Hugging Face's CLIP",
    key="transformers",
    fixed={"video.joint": False, "video.shift": False},
    format="safetensors",
    marker="vision_model.embeddings.class_embedding",
    prepare=prepare_hugging_face,
    rules=(*hugging_face_image("video/"), *hugging_face_text("text/"), SCALE),
    optional=(f"video/{TIME}", BIAS),
    surplus=(),
)
OPENAI_IMAGE = Layout(
    name="OpenAI's CLIP", key="openai", marker="visual.proj", prepare=prepare_openai_image, rules=openai_image(),
    optional=(TIME,), surplus=(),
)  # fmt: skip
HUGGING_FACE_IMAGE = Layout(
    name="Hugging Face's CLIP", key="transformers", marker=HUGGING_FACE.marker, prepare=prepare_hugging_face,
    rules=hugging_face_image(), optional=(TIME, "projection/"), surplus=(), format="safetensors",
    fixed={"joint": False, "shift": False},
)  # fmt: skip
OPENAI_TEXT = Layout(
    name="OpenAI's CLIP",
    key="openai",
    marker="text_projection",
    prepare=prepare_openai,
    rules=openai_text(),
    optional=(),
    surplus=(),
)
HUGGING_FACE_TEXT = Layout(
    name="Hugging Face's CLIP",
    key="transformers",
    format="safetensors",
    marker="text_model.embeddings.token_embedding.weight",
    prepare=prepare_hugging_face,
    rules=hugging_face_text(),
    optional=("projection/",),
    surplus=(),
)

VICLIP = Layout(
    name="OpenGVLab's ViCLIP",
    key="viclip",
    wrap=lambda content: {"model": content},
    marker=f"vision_encoder.{VICLIP_TIME}",
    rules=(
        *openai_image("vision_encoder.", "video/", VICLIP_TIME, VICLIP_TIMES, kernel),
        *openai_text("text_encoder.", "text/"),
        TEMPERATURE,
    ),
    optional=(BIAS,),
    surplus=(),
    check=check_towers,
)
VICLIP_IMAGE = Layout(
    name=VICLIP.name, marker=VICLIP.marker, prepare=prepare_viclip_image,
    rules=openai_image("vision_encoder.", "", VICLIP_TIME, VICLIP_TIMES, kernel), optional=(), surplus=(),
    check=check_tower, key="viclip", wrap=VICLIP.wrap,
)  # fmt: skip
VICLIP_TEXT = Layout(
    name=VICLIP.name, marker="text_encoder.text_projection", rules=openai_text("text_encoder."), optional=(),
    surplus=(), check=check_tower, key="viclip", wrap=VICLIP.wrap,
)  # fmt: skip


def of_openai(tower: ImageTower | TextTower, prefix: str = "", **others: object) -> dict[str, object]:
    """The fields of a tower that are fixed in the code of OpenAI and ViCLIP; see `Layout.fixed`.

    Args:
      tower: an image or text tower.
      prefix: path of the tower in a pair.
      others: further fixed fields.
    """
    fields = {"activation": "quick_gelu", "epsilon": 1e-5, "heads": tower.width // HEAD_WIDTH, **others}
    fields |= {"end_token": None} if isinstance(tower, TextTower) else {}
    return {prefix + field: value for field, value in fields.items()}


def layouts(model: VideoText) -> tuple[Layout, ...]:
    """The layouts of a pair; ViCLIP's only if its video tower has joint attention."""
    text = of_openai(model.text, "text.")
    openai = replace(OPENAI, fixed=of_openai(model.video, "video.", joint=False, shift=False) | text)
    viclip = replace(VICLIP, fixed=of_openai(model.video, "video.") | text)
    return openai, HUGGING_FACE, *((viclip,) if model.video.joint else ())


def image_layouts(model: ImageTower) -> tuple[Layout, ...]:
    """The layouts of a single image tower."""
    openai = replace(
        OPENAI_IMAGE,
        fixed=of_openai(model, joint=False, shift=False),
        excludes=lambda entries, prepared: VICLIP_TIME in entries,
    )
    viclip = replace(VICLIP_IMAGE, fixed=of_openai(model))
    return *((viclip,) if model.joint else ()), openai, HUGGING_FACE_IMAGE


def text_layouts(model: TextTower) -> tuple[Layout, ...]:
    """The layouts of a single text tower."""
    viclip, openai = (replace(layout, fixed=of_openai(model)) for layout in (VICLIP_TEXT, OPENAI_TEXT))
    return viclip, openai, HUGGING_FACE_TEXT


LAYOUTS = {
    (VideoText, ImageTower): layouts,
    ImageTower: image_layouts,
    TextTower: text_layouts,
}
CONFIGS, TO_CONFIGS = clip_config.CONFIGS, clip_config.TO_CONFIGS
