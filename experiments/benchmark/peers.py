"""The same architectures in PyTorch, of equal size, from widely used libraries.

VideoMAE, ViViT and TimeSformer come from transformers, with SDPA attention if implemented there, and the training of
V-JEPA 2 and of BLIP from its layers (`torch_vjepa`, `torch_blip`); video ResNets, S3D, MViT and Video Swin come from
torchvision; UniFormer, UniFormerV2, SlowFast, X3D, CSN, TSM, C3D and I3D, which no maintained package provides, are the
modules of `torch_uniformer`, `torch_uniformerv2`, `torch_convolutions` and `torch_older`.
"""

import importlib.util
from collections.abc import Callable
from math import prod
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

import flax.linen as nn

from benchmark.ours import CLASSES, is_masked_autoencoder
from vidjax.errors import UserError
from vidjax.models import vjepa
from vidjax.models.blip import Blip
from vidjax.models.c3d import C3D
from vidjax.models.csn import ChannelSeparatedNetwork
from vidjax.models.inception3d import Inception3D
from vidjax.models.mvit import MViT
from vidjax.models.resnet3d import ResNet3D
from vidjax.models.slowfast import SlowFast
from vidjax.models.timesformer import TimeSformer
from vidjax.models.tsn import SegmentNetwork
from vidjax.models.uniformer import UniFormer
from vidjax.models.uniformerv2 import UniFormerV2
from vidjax.models.video_swin import VideoSwin
from vidjax.models.videomae import Pretraining, VideoMAE
from vidjax.models.vivit import ViViT
from vidjax.models.x3d import X3D

if TYPE_CHECKING:
    import torch


class NoPeerError(UserError):
    """There is no PyTorch peer of the model, or its library is not installed."""


def make_peer(name: str, model: nn.Module) -> tuple["torch.nn.Module", str]:
    """The PyTorch peer of a model, and the order of its video axes: `b c t h w` or `b t c h w`.

    Args:
      name: the variant.
      model: vidjax's model, whose sizes the peer takes.

    Raises:
      NoPeerError: there is no peer, or its library is not installed.
    """
    makers: dict[type, tuple[Callable, str]] = {
        VideoMAE: (_videomae, "b t c h w"),
        Pretraining: (_videomae, "b t c h w"),
        ViViT: (_vivit, "b t c h w"),
        TimeSformer: (_timesformer, "b t c h w"),
        UniFormer: (_uniformer, "b c t h w"),
        UniFormerV2: (_uniformerv2, "b c t h w"),
        ResNet3D: (_resnet3d, "b c t h w"),
        C3D: (_c3d, "b c t h w"),
        Inception3D: (_inception3d, "b c t h w"),
        SlowFast: (_slowfast, "b c t h w"),
        X3D: (_x3d, "b c t h w"),
        ChannelSeparatedNetwork: (_csn, "b c t h w"),
        SegmentNetwork: (_segment_network, "b t c h w"),
        MViT: (_mvit, "b c t h w"),
        VideoSwin: (_video_swin, "b c t h w"),
        vjepa.Pretraining: (_vjepa, "b t c h w"),
        Blip: (_blip, "b t c h w"),
    }
    if type(model) not in makers:
        raise NoPeerError(f"no PyTorch peer of {name} is known")
    make, axes = makers[type(model)]
    return make(name, model), axes


def import_torchvision() -> ModuleType:
    """torchvision, without its compiled operators if they do not match the installed PyTorch: no model needs them.

    Raises:
      NoPeerError: torchvision is not installed.
    """
    import torch

    if not importlib.util.find_spec("torchvision"):
        raise NoPeerError("torchvision is not installed: pip install torchvision")
    register = torch.library.register_fake

    def register_what_exists(*args, **kwargs) -> Callable:
        def decorate(function: Callable) -> Callable:
            try:
                return register(*args, **kwargs)(function)
            except RuntimeError:  # "operator torchvision::nms does not exist"
                return function

        return decorate

    with mock.patch.object(torch.library, "register_fake", register_what_exists):
        import torchvision.models.video

    return torchvision


def import_transformers() -> ModuleType:
    """transformers, which imports torchvision if installed.

    Raises:
      NoPeerError: transformers is not installed.
    """
    if not importlib.util.find_spec("transformers"):
        raise NoPeerError("transformers is not installed: pip install transformers")
    if importlib.util.find_spec("torchvision"):
        import_torchvision()
    import transformers

    return transformers


def _sizes(model: nn.Module) -> dict[str, Any]:
    """Fields that the three families' configs in transformers have in common."""
    return {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": int(model.width * model.mlp_ratio),
        "num_frames": model.num_frames,
        "image_size": model.image_size,
        "num_labels": CLASSES,
    }


def _from_config(kind: type, config: Any) -> "torch.nn.Module":
    try:
        return kind._from_config(config, attn_implementation="sdpa")
    except ValueError:  # transformers has no SDPA attention for TimeSformer
        return kind._from_config(config, attn_implementation="eager")


def _videomae(name: str, model: VideoMAE | Pretraining) -> "torch.nn.Module":
    library = import_transformers()
    tubelet, patch, _ = model.patch_size
    sizes = {**_sizes(model), "tubelet_size": tubelet, "patch_size": patch}
    if not is_masked_autoencoder(model):
        return _from_config(library.VideoMAEForVideoClassification, library.VideoMAEConfig(**sizes))
    decoder = {
        "decoder_hidden_size": model.decoder_width,
        "decoder_num_hidden_layers": model.decoder_depth,
        "decoder_num_attention_heads": model.decoder_heads,
        "decoder_intermediate_size": int(model.decoder_width * model.mlp_ratio),
    }
    config = library.VideoMAEConfig(**sizes, **decoder, use_mean_pooling=False)  # ends with a norm, as in vidjax
    return _from_config(library.VideoMAEForPreTraining, config)


def _vjepa(name: str, model: vjepa.Pretraining) -> "torch.nn.Module":
    library = import_transformers()
    from benchmark import torch_vjepa

    return torch_vjepa.make(library, model)


def _blip(name: str, model: Blip) -> "torch.nn.Module":
    if not model.writes:
        raise NoPeerError(f"the PyTorch peer of BLIP writes captions, {name} does not: choose blip_tiny or blip_base")
    library = import_transformers()
    from benchmark import torch_blip

    return torch_blip.make(library, model)


def _vivit(name: str, model: ViViT) -> "torch.nn.Module":
    if (model.attention, model.embedding) != ("joint", "tubelet"):
        raise NoPeerError(f"transformers' ViViT has only joint attention over tubelets, not that of {name}")
    library = import_transformers()
    config = library.VivitConfig(**_sizes(model), tubelet_size=list(model.patch_size))
    return _from_config(library.VivitForVideoClassification, config)


def _timesformer(name: str, model: TimeSformer) -> "torch.nn.Module":
    kinds = {"divided": "divided_space_time", "joint": "joint_space_time", "space": "space_only"}
    if model.attention not in kinds:
        raise NoPeerError(f"transformers' TimeSformer has no {model.attention} attention")
    library = import_transformers()
    config = library.TimesformerConfig(
        **_sizes(model),
        patch_size=model.patch_size[-1],
        attention_type=kinds[model.attention],
    )
    vars(config)["drop_path_rate"] = model.drop_path  # declared there as an integer, which its constructor checks
    return _from_config(library.TimesformerForVideoClassification, config)


def _uniformer(name: str, model: UniFormer) -> "torch.nn.Module":
    from benchmark import torch_uniformer

    fields = ("widths", "depths", "head_width", "mlp_ratio", "split", "temporal_overlap", "drop_path")
    return torch_uniformer.UniFormer(**{field: getattr(model, field) for field in fields}, num_classes=CLASSES)


def _uniformerv2(name: str, model: UniFormerV2) -> "torch.nn.Module":
    if model.frozen or model.fusion != "sequential":
        raise NoPeerError(f"there is no PyTorch peer of {name} with fusion {model.fusion} and frozen {model.frozen}")
    from benchmark import torch_uniformerv2

    fields = (
        "width", "depth", "heads", "global_layers", "mlp_ratio", "local", "patch_size", "image_size", "dropout",
        "drop_path", "global_drop_path",
    )  # fmt: skip
    return torch_uniformerv2.UniFormerV2(**{field: getattr(model, field) for field in fields}, num_classes=CLASSES)


def _resnet3d(name: str, model: ResNet3D) -> "torch.nn.Module":
    plain = model.widths == (64, 128, 256, 512) and not (model.fold_frames or model.factorized_shortcut)
    stems = {"3d": "BasicStem", "2plus1d": "R2Plus1dStem"}
    if not plain or model.stem_planes != 45 or model.groups[0] not in stems:
        raise NoPeerError(f"torchvision has no {name}")
    library = import_torchvision().models.video.resnet

    class OfThePaper(library.Conv2Plus1D):
        """Computes the planes of each convolution, as in the paper; torchvision computes them once per block."""

        def __init__(self, inputs: int, outputs: int, planes: int, *args, **kwargs) -> None:
            planes = 27 * inputs * outputs // (9 * inputs + 3 * outputs)
            super().__init__(inputs, outputs, planes, *args, **kwargs)

    factorized = library.Conv2Plus1D if model.midplanes == "per_block" else OfThePaper
    convolutions = {"2d": library.Conv3DNoTemporal, "3d": library.Conv3DSimple, "2plus1d": factorized}
    return library.VideoResNet(
        library.BasicBlock,
        [convolutions[kind] for kind in model.groups[1:]],
        list(model.depths),
        getattr(library, stems[model.groups[0]]),
        num_classes=CLASSES,
    )


def _c3d(name: str, model: C3D) -> "torch.nn.Module":
    from benchmark import torch_older

    fields = (model.width, model.hidden, model.dropout, model.num_frames, model.image_size)
    return torch_older.C3D(*fields, CLASSES)


def _inception3d(name: str, model: Inception3D) -> "torch.nn.Module":
    if not model.separable:
        from benchmark import torch_older

        return torch_older.I3D(model.width_multiplier, model.channels, model.dropout, CLASSES)
    if name != "s3d":
        raise NoPeerError(f"torchvision has no {name}")
    return import_torchvision().models.video.s3d(num_classes=CLASSES)


def _slowfast(name: str, model: SlowFast) -> "torch.nn.Module":
    plain = model.lateral == "time_strided_convolution" and model.dialect != "mmaction2"
    if not plain or any(model.nonlocal_after):
        raise NoPeerError(f"no PyTorch peer of {name} is known")
    from benchmark import torch_convolutions

    fields = ("alpha", "slow_kernels", "fast_kernels", "depths", "width", "channel_ratio", "lateral_kernel", "dropout")
    return torch_convolutions.SlowFast(**{field: getattr(model, field) for field in fields}, classes=CLASSES)


def _x3d(name: str, model: X3D) -> "torch.nn.Module":
    from benchmark import torch_convolutions

    fields = ("widths", "depths", "stem_width", "expansion", "head_width", "dropout")
    return torch_convolutions.X3D(**{field: getattr(model, field) for field in fields}, classes=CLASSES)


def _csn(name: str, model: ChannelSeparatedNetwork) -> "torch.nn.Module":
    from benchmark import torch_convolutions

    return torch_convolutions.CSN(model.kind == "ip", model.depths, model.width, model.dropout, CLASSES)


def _segment_network(name: str, model: SegmentNetwork) -> "torch.nn.Module":
    if model.shift == "past" or model.temporal_pool or model.stack > 1 or model.width != 64:
        raise NoPeerError(f"no PyTorch peer of {name} is known")
    from benchmark import torch_convolutions

    shifts, resnet = model.shift == "both", import_torchvision().models.resnet
    return torch_convolutions.SegmentNetwork(
        resnet, model.depths, model.num_frames, shifts, model.shift_every, model.dropout, CLASSES
    )


def _mvit(name: str, model: MViT) -> "torch.nn.Module":
    if model.kernel is None:
        raise NoPeerError(f"torchvision has no {name}: its pooling kernels are of one size")
    library, blocks = import_torchvision().models.video.mvit, []
    for scale, depth in enumerate(model.depths):
        width, key_stride = model.width * 2**scale, max(model.key_stride // 2**scale, 1)
        for i in range(depth):
            first, last = scale > 0 and i == 0, i == depth - 1 and scale < len(model.depths) - 1
            before = width // 2 if first and model.expand_in_attention else width
            after = 2 * width if last and not model.expand_in_attention else width
            stride, pooled = 2 if first else 1, model.relative or first
            blocks.append(
                library.MSBlockConfig(
                    model.heads * 2**scale, before, after, [3] * 3 if pooled else [], [3] * 3,
                    [1, stride, stride] if pooled else [], [1, key_stride, key_stride],
                )
            )  # fmt: skip
    return library.MViT(
        (model.image_size,) * 2, model.num_frames, blocks, residual_pool=model.relative, residual_with_cls_embed=False,
        rel_pos_embed=model.relative, proj_after_attn=model.expand_in_attention, dropout=model.dropout,
        stochastic_depth_prob=model.drop_path, num_classes=CLASSES,
    )  # fmt: skip


def _video_swin(name: str, model: VideoSwin) -> "torch.nn.Module":
    library = import_torchvision().models.video.swin_transformer
    return library.SwinTransformer3d(
        list(model.patch_size), model.width, list(model.depths), list(model.heads), list(model.window),
        stochastic_depth_prob=model.drop_path, num_classes=CLASSES,
    )  # fmt: skip


def check_parameters(peer: "torch.nn.Module", ours: int, positions: int) -> tuple[int, str]:
    """The peer's number of parameters, and a remark if it differs from vidjax's.

    Args:
      ours: number of parameters of vidjax's model.
      positions: the part of it in position tables, which the libraries may store differently.

    Raises:
      NoPeerError: the numbers differ by more than position tables, so that the models are not comparable.
    """
    count = sum(prod(parameter.shape) for parameter in peer.parameters())
    if count == ours:
        return count, ""
    counts = f"PyTorch's model has {count:,} parameters, vidjax's {ours:,}"
    if abs(count - ours) > positions:
        raise NoPeerError(f"not the same model: {counts}")
    return count, f"{counts}: position tables differ"
