"""Fixtures to run the pages' blocks: a directory with small videos, and stand-ins for published weights."""

import functools
import sys
from pathlib import Path

import pytest
import videos

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("blocks")

import blocks  # noqa: E402  in this folder

import vidjax  # noqa: E402
from vidjax import convert, runs  # noqa: E402

# Published weights by their name on the pages, and the tiny model with random weights that replaces each.
WEIGHTS = {
    "videomae_base_k400": "videomae_tiny",
    "MCG-NJU/videomae-base": "videomae_tiny",
    "MCG-NJU/videomae-base-finetuned-kinetics": "videomae_tiny",
    "uniformer_base_k400_16x4.pth": "uniformer_tiny",
    "vit_base.safetensors": "timesformer_tiny_divided",
}
CLASSES = ("abseiling", "air drumming")


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Saves a model of WEIGHTS when first used, and returns its directory."""

    @functools.cache
    def saved(name):
        path = tmp_path_factory.mktemp("weights") / name
        blocks.save(path, CLASSES, name)
        return path

    return saved


@pytest.fixture
def place(tmp_path, monkeypatch, weights):
    """A working directory with `videos/` of two classes, `clip.mp4`, and tiny models for published weights."""
    monkeypatch.chdir(tmp_path)
    for i in range(8):
        videos.write_video(Path("videos") / ("jump", "wave")[i % 2] / f"{i}.mp4", videos.numbered(70, 32, 40, first=i))
    videos.write_video(Path("clip.mp4"), videos.numbered(70, 96, 128))
    load_pretrained, fetch = runs.load_pretrained, convert.hub.fetch

    def load_tiny(source, name=None, **fields):
        if source not in WEIGHTS:
            return load_pretrained(source, name, **fields)
        if name is not None:
            vidjax.create_model(name, **{k: v for k, v in fields.items() if k == "num_classes"})  # the name must exist
        return load_pretrained(weights(WEIGHTS[source]), **fields)

    monkeypatch.setattr(vidjax, "load_pretrained", load_tiny)
    monkeypatch.setattr(runs, "load_pretrained", load_tiny)
    monkeypatch.setattr(
        convert.hub, "fetch", lambda source: fetch(weights(WEIGHTS.get(source)) if source in WEIGHTS else source)
    )
    return tmp_path
