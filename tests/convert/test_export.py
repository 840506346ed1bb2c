"""Exported weights have the names recorded in goldens, and exact round trips in every layout."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import recipe
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict
from small_models import IMAGE, MODELS, TEXT, actionclip, perturbed, variables_of

import vidjax
from vidjax.convert import export_pretrained, files, from_state_dict, layouts, load_pretrained, recognize
from vidjax.convert.export import entries
from vidjax.convert.recognition import named
from vidjax.convert.rules import begins
from vidjax.errors import UserError
from vidjax.models.actionclip import VideoTower
from vidjax.models.clip import ImageTower
from vidjax.models.text import TextTower
from vidjax.models.video_text import VideoText

# Layouts to which a model cannot be exported, because its fields differ from the publisher's.
NOT = {
    "viclip": ("openai", "transformers"),
    "viclip's image tower": ("openai", "transformers"),
    "actionclip joint": ("mmaction2",),
    "actionclip with shift": ("mmaction2",),
    "actionclip with a class token": ("mmaction2",),
    "clip's text tower": ("viclip",),
    "blip for retrieval": ("transformers",),  # whose epsilon differs
    "blip for retrieval of transformers": ("original", "momentum"),
    "blip for questions": ("transformers",),
    "blip for questions of transformers": ("original",),
    "blip for captions": ("transformers",),
    "blip for captions of transformers": ("original",),
    "videoprism": ("original",),  # only the encoder has a published layout
    "videoprism with text": ("transformers",),
    "videoprism with text of transformers": ("original",),
}
CASES = [
    (name, key)
    for name, model in MODELS.items()
    for key in dict.fromkeys(layout.key for layout in layouts(model) if layout.restore is not None)
    if key not in NOT.get(name, ())
]


def leaves_equal(loaded: dict, expected: dict, absent: tuple[str, ...] = ()) -> None:
    """Compares all leaves, but not the values of those that a layout never has."""
    wanted, got = flatten_dict(expected, sep="/"), flatten_dict(loaded, sep="/")
    assert wanted.keys() == got.keys()
    for path, leaf in wanted.items():
        if begins(path.removeprefix("params/"), absent):
            continue
        np.testing.assert_array_equal(got[path], leaf, err_msg=path)


FIRST = {(type(MODELS[name]), key): (name, key) for name, key in reversed(CASES)}.values()  # of each class


@pytest.mark.parametrize(
    ("name", "key"),
    [case if case in FIRST else pytest.param(*case, marks=pytest.mark.long) for case in CASES],
    ids=[f"{name}-{key}" for name, key in CASES],
)
def test_a_round_trip_is_exact_in_every_layout(name, key, tmp_path):
    model, variables = MODELS[name], variables_of(name)
    export_pretrained(model, variables, tmp_path / "out", layout=key)
    assert recognize(model, files.read(tmp_path / "out"))[0].key == key  # recognised without layout=
    again, loaded = load_pretrained(tmp_path / "out", layout=key, strict=True, verbose=False)
    leaves_equal(loaded, variables, named(model, key)[0].absent)
    if key == "transformers":  # config.json is the only description
        assert not (tmp_path / "out" / "vidjax.json").exists()
        left_out = {"parent", "name", "card", "drop_path", "dropout", "num_frames"}
        if not isinstance(model, VideoText):
            for field in dataclasses.fields(model):
                assert field.name in left_out or getattr(again, field.name) == getattr(model, field.name), field.name
        if hasattr(model, "card"):
            assert [getattr(again.card, field) for field in ("mean", "std", "crop_ratio")] == [
                pytest.approx(getattr(model.card, field), rel=0.02) for field in ("mean", "std", "crop_ratio")
            ]
    else:
        assert again == model


def test_every_exportable_layout_is_tested():
    going_out = {
        (type(model).__name__, layout.name)
        for model in map(vidjax.create_model, vidjax.list_models())
        for layout in layouts(model)
        if layout.restore is not None
    }
    tried = {
        (type(MODELS[name]).__name__, layout.name)
        for name, key in CASES
        for layout in layouts(MODELS[name])
        if layout.key == key
    }
    assert going_out <= tried
    keys = {layout.key for model in MODELS.values() for layout in layouts(model)}
    assert "" not in keys and "vidjax" not in keys


# Names, shapes and values, as goldens have recorded them


def fields(c: dict, tubelet: int = 2) -> dict:
    return {
        "width": c["D"], "depth": c["L"], "heads": c["H"], "num_frames": c["T"], "image_size": c["S"],
        "patch_size": (tubelet, c["P"], c["P"]), "num_classes": c.get("classes"),
    }  # fmt: skip


def of_golden(name: str, c: dict):
    """The model of a golden's configuration, its layout, and the prefix that the recorded names lack."""
    if name == "mm_videomae":
        return vidjax.create_model("videomae_tiny", **fields(c)), "mmaction2", ""
    if name == "videomae_finetune":
        return vidjax.create_model("videomae_tiny", **fields(c)), "original", ""
    if name == "videomae_pretrain":
        decoder = {"decoder_width": c["dD"], "decoder_depth": c["dL"], "decoder_heads": c["dH"]}
        own = {field: value for field, value in fields(c).items() if field != "num_classes"}
        return vidjax.create_model("videomae_tiny_pretrain", **own, **decoder), "original", ""
    if "timesformer" in name:
        model = vidjax.create_model(f"timesformer_tiny_{name.rsplit('_', 1)[1]}", **fields(c, 1))
        return model, *(("mmaction2", "") if name.startswith("mm_") else ("original", "model."))
    if name == "resnet3d_r2plus1d":
        return vidjax.create_model("r2plus1d_18", depths=(1, 1, 1, 1), num_classes=5), "torchvision", ""
    if name == "mm_r2plus1d_r34":
        widths = tuple(c["W"] * n for n in (1, 2, 4, 8))
        return vidjax.create_model("r2plus1d_34_mmaction2", widths=widths, num_classes=None), "mmaction2", "backbone."
    if name == "mm_c3d":
        return vidjax.create_model("c3d", num_classes=None), "mmaction2", "backbone."
    if name == "p3d":
        depths = tuple(c["depths"])
        return vidjax.create_model("p3d_63", depths=depths, width=c["width"], num_classes=5), "pseudo_3d_pytorch", ""
    if name == "inception3d_i3d":
        model = vidjax.create_model("i3d_rgb", num_classes=5, width_multiplier=1 / 8, norm_scale=True)
        return model, "pytorch_i3d", ""
    if name == "inception3d_s3d":
        return vidjax.create_model("s3d", num_classes=5), "torchvision", ""
    if name.startswith("uniformerv2"):
        own = {**fields(c, 1 + c["tdown"]), "local": not c["no_lmhra"], "frozen": c["frozen"]}
        return vidjax.create_model("uniformerv2_tiny", **own, global_layers=tuple(c["ret"])), "original", "backbone."
    if name.startswith("uniformer"):
        own = {"widths": tuple(c["D"]), "depths": tuple(c["L"]), "head_width": c["hd"], "num_classes": c["classes"]}
        row = "uniformer_small_split" if c["split"] else "uniformer_small"
        return vidjax.create_model(row, **own, image_size=c["S"]), "original", ""
    return (*of_pair(name, c), "")


def of_pair(name: str, c: dict):
    """The same for the two towers."""
    image = ImageTower(c["D"], c["L"], c["H"], c["E"], patch_size=(1, c["P"], c["P"]), image_size=c["S"])
    text = TextTower(c["V"], c["ctx"], c["tD"], c["tL"], c["tH"], c["E"])
    if name == "openai_clip":
        return VideoText(image, text), "openai"
    heads = {"meanP": "mean", "LSTM": "lstm", "Transf": "transf", "cls": "transf_cls", "actionclip": "transf"}
    frames, context = c["T"], 4 if name.startswith("mm_") else 12
    tower = VideoTower(
        image.clone(num_frames=frames), heads[name.rsplit("_", 1)[1]], c.get("layers", 6), 2, head_context=context
    )
    return VideoText(tower, text), "mmaction2" if name.startswith("mm_") else "original"


LAYER_SCALE = ("videomae_finetune", "mm_videomae")
GOLDENS = [
    "mm_videomae", "videomae_finetune", "videomae_pretrain", "timesformer_divided", "timesformer_joint",
    "timesformer_space", "mm_timesformer_divided", "mm_timesformer_joint", "mm_timesformer_space", "uniformer_small",
    "uniformer_small_split", "uniformerv2_lmhra", "uniformerv2_frozen", "resnet3d_r2plus1d", "mm_r2plus1d_r34",
    pytest.param("mm_c3d", marks=pytest.mark.long), "p3d", "inception3d_i3d", "inception3d_s3d",
    "openai_clip", "actionclip_meanP", "actionclip_LSTM", "actionclip_Transf", "actionclip_Transf_cls", "mm_actionclip",
]  # fmt: skip


@pytest.mark.parametrize("name", GOLDENS)
def test_names_shapes_and_values_are_those_of_the_original(name):
    """A golden's weights, loaded and exported again, are the same entries with the same values."""
    golden = recipe.load(name)
    model, key, around = of_golden(name, golden.config)
    layout = next(layout for layout in layouts(model) if layout.key == key)
    written = entries(layout, model, from_state_dict(model, golden.weights, strict=True))
    expected = {around + name: np.asarray(value) for name, value in golden.weights.items()}
    if not any(
        "num_batches_tracked" in entry for entry in expected
    ):  # not recorded, although PyTorch's norms have them
        written = {entry: value for entry, value in written.items() if not entry.endswith("num_batches_tracked")}
    if name in LAYER_SCALE:  # it is folded into the preceding linear layers
        scaled = {name for name in expected if ".gamma_" in name}
        assert scaled and not [name for name in written if "gamma" in name]
        expected = {name: value for name, value in expected.items() if name not in scaled}
    assert {name: value.shape for name, value in written.items()} == {k: v.shape for k, v in expected.items()}
    for entry, value in written.items():
        folded = name in LAYER_SCALE and any(part in entry for part in (".attn.proj.", ".mlp.fc2.", ".mlp.layers.1."))
        assert folded or np.array_equal(value, expected[entry]), entry


@pytest.mark.parametrize("name", ["viclip_vision", "viclip_text"])
def test_viclips_names_are_those_of_the_original(name):
    golden, tower = recipe.load(name), name.removeprefix("viclip_")
    c = golden.config
    if tower == "vision":
        model = ImageTower(
            c["D"], c["L"], c["H"], c["E"], patch_size=(1, c["P"], c["P"]), joint=True, num_frames=c["T"],
            image_size=c["S"],
        )  # fmt: skip
    else:
        model = TextTower(c["V"], c["ctx"], c["tD"], c["tL"], c["tH"], c["E"])
    layout = next(layout for layout in layouts(model) if layout.key == "viclip")
    written = entries(layout, model, from_state_dict(model, golden.weights, strict=True))
    assert written.keys() == {f"{tower}_encoder.{entry}" for entry in golden.weights}
    for entry, value in golden.weights.items():
        np.testing.assert_array_equal(written[f"{tower}_encoder.{entry}"], value)


@pytest.mark.parametrize("scale", [1.5, 2.6592, 4.6])
def test_viclips_temperature_gives_the_same_scale(scale):
    model = MODELS["viclip"]
    layout = next(layout for layout in layouts(model) if layout.key == "viclip")
    variables = perturbed(model)
    variables["params"]["logit_scale"] = np.float32(scale)
    written = entries(layout, model, variables)
    assert written["temp"] == pytest.approx(np.exp(-scale), rel=1e-6)
    assert from_state_dict(model, written)["params"]["logit_scale"] == np.float32(scale)
    variables["params"]["logit_scale"] = np.float32(5.0)
    with pytest.raises(UserError, match=r"logit_scale is 5\.0, which no temperature of ViCLIP gives"):
        entries(layout, model, variables)


def test_i3ds_port_has_scales_of_one_for_a_model_without_scales():
    model = MODELS["i3d"]
    layout = next(layout for layout in layouts(model) if layout.key == "pytorch_i3d")
    written = entries(layout, model, perturbed(model))
    scales = {name for name in written if name.endswith(".bn.weight")}
    assert {name.replace("bn.weight", "bn.bias") for name in scales} == {n for n in written if n.endswith(".bn.bias")}
    assert scales and all((written[name] == 1).all() for name in scales)


# Written files, and errors


@pytest.fixture(scope="module")
def model():
    return MODELS["vivit"]


@pytest.fixture(scope="module")
def variables(model):
    return perturbed(model)


def test_scenics_checkpoint_is_a_training_state(model, variables, tmp_path):
    """In the format read by `restore_pretrained_checkpoint` (scenic/train_lib/pretrain_utils.py)."""
    file = export_pretrained(model, variables, tmp_path / "out", layout="scenic")
    assert file == tmp_path / "out" / "checkpoint"
    state = msgpack_restore(file.read_bytes())
    assert state.keys() == {"params", "model_state", "global_step", "rng"} and int(state["global_step"]) == 0
    query = state["params"]["Transformer"]["encoderblock_0"]["MultiHeadDotProductAttention_0"]["query"]["kernel"]
    ours = variables["params"]["transformer"]["block_0"]["attention"]["query"]["kernel"]
    np.testing.assert_array_equal(query.reshape(24, 24), ours)


def test_pytorch_files_have_the_format_that_their_loaders_expect(tmp_path):
    torch = pytest.importorskip("torch")

    def content(name: str, key: str) -> dict:
        file = export_pretrained(MODELS[name], perturbed(MODELS[name]), tmp_path / f"{name} {key}", layout=key)
        return torch.load(file, weights_only=True)

    assert "patch_embed.proj.weight" in content("videomae", "original")["model"]
    assert "encoder.patch_embed.proj.weight" in content("videomae's pre-training", "original")["model"]
    assert "model.time_embed" in content("timesformer", "original")["model_state"]
    assert "backbone.time_embed" in content("timesformer", "mmaction2")["state_dict"]
    assert "stem.0.weight" in content("r3d", "torchvision")
    both = content("actionclip with shift", "original")
    assert "visual.transformer.resblocks.0.net.ln_1.weight" in both["model_state_dict"]
    assert "transformer.resblocks.0.ln_1.weight" in both["model_state_dict"]
    assert "module.lstm_visual.weight_ih_l0" in both["fusion_model_state_dict"]


def test_without_pytorch_safetensors_files_have_the_same_names(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    values = perturbed(MODELS["r3d"])
    file = export_pretrained(MODELS["r3d"], values, tmp_path / "out", layout="torchvision")
    assert file.name == "model.safetensors"
    leaves_equal(load_pretrained(tmp_path / "out", strict=True, verbose=False)[1], values)


def test_class_names_and_preprocessing_are_exported(tmp_path):
    card = dataclasses.replace(
        MODELS["videomae"].card, class_names=("a", "b", "c", "d", "e"), mean=(0.1, 0.2, 0.3), crop_ratio=0.5
    )
    model = MODELS["videomae"].clone(card=card)
    export_pretrained(model, perturbed(model), tmp_path, layout="transformers")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"]["1"] == "b" and config["label2id"]["e"] == 4
    again, _ = load_pretrained(tmp_path, verbose=False)
    assert again.card.class_names == card.class_names and again.card.mean == card.mean
    assert again.card.crop_ratio == 0.5


def test_nothing_is_overwritten(model, variables, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not an empty directory: give another one, nothing is overwritten"):
        export_pretrained(model, variables, tmp_path, layout="scenic")
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_the_error_for_an_unknown_layout_lists_those_that_exist(model, variables, tmp_path):
    message = r"layout is 'torchvision': ViViT has scenic, transformers, timm, vidjax$"
    with pytest.raises(UserError, match=message):
        export_pretrained(model, variables, tmp_path / "out", layout="torchvision")
    with pytest.raises(UserError, match=message):
        from_state_dict(model, {"a": np.ones(1)}, layout="torchvision")
    assert not (tmp_path / "out").exists()


def test_layouts_for_initialisation_cannot_be_exported(model, variables, tmp_path):
    with pytest.raises(
        UserError, match=r"layout 'timm', but not exported to it: ViViT can be exported to scenic, trans"
    ):
        export_pretrained(model, variables, tmp_path / "out", layout="timm")


@pytest.mark.parametrize(
    ("model", "key", "message"),
    [
        (MODELS["viclip"], "openai", r"video\.joint of the model is True, but OpenAI's CLIP uses False"),
        (MODELS["viclip"], "transformers", r"video\.joint of the model is True"),
        (VideoText(IMAGE.clone(heads=2), TEXT), "openai", r"video\.heads of the model is 2, but .* uses 1: choose"),
        (VideoText(IMAGE, TEXT, bias=-10.0), "openai", "OpenAI's CLIP has no entry for logit_bias: choose another"),
        (MODELS["r3d"].clone(epsilon=1e-3), "torchvision", r"epsilon of the model is 0\.001"),
        (MODELS["vit"].clone(patch_size=(2, 8, 8), num_frames=2), "timm", "image kernels, but a kernel .* 2 frames"),
        (
            MODELS["vit"].clone(patch_size=(1, 8, 16)),
            "transformers",
            r"patch_size is \(1, 8, 16\), but transformers needs",
        ),
        (MODELS["videomae"].clone(final_norm=True), "transformers", "final_norm is set, but transformers"),
        (actionclip("conv1d"), "original", r"ActionCLIP's release has no entry for video/temporal/kernel"),
        (actionclip("mean", joint=True), "mmaction2", r"video\.image\.joint of the model is True"),
    ],
)
def test_a_model_that_the_publishers_code_does_not_support_is_an_error(model, key, message, tmp_path):
    with pytest.raises(UserError, match=message):
        export_pretrained(model, perturbed(model), tmp_path / "out", layout=key)
    assert not (tmp_path / "out").exists()


def test_variables_of_another_model_are_an_error(model, variables, tmp_path):
    with pytest.raises(UserError, match="the variables are not those of the ViViT"):
        export_pretrained(model, variables["params"], tmp_path / "out", layout="scenic")
    assert not (tmp_path / "out").exists()
