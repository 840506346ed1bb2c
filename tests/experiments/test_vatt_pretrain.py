"""VATT: the loss against its rule, a run that is resumed and scores what is seen and heard, invalid input."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from small_runs import interrupt_after

import vidjax
from vidjax import cli, runs
from vidjax.errors import UserError
from vidjax.models.vatt import CARD
from vidjax.objectives.vatt import asymmetric_nce
from vidjax.training.checkpoint import load_variables
from vidjax.training.metrics import read_metrics
from vidjax.training.state import Aux

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import vatt_pretrain

SMALL = """
demo --data.size 16 --data.short_side 16 --data.workers 1 --data.validation_examples 16 --batch_size 16 --steps 4
--loop.log_every 1 --loop.save_every 2 --loop.evaluate_every 4 --probe_clips 48 --optim.warmup_epochs 0 --context 60
""".split()


def parse(*flags):
    return cli.parse(vatt_pretrain.Config, vatt_pretrain.RECIPES, vatt_pretrain.DATA_FLAG, [*SMALL, *flags])


class Towers:
    """Stands for a model: embeddings that are some of the inputs."""

    card = CARD

    def apply(self, variables, video, sound, ids, train, rngs, mutable):
        assert train and rngs.keys() == {"dropout", "masking"} and mutable == ["batch_stats"]
        seen, read = video[:, 0, 0].reshape(4, -1), jnp.asarray(ids, jnp.float32)
        found = {"video_of_sound": seen[:, :6], "sound": sound[:, :6], "video_of_text": seen[:, 6:12], "text": read}
        return found, {"batch_stats": 2.0}


def test_the_loss_is_the_mean_of_both_contrasts_and_missing_sound_changes_nothing():
    config = parse("--sound_noise", "0")
    pixels = jax.random.randint(jax.random.key(0), (4, 8, 16, 16, 3), 0, 256).astype(jnp.uint8)
    sound, heard = jnp.asarray(recipe.floats("sound", (4, 40))), jnp.array([True, False, True, True])
    ids, valid = jax.random.randint(jax.random.key(1), (4, 6), 0, 9), jnp.ones(4, bool)

    def run(sound, config=config):
        batch = {"video": pixels, "sound": sound[..., None], "sound_valid": heard, "ids": ids, "valid": valid}
        loss_fn = vatt_pretrain.make_loss(config, Towers())
        return loss_fn({}, Aux({"batch_stats": 1.0}, None, None, 0), batch, jax.random.key(1))

    loss, (state, metrics) = run(sound)
    seen = (pixels / 255.0 * 2 - 1)[:, 0, 0].reshape(4, -1)
    of_sound = asymmetric_nce(seen[:, :6], sound[:, None, :6], valid, heard[:, None], 0.07)
    of_text = asymmetric_nce(seen[:, 6:12], jnp.asarray(ids, jnp.float32)[:, None], valid, valid[:, None], 0.07)
    np.testing.assert_allclose(loss, (of_sound + of_text) / 2, rtol=1e-4)
    assert metrics["without_sound"] == 0.25 and state == {"batch_stats": 2.0}
    assert run(sound.at[1].set(0.3))[0] == loss and run(sound.at[2].set(0.3))[0] != loss
    assert run(sound, parse("--sound_noise", "0.5"))[0] != loss != run(sound, parse("--objective", "symmetric"))[0]


def test_a_clip_is_compared_with_all_its_texts_and_lacking_ones_are_left_out():
    pixels = jax.random.randint(jax.random.key(0), (4, 8, 16, 16, 3), 0, 256).astype(jnp.uint8)
    ids = jax.random.randint(jax.random.key(1), (4, 3, 6), 1, 9).at[2, 1:].set(0)
    valid, there = jnp.ones(4, bool), ids.any(axis=-1)
    batch = {"video": pixels, "sound": jnp.ones((4, 40, 1)), "sound_valid": valid, "ids": ids, "valid": valid}
    loss_fn = vatt_pretrain.make_loss(parse("--texts", "3"), Towers())
    _, (_, metrics) = loss_fn({}, Aux({"batch_stats": 1.0}, None, None, 0), batch, jax.random.key(1))
    seen = (pixels / 255.0 * 2 - 1)[:, 0, 0].reshape(4, -1)[:, 6:12]
    expected = asymmetric_nce(seen, jnp.asarray(ids, jnp.float32), valid, there, 0.07)
    np.testing.assert_allclose(metrics["text_loss"], expected, rtol=1e-4)


@pytest.mark.long
def test_a_resumed_run_is_equal_bit_for_bit_and_both_modalities_are_scored(tmp_path, capsys):
    def run(workdir):
        return vatt_pretrain.main(parse("--workdir", str(workdir)))

    numbers = run(tmp_path / "whole")
    text = capsys.readouterr().out
    assert "sound     1 s at 4,096 samples per second" in text and "0 videos without sound are left out" in text
    assert {"sound_to_video_r1", "video_to_sound_r1", "text_to_video_r1", "video", "sound", "chance"} <= numbers.keys()
    interrupt_after(2, run, tmp_path / "resumed")
    run(tmp_path / "resumed")
    (expected, step), (resumed, _) = load_variables(tmp_path / "whole"), load_variables(tmp_path / "resumed")
    assert step == 4 and expected.keys() == resumed.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(resumed[path], value, err_msg=path)
    entries = [entry for entry in read_metrics(tmp_path / "whole") if "loss" in entry]
    assert len(entries) == 4 and all(entry["without_sound"] == 0 for entry in entries)
    classifier = vidjax.create_model("vatt_tiny", image_size=16, num_classes=3)
    started = jax.jit(classifier.init)(jax.random.key(0), jnp.zeros((1, 8, 16, 16, 3)))
    started, report = runs.start_from(tmp_path / "whole", classifier, started)
    assert sorted(report.new) == ["head/bias", "head/kernel"]
    kernel = started["params"]["patch_embedding"]["kernel"]
    np.testing.assert_array_equal(kernel, expected["params/video/patch_embedding/kernel"])


BAD = [
    (("--model", "videomae_tiny"), "model videomae_tiny is no VATT: choose one of vatt_base, vatt_large, "),
    (
        ("--data.fps", "16"),
        r"vatt_tiny hears 1 s of sound, which must be .*: give --data.sampling dense and --data.fps 8",
    ),
    (("--data.source", "synthetic:moving_shapes"), "synthetic:moving_shapes has no sound: give video files, or store"),
    (
        ("--texts", "2", "--text_times", "said"),
        "synthetic:sounding_shapes has no field .said.: choose among video, label",
    ),
    (("--model", "vatt_base", "--data.frames", "32", "--data.fps", "10"), "the model hears mono samples at 48000 per"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("flags", "message"), BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_invalid_input_is_one_line_before_anything_is_written(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        vatt_pretrain.main(parse("--workdir", "run", *flags))
    assert "\n" not in str(error.value) and not Path("run").exists()
