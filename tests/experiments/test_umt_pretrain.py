"""Alignment with a CLIP: the loss against its rule, a run that is resumed and fine-tuned from, invalid input."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import IMAGE, TEXT, perturbed
from small_runs import interrupt_after

import vidjax
from vidjax import cli
from vidjax.errors import UserError
from vidjax.models.video_text import VideoText
from vidjax.objectives import unmasked
from vidjax.runs.unmasked import see
from vidjax.training.checkpoint import load_variables
from vidjax.training.metrics import read_metrics
from vidjax.training.state import Aux

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import umt_pretrain

SMALL = """
demo --data.size 16 --data.short_side 16 --data.frames 4 --data.stride 1 --data.workers 1 --batch_size 8 --steps 4
--loop.log_every 1 --loop.save_every 2 --probe_clips 0 --optim.warmup_epochs 0 --mask_ratio 0.5 --drop_path 0
""".split()
TEACHER = VideoText(IMAGE.clone(depth=2, heads=2, num_frames=4), TEXT)


def parse(*flags):
    return cli.parse(umt_pretrain.Config, umt_pretrain.RECIPES, umt_pretrain.DATA_FLAG, [*SMALL, *flags])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The directory of a small CLIP."""
    folder = tmp_path_factory.mktemp("umt") / "clip"
    vidjax.save_pretrained(folder, TEACHER, perturbed(TEACHER))
    return str(folder)


def test_the_loss_compares_both_where_the_teachers_attention_drew():
    config, key = parse(), jax.random.key(0)
    model = umt_pretrain.make_model(config, TEACHER.video.features)
    pixels = jax.random.randint(key, (2, 4, 16, 16, 3), 0, 256).astype(jnp.uint8)
    params = perturbed(model.clone(num_frames=4, image_size=16))["params"]
    frozen = {"params": perturbed(TEACHER)["params"]["video"]}
    aux, batch = Aux({}, None, frozen, 0), {"video": pixels, "valid": jnp.array([True, False])}
    loss, _ = jax.jit(umt_pretrain.make_loss(config, model, TEACHER))(params, aux, batch, key)
    features, attention = see(TEACHER, frozen, pixels, 2)
    kept = np.asarray(unmasked.draw_attended(jax.random.split(key)[0], attention, 0.5))
    assert kept.shape == (2, 4 * 2)
    student = model.apply({"params": params}, model.card.preprocess(pixels), jnp.asarray(kept))[:, 0]
    expected = np.asarray(features)[:, 0, kept[0]]
    cosine = (student * expected).sum(-1) / np.linalg.norm(student, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert float(loss) == pytest.approx(float((2 - 2 * cosine).mean()), rel=1e-4)


@pytest.mark.long
def test_a_resumed_run_is_equal_bit_for_bit_and_fine_tuning_starts_from_it(teacher, tmp_path, capsys):
    def run(workdir, *flags):
        return umt_pretrain.main(parse("--teacher", teacher, "--workdir", str(workdir), *flags))

    run(tmp_path / "whole")
    assert "16 per clip, 8 visible, 2 layers" in capsys.readouterr().out
    interrupt_after(2, run, tmp_path / "resumed")
    run(tmp_path / "resumed")
    (expected, step), (resumed, _) = load_variables(tmp_path / "whole"), load_variables(tmp_path / "resumed")
    assert step == 4 and expected.keys() == resumed.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(resumed[path], value, err_msg=path)
    losses = [entry["loss"] for entry in read_metrics(tmp_path / "whole") if "loss" in entry]
    assert len(losses) == 4 and losses[-1] < losses[0]
    _, variables = vidjax.load_pretrained(tmp_path / "whole", "umt_tiny", num_frames=4, image_size=16, num_classes=3)
    kernel = variables["params"]["patch_embedding"]["kernel"]
    np.testing.assert_array_equal(kernel, expected["params/encoder/patch_embedding/kernel"])


BAD = [
    ((), "teacher is missing: give a CLIP, a run or a published one such as clip_base_16_openai"),
    (("--teacher", "nowhere/at/all"), "teacher: there are no weights at nowhere/at/all: give a run, a file or a Hugg"),
    (("--teacher", "CLIP", "--layers", "3"), "layers is 3, but the teacher has 2: use 2 or fewer"),
    (("--teacher", "CLIP", "--model", "videomae_tiny"), "model videomae_tiny is no student: choose one of umt_base, "),
    (("--teacher", "CLIP", "--model", "umt_base"), r"tokens lie on a grid of \(4, 2, 2\), the model's on \(4, 1, 1\)"),
    (("--teacher", "VIDEOMAE"), "is no CLIP: its masks need the attention of a class token in each frame, give a CLIP"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("flags", "message"), BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_invalid_input_is_one_line_before_anything_is_written(flags, message, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "VIDEOMAE" in flags:
        model = vidjax.create_model("videomae_tiny", width=24, depth=1, heads=3, num_frames=4, image_size=16)
        vidjax.save_pretrained("VIDEOMAE", model, perturbed(model))
    flags = [teacher if flag == "CLIP" else flag for flag in flags]
    with pytest.raises(UserError, match=message) as error:
        umt_pretrain.main(parse("--workdir", "run", *flags))
    assert "\n" not in str(error.value) and not Path("run").exists()
