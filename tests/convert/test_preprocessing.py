"""Preprocessing files: the same pixels as in transformers 5.24, field by field, and unsupported fields."""

import json
from functools import cache
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import peers
import pytest

from vidjax.convert import hub, load_pretrained, preprocessing
from vidjax.layers.card import Card

SIDE = {"height": 16, "width": 16}
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)

KINDS = {
    "VideoMAEImageProcessor": "videomae",
    "VivitImageProcessor": "vivit",
    "ViTImageProcessor": "vit",
    "CLIPImageProcessor": "clip",
    "VideoMAEVideoProcessor": "videomae",
    "VivitVideoProcessor": "vivit",
    "TimesformerVideoProcessor": "timesformer",
}
GREY = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
FIELDS = {  # fields of the file
    "nothing": {},
    "mean and std": GREY,
    "one number": {"image_mean": 0.4, "image_std": 0.3},
    "no normalisation": {"do_normalize": False},
    "another factor": {"rescale_factor": 1 / 127.5} | GREY,
    "no rescaling": {"do_rescale": False, "offset": False},
    "no offset": {"offset": False, "rescale_factor": 1 / 255},
    "an offset": {"offset": True},
    "neither": {"do_rescale": False, "do_normalize": False, "offset": False},
}


@cache
def processors():
    transformers = peers.transformers()
    return SimpleNamespace(**{name: getattr(transformers, name) for name in KINDS})


def pixel_values(processor) -> np.ndarray:
    """The pixels that the processor makes from `PIXELS`, `t h w c`."""
    pixels = list(PIXELS) if "Image" in type(processor).__name__ else PIXELS
    actual = np.asarray(processor(pixels, return_tensors="pt")["pixel_values"])
    return np.moveaxis(actual.reshape(4, 3, 16, 16), 1, -1)


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_transformers(kind, fields, tmp_path):
    processor = getattr(processors(), kind)(size=SIDE, crop_size=SIDE, **FIELDS[fields])
    processor.save_pretrained(tmp_path)
    card = Card(**hub.read_card({"model_type": KINDS[kind]}, tmp_path))
    expected = pixel_values(processor)
    actual = card.normalize(jnp.asarray(PIXELS / 255, jnp.float32))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_missing_fields_have_the_defaults_of_the_class(kind, tmp_path):
    """Files of older versions have only a few fields, and some are null."""
    key = "image_processor_type" if "Image" in kind else "video_processor_type"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({key: kind, "image_mean": None}))
    actual = hub.read_card({}, tmp_path)
    getattr(processors(), kind)().save_pretrained(tmp_path / "whole")
    assert actual == hub.read_card({}, tmp_path / "whole") and len(actual) == 3


@pytest.mark.parametrize("step", ["do_rescale", "do_normalize", "do_center_crop"])
def test_a_step_that_is_null_is_off(step, tmp_path):
    """As in transformers 5.24 (image_processing_backends.py): null and false give the same pixels."""
    for folder, value in (("null", None), ("false", False)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, image_processor_type="VideoMAEImageProcessor", **{step: value})
    assert hub.read_card({}, tmp_path / "null") == hub.read_card({}, tmp_path / "false")


def test_an_unknown_processor_must_give_its_mean_and_std(tmp_path):
    write(tmp_path, image_processor_type="BitImageProcessor", image_std=[0.5] * 3)
    with pytest.raises(ValueError, match="of BitImageProcessor are unknown and image_mean is missing"):
        hub.read_card({"model_type": "videomae"}, tmp_path)
    write(tmp_path, image_processor_type="BitImageProcessor", image_mean=[0.5] * 3, image_std=[0.5] * 3)
    assert hub.read_card({"model_type": "videomae"}, tmp_path)["mean"] == (0.5,) * 3


def write(folder, name: str = "preprocessor_config.json", **fields) -> None:
    (folder / name).write_text(json.dumps(fields))


def test_the_file_that_transformers_would_read_is_read(tmp_path):
    """The nested one, the one of videos, the one of images (transformers 5.24, video_processing_utils.py, line 345)."""
    expected = {"crop_ratio": 1.0, "std": (0.5,) * 3}
    write(tmp_path, image_mean=[0.3] * 3)
    assert hub.read_card({"model_type": "videomae"}, tmp_path) == expected | {"mean": (0.3,) * 3}
    write(tmp_path, "video_preprocessor_config.json", image_mean=[0.2] * 3)
    assert hub.read_card({"model_type": "videomae"}, tmp_path) == expected | {"mean": (0.2,) * 3}
    write(tmp_path, "processor_config.json", tokenizer={}, processor_class="CLIPProcessor")
    assert hub.read_card({"model_type": "videomae"}, tmp_path) == expected | {"mean": (0.2,) * 3}
    write(tmp_path, "processor_config.json", image_processor={"image_mean": [0.1] * 3})
    assert hub.read_card({"model_type": "videomae"}, tmp_path) == expected | {"mean": (0.1,) * 3}


@pytest.mark.parametrize(
    ("sizes", "ratio"),
    [
        ({"size": 256, "crop_size": 224}, 224 / 256),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, 224 / 256),
        ({"size": {"height": 256, "width": 256}, "crop_size": [224, 224]}, 224 / 256),
        ({"size": 256}, 224 / 256),  # the class crops to 224
        ({"size": 256, "crop_size": 224, "do_center_crop": False}, 1.0),
    ],
)
def test_the_cropped_fraction_is_read_from_all_forms_of_sizes(tmp_path, sizes, ratio):
    write(tmp_path, image_processor_type="VideoMAEImageProcessor", **sizes)
    assert hub.read_card({}, tmp_path)["crop_ratio"] == ratio


def test_differences_in_resizing_are_reported(tmp_path):
    def notes(**fields) -> tuple[str, ...]:
        write(tmp_path, **fields)
        return preprocessing.read({"model_type": "videomae"}, tmp_path).notes

    assert notes(size={"shortest_edge": 256}, resample=2) == ()
    assert notes(size={"height": 224, "width": 224})[0].startswith(
        "frames are cropped to a square (with the directory's"
    )
    assert notes(resample=3)[0].startswith("frames are resized as for all models (resample is 3")
    assert notes(do_resize=False)[0].startswith("frames are resized (do_resize is false")
    assert notes(image_processor_type="ViTFeatureExtractor", size=224)[0].startswith("frames are cropped to a square")
    write(tmp_path, do_resize=False)
    assert "crop_ratio" not in preprocessing.read({"model_type": "videomae"}, tmp_path).card


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"do_pad": True}, "do_pad is True, a step that is not supported: choose another checkpoint"),
        ({"do_sample_frames": True}, "do_sample_frames is True, a step that is not supported"),
        ({"image_mean": "grey"}, "image_mean is 'grey': it must be a finite number"),
        ({"image_mean": [0.5, 0.5]}, "image_mean has 2 numbers for 3 channels: give one per channel"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std is 0.0: it must be a finite number other than 0"),
        ({"rescale_factor": 0}, "rescale_factor is 0: it must be a finite number other than 0"),
        ({"rescale_factor": float("nan")}, "rescale_factor is nan: it must be"),
        ({"size": {"height": 224, "width": 256}}, "size is .*: it must be the side of a square, or a shortest_edge"),
        ({"size": {"longest_edge": 224}}, "size is .*: it must be the side of a square"),
        ({"size": [256]}, r"size is \[256\]: it must be the side"),
        ({"crop_size": 256}, "crop_size is 256 and size 224: frames would be padded, choose a smaller crop_size"),
        (
            {"image_processor_type": "OtherImageProcessor", "rescale_factor": 1 / 127.5},
            "the defaults of OtherImageProcessor are unknown and image_mean is missing",
        ),
        (
            {"image_processor_type": "VivitImageProcessor", "do_rescale": False},  # transformers raises ValueError too
            "offset is true but do_rescale is not, which transformers rejects too: set offset to false",
        ),
    ],
)
def test_what_a_card_cannot_express_is_a_one_line_error(tmp_path, fields, sentence):
    write(tmp_path, **fields)
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json is not supported: {sentence}") as error:
        hub.read_card({"model_type": "videomae"}, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{trunc", r"is not JSON \(Expecting"), ("[1]", "is not a configuration: it must be a JSON object")],
)
def test_a_damaged_file_is_an_error(tmp_path, text, sentence):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json {sentence}"):
        hub.read_card({}, tmp_path)


VIVIT = {"image_size": 16, "num_frames": 4, "tubelet_size": [2, 8, 8], "hidden_size": 24, "intermediate_size": 96}


@pytest.fixture
def vivit_folder(tmp_path):
    """A directory written by transformers, and a function that saves a processor and returns the logits of `PIXELS`."""
    transformers = peers.transformers()
    import torch

    config = transformers.VivitConfig(num_hidden_layers=1, num_attention_heads=3, num_labels=5, **VIVIT)
    peer = transformers.VivitForVideoClassification(config).eval()
    peers.perturb(peer)
    peer.save_pretrained(tmp_path)

    def save(**fields) -> np.ndarray:
        processor = transformers.VivitImageProcessor(size=SIDE, crop_size=SIDE, **fields)
        processor.save_pretrained(tmp_path)
        with torch.no_grad():
            return peer(**processor(list(PIXELS), return_tensors="pt")).logits.numpy()

    return tmp_path, save


def test_vivit_gets_the_pixels_of_transformers_and_googles_scaling_is_reported(vivit_folder, capsys):
    """The class's own defaults, and the file of google/vivit-b-16x2-kinetics400, scale twice: to [-3, 1].

    Directories fine-tuned with transformers contain the same file and were trained on these pixels. The weights do not
    show which is the case, so the file is followed.
    """
    folder, save = vivit_folder
    expected = save()
    model, variables = load_pretrained(folder)
    assert (model.card.mean, model.card.std) == ((0.75,) * 3, (0.25,) * 3)
    pixels = jnp.asarray(PIXELS / 255, jnp.float32)[None]
    np.testing.assert_allclose(model.apply(variables, model.card.normalize(pixels)), expected, rtol=0, atol=1e-5)
    output = capsys.readouterr().out
    assert (
        "pixels are scaled to [-3, 1], as transformers does" in output and "trained its own ViViTs on [-1, 1]" in output
    )

    save(do_normalize=False)  # as the note advises
    assert load_pretrained(folder)[0].card.mean == (0.5,) * 3
    assert "pixels are scaled" not in capsys.readouterr().out


def test_google_vivits_two_files(tmp_path):
    """As published: one scales twice, with an unusual class name; the other has a field that no class reads."""
    kinetics = {"image_processor_type": "ViViTImageProcessor", "rescale_factor": 0.00784313725490196} | GREY
    write(tmp_path, do_normalize=True, **kinetics)
    card = hub.read_card({"model_type": "vivit"}, tmp_path)
    assert card["mean"] == tuple((1 + mean) / 2 for mean in GREY["image_mean"])
    write(tmp_path, do_normalize=False, do_zero_centering=True, **kinetics)
    card = hub.read_card({"model_type": "vivit"}, tmp_path)
    assert (card["mean"], card["std"]) == ((0.5,) * 3, (0.5,) * 3)
