"""VATT: the loss against its rule, a run that is resumed and scores what is seen and heard, invalid input."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from small_models import perturbed
from small_runs import interrupt_after

import vidjax
from vidjax import cli, runs
from vidjax.data.text import open_tokenizer
from vidjax.errors import UserError
from vidjax.objectives.vatt import asymmetric_nce
from vidjax.runs.vatt import make_vatt
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


def test_the_loss_is_the_mean_of_both_contrasts_and_missing_sound_changes_nothing():
    config = parse("--sound_noise", "0")
    model = make_vatt("vatt_tiny", open_tokenizer("bytes"), config.data, config.context, drop_token=0.0, depth=1)
    variables = perturbed(model)
    params, statistics = variables["params"], {"batch_stats": variables["batch_stats"]}
    pixels = jax.random.randint(jax.random.key(0), (4, 8, 16, 16, 3), 0, 256).astype(jnp.uint8)
    sound, heard = jnp.asarray(recipe.floats("sound", (4, 4096))), np.array([True, False, True, True])
    ids, valid = jnp.arange(240, dtype=jnp.int32).reshape(4, 60) % 250, np.ones(4, bool)
    loss_fn = jax.jit(vatt_pretrain.make_loss(config, model))

    def losses(sound):
        batch = {"video": pixels, "sound": sound[..., None], "sound_valid": heard, "ids": ids, "valid": valid}
        return loss_fn(params, Aux(statistics, None, None, 0), batch, jax.random.key(1))

    loss, (state, metrics) = losses(sound)
    video = pixels / 255.0 * 2 - 1
    forward = jax.jit(lambda *inputs: model.apply(variables, *inputs, train=True, mutable=["batch_stats"]))
    found, _ = forward(video, sound, ids)
    of_sound = asymmetric_nce(found["video_of_sound"], found["sound"][:, None], valid, heard, 0.07)
    of_text = asymmetric_nce(found["video_of_text"], found["text"][:, None], valid, valid, 0.07)
    np.testing.assert_allclose(loss, (of_sound + of_text) / 2, rtol=1e-4)
    assert metrics["without_sound"] == 0.25 and state.keys() == {"batch_stats"}
    assert losses(sound.at[1].set(0.3))[0] == loss and losses(sound.at[2].set(0.3))[0] != loss


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
    (("--model", "vatt_base", "--data.frames", "32", "--data.fps", "10"), "the model hears mono samples at 48000 per"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("flags", "message"), BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_invalid_input_is_one_line_before_anything_is_written(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        vatt_pretrain.main(parse("--workdir", "run", *flags))
    assert "\n" not in str(error.value) and not Path("run").exists()
