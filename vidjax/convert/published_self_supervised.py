"""Published checkpoints of V-JEPA 2, of probes on it, and of tokens of images; see `published`."""

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
# BEiT, pre-trained on ImageNet-22k, then fine-tuned on it, then on ImageNet-1k.
beit = partial(
    Published, layout="transformers", licence=APACHE, classes="the directory's config.json", data="ImageNet",
    facts="microsoft/unilm beit/README.md",
)  # fmt: skip
bevt = partial(Published, model="bevt_base", licence=APACHE, classes="", facts="xyzforever/BEVT README.md")
DRIVE = "https://drive.google.com/file/d"


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
    # BEiT
    *(
        beit(f"beit_{size}_16_pretrain_in22k", f"beit_{size}_16_pretrain", f"microsoft/beit-{size}-patch16-224-pt22k",
            classes="", data="ImageNet-22k")
        for size in ("base", "large")
    ),
    *(
        beit(f"beit_{size}_16_in22k", f"beit_{size}_16", f"microsoft/beit-{size}-patch16-224-pt22k-ft22k",
            data="ImageNet-22k", fields={"num_classes": 21841})
        for size in ("base", "large")
    ),
    beit("beit_base_16_in1k", "beit_base_16", "microsoft/beit-base-patch16-224", top1=85.2, top5=97.6),
    beit("beit_base_16_384_in1k", "beit_base_16", "microsoft/beit-base-patch16-384", top1=86.8, top5=98.1,
        fields={"image_size": 384}),
    beit("beit_large_16_in1k", "beit_large_16", "microsoft/beit-large-patch16-224", top1=87.4, top5=98.3),
    beit("beit_large_16_384_in1k", "beit_large_16", "microsoft/beit-large-patch16-384", top1=88.4, top5=98.6,
        fields={"image_size": 384}),
    beit("beit_large_16_512_in1k", "beit_large_16", "microsoft/beit-large-patch16-512", top1=88.60, top5=98.66,
        fields={"image_size": 512}),
    # BEVT: its image stream, then both
    bevt("bevt_base_pretrain_in1k", source=f"{DRIVE}/1VHKAH9YA_VD8M8bfGp2Svreqv0iuikB6/view", layout="image",
        data="ImageNet"),
    bevt("bevt_base_pretrain_in1k_k400", source=f"{DRIVE}/13pMnG1ylyyKmhx5MKNZvqe7jHtPMY9cy/view", layout="original",
        data="ImageNet, K400"),
    # DALL-E's encoder, as mmselfsup publishes it; OpenAI's own files are pickled modules. The licence is OpenAI's.
    Published("dalle_encoder", "dalle_encoder", "https://download.openmmlab.com/mmselfsup/1.x/target_generator_ckpt/"
        "dalle_encoder.pth", layout="original", licence="modified MIT", classes="", data="DALL-E's images",
        facts="open-mmlab/mmselfsup configs/selfsup/_base_/models/beit_vit-base-p16.py"),
)
# fmt: on
