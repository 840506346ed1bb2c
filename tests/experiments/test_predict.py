"""predict.py: predictions of files and windows, unreadable files, and parity with PyTorch."""

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import videos

from vidjax.convert import save_pretrained
from vidjax.data.config import GivenClipConfig
from vidjax.data.decode import decode
from vidjax.data.sampling import dense
from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.models import videomae

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import predict

NAMES = ("jumping", "waving", "eating", "drumming", "yoga")


def smooth(count, height, width):
    """A natural-looking image of soft blobs that moves."""
    rng = np.random.default_rng(3)
    coarse = jnp.asarray(rng.integers(0, 255, (6, 12, 3)), jnp.float32)
    fine = jnp.asarray(rng.normal(0, 12, (height // 2, width, 3)), jnp.float32)
    image = sum(jax.image.resize(x, (height, 2 * width, 3), "cubic") for x in (coarse, fine))
    image = np.asarray(jnp.clip(image, 0, 255)).astype(np.uint8)
    return np.stack([image[:, 2 * i % width :][:, :width] for i in range(count)])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny classifier whose predictions depend on its input."""
    card = Card(stride=2, class_names=NAMES)
    model = videomae.VideoMAE(
        24, 1, 3, patch_size=(2, 8, 8), num_classes=5, num_frames=4, image_size=32, card=card
    )  # fmt: skip
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 32, 32, 3)))
    variables["params"]["head"]["kernel"] *= 5000  # it is initialised near zero
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_pretrained(path, model, variables)
    return path, model, variables


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    videos.write_video(folder / "a.mp4", smooth(60, 32, 48))
    videos.write_video(folder / "sub" / "b.avi", smooth(9, 48, 48)[::-1], codec="mpeg4")
    videos.write_video(folder / "sub" / "short.mp4", smooth(5, 32, 32))
    (folder / "sub" / "notes.mp4").write_bytes(b"no video at all")
    return folder


def run(checkpoint, *paths, **more):
    return predict.main(predict.Config(paths=tuple(map(str, paths)), run=str(checkpoint[0]), **more))


def expected(checkpoint, path, indices):
    """The probabilities of one clip, computed with the model directly."""
    _, model, variables = checkpoint
    frames = decode(path, indices, 32)
    left = (frames.shape[2] - 32) // 2
    video = model.card.normalize(jnp.asarray(frames[None, :, :, left : left + 32], jnp.float32) / 255)
    return np.asarray(jax.nn.softmax(jax.jit(model.apply)(variables, video)))[0]


def by_class(predictions, names=NAMES):
    result = {guess["class"]: guess["probability"] for guess in predictions}
    return np.array([result[name] for name in names])


def test_each_file_has_ranked_classes_and_unreadable_files_are_listed(checkpoint, folder, capsys):
    report = run(checkpoint, folder / "a.mp4", folder / "sub", "absent.mp4", batch_size=2)
    names = [Path(file["path"]).name for file in report["files"]]
    assert names == ["a.mp4", "b.avi", "notes.mp4", "short.mp4", "absent.mp4"]
    for file, count in zip(report["files"][:2], (60, 9), strict=True):
        (window,) = file["windows"]
        probabilities = [guess["probability"] for guess in window["predictions"]]
        assert probabilities == sorted(probabilities, reverse=True) and max(probabilities) > 0.25
        wanted = expected(checkpoint, file["path"], dense(count, 4, 2))
        np.testing.assert_allclose(by_class(window["predictions"]), wanted, atol=1e-5)
    assert [bool(file["windows"]) for file in report["files"]] == [True, True, False, True, False]
    captured = capsys.readouterr()
    assert "cannot be read: " in captured.err
    assert "notes.mp4: Invalid data" in captured.err and "absent.mp4: No such file" in captured.err
    assert "2 of 5 files could not be read" in captured.err and "jumping" in captured.out


def test_windows_have_times_and_predictions_independent_of_the_batch(checkpoint, folder, tmp_path, capsys):
    settings = {"window": 4, "stride": 8, "topk": 9}
    report = run(checkpoint, folder, json=str(tmp_path / "a.json"), csv=str(tmp_path / "a.csv"), **settings)
    a, b, notes, short = report["files"]
    spans = [(round(25 * window["start"]), round(25 * window["end"])) for window in a["windows"]]
    assert spans == [(0, 8), (16, 24), (32, 40), (48, 56)]  # frames 28 and 29 lie between windows
    for window, (first, _) in zip(a["windows"], spans, strict=True):
        wanted = expected(checkpoint, a["path"], first + 2 * np.arange(4))
        np.testing.assert_allclose(by_class(window["predictions"]), wanted, atol=1e-5)
    assert len(b["windows"]) == 1 and "Invalid data" in notes["error"]
    assert "its 5 frames, 3 at this stride or rate, are too few for a window of 4" in short["error"]
    assert "0.64     0.96  " in capsys.readouterr().out

    assert json.loads((tmp_path / "a.json").read_text()) == report
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert len(rows) == 5 * 5 + 2 and rows[5]["start"] == "0.64" and rows[5]["rank"] == "1"
    assert rows[5]["class"] == a["windows"][1]["predictions"][0]["class"] and rows[-1]["error"] == short["error"]

    other = run(checkpoint, folder, batch_size=1, **settings)
    for one, two in zip(report["files"], other["files"], strict=True):
        for before, after in zip(one["windows"], two["windows"], strict=True):
            np.testing.assert_allclose(by_class(before["predictions"]), by_class(after["predictions"]), atol=1e-6)


def test_views_are_averaged(checkpoint, folder):
    (file,) = run(checkpoint, folder / "a.mp4", views="2x3")["files"]
    _, model, variables = checkpoint
    crops = []
    for start in (0, 53):
        frames = decode(folder / "a.mp4", start + 2 * np.arange(4), 32)
        crops += [frames[:, :, left : left + 32] for left in (0, 8, 16)]
    video = model.card.normalize(jnp.asarray(np.stack(crops), jnp.float32) / 255)
    wanted = np.asarray(jax.nn.softmax(jax.jit(model.apply)(variables, video))).mean(axis=0)
    np.testing.assert_allclose(by_class(file["windows"][0]["predictions"]), wanted, atol=1e-5)
    assert (file["windows"][0]["start"], file["windows"][0]["end"]) == (0.0, 60 / 25)


def test_classes_without_names_are_numbered_and_an_encoder_raises(checkpoint, folder, tmp_path):
    _, model, variables = checkpoint
    unnamed = model.clone(card=dataclasses.replace(model.card, class_names=()))
    save_pretrained(tmp_path / "unnamed", unnamed, variables)
    (file,) = run((tmp_path / "unnamed",), folder / "a.mp4", topk=2)["files"]
    assert [guess["class"].split()[0] for guess in file["windows"][0]["predictions"]] == ["class", "class"]

    params = {name: value for name, value in variables["params"].items() if not name.startswith("head")}
    save_pretrained(tmp_path / "encoder", model.clone(num_classes=None), {"params": params})
    with pytest.raises(ValueError, match="is a VideoMAE without classes: fine-tune it first"):
        run((tmp_path / "encoder",), folder / "a.mp4")
    save_pretrained(tmp_path / "headless", model, variables)
    shutil.copy(tmp_path / "encoder" / "model.safetensors", tmp_path / "headless")
    with pytest.raises(ValueError, match="head"):
        run((tmp_path / "headless",), folder / "a.mp4")


def test_invalid_settings_raise(checkpoint, folder, tmp_path, capsys):
    (tmp_path / "old.json").write_text("{}")
    for more, reason in (
        ({"json": str(tmp_path / "old.json")}, "old.json already exists"),
        ({"csv": str(tmp_path / "no" / "a.csv")}, r"cannot write --csv to \S+ \(No such file or directory\): give"),
        ({"json": "/proc/a.json", "csv": str(tmp_path / "a.csv")}, "cannot write --json to /proc/a.json"),
        ({"json": str(tmp_path / "a"), "csv": str(tmp_path / "a")}, "--json and --csv are the same file"),
        ({"topk": 0}, "topk is 0: it must be 1 or more"),
        ({"views": "4"}, "write clips x crops"),
        ({"stride": 4}, "give --window too"),
        ({"window": 4, "views": "2x1"}, "windows have one view"),
        ({"window": 3}, "3 frames cannot be cut into patches of 2"),
        ({"window": 4, "data": GivenClipConfig(sampling="segments")}, "give --data.sampling dense and --data.stride"),
    ):
        with pytest.raises(UserError, match=reason):
            run(checkpoint, folder / "a.mp4", **more)
    assert (tmp_path / "old.json").read_text() == "{}"
    with pytest.raises(ValueError, match="no video is given"):
        run(checkpoint)
    with pytest.raises(ValueError, match="none of the 1 files could be read: see the reasons above"):
        run(checkpoint, folder / "sub" / "notes.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="contains no videos"):
        run(checkpoint, tmp_path / "empty")
    capsys.readouterr()
    run(checkpoint, folder / "a.mp4", window=6)
    assert "note: clips have 6 frames, the model was built for 4" in capsys.readouterr().out


def test_the_command_line_exits_with_one_line_and_status_2(checkpoint, folder):
    script = Path(predict.__file__)
    command = [sys.executable, script, folder / "sub" / "notes.mp4", "--run", checkpoint[0], "--topk", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=script.parents[1], check=False)
    lines = [line for line in done.stderr.splitlines() if "WARNING" not in line]
    assert done.returncode == 2 and lines[-1].startswith("predict.py: error: none of the 1 files could")
    assert len(lines) == 2 and "Invalid data" in lines[0]


# The same predictions as the PyTorch original. If frames need no resizing, pixels are equal bit for bit. If they do,
# they differ: transformers and torchvision resize RGB images bilinearly; here FFmpeg resizes while it converts the
# colours. Both differences are bounded here for images of about 4:3: torchvision does not antialias, and stretches
# all other shapes to 128x171.


def torch_videomae(folder):
    import torch

    transformers = peers.transformers()
    config = transformers.VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=4, tubelet_size=2, hidden_size=24, num_hidden_layers=2,
        num_attention_heads=3, intermediate_size=96, use_mean_pooling=True, id2label=dict(enumerate(NAMES)),
    )  # fmt: skip
    model = transformers.VideoMAEForVideoClassification(config).eval()
    peers.perturb(model)
    processor = transformers.VideoMAEImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.48, 0.5, 0.4]
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)

    def prepare(frames):
        return processor(list(frames), return_tensors="pt")["pixel_values"][0]

    def peer_output(prepared):
        with torch.no_grad():
            return model(pixel_values=prepared[None]).logits.softmax(-1)[0].numpy()

    return folder, {}, (4, 4), prepare, peer_output


def torch_r3d(folder):
    import torch

    torchvision = peers.torchvision()
    from torchvision.transforms._presets import VideoClassification

    model = torchvision.models.video.r3d_18(num_classes=5).eval()
    peers.perturb(model)
    torch.save(model.state_dict(), folder / "r3d_18.pth")
    preset = VideoClassification(crop_size=(112, 112), resize_size=(128, 171))

    def prepare(frames):
        if frames.shape[1:3] == (128, 170):  # its own resizing would be by one pixel
            preset.resize_size = [128, 170]
        return preset(torch.from_numpy(frames).permute(0, 3, 1, 2))

    def peer_output(prepared):
        with torch.no_grad():
            return model(prepared[None]).softmax(-1)[0].numpy()

    clips = GivenClipConfig(frames=2)
    return folder / "r3d_18.pth", {"model": "r3d_18", "data": clips}, (2, 2), prepare, peer_output


@pytest.mark.parametrize(
    ("make", "same_size", "large"), [(torch_videomae, (32, 48), (96, 144)), (torch_r3d, (128, 170), (256, 340))]
)
def test_published_checkpoints_predict_like_the_pytorch_original(make, same_size, large, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    (tmp_path / "weights").mkdir()
    source, settings, (frames, stride), prepare, peer_output = make(tmp_path / "weights")
    seen = []
    make_classify = predict.make_classify

    def watched(model, variables, clips):
        classify = make_classify(model, variables, clips)
        return lambda video: seen.append((video[0, 0], model.card)) or classify(video)

    monkeypatch.setattr(predict, "make_classify", watched)
    paths = [
        videos.write_video(tmp_path / f"{name}.mp4", smooth(40, *size))
        for name, size in (("same", same_size), ("large", large))
    ]
    config = predict.Config(paths=tuple(map(str, paths)), run=str(source), batch_size=1, **settings)
    names = NAMES if not settings else [f"class {i}" for i in range(5)]
    files = predict.main(config)["files"]
    differences = []
    for path, file, (pixels, card) in zip(paths, files, seen, strict=True):
        reference = prepare(decode(path, dense(40, frames, stride)))
        wanted, result = peer_output(reference), by_class(file["windows"][0]["predictions"], names)
        assert wanted.max() - wanted.min() > 0.05
        reference = np.moveaxis(reference.numpy(), 0 if reference.shape[0] == 3 else 1, -1)
        difference = np.abs(pixels - 255 * (reference * card.std + card.mean))  # in grey levels of 255
        differences.append((difference.mean(), difference.max(), np.abs(result - wanted).max()))
    (_, pixel, probability), (mean, most, moved) = differences
    assert pixel < 1e-3 and probability < 1e-5
    assert mean < 6 and most < 40 and moved < 0.01
