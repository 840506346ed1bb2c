"""Published checkpoints of encoders trained without labels or with captions; see `published`."""

from functools import partial

from vidjax.convert.publication import APACHE, BSD, CC_BY_NC, KINETICS, MM, MM_CLASSES, Published, file, mmaction2

# VideoMAE V2. The models are in one directory, which the zoo names for the distilled ones; the giant ones need the
# publisher's form.
MAE2 = "https://huggingface.co/OpenGVLab/VideoMAE2/resolve/main"
MM_VIDEOMAEV2 = f"{MM}/v1.0/recognition/videomaev2"
V2_CLASSES = MM_CLASSES | {
    "K400": "OpenGVLab/VideoMAEv2 misc/label_map_k400.txt",
    "K600": "OpenGVLab/VideoMAEv2 misc/label_map_k600.txt",
    "K710": "OpenGVLab/VideoMAEv2 misc/label_map_k710.txt",
}
videomae_v2 = partial(
    Published, layout="original", licence=APACHE, classes=V2_CLASSES, facts="OpenGVLab/VideoMAEv2 docs/MODEL_ZOO.md",
    views="5x3",
)  # fmt: skip
giant = partial(videomae_v2, model="videomae_v2_giant")
GIANT = f"{MAE2}/mae-g/vit_g_hybrid_pt_1200e"

# The masked encoder of InternVideo's first stage, on unlabelled videos of several data sets, and fine-tuned.
HYBRID = "https://pjlab-gvm-data.oss-cn-shanghai.aliyuncs.com/internvideo/pretrain/videomae/vit_b_hybrid_pt_800e"
internvideo = partial(
    Published, layout="original", licence=APACHE, facts="OpenGVLab/InternVideo InternVideo1/Pretrain/VideoMAE/README.md"
)

# Hiera. Images are classified with the centre crop; the weights have another licence than the code.
HIERA = "https://dl.fbaipublicfiles.com/hiera"
hiera = partial(Published, layout="original", licence=CC_BY_NC, facts="facebookresearch/hiera README.md")
HIERA_VIDEO = {"b": ("base", 84.0), "bplus": ("base_plus", 85.0), "l": ("large", 87.3), "h": ("huge", 87.8)}
HIERA_IMAGE = {
    "t": ("tiny", 82.8), "s": ("small", 83.8), "b": ("base", 84.5), "bplus": ("base_plus", 85.2),
    "l": ("large", 86.1), "h": ("huge", 86.9),
}  # fmt: skip
# VideoPrism. The licence is that of all materials of the repository but the software. The accuracy of the video-text
# models is that of zero-shot classification.
HUB = "https://huggingface.co/google"
videoprism = partial(
    Published, layout="original", licence="CC-BY-4.0", classes="", facts="google-deepmind/videoprism README.md"
)
siglip2 = partial(
    Published, layout="transformers", licence=APACHE, classes="", data="WebLI", facts="huggingface.co/google"
)
SIGLIP2 = (  # size, patch, id, image sizes
    ("base", 16, "base-patch16", (224, 256, 384, 512)),
    ("large", 16, "large-patch16", (256, 384, 512)),
    ("so400m", 14, "so400m-patch14", (224, 384)),
    ("so400m", 16, "so400m-patch16", (256, 384, 512)),
    ("giant", 16, "giant-opt-patch16", (256, 384)),
)
# ALBEF. The files also contain the momentum model, `load_pretrained(layout="momentum")`. Those fine-tuned for retrieval
# and other tasks have other text encoders or heads, and are not listed.
albef = partial(
    Published, model="albef_base", layout="original", licence=BSD, classes="", facts="salesforce/ALBEF README.md"
)
ALBEF = "https://storage.googleapis.com/sfr-pcl-data-research/ALBEF"

# fmt: off
ROWS = (
    # VideoMAE V2. The distilled models reach 83.7 (S) and 86.6 (B) on K400 with the part of their head for its classes.
    videomae_v2("videomae_v2_small_k710", "videomae_small", f"{MAE2}/distill/vit_s_k710_dl_from_giant.pth", data="K710",
        top1=77.6),
    videomae_v2("videomae_v2_base_k710", "videomae_base", f"{MAE2}/distill/vit_b_k710_dl_from_giant.pth", data="K710",
        top1=81.5),
    mmaction2("videomae_v2_small_k400_mmaction2", "videomae_small",
        file(MM_VIDEOMAEV2, "vit-small-p16_videomaev2-vit-g-dist-k710-pre_16x4x1_kinetics-400", "_20230510-25c748fd"),
        data="K400", top1=83.6, top5=96.3, views="5x3"),
    mmaction2("videomae_v2_base_k400_mmaction2", "videomae_base",
        file(MM_VIDEOMAEV2, "vit-base-p16_videomaev2-vit-g-dist-k710-pre_16x4x1_kinetics-400", "_20230510-3e7f93b2"),
        data="K400", top1=86.6, top5=97.3, views="5x3"),
    videomae_v2("videomae_v2_giant_pretrain_hybrid", "videomae_v2_giant_pretrain", f"{GIANT}.pth", classes="",
        data="UnlabeledHybrid", views=""),
    giant("videomae_v2_giant_k710", source=f"{GIANT}_k710_ft.pth", data="K710", top1=83.8, top5=96.4),
    giant("videomae_v2_giant_k400", source=f"{GIANT}_k400_ft.pth", data="K400", top1=87.2, top5=97.4),
    giant("videomae_v2_giant_k400_from_k710", source=f"{GIANT}_k710_it_k400_ft.pth", data="K400", top1=88.4,
        top5=98.0),
    giant("videomae_v2_giant_k600_from_k710", source=f"{GIANT}_k710_it_k600_ft.pth", data="K600", top1=88.8,
        top5=98.2),
    giant("videomae_v2_giant_ssv2", source=f"{GIANT}_ssv2_ft.pth", data="SSv2", top1=77.0, top5=95.9, views="2x3"),
    giant("videomae_v2_giant_ucf101_from_k710", source=f"{GIANT}_k710_it_ucf101_ft.pth", data="UCF101", top1=99.6),
    giant("videomae_v2_giant_hmdb51_from_k710", source=f"{GIANT}_k710_it_hmdb51_ft.pth", data="HMDB51", top1=88.1,
        top5=98.5, stride=2),
    # InternVideo
    internvideo("videomae_base_pretrain_hybrid", "videomae_base_pretrain", f"{HYBRID}.pth", classes="",
        data="UnlabeledHybrid"),
    internvideo("videomae_base_k400_internvideo", "videomae_base", f"{HYBRID}_k400_ft.pth", data="K400", top1=81.52,
        top5=94.88, views="5x3"),
    internvideo("videomae_base_k710_internvideo", "videomae_base", f"{HYBRID}_k710_ft.pth", data="K710", top1=79.33,
        top5=94.03, views="5x3"),
    internvideo("videomae_base_ssv2_internvideo", "videomae_base", f"{HYBRID}_ssv2_ft.pth", data="SSv2", top1=71.22,
        top5=93.31, views="2x3"),
    # Hiera
    *(
        hiera(f"hiera_{size}_k400", f"hiera_{size}", f"{HIERA}/hiera_{file}_16x224.pth", classes=KINETICS, data="K400",
            top1=top1, views="5x3")
        for size, (file, top1) in HIERA_VIDEO.items()
    ),
    *(
        hiera(f"hiera_{size}_image_in1k", f"hiera_{size}_image", f"{HIERA}/hiera_{file}_224.pth", data="ImageNet",
            top1=top1)
        for size, (file, top1) in HIERA_IMAGE.items()
    ),
    *(
        hiera(f"hiera_{size}_pretrain_k400", f"hiera_{size}_mae", f"{HIERA}/mae_hiera_{file}_16x224.pth", classes="",
            data="K400")
        for size, (file, _) in HIERA_VIDEO.items()
    ),
    *(
        hiera(f"hiera_{size}_image_pretrain_in1k", f"hiera_{size}_image_mae", f"{HIERA}/mae_hiera_{file}_224.pth",
            classes="", data="ImageNet")
        for size, (file, _) in HIERA_IMAGE.items()
    ),
    # VideoPrism
    videoprism("videoprism_base", "videoprism_base",
        f"{HUB}/videoprism-base-f16r288/resolve/main/flax_base_f16r288_repeated.npz"),
    videoprism("videoprism_large", "videoprism_large",
        f"{HUB}/videoprism-large-f8r288/resolve/main/flax_large_f8r288_repeated.npz"),
    videoprism("videoprism_lvt_base", "videoprism_lvt_base",
        f"{HUB}/videoprism-lvt-base-f16r288/resolve/main/flax_lvt_base_f16r288_repeated.npz", data="K400", top1=69.2,
        views="zero-shot"),
    videoprism("videoprism_lvt_large", "videoprism_lvt_large",
        f"{HUB}/videoprism-lvt-large-f8r288/resolve/main/flax_lvt_large_f8r288_repeated.npz", data="K400", top1=72.4,
        views="zero-shot"),
    # SigLIP 2: the directories have both towers. NaFlex models take images of any shape.
    *(
        siglip2(f"siglip2_{size}_{patch}_{side}", f"siglip2_{size}_{14 if size == 'so400m' else patch}_pair",
            f"google/siglip2-{name}-{side}", fields={"patch_size": (1, patch, patch), "image_size": side})
        for size, patch, name, sides in SIGLIP2 for side in sides
    ),
    *(
        siglip2(f"siglip2_{size}_16_naflex", f"siglip2_{size}_16_naflex_pair", f"google/siglip2-{size}-patch16-naflex")
        for size in ("base", "so400m")
    ),
    # ALBEF
    albef("albef_base_14m", source=f"{ALBEF}/ALBEF.pth", data="14M images"),
    albef("albef_base_4m", source=f"{ALBEF}/ALBEF_4M.pth", data="4M images"),
)
# fmt: on
