"""Published checkpoints of UniFormerV2, and of InternVideo's pair with it as video tower; see `published`.

Training started from CLIP, and where the name says so, went on with Kinetics-710, which joins the other three. The test
crops are as high as the frames, whose short side is the model's. The zoo gives no top-5 accuracy.

The publisher's lists of classes are in a folder on Google Drive. For Kinetics-710, an earlier version of mmaction2 has
the list by which it mapped this head to the single data sets; its list of today, and that of VideoMAE V2, have other
orders. The head's first 400 classes are those of Kinetics-400 (`uniformerv2.py` of the publisher), in the order of
UniFormer's list, with other names for thirteen of them.
"""

from functools import partial

from vidjax.convert.publication import APACHE, MM, Published, file, mmaction2

HOST = "https://pjlab-gvm-data.oss-cn-shanghai.aliyuncs.com"
BUCKET = f"{HOST}/uniformerv2"
MM_UNIFORMERV2 = f"{MM}/v1.0/recognition/uniformerv2"
LISTS = "the folder of labels that OpenGVLab/UniFormerV2 DATASET.md links to"
CLASSES = dict.fromkeys(("K600", "K700", "SSv1", "SSv2", "MiT", "ActivityNet", "HACS"), LISTS) | {
    "K400": "Sense-X/UniFormer video_classification/data_list/k400/kinetics_400_categroies.txt (sic)",
    "K710": "open-mmlab/mmaction2 configs/recognition/uniformerv2/k710_channel_map/label_map_k710.txt at 1d261c9",
}
published = partial(
    Published, layout="original", licence=APACHE, classes=CLASSES, facts="OpenGVLab/UniFormerV2 MODEL_ZOO.md"
)
internvideo = partial(Published, layout="internvideo1", licence=APACHE, classes="")


def row(model: str, data: str, path: str, frames: int, top1: float, views: str, start: str = "") -> Published:
    """A row whose name is made of the model, the number of frames, the data, and what training started from."""
    name = f"{model.removesuffix('_ssv2')}_{frames}_{data.lower()}{start}"
    source, fields = f"{BUCKET}/{path}.pyth", {"num_frames": frames}
    return published(name, model, source, data=data, top1=top1, views=views, fields=fields)


BASE, LARGE, HIGH = "uniformerv2_base_16", "uniformerv2_large_14", "uniformerv2_large_14_336"
FROZEN, ON_K710 = f"{HIGH}_frozen", "_from_k710"
KINETICS = (  # model, start, file (`{}` is the data), frames, views, top-1 on Kinetics-400, 600 and 700
    (BASE, "", "{}_uniformerv2_b16_8x224", 8, "4x3", (84.4, 85.0, 75.8)),
    (BASE, ON_K710, "{}_k710_uniformerv2_b16_8x224", 8, "4x3", (85.6, 86.1, 76.3)),
    (LARGE, ON_K710, "{}_k710_uniformerv2_l14_8x224", 8, "4x3", (88.8, 89.0, 80.8)),
    (LARGE, ON_K710, "{}_k710_uniformerv2_l14_16x224", 16, "4x3", (89.1, 89.4, 81.2)),
    (LARGE, ON_K710, "{}_k710_uniformerv2_l14_32x224", 32, "2x3", (89.3, 89.5, 81.5)),
    (HIGH, ON_K710, "{}_k710_uniformerv2_l14_32x336", 32, "2x3", (89.7, 89.9, 82.1)),
    (HIGH, ON_K710, "{}_k710_uniformerv2_l14_64x336", 64, "2x3", (90.0, 90.1, 82.7)),
    (FROZEN, "", "frozen_{}_uniformerv2_l14_8x336", 8, "3x1", (86.7, 87.4, 79.6)),
    (FROZEN, ON_K710, "frozen_{}_k710_uniformerv2_l14_8x336", 8, "3x1", (87.8, 88.2, 79.7)),
    (FROZEN, ON_K710, "frozen_{}_k710_uniformerv2_l14_32x336", 32, "4x3", (88.9, 89.2, 80.8)),
)
SOMETHING = (  # model, file (`{}` is the data), frames, top-1 on Something-Something v1 and v2
    (f"{BASE}_ssv2", "{}_uniformerv2_b16_16x224", 16, (56.8, 69.5)),
    (f"{BASE}_ssv2", "{}_uniformerv2_b16_32x224", 32, (59.4, 70.7)),
    (f"{LARGE}_ssv2", "{}_uniformerv2_l14_16x224", 16, (60.5, 72.1)),
    (f"{LARGE}_ssv2", "{}_uniformerv2_l14_32x224", 32, (62.7, 73.0)),
)

# fmt: off
ROWS = (
    *(
        published(f"{model}_8_k710", model, f"{BUCKET}/k710/{path}.pyth", data="K710", fields={"num_frames": 8})
        for model, path in (
            (BASE, "k710_uniformerv2_b16_8x224"), (LARGE, "k710_uniformerv2_l14_8x224"),
            (HIGH, "k710_uniformerv2_l14_8x336"), (FROZEN, "frozen_k710_uniformerv2_l14_8x336"),
        )
    ),
    *(
        row(model, data, f"{data.lower()}/{path.format(data.lower())}", frames, top1, views, start)
        for model, start, path, frames, views, results in KINETICS
        for data, top1 in zip(("K400", "K600", "K700"), results, strict=True)
    ),
    *(
        row(model, data, f"{folder}/{path.format(folder)}", frames, top1, "1x3")
        for model, path, frames, results in SOMETHING
        for data, folder, top1 in zip(("SSv1", "SSv2"), ("sthv1", "sthv2"), results, strict=True)
    ),
    # After Kinetics-710 and then Kinetics-400
    row(BASE, "MiT", "mitv1/mit_uniformerv2_b16_8x224", 8, 42.6, "4x3"),
    row(LARGE, "MiT", "mitv1/mit_uniformerv2_l14_8x224", 8, 47.0, "4x3"),
    row(HIGH, "MiT", "mitv1/mit_uniformerv2_l14_8x336", 8, 47.8, "4x3"),
    row(LARGE, "ActivityNet", "anet/anet_uniformerv2_l14_16x224", 16, 94.3, "10x3"),
    row(LARGE, "ActivityNet", "anet/anet_uniformerv2_l14_32x224", 32, 94.7, "10x3"),
    row(LARGE, "HACS", "hacs/hacs_uniformerv2_l14_16x224", 16, 95.5, "10x3"),
    row(LARGE, "HACS", "hacs/hacs_uniformerv2_l14_32x224", 32, 95.4, "10x3"),
    internvideo("internvideo_base_16", "internvideo_base_16",
        f"{HOST}/internvideo/pretrain/InternVideo-MM-B-16.ckpt",
        facts="OpenGVLab/InternVideo InternVideo1/Pretrain/Multi-Modalities-Pretraining/README.md"),
    internvideo("internvideo_large_14", "internvideo_large_14",  # the README names the repository, its demo.py the file
        "https://huggingface.co/OpenGVLab/InternVideo1.0/resolve/main/InternVideo-MM-L-14.ckpt",
        facts="OpenGVLab/InternVideo InternVideo1/README.md"),
    # Trained by mmaction2, whose other files hold the original's weights. Its heads follow its own label maps.
    mmaction2("uniformerv2_base_16_8_k400_mmaction2", BASE,
        file(MM_UNIFORMERV2, "uniformerv2-base-p16-res224_clip_8xb32-u8_kinetics400-rgb", "_20230313-e29fc968"),
        data="K400", top1=84.3, top5=96.4, views="4x3"),
    mmaction2("uniformerv2_base_16_8_k400_from_k710_mmaction2", BASE,
        file(MM_UNIFORMERV2, "uniformerv2-base-p16-res224_clip-kinetics710-pre_8xb32-u8_kinetics400-rgb",
            "_20230313-75be0806"), data="K400", top1=85.8, top5=97.1, views="4x3"),
    mmaction2("uniformerv2_base_16_8_k600_from_k710_mmaction2", BASE,
        file(MM_UNIFORMERV2, "uniformerv2-base-p16-res224_clip-kinetics710-pre_8xb32-u8_kinetics600-rgb",
            "_20230313-544f06f0"), data="K600", top1=86.4, top5=97.3, views="4x3"),
    mmaction2("uniformerv2_base_16_8_k700_mmaction2", BASE,
        file(MM_UNIFORMERV2, "uniformerv2-base-p16-res224_clip_8xb32-u8_kinetics700-rgb", "_20230313-f02e48ad"),
        data="K700", top1=75.9, top5=92.9, views="4x3"),
    mmaction2("uniformerv2_base_16_8_k700_from_k710_mmaction2", BASE,
        file(MM_UNIFORMERV2, "uniformerv2-base-p16-res224_clip-kinetics710-pre_8xb32-u8_kinetics700-rgb",
            "_20230313-69070837"), data="K700", top1=76.3, top5=92.9, views="4x3"),
    mmaction2("uniformerv2_base_16_8_mit_mmaction2", BASE,
        file(MM_UNIFORMERV2, "uniformerv2-base-p16-res224_clip-kinetics710-kinetics-k400-pre_16xb32-u8_mitv1-rgb",
            "_20230313-a6f4a567"), data="MiT", top1=42.3, top5=71.5, views="4x3"),
)
# fmt: on
