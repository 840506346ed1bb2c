"""Layouts of STTS's released checkpoints: a SlowFast MViT or a Video Swin, and the predictors of frames and regions."""

from dataclasses import replace

from vidjax.convert import video_swin
from vidjax.convert.blocks import score_predictor
from vidjax.convert.mvit import SLOWFAST
from vidjax.convert.rules import Layout
from vidjax.models.mvit import MViT
from vidjax.models.stts import SOURCE, STTS
from vidjax.models.video_swin import VideoSwin

MARKER = "time_score_predictor.0.score_network.in_conv.0.weight"
PREDICTORS = (
    *score_predictor("time_score_predictor.{i}.score_network", "time_{i}/predictor"),
    *score_predictor("space_score_predictor.{i}.score_network", "space_{i}/predictor"),
)


def of(model: STTS) -> tuple[Layout, ...]:
    """The layouts of a model: the original's, which are of MViTs and of Video Swins."""
    if isinstance(model.model, MViT):
        layout = SLOWFAST
    elif isinstance(model.model, VideoSwin):
        layout = video_swin.layouts(model.model)[0]
    else:
        return ()
    return (replace(layout, name=SOURCE, key="original", marker=MARKER, rules=(*layout.rules, *PREDICTORS)),)


LAYOUTS = {STTS: of}
