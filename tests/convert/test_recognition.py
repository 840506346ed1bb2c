"""Recognising layouts: wrappers added by training, unknown layouts, and the layout argument."""

import dataclasses

import jax
import numpy as np
import pytest
import recipe

from vidjax.convert import from_state_dict, layouts, load_pretrained, recognition, recognize
from vidjax.errors import UserError
from vidjax.models.clip import ImageTower
from vidjax.models.text import TextTower
from vidjax.models.timesformer import TimeSformer
from vidjax.models.video_text import VideoText
from vidjax.models.videomae import VideoMAE


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return recipe.load("videomae_finetune").weights


@pytest.fixture(scope="module")
def model() -> VideoMAE:
    c = recipe.load("videomae_finetune").config
    return VideoMAE(
        c["D"], c["L"], c["H"], patch_size=(2, c["P"], c["P"]), num_classes=c["classes"], num_frames=c["T"],
        image_size=c["S"],
    )  # fmt: skip


WRAPPERS = {
    "a compiled model": lambda name: f"_orig_mod.{name}",
    "one compiled before it was distributed": lambda name: f"module._orig_mod.{name}",
    "one compiled after": lambda name: f"_orig_mod.module.{name}",
    "Lightning's": lambda name: f"model.{name}",
    "Lightning's, compiled": lambda name: f"model._orig_mod.{name}",
    "Lightning's, of a wrapper": lambda name: f"model.net.{name}",
    "a compiled part": lambda name: name.replace("blocks.", "blocks._orig_mod."),
    "each block compiled": lambda name: name.replace("blocks.0.", "blocks.0._orig_mod."),
    "sharded": lambda name: f"_fsdp_wrapped_module.{name}",
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_training_wrappers_are_removed_from_names(wrapper, model, weights):
    """Those of `torch.compile`, `DistributedDataParallel`, FSDP and Lightning modules (PyTorch 2.13)."""
    named = {WRAPPERS[wrapper](name): value for name, value in weights.items()}
    assert set(named) != set(weights)
    expected = from_state_dict(model, weights, strict=True)
    jax.tree.map(np.testing.assert_array_equal, from_state_dict(model, named, strict=True), expected)


def test_other_entries_of_a_lightning_module_are_reported_as_unused(model, weights, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    named = {f"model.{name}": torch.from_numpy(np.asarray(value)) for name, value in weights.items()}
    content = {"state_dict": named | {"criterion.weight": torch.ones(3)}, "pytorch-lightning_version": "2.5"}
    torch.save(content | {"callbacks": {}, "hyper_parameters": {"lr": np.float64(0.1)}}, tmp_path / "x.ckpt")
    fields = {f: getattr(model, f) for f in ("width", "depth", "heads", "patch_size", "num_frames", "image_size")}
    _, variables = load_pretrained(tmp_path / "x.ckpt", "videomae_tiny", **fields)
    expected = from_state_dict(model, weights)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    assert "in the weights but unused: criterion.weight" in capsys.readouterr().out


def test_the_report_names_the_weights_of_a_file_that_were_read(model, weights, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()}
    average = {f"module.{name}": value + 1 for name, value in tensors.items()} | {"n_averaged": torch.tensor(3)}
    torch.save({"model": tensors, "model_ema": average}, tmp_path / "x.pth")
    fields = {f: getattr(model, f) for f in ("width", "depth", "heads", "patch_size", "num_frames", "image_size")}
    _, variables = load_pretrained(tmp_path / "x.pth", "videomae_tiny", **fields)
    jax.tree.map(np.testing.assert_array_equal, variables, from_state_dict(model, weights))
    assert "; the weights are read from the file's model, not from model_ema\n" in capsys.readouterr().out
    torch.save({"model_ema": average}, tmp_path / "average.pth")
    load_pretrained(tmp_path / "average.pth", "videomae_tiny", strict=True, **fields)


# Layouts that are not known


def error_of(model, weights: dict) -> str:
    with pytest.raises(ValueError) as error:
        from_state_dict(model, weights)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_unknown_layout_that_shares_names_with_a_known_one_is_an_error(model, weights):
    """For example, mmaction2's TimeSformer shares a few names with the original."""
    renamed = {name.replace("blocks.", "layers."): value for name, value in weights.items()}
    message = error_of(model, renamed)
    assert message.startswith(
        "the layout of the weights is unknown: the nearest known layout, MCG-NJU/VideoMAE, does not have layers.0."
    )
    assert "and has no entry here for transformer/block_0/" in message and "do not fit" not in message


def test_a_block_with_other_names_is_an_unknown_layout_too(model, weights):
    """timm fuses the biases that are separate in VideoMAE."""
    fused = {name: value for name, value in weights.items() if not name.endswith("_bias")}
    message = error_of(model, fused | {f"blocks.{i}.attn.qkv.bias": np.ones(3 * 48) for i in range(2)})
    assert "does not have blocks.0.attn.qkv.bias, blocks.1.attn.qkv.bias, and has no entry here for" in message
    assert "transformer/block_0/attention/query/bias" in message and "choose the matching model" in message


def test_names_of_no_layout_are_an_error_with_the_nearest_layout(model, weights):
    message = error_of(model, {name.replace("patch_embed", "stem"): value for name, value in weights.items()})
    matching = len([name for name in weights if "patch_embed" not in name and "gamma" not in name])  # those are folded
    assert (
        f"the nearest layout is MCG-NJU/VideoMAE (layout='original'), which has {matching} of them: choose the matching"
        in message
    )
    message = error_of(model, {f"student.{name}": value for name, value in weights.items()})
    assert "the nearest layout is MCG-NJU/VideoMAE, with the prefix student.: choose the matching model" in message


def test_an_empty_dictionary_is_in_no_layout(model):
    assert "the nearest of 0 names are none; the nearest layout is" in error_of(model, {})


def test_two_entries_with_the_same_name_are_not_a_wrapper(model, weights):
    both = {f"{wrapper}stem.{name}": value for name, value in weights.items() for wrapper in ("", "model.")}
    assert "no known layout of VideoMAE fits the weights: expected an entry" in error_of(model, both)


def test_another_depth_of_a_known_layout_does_not_fit(model, weights):
    """Additional entries, such as those of another tower, do not change the error."""
    message = error_of(model.clone(depth=3), weights | {"text.embedding": np.ones(2)})
    assert message.startswith("the weights do not fit: not in the weights: transformer/block_2/")
    wider = error_of(TimeSformer(24, 2, 3, "joint"), recipe.load("timesformer_joint").weights | {"other": np.ones(2)})
    assert wider.startswith("the weights do not fit: ")


def test_one_tower_is_loaded_from_the_weights_of_both():
    golden = recipe.load("openai_clip")
    c = golden.config
    image = ImageTower(c["D"], c["L"], c["H"], c["E"], patch_size=(1, c["P"], c["P"]), image_size=c["S"])
    text = TextTower(c["V"], c["ctx"], c["tD"], c["tL"], c["tH"], c["E"])
    named = {f"model._orig_mod.{name}": value for name, value in golden.weights.items()}
    pair = from_state_dict(VideoText(image, text), named, strict=True)["params"]
    for tower, name in ((image, "video"), (text, "text")):
        jax.tree.map(np.testing.assert_array_equal, from_state_dict(tower, named)["params"], pair[name])


# The layout by its name


def test_a_given_layout_overrides_the_recognised_one(tmp_path):
    """An image ViT with ten classes has the names of space-only attention, and is recognised as such by default."""
    weights = dict(recipe.load("timesformer_space").weights)
    model = TimeSformer(48, 2, 3, "space", patch_size=(1, 8, 8), num_classes=11, num_frames=4, image_size=32)
    assert recognize(model, weights)[0].key == "original"
    assert recognize(model, weights, "timm")[0].key == "timm"
    params = from_state_dict(model, weights, layout="timm")["params"]  # the head is new
    assert not np.array_equal(params["head"]["kernel"], weights["head.weight"].T)
    np.testing.assert_array_equal(params["norm"]["scale"], weights["norm.weight"])
    with pytest.raises(
        UserError, match="layout 'transformers' does not fit the weights: expected an entry embed"
    ) as error:
        recognize(model, weights, "transformers")
    assert "(layout='original'), which has" in str(error.value) and "or omit layout=" in str(error.value)


def test_two_layouts_that_fit_are_an_error_that_names_both(monkeypatch, model, weights):
    original = next(layout for layout in layouts(model) if layout.key == "original")
    twin = dataclasses.replace(original, name="somebody's copy", key="copy")
    monkeypatch.setitem(recognition.LAYOUTS, VideoMAE, (original, twin))
    message = r"weights fit MCG-NJU/VideoMAE \(layout='original'\) and somebody's copy \(layout='copy'\): choose one"
    with pytest.raises(UserError, match=message):
        from_state_dict(model, weights)
    jax.tree.map(
        np.testing.assert_array_equal,
        from_state_dict(model, weights, layout="copy"),
        from_state_dict(model, weights, layout="original"),
    )
