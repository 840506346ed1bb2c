"""Published checkpoints by name: every row has an existing model and layout, and small stand-ins are loaded."""

import fnmatch
import hashlib
import io
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args
from urllib.error import URLError
from urllib.parse import urlsplit

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file
from small_models import MODELS, SMALL, perturbed

import vidjax
from vidjax import runs
from vidjax.convert import download, export_pretrained, hub, layouts, published
from vidjax.convert.publication import NOT_PUBLISHED
from vidjax.data.config import Protocol
from vidjax.errors import UserError
from vidjax.models import create_model

ROWS = published.ROWS
WITHOUT_CLASSES = (
    "clip", "viclip", "internvideo", "videoprism", "siglip2", "albef", "dalle", "raft", "gpt2", "opt_", "t5_",
    "flan_t5_", "blip",
)  # fmt: skip


def test_names_are_listed_by_a_pattern():
    assert vidjax.list_pretrained() == sorted(ROWS) and len(ROWS) > 100
    assert vidjax.list_pretrained("videomae_[bs]*_ssv2") == [
        "videomae_base_pretrain_ssv2", "videomae_base_short_pretrain_ssv2", "videomae_base_short_ssv2",
        "videomae_base_ssv2", "videomae_small_ssv2",
    ]  # fmt: skip
    assert all("k400" in name for name in vidjax.list_pretrained("*k400*"))
    assert vidjax.list_pretrained("nothing") == []


def test_every_row_has_an_existing_model_and_layout():
    """`create_model` raises an error for a wrong field; two rows with the same name would be counted once."""
    assert len(ROWS) == len(published._ROWS)
    for row in ROWS.values():
        assert row.facts, row.name
        encoder = row.model.startswith(WITHOUT_CLASSES) or row.data == "VM22M"
        assert row.class_list or "pretrain" in row.name or encoder, row.name
        model = create_model(row.model, **row.fields)
        assert row.layout in {layout.key for layout in layouts(model)}, row.name
        if row.is_hub:
            owner, slash, repository = row.source.partition("/")
            assert owner and slash and repository and "/" not in repository and row.layout == "transformers", row.name
        else:
            address = urlsplit(row.source)
            assert address.scheme == "https" and address.hostname and (row.is_page or address.path.count(".") or (
                address.path.endswith("/checkpoint")
            )), row.name  # fmt: skip
        assert row.top1 is None or (row.data and 30 < row.top1 < 100), row.name
        assert row.top5 is None or row.top1 < row.top5 < 100, row.name
        assert not row.sha256 or row.sha256 in row.source, row.name
    sources = [row.source for row in ROWS.values()]
    assert len(set(sources)) == len(sources)


WITHOUT_ACCURACY = {
    "*_pretrain_*": "has no classifier",
    "clip_*": "has no classifier, and openai/CLIP's code names no accuracy",
    "viclip_large_internvid_?0m": "has no classifier; its README has no zero-shot figure for this set",
    "i3d_*_charades": "has several labels per video",
    "*_ig65m": "hashtags, of which no accuracy is published",
    "r2plus1d_34_*_k400": "the README gives none for these files",
    "c3d_sports1m_mmaction2": "a start for UCF101",
    "slowfast_101_*_50_50_k600": "a start for AVA",
    "video_swin_b_16_in22k_k400": "a start for Something-Something",
    "internvideo_*": "has no classifier; what it reaches after fine-tuning is published of the whole system",
    "siglip2_*": "has no classifier",
    "dalle_*": "has no classifier",
    "raft_*": "has no classifier",
    "beit_*_in22k": "a start for ImageNet-1k",
    "albef_*": "has no classifier",
    "blip*": "has no classifier",
    "gpt2*": "has no classifier",
    "opt_*": "has no classifier",
    "*t5_*": "has no classifier",
    "videoprism_*": "has no classifier",
    "vjepa2_*_vm22m": "has no classifier",
    "uniformerv2_*_8_k710": "a start for Kinetics-400, 600 and 700",
}
WITHOUT_VIEWS = {
    "*_howto100m": "several clips of a long video, how many is not said",
    "actionclip_*_ported": "not in mmaction2's table",
    "actionclip_*_mmaction2": "not in mmaction2's table",
    "r2plus1d_34_*_mmaction2": "not in mmaction2's table",
    "s3d_k400_kylemin": "not in the README",
    "hiera_*_image_in1k": "images have one view",
    "beit_*_in1k": "images have one view",
    "i3d_*_k400": "not as clips and crops in the READMEs",
}
"""Why rows with these names lack a value."""


def test_no_row_lacks_a_value_without_a_reason():
    """Apart from top-5, which many papers omit, and class names, which say so themselves if they are not published."""
    assert all(row.licence and row.layout and row.source and row.facts for row in ROWS.values())
    assert all(row.data for row in ROWS.values() if row.class_list or row.top1)
    assert all(row.class_list != NOT_PUBLISHED for row in ROWS.values() if row.model.startswith("uniformerv2"))
    for lacking, reasons in (
        ({row.name for row in ROWS.values() if row.top1 is None}, WITHOUT_ACCURACY),
        ({row.name for row in ROWS.values() if row.top1 is not None and not row.views}, WITHOUT_VIEWS),
    ):
        explained = {pattern: set(fnmatch.filter(lacking, pattern)) for pattern in reasons}
        assert all(explained.values()), explained
        assert lacking - set().union(*explained.values()) == set()


def test_accuracy_agrees_with_the_card_of_the_model():
    """Checkpoints whose accuracy is also in the model's card have the same value there."""
    for name in ("timesformer_base_k400", "vivit_base_fe_k400", "r2plus1d_18_k400", "uniformer_base_16x4_k400"):
        row = ROWS[name]
        assert create_model(row.model).card.accuracy == row.accuracy, name


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def serve(monkeypatch, content: bytes) -> list[str]:
    """Makes every address return this content; returns the list of requested addresses."""
    requested = []

    def urlopen(address, timeout):
        requested.append(address)
        return io.BytesIO(content)

    monkeypatch.setattr(download, "urlopen", urlopen)
    return requested


def stand_in(name: str, layout: str, folder) -> bytes:
    """The file of a narrow model in the publisher's format."""
    return export_pretrained(MODELS[name], perturbed(MODELS[name]), folder, layout=layout).read_bytes()


def test_a_file_is_downloaded_once_with_a_line(cache, monkeypatch, tmp_path, capsys):
    pytest.importorskip("torch")
    content = stand_in("timesformer", "original", tmp_path / "out")
    requested = serve(monkeypatch, content)
    fields = SMALL | {f: getattr(MODELS["timesformer"], f) for f in ("patch_size", "num_frames", "image_size")}
    model, variables = vidjax.load_pretrained("timesformer_large_ssv2", strict=True, **fields)
    row = ROWS["timesformer_large_ssv2"]
    output = capsys.readouterr().out
    path = cache / "timesformer_large_ssv2" / "TimeSformer_divST_64_224_SSv2.pyth"
    assert (
        requested == [row.source] and f"downloading {row.source} to {path}" in output and path.read_bytes() == content
    )
    assert f"; class names: {row.class_list}\n" in output
    assert model.num_classes == 5 and model.card.accuracy == "SSv2 62.0, 1x3 views"  # not that of K400
    expected = flatten_dict(perturbed(MODELS["timesformer"]))
    for place, leaf in flatten_dict(variables).items():
        np.testing.assert_array_equal(leaf, expected[place])
    vidjax.load_pretrained("timesformer_large_ssv2", strict=True, verbose=False, **fields)
    assert len(requested) == 1 and not capsys.readouterr().out


def test_scripts_start_from_a_published_name(cache, monkeypatch, tmp_path):
    pytest.importorskip("torch")
    serve(monkeypatch, stand_in("timesformer", "original", tmp_path / "out"))
    runs.require_source("init_from", "timesformer_large_k400")
    model = MODELS["timesformer"]
    filled, report = runs.start_from("timesformer_large_k400", model, jax.tree.map(jnp.asarray, perturbed(model)))
    assert not report.new and len(report.loaded) == len(flatten_dict(filled))


def test_a_published_hash_is_verified(cache, monkeypatch, tmp_path):
    pytest.importorskip("torch")
    content = stand_in("r3d", "torchvision", tmp_path / "out")
    serve(monkeypatch, content)
    with pytest.raises(UserError, match=r"gave a file with the hash [0-9a-f]{64}, not b3b3357e: download r3d_18_k400"):
        vidjax.load_pretrained("r3d_18_k400")
    assert not list((cache / "r3d_18_k400").iterdir())
    digest = hashlib.sha256(content).hexdigest()
    assert download.download("https://x/y.pth", "mine", digest[:8]) == cache / "mine" / "y.pth"


def test_a_failed_download_is_an_error(cache, monkeypatch):
    serve(monkeypatch, b"\n<!DOCTYPE html><html>sign in</html>")
    with pytest.raises(
        UserError, match="gave a web page instead of a file: download i3d_rgb_k400 manually and give its path"
    ):
        vidjax.load_pretrained("i3d_rgb_k400")

    def fails(address, timeout):
        raise URLError("no route")

    monkeypatch.setattr(download, "urlopen", fails)
    with pytest.raises(UserError, match=r"i3d_rgb_k400 cannot be downloaded from https://\S+ \(.*no route.*manually"):
        vidjax.load_pretrained("i3d_rgb_k400")
    assert not list((cache / "i3d_rgb_k400").iterdir())
    with pytest.raises(
        UserError, match=r"can only be downloaded manually: get it from https://drive\S+ and give its path, with name="
    ):
        vidjax.load_pretrained("uniformer_small_8x8_k400")


def test_a_directory_is_downloaded_by_its_id(monkeypatch, tmp_path):
    export_pretrained(MODELS["videomae"], perturbed(MODELS["videomae"]), tmp_path / "hub", layout="transformers")
    requested = []

    def snapshot_download(name, allow_patterns):
        requested.append(name)
        return str(tmp_path / "hub")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    model, variables = vidjax.load_pretrained("videomae_base_k400", strict=True)
    assert requested == ["MCG-NJU/videomae-base-finetuned-kinetics"]
    assert model.width == SMALL["width"] and model.card.accuracy == "K400 80.9, 5x3 views"
    head = load_file(tmp_path / "hub" / "model.safetensors")["classifier.weight"]
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], head.T)


def test_cards_say_how_their_models_were_tested():
    tested = {"accuracy": "SSv2 70.6, 2x3 views", "views": "2x3", "sampling": "segments"}
    assert ROWS["videomae_base_ssv2"].card == tested
    assert "sampling" not in ROWS["videomae_base_pretrain_ssv2"].card
    assert "views" not in ROWS["viclip_base_internvid_10m_flt"].card  # a zero-shot accuracy
    for name in vidjax.list_models():
        model = create_model(name)
        if not hasattr(model, "card"):
            continue
        for card in (model.card, *(replace(model.card, **layout.card) for layout in layouts(model))):
            assert card.protocol in get_args(Protocol) and (not card.views or runs.read_views(card.views))
            strided = card.sampling == "dense"  # SlowFast counts strides at this rate
            assert card.protocol != "slowfast" or card.rate == 30 or not strided


def test_a_local_path_takes_precedence(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    variables = perturbed(MODELS["vit"])
    vidjax.save_pretrained("videomae_base_k400", MODELS["vit"], variables)
    model, _ = vidjax.load_pretrained("videomae_base_k400", verbose=False)
    assert type(model) is type(MODELS["vit"])


def test_the_error_for_a_mistyped_name_lists_the_nearest_names():
    with pytest.raises(
        UserError, match=r"no weights at videomae_base_k40, and no published .* \(did you mean videomae_base_"
    ):
        vidjax.load_pretrained("videomae_base_k40")
    with pytest.raises(
        UserError, match=r"init_from: there are no weights at videomae_base_k40 \(did you mean videomae_"
    ):
        runs.require_source("init_from", "videomae_base_k40")
    assert not hub.is_id("videomae_base_k40") and hub.is_id("videomae_base_k400")
