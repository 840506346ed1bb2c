"""Runs of text_to_image.py, and the pictures that draw.py makes of them."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_models import perturbed
from small_runs import interrupt_after, two_devices

import vidjax
from vidjax import cli
from vidjax.errors import UserError
from vidjax.training.metrics import read_metrics

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import draw
import text_to_image

SMALL = "--data.workers 1 --batch_size 8 --steps 4 --loop.log_every 1 --loop.save_every 2 --loop.evaluate_every 4"


def run(workdir, *flags):
    argv = ["demo", *SMALL.split(), "--observed_clips", "2", "--workdir", str(workdir), *flags]
    with two_devices():
        return text_to_image.main(cli.parse(text_to_image.Config, text_to_image.RECIPES, text_to_image.DATA_FLAG, argv))


def save_tokenizer(path, **fields):
    model = vidjax.create_model("dalle_tiny", **fields)
    vidjax.save_pretrained(path, model, perturbed(model))
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    vae = save_tokenizer(folder / "vae")
    run(folder / "run", "--image_tokenizer", vae)
    return folder


@pytest.mark.long
def test_a_resumed_run_has_the_same_losses_and_captions_are_drawn(trained, tmp_path, capsys):
    flags = ["--image_tokenizer", str(trained / "vae")]
    interrupt_after(2, run, tmp_path / "run", *flags)
    run(tmp_path / "run", *flags)
    losses = [[e["loss"] for e in read_metrics(each) if "loss" in e] for each in (trained / "run", tmp_path / "run")]
    assert len(losses[0]) == 4 and losses[0] == losses[1]
    (seen,) = [entry for entry in read_metrics(trained / "run") if "evaluation/image_loss" in entry]
    expected = seen["evaluation/word_loss"] / 8 + seen["evaluation/image_loss"] * 7 / 8
    assert seen["evaluation/loss"] == pytest.approx(expected, rel=1e-5)
    assert Image.open(trained / "run" / "pictures" / "step_0000004.png").size[0] > 4 * 64
    assert "pictures/ (start with the newest PNG), curves.png" in capsys.readouterr().out


@pytest.mark.long
def test_pictures_are_drawn_and_ordered_by_a_contrastive_model(trained, tmp_path, capsys):
    import contrastive_pretrain

    argv = "demo --video_model fr2d_tiny --steps 1 --batch_size 8 --data.frames 2 --data.workers 1".split()
    argv += ["--data.validation", "None", "--workdir", str(tmp_path / "clip")]
    with two_devices():
        contrastive_pretrain.main(
            cli.parse(contrastive_pretrain.Config, contrastive_pretrain.RECIPES, contrastive_pretrain.DATA_FLAG, argv)
        )
    texts, settings = ("a red circle", "a blue square"), {"run": str(trained / "run"), "samples": 3, "shown": 2}
    plain = draw.main(draw.Config(texts, **settings, out=str(tmp_path / "plain")))
    ranked = draw.main(draw.Config(texts, **settings, out=str(tmp_path / "best"), ranked_by=str(tmp_path / "clip")))
    assert plain.shape == (2, 3, 32, 32, 3) and np.ptp(plain, axis=1).max() > 1e-3  # draws differ
    scores = draw.load_ranker(str(tmp_path / "clip"), texts)(ranked)
    assert (np.diff(scores, axis=1) <= 1e-6).all() and np.ptp(scores) > 0
    for own, other in zip(plain, ranked, strict=True):
        assert sorted(each.tobytes() for each in own) == sorted(each.tobytes() for each in other)
    saved = np.asarray(Image.open(tmp_path / "best" / "001" / "000.png"))
    np.testing.assert_allclose(saved / 255, ranked[1, 0], atol=0.51 / 255)
    assert (tmp_path / "best" / "pictures.png").exists() and "6 pictures are in" in capsys.readouterr().out
    with pytest.raises(UserError, match="already exists, and nothing is overwritten: give another --out"):
        draw.Config(texts, **settings, out=str(tmp_path / "best"))
    with pytest.raises(UserError, match=r"run .*clip is a VideoText: give a run of text_to_image\.py"):
        draw.main(draw.Config(texts, run=str(tmp_path / "clip"), out=str(tmp_path / "new")))
    with pytest.raises(UserError, match="is a TextToImage, which has no text tower"):
        draw.main(draw.Config(texts, **settings, out=str(tmp_path / "new"), ranked_by=str(trained / "run")))


BAD = [
    (["--model", "gpt2_tiny"], "model gpt2_tiny draws no pictures: choose dalle_gpt_tiny, _small, _base or _12b"),
    (["--decoder", "OTHER"], "decoder: OTHER has 32 tokens, the model 64: give the run whose tokens it was trained on"),
    (["--decoder", "VIT"], "decoder: VIT is a VideoMAE, which makes no pictures of tokens: give a run of token_pre"),
    (["--image_tokenizer", "VIT"], "image_tokenizer: VIT is a VideoMAE, which has no tokens: give a run of token_pre"),
    (["--image_tokenizer", "a/b/c"], "image_tokenizer: there are no weights at a/b/c: give a run, a file or a Hugging"),
]


@pytest.mark.usefixtures("unchecked")
def test_invalid_input_is_one_line_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tokenizer("VAE")
    save_tokenizer("OTHER", vocabulary=32)
    model = vidjax.create_model("videomae_tiny", num_classes=3)
    vidjax.save_pretrained("VIT", model, perturbed(model))
    for flags, message in BAD:
        with pytest.raises(UserError, match=message) as error:
            run("run", "--image_tokenizer", "VAE", *flags)
        assert "\n" not in str(error.value) and not Path("run").exists()
    with pytest.raises(UserError, match=r"data\.frames is 2: one frame of each video is drawn, give --data\.frames 1"):
        text_to_image.Config(data=dataclasses.replace(text_to_image.Config().data, frames=2))
    with pytest.raises(UserError, match="text_weight is 2: it must be between 0 and 1"):
        text_to_image.Config(text_weight=2)
    with pytest.raises(UserError, match=r"data\.size is 36: give a multiple of 8, the side of a token in pixels"):
        text_to_image.Config(data=dataclasses.replace(text_to_image.Config().data, size=36))
    with pytest.raises(UserError, match=r"layer_decay is for encoders of videos: omit it"):
        text_to_image.Config(optim=dataclasses.replace(text_to_image.Config().optim, layer_decay=0.9))
    with pytest.raises(UserError, match="context is 2: it must be 3 or more, for a start, a token and an end"):
        text_to_image.Config(context=2)
    with pytest.raises(UserError, match="no text is given, or an empty one: say what to draw"):
        draw.Config((" ",), run="run")
