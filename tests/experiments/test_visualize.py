"""visualize.py: attention, class activation and reconstructions."""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import videos
from PIL import Image

import vidjax
from vidjax.errors import UserError
from vidjax.models import example_inputs

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import visualize

SMALL = {"num_frames": 4, "image_size": 32}
VIT = {"width": 24, "depth": 1, "heads": 2, "patch_size": (2, 16, 16)}
CLASSES = ("falling", "turning", "waving")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two videos with the same name, and a file that is not a video."""
    folder = tmp_path_factory.mktemp("clips")
    for place in ("a", "b"):
        videos.write_video(folder / place / "clip.mp4", videos.numbered(20))
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def save(folder: Path, name: str, **fields) -> str:
    """A checkpoint of a small model."""
    model = vidjax.create_model(name, **SMALL | fields)
    model = model.clone(card=dataclasses.replace(model.card, class_names=CLASSES, stride=2))
    inputs = [jnp.zeros(x.shape, x.dtype) for x in example_inputs(model)]
    vidjax.save_pretrained(folder / name, model, jax.jit(model.init)(jax.random.key(0), *inputs))
    return str(folder / name)


@pytest.mark.parametrize("name", ["slow_tiny_nonlocal", "video_mobileformer_tiny"])
def test_networks_whose_attention_is_not_among_tokens_of_blocks_have_class_activation_alone(name):
    model = vidjax.create_model(name, num_classes=3)
    clip = jax.ShapeDtypeStruct((1, model.num_frames, model.image_size, model.image_size, 3), jnp.uint8)
    variables = jax.eval_shape(model.init, jax.random.key(0), clip.update(dtype=jnp.float32))
    look = visualize.make_look(visualize.Config(("clip.mp4",), name), model, variables, clip)
    images, _ = jax.eval_shape(look.func, variables, clip)
    assert list(images) == ["class_activation"]


def test_a_transformer_has_roll_out_and_heads_and_unreadable_files_are_skipped(clips, tmp_path, capsys):
    run = save(tmp_path, "vivit_tiny_joint", num_classes=3, **VIT)
    out = tmp_path / "out"
    (out / "clip").mkdir(parents=True)
    (out / "clip" / "notes.txt").write_text("mine")
    made = visualize.main(visualize.Config((str(clips),), run, out=str(out)))
    captured = capsys.readouterr()
    assert "cannot be read: " in captured.err and "broken.mp4" in captured.err
    assert "1 of 3 files could not be read" in captured.err
    assert any(name in captured.out for name in CLASSES)
    assert {Path(file).parent.name for files in made.values() for file in files} == {
        "clip_2",
        "clip_3",
    }  # existing files are kept
    names = {"rollout", "heads_transformer_block_0_attention"}
    for files in made.values():
        assert {Path(file).stem for file in files} == names
        for file in files:
            with Image.open(Path(file).with_suffix(".gif")) as animation:
                assert animation.n_frames == 4
    assert (out / "clip" / "notes.txt").read_text() == "mine"
    config = visualize.Config((str(clips),), run, out=str(out))
    with pytest.raises(ValueError, match="apply to class activation, which this ViViT does not support"):
        visualize.main(dataclasses.replace(config, target="waving"))
    with pytest.raises(ValueError, match="there is no block 1 with attention"):
        visualize.main(dataclasses.replace(config, block=1))
    with pytest.raises(ValueError, match="none of the 1 files could be read: see the reasons above"):
        visualize.main(dataclasses.replace(config, paths=(str(clips / "broken.mp4"),)))


def test_a_convolutional_network_has_class_activation(clips, tmp_path):
    run = save(tmp_path, "r3d_tiny", num_classes=3, widths=(4, 4, 4, 4))
    config = visualize.Config((str(clips / "a" / "clip.mp4"),), run, out=str(tmp_path / "out"))
    painted = []
    for target in CLASSES[:2]:
        ((file,),) = visualize.main(dataclasses.replace(config, target=target)).values()
        assert Path(file).name == "class_activation.png"
        painted.append(np.asarray(Image.open(file))[30:])
    assert (painted[0] != painted[1]).any()
    with pytest.raises(ValueError, match=r"target .wavin. is not among the 3 classes: give one, such as waving"):
        visualize.main(dataclasses.replace(config, target="wavin"))
    with pytest.raises(ValueError, match="no feature map 'deep': choose one of stem, "):
        visualize.main(dataclasses.replace(config, layer="deep"))
    with pytest.raises(
        UserError, match=r"cannot write to the folder \S+clip\.mp4 \(File exists\): choose another --out"
    ):
        visualize.main(dataclasses.replace(config, out=config.paths[0]))


def test_a_masked_autoencoder_also_has_reconstructions(clips, tmp_path):
    decoder = {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}
    run = save(tmp_path, "videomae_tiny_pretrain", **VIT | {"patch_size": (2, 8, 8)}, **decoder)
    config = visualize.Config((str(clips / "a" / "clip.mp4"),), run, out=str(tmp_path / "out"))
    (files,) = visualize.main(config).values()
    masked = {f"reconstruction_{ratio}" for ratio in (50, 75, 90)}
    assert {Path(file).stem for file in files} == masked | {"rollout", "heads_encoder_transformer_block_0_attention"}
    images = [np.asarray(Image.open(file)) for file in sorted(files) if Path(file).stem in masked]
    grey = [int((image == 128).all(axis=-1).sum()) for image in images]
    assert 0 < grey[0] < grey[1] < grey[2]  # a higher ratio hides more


def test_invalid_settings_raise():
    with pytest.raises(ValueError, match="no video is given"):
        visualize.Config((), "run")
