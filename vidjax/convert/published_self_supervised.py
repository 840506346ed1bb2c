"""Published checkpoints of encoders trained without labels since 2025, and of probes on them; see `published`."""

from functools import partial

from vidjax.convert.publication import APACHE, MIT, SSV2_CLASSES, Published

# The licence of a directory is that of its model card, that of a file the repository's.
vjepa2 = partial(Published, facts="facebookresearch/vjepa2 README.md")
encoder = partial(vjepa2, layout="original", licence=MIT, classes="", data="VM22M")
pretraining = partial(vjepa2, layout="transformers", classes="", data="VM22M")
# As trained: in transformers, the pooler has as many heads as the encoder and epsilon 1e-6, and for Diving48 it sees
# one block instead of four. The published accuracy is that of a probe that sees the tokens of all clips side by side
# (configs/inference), not the mean over clips.
probe = partial(
    vjepa2, layout="transformers", licence=MIT, classes={"SSv2": SSV2_CLASSES}, tested={"sampling": "dense"}
)
FILES = "https://dl.fbaipublicfiles.com/vjepa2"


def as_trained(*pooled_blocks: int) -> dict:
    """The fields of a probe that its directory's config.json does not describe."""
    return {"pooler_heads": 16, "pooler_epsilon": 1e-5, "pooled_blocks": pooled_blocks or None}


# fmt: off
ROWS = (
    # Encoders alone: the moving averages in the original files, which also contain the predictor.
    encoder("vjepa2_large_vm22m", "vjepa2_large", f"{FILES}/vitl.pt"),
    encoder("vjepa2_huge_vm22m", "vjepa2_huge", f"{FILES}/vith.pt"),
    encoder("vjepa2_giant_vm22m", "vjepa2_giant", f"{FILES}/vitg.pt"),
    encoder("vjepa2_giant_384_vm22m", "vjepa2_giant_384", f"{FILES}/vitg-384.pt"),
    encoder("vjepa2_1_base_vm22m", "vjepa2_1_base", f"{FILES}/vjepa2_1_vitb_dist_vitG_384.pt"),
    encoder("vjepa2_1_large_vm22m", "vjepa2_1_large", f"{FILES}/vjepa2_1_vitl_dist_vitG_384.pt"),
    encoder("vjepa2_1_giant_vm22m", "vjepa2_1_giant", f"{FILES}/vjepa2_1_vitg_384.pt"),
    encoder("vjepa2_1_gigantic_vm22m", "vjepa2_1_gigantic", f"{FILES}/vjepa2_1_vitG_384.pt"),
    # Encoders with their predictors
    pretraining("vjepa2_large_pretrain_vm22m", "vjepa2_large_pretrain", "facebook/vjepa2-vitl-fpc64-256", licence=MIT,
        fields={"num_frames": 64}),
    pretraining("vjepa2_huge_pretrain_vm22m", "vjepa2_huge_pretrain", "facebook/vjepa2-vith-fpc64-256", licence=APACHE,
        fields={"num_frames": 64}),
    pretraining("vjepa2_giant_pretrain_vm22m", "vjepa2_giant_pretrain", "facebook/vjepa2-vitg-fpc64-256",
        licence=APACHE, fields={"num_frames": 64}),
    pretraining("vjepa2_giant_384_pretrain_vm22m", "vjepa2_giant_pretrain", "facebook/vjepa2-vitg-fpc64-384",
        licence=APACHE, fields={"num_frames": 64, "image_size": 384}),
    # Probes with their encoders
    probe("vjepa2_large_ssv2", "vjepa2_large_ssv2", "facebook/vjepa2-vitl-fpc16-256-ssv2", data="SSv2", top1=73.7,
        views="2x3", stride=4, fields=as_trained()),
    probe("vjepa2_giant_384_ssv2", "vjepa2_giant_384_ssv2", "facebook/vjepa2-vitg-fpc64-384-ssv2", data="SSv2",
        top1=77.3, views="2x3", stride=2, fields=as_trained()),
    probe("vjepa2_large_diving48", "vjepa2_large_diving48", "facebook/vjepa2-vitl-fpc32-256-diving48", data="Diving48",
        classes="the directory's config.json", top1=89.0, views="4x3", stride=2, fields=as_trained(17, 19, 21, 23)),
    probe("vjepa2_giant_384_diving48", "vjepa2_giant_384_diving48", "facebook/vjepa2-vitg-fpc32-384-diving48",
        data="Diving48", classes="the directory's config.json", top1=90.2, views="4x3", stride=2,
        fields=as_trained(24, 29, 34, 39)),
)
# fmt: on
