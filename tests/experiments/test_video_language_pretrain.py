"""Pre-training with captions: a run whose weights describe clips, from the weights of a pair without a decoder."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import videos
from flax.traverse_util import flatten_dict
from small_runs import changed, draw_variables

from vidjax.convert import save_pretrained
from vidjax.data.config import AugmentConfig, CaptionedDataConfig
from vidjax.data.text import open_tokenizer
from vidjax.models import example_inputs
from vidjax.models.clip import CARD
from vidjax.runs.pairs import start_pair
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import caption
import video_language_pretrain

SMALL = video_language_pretrain.Config(
    video_model="fr2d_tiny",  # batch norm, and quick to compile
    text_model="text_tiny",
    decoder_depth=1,
    context=16,
    data=CaptionedDataConfig(
        frames=2,
        size=16,
        short_side=16,
        workers=1,
        augment=AugmentConfig(crop="center"),
        validation="synthetic:moving_shapes",
        validation_examples=8,
    ),
    batch_size=8,
    steps=2,
    optim=OptimizerConfig(learning_rate=1e-2, warmup_epochs=0),
    loop=LoopConfig(log_every=1, save_every=2, evaluate_every=2),
    caption_examples=5,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("captions") / "run"
    numbers = video_language_pretrain.main(changed(SMALL, workdir=str(workdir)))
    return workdir, numbers


def test_a_run_describes_validation_videos_and_the_users(run, tmp_path):
    workdir, numbers = run
    assert numbers["caption_exact"] == 0 and {"text_to_video_r1", "score"} <= numbers.keys()
    lines = (workdir / "captions" / "step_0000002.txt").read_text().splitlines()
    assert len(lines) == 2 * 5 and all(" | " in own for own in lines[1::2])

    for level in (20, 220):
        videos.write_video(tmp_path / f"{level}.mp4", np.full((8, 24, 24, 3), level, np.uint8))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    out = tmp_path / "captions.json"
    files = caption.main(caption.Config(paths=(str(tmp_path),), run=str(workdir), beams=2, json=str(out)))
    assert files == json.loads(out.read_text())
    by_name = {Path(file["path"]).stem: file for file in files}
    assert "error" in by_name["broken"] and all("caption" in by_name[name] for name in ("20", "220"))


def test_the_card_is_that_of_the_clips():
    config = changed(SMALL, data__stride=3, data__short_side=32)
    card = video_language_pretrain.make_model(config, open_tokenizer("bytes")).card
    assert (card.stride, card.crop_ratio) == (3, 0.5)


def test_a_decoder_stays_new_if_the_initial_weights_have_none(tmp_path):
    model = video_language_pretrain.make_model(SMALL, open_tokenizer("bytes"))
    pair = model.clone(decoder=None)
    weights, variables = draw_variables(pair), jax.tree.map(jnp.zeros_like, draw_variables(model))
    save_pretrained(tmp_path / "pair", pair, weights)
    started = flatten_dict(start_pair(model, variables, str(tmp_path / "pair")), sep="/")
    for path, value in started.items():
        assert np.any(value) != path.startswith("params/decoder/"), path


def test_what_a_higher_rate_applies_to_is_part_of_internvideos_model():
    config = changed(SMALL, video_model="internvideo_tiny", text_model=None, context=None)
    model = video_language_pretrain.make_model(config, open_tokenizer("bytes"))
    params = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))["params"], sep="/")
    assert all(any(path.startswith(part) for path in params) for part in video_language_pretrain.NEW)
    assert model.card.mean == CARD.mean and model.num_frames == 2


def test_a_model_without_a_decoder_writes_no_captions(tmp_path):
    pair = video_language_pretrain.make_model(SMALL, open_tokenizer("bytes")).clone(decoder=None)
    with pytest.raises(ValueError, match="is a VideoText without a decoder of captions: give a run of"):
        caption.require_decoder("runs/c", pair)
