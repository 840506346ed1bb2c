"""A narrow model for every architecture with published weights, and variables that differ from initial values."""

from functools import cache
from math import prod

import numpy as np
import recipe
from flax.traverse_util import flatten_dict, unflatten_dict

import vidjax
from vidjax.models import variable_shapes
from vidjax.models.actionclip import VideoTower
from vidjax.models.adavit import AdaViT
from vidjax.models.albef import Albef
from vidjax.models.blip import Answerer, Blip, Captioner, Text
from vidjax.models.blip2 import Blip2, Blip2Language
from vidjax.models.chatglm import ChatGLM
from vidjax.models.clip import ImageTower
from vidjax.models.dalle import Decoder, Encoder
from vidjax.models.dynamicvit import DynamicViT
from vidjax.models.language import LanguageModel
from vidjax.models.qformer import QFormer
from vidjax.models.stts import STTS
from vidjax.models.t5 import T5
from vidjax.models.text import FusionBert, TextTower
from vidjax.models.uniformerv2 import UniFormerV2
from vidjax.models.video_text import Projected, VideoText
from vidjax.models.vit import ViT


def perturbed(model) -> dict:
    """Random variables, with scales and variances near one: none has its initial value."""
    shapes = variable_shapes(model)
    values = {}
    for path, leaf in flatten_dict(shapes, sep="/").items():
        if np.issubdtype(leaf.dtype, np.integer):
            values[path] = np.full(leaf.shape, 3, leaf.dtype)
            continue
        noise = 0.1 * np.tanh(recipe.floats(path, leaf.shape))
        around = 1.0 if path.endswith(("scale", "var")) else 0.0
        gain = 10 * prod(leaf.shape[:-1]) ** -0.5 if path.endswith("kernel") else 1.0
        values[path] = np.asarray(around + gain * noise, np.float32)
    return unflatten_dict(values, sep="/")


IMAGE = ImageTower(64, 1, 1, 16, patch_size=(1, 8, 8), image_size=16)
TEXT = TextTower(60, 7, 64, 1, 1, 16)
SMALL = {"width": 24, "depth": 1, "heads": 3}


def tiny(name: str, **fields):
    return vidjax.create_model(name, num_classes=5, **fields)


def actionclip(head: str, **fields) -> VideoText:
    image = IMAGE.clone(num_frames=4, **fields)
    return VideoText(
        VideoTower(image, head, head_depth=1, head_heads=2, head_context=4), TEXT.clone(width=128, heads=2)
    )


SEES = ViT(24, 1, 3, patch_size=(1, 8, 8), image_size=16)
OPT = LanguageModel(60, 12, 24, 2, 3, activation="relu", offset=2)
FLAN = T5(60, 24, 2, 3, 8, 40)
GLM = ChatGLM(60, 60, 24, 2, 3, 56, 57, 58)
QFORMER = {"queries": 4, "vocabulary": 60, "context": 7, "width": 24, "depth": 2, "heads": 3}

MODELS = {
    "vit": tiny("vit_tiny", **SMALL),
    "vit of features": vidjax.create_model("vit_tiny", **SMALL),
    "vivit": tiny("vivit_tiny_joint", **SMALL),
    "vivit 2": tiny("vivit_tiny_factorized_encoder", **SMALL),
    "vivit 3": tiny("vivit_tiny_factorized_self_attention", **SMALL),
    "vivit 4": tiny("vivit_tiny_factorized_dot_product", width=24, depth=1, heads=4),
    "timesformer": tiny("timesformer_tiny_divided", **SMALL),
    "timesformer joint": tiny("timesformer_tiny_joint", **SMALL),
    "timesformer space": tiny("timesformer_tiny_space", **SMALL),
    "uniformer": tiny("uniformer_tiny"),
    "uniformer split": tiny("uniformer_tiny_split"),
    "r2plus1d": tiny("r2plus1d_tiny", midplanes="per_block"),
    "r2plus1d of planes per convolution": tiny("r2plus1d_tiny", midplanes="per_convolution", epsilon=1e-3),
    "r2plus1d with shortcuts": tiny(
        "r2plus1d_34_mmaction2", depths=(1, 1, 1, 1), widths=(4, 8, 8, 8), num_frames=4, image_size=32
    ),
    "r3d": tiny("r3d_tiny"),
    "c3d": tiny("c3d_tiny"),
    "i3d": tiny("i3d_tiny"),
    "i3d of flow": tiny("i3d_tiny", channels=2),
    "i3d with scales": tiny("i3d_tiny", norm_scale=True),
    "s3d": tiny("s3d_tiny"),
    "p3d": tiny("p3d_tiny"),
    "videomae": tiny("videomae_tiny", **SMALL),
    "videomae of features": vidjax.create_model("videomae_tiny", **SMALL, final_norm=True),
    "videomae's pre-training": vidjax.create_model(
        "videomae_tiny_pretrain", **SMALL, decoder_width=12, decoder_depth=1, decoder_heads=3
    ),
    "vjepa": tiny("vjepa2_tiny", **SMALL, pooler_depth=1),
    "vjepa of features": vidjax.create_model("vjepa2_tiny", **SMALL),
    "vjepa's pre-training": vidjax.create_model(
        "vjepa2_tiny_pretrain", **SMALL, predictor_width=12, predictor_depth=1, predictor_heads=2, mask_tokens=3
    ),
    "vjepa 2.1 of features": vidjax.create_model("vjepa2_1_tiny", width=24, depth=2, heads=3, levels=(0, 1)),
    "vjepa 2.1's pre-training": vidjax.create_model(
        "vjepa2_1_tiny_pretrain",
        **{"width": 24, "depth": 2, "heads": 3, "levels": (0, 1), "predicted_levels": 2},
        **{"predictor_width": 12, "predictor_depth": 1, "predictor_heads": 2, "mask_tokens": 3},
    ),
    "clip": VideoText(IMAGE, TEXT),
    "clip's image tower": IMAGE,
    "clip's text tower": TEXT,
    "viclip": VideoText(IMAGE.clone(joint=True, num_frames=4), TEXT),
    "viclip's image tower": IMAGE.clone(joint=True, num_frames=4),
    "internvideo's pair": VideoText(
        Projected(UniFormerV2(64, 1, 1, (0,), patch_size=(1, 8, 8), num_frames=4, image_size=16), 16), TEXT
    ),
    "albef": Albef(
        ViT(24, 1, 3, patch_size=(1, 8, 8), image_size=16), FusionBert(60, 7, 24, 2, 3, fusion_depth=1), 16, 5
    ),
    "gpt2": LanguageModel(60, 12, 24, 2, 3),
    "opt": OPT,
    "t5": T5(60, 24, 2, 3, 8, 40, gated=False, tied=True),
    "t5 1.1": FLAN,
    "chatglm": GLM,
    "blip": Blip(SEES, Text(60, 7, 24, 2, 3), 16, 5),
    "blip for retrieval": Blip(SEES, Text(60, 7, 24, 2, 3), 16, writes=False),
    "blip for retrieval of transformers": Blip(SEES.clone(epsilon=1e-5), Text(60, 7, 24, 2, 3), 16, writes=False),
    "blip for captions": Captioner(SEES, Text(60, 7, 24, 2, 3)),
    "blip for captions of transformers": Captioner(SEES.clone(epsilon=1e-5), Text(60, 7, 24, 2, 3)),
    "blip for questions": Answerer(SEES, Text(60, 7, 24, 2, 3), Text(60, 7, 24, 2, 3)),
    "blip for questions of transformers": Answerer(
        SEES.clone(epsilon=1e-5), Text(60, 7, 24, 2, 3), Text(60, 7, 24, 2, 3)
    ),
    "blip2": Blip2(SEES, QFormer(**QFORMER), 16),
    "blip2 for retrieval": Blip2(SEES, QFormer(**QFORMER, writes=False), 16),
    "blip2 with opt": Blip2Language(SEES, QFormer(**QFORMER | {"vocabulary": None}, writes=False), OPT),
    "blip2 with t5": Blip2Language(SEES, QFormer(**QFORMER | {"vocabulary": None}, writes=False), FLAN),
    "visualglm": Blip2Language(SEES, QFormer(4, None, width=24, depth=2, heads=3, writes=False), GLM),
    "instructblip": Blip2Language(SEES, QFormer(**QFORMER, writes=False), OPT),
    "actionclip": actionclip("transf"),
    "actionclip joint": actionclip("mean", joint=True),
    "actionclip with shift": actionclip("lstm", shift=True),
    "actionclip with a class token": actionclip("transf_cls"),
}  # fmt: skip

MODELS |= {
    "hiera": tiny("hiera_tiny"),
    "hiera of images": tiny("hiera_tiny_image"),
    "hiera's pre-training": vidjax.create_model("hiera_tiny_mae"),
    "hiera's pre-training of images": vidjax.create_model("hiera_tiny_mae", images=True, num_frames=1),
    "videoprism": tiny("videoprism_tiny"),
    "videoprism of features": vidjax.create_model("videoprism_tiny"),
    "videoprism with text": vidjax.create_model("videoprism_tiny_lvt"),
    "videoprism with text of transformers": vidjax.create_model(
        "videoprism_tiny_lvt", text={"frequencies": "transformers"}
    ),
    "beit": tiny("beit_tiny"),
    "beit of features": vidjax.create_model("beit_tiny", shared_positions=True, epsilon=1e-12, scale=0.2),
    "beit's pre-training": vidjax.create_model("beit_tiny_pretrain"),
    "bevt's pre-training": vidjax.create_model("bevt_tiny"),
    "dalle": vidjax.create_model("dalle_tiny"),
    "dalle's encoder": Encoder(16, 1, 32, image_size=16),
    "dalle's decoder": Decoder(16, 12, 1, 32, image_size=16),
    "raft": vidjax.create_model("raft_tiny"),
    "dynamicvit": DynamicViT(
        ViT(24, 4, 2, patch_size=(1, 8, 8), num_classes=5, image_size=32), locations=(1, 2), keep=0.6
    ),
    "adavit": AdaViT(ViT(24, 2, 2, patch_size=(1, 8, 8), num_classes=5, image_size=16)),
    "ada3d": tiny("ada3d_tiny"),
    "stts": STTS(tiny("mvit_tiny"), frames=((0, 0.5),), regions=((1, 0.6),)),
    "stts of stages": tiny("stts_video_swin_tiny"),
    "siglip": vidjax.create_model("siglip2_tiny"),
    "siglip of any shape": vidjax.create_model("siglip2_tiny", flexible=True),
    "siglip with text": vidjax.create_model("siglip2_tiny_pair"),
    "siglip of any shape with text": vidjax.create_model("siglip2_tiny_pair", flexible=True),
}

# The tiny rows of other families.
LISTED = {type(model) for model in MODELS.values()}
MODELS |= {
    name: tiny(name)
    for name in vidjax.list_models("_tiny")
    if (model := vidjax.create_model(name)) and type(model) not in LISTED and hasattr(model, "num_classes")
}


@cache
def variables_of(name: str) -> dict:
    """The variables of one of these models, cached for several tests."""
    return perturbed(MODELS[name])
