"""Hashtags as the classes of a training script: its flag, and the arrays of a batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vidjax.errors import UserError
from vidjax.runs.joint import JointConfig

if TYPE_CHECKING:  # PyAV is imported when it is needed
    from vidjax.data.sources import Source


@dataclass(frozen=True)
class HashtagConfig(JointConfig):
    """Base config of a training script whose videos can have several labels."""

    hashtags: str | None = None
    """Learn the hashtags in the captions, several of a video: all, or a JSON list of those that count."""
    hashtag_sampling: Literal["square_root", "uniform"] = "square_root"
    """Draw a video by the inverse square root of the number of videos with its rarest hashtag, or all equally often."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hashtags is None:
            if self.hashtag_sampling != "square_root":
                raise UserError("hashtag_sampling is for hashtags: give --hashtags all, or omit it")
            return
        if self.heads:
            raise UserError("hashtags are the classes of one data set, and heads are of several: omit one of them")
        if self.objective != "cross_entropy":
            raise UserError(f"hashtags are learned by cross-entropy, not {self.objective}: omit --objective")
        if self.train_accuracy:
            raise UserError("train_accuracy is of one label per clip, and hashtags are several: omit one of them")


def hashtag_shapes(hashtags: str | None, source: "Source") -> dict[str, tuple[int, ...]]:
    """The shape of the field of an example with the hashtags that the loss reads; empty without hashtags."""
    return {} if hashtags is None else {"hashtags": source.fields["hashtags"].shape}
