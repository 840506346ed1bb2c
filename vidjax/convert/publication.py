"""A published checkpoint, and what the rows of several publishers share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

# Hosts whose files can only be downloaded manually, from a web page.
PAGES = ("drive.google.com", "pan.baidu.com", "pjlab-my.sharepoint.cn")

NOT_PUBLISHED = "not published"


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Attributes:
      name: argument of `load_pretrained`.
      model: name of the model (see `list_models`), to which `fields` apply.
      source: a Hugging Face id, or the address of a file (or of the page where it can be downloaded manually).
      layout: value of `load_pretrained(layout=...)`.
      licence: licence of the weights, or of the repository if none is given for the weights.
      classes: where the class names are listed, in the order of the logits, or a mapping from `data` to that; empty
        without a classifier.
      data: dataset on which the head was trained, or the encoder if there is no head.
      facts: the page from which name, address and numbers are taken.
      top1, top5: accuracy on `data`, in per cent.
      views: views of that evaluation, clips x crops.
      stride: frames of the video per frame of the clip, if it differs from the model's.
      fields: fields of the model that differ from those of its row.
      tested: fields of the model's card on the published test that differ from its row's and from `views`.
      sha256: the file's hash or its first digits, if published.
    """

    name: str
    model: str
    source: str
    layout: str
    licence: str = ""
    classes: str | Mapping[str, str] = NOT_PUBLISHED
    data: str = ""
    facts: str = ""
    top1: float | None = None
    top5: float | None = None
    views: str = ""
    stride: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    tested: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @property
    def class_list(self) -> str:
        """Where the class names are listed, in the order of the logits, or "not published"; "" without a classifier."""
        return self.classes if isinstance(self.classes, str) else self.classes.get(self.data, NOT_PUBLISHED)

    @property
    def is_hub(self) -> bool:
        """Whether the source is a Hugging Face id, whose directory describes the model."""
        return "://" not in self.source

    @property
    def is_page(self) -> bool:
        """Whether the file must be downloaded manually."""
        return urlsplit(self.source).hostname in PAGES

    @property
    def card(self) -> dict[str, Any]:
        """The fields of the model's card that the row knows."""
        fields: dict[str, Any] = {"accuracy": self.accuracy}
        if self.stride:
            fields["stride"] = self.stride
        if self.views[:1].isdecimal():
            fields["views"] = self.views
        if self.top1 and self.data in ("SSv1", "SSv2"):  # classifiers of Something-Something see all of the video
            fields["sampling"] = "segments"
        return fields | self.tested

    @property
    def accuracy(self) -> str:
        """The accuracy in the format of `Card.accuracy`."""
        views = f", {self.views} views" if self.views else ""
        return f"{self.data} {self.top1}{views}" if self.top1 else ""


TORCHVISION = "categories in the meta of torchvision's weights enum"
CC_BY_NC, APACHE, MIT, BSD = "CC-BY-NC-4.0", "Apache-2.0", "MIT", "BSD-3-Clause"
SSV2_CLASSES = "the dataset's something-something-v2-labels.json"
# The K400 file is linked from SlowFast's VISUALIZATION_TOOLS.md and pytorchvideo's torchhub_inference_tutorial; both
# read the labels of SSv2 (datasets/ssv2.py and data/ssv2.py).
KINETICS = "https://dl.fbaipublicfiles.com/pyslowfast/dataset/class_names/kinetics_classnames.json"
PYSLOWFAST_CLASSES = MappingProxyType({"K400": KINETICS, "SSv2": SSV2_CLASSES})
MM_CLASSES = MappingProxyType({
    "K400": "open-mmlab/mmaction2 tools/data/kinetics/label_map_k400.txt",
    "K600": "open-mmlab/mmaction2 tools/data/kinetics/label_map_k600.txt",
    "K700": "open-mmlab/mmaction2 tools/data/kinetics/label_map_k700.txt",
    "K710": "open-mmlab/mmaction2 tools/data/kinetics710/label_map_k710.txt",
    "MiT": "open-mmlab/mmaction2 tools/data/mit/label_map.txt",
    "SSv2": "open-mmlab/mmaction2 tools/data/sthv2/label_map.txt",
    "UCF101": "open-mmlab/mmaction2 tools/data/ucf101/label_map.txt",
})  # fmt: skip
torchvision = partial(
    Published, layout="torchvision", licence=BSD, classes=TORCHVISION, data="K400", facts="torchvision's weights enums"
)  # fmt: skip
mmaction2 = partial(
    Published, layout="mmaction2", licence=APACHE, classes=MM_CLASSES, facts="open-mmlab/mmaction2 READMEs of configs/"
)  # fmt: skip


def file(folder: str, stem: str, end: str) -> str:
    """The address of an mmaction2 file, which is in a folder of the same name."""
    return f"{folder}/{stem}/{stem}{end}.pth"


PYTORCH, OPENAI = "https://download.pytorch.org/models", "https://openaipublic.azureedge.net/clip/models"
MM = "https://download.openmmlab.com/mmaction"
MM_TIMESFORMER, MM_R2PLUS1D = f"{MM}/recognition/timesformer", f"{MM}/recognition/r2plus1d"
PYSLOWFAST = "https://dl.fbaipublicfiles.com/pyslowfast"
PYTORCHVIDEO, MM_MVIT = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo", f"{MM}/v1.0/recognition/mvit"
