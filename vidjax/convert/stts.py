"""Layout of STTS's released checkpoints: a SlowFast MViT, and the predictors of frames and regions."""

from dataclasses import replace

from vidjax.convert.blocks import score_predictor
from vidjax.convert.mvit import SLOWFAST
from vidjax.convert.rules import Layout
from vidjax.models.mvit import MViT
from vidjax.models.stts import STTS

ORIGINAL = replace(
    SLOWFAST,
    name="wangjk666/STTS",
    key="original",
    marker="time_score_predictor.0.score_network.in_conv.0.weight",
    rules=(
        *SLOWFAST.rules,
        *score_predictor("time_score_predictor.{i}.score_network", "time_{i}/predictor"),
        *score_predictor("space_score_predictor.{i}.score_network", "space_{i}/predictor"),
    ),
)


def of(model: STTS) -> tuple[Layout, ...]:
    """The layouts of a model: that of MViTs; Video Swins were published too, which are not here."""
    return (ORIGINAL,) if isinstance(model.model, MViT) else ()


LAYOUTS = {STTS: of}
