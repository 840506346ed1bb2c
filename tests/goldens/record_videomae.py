"""Records videomae_transformers.{json,npz} from Hugging Face's VideoMAEForPreTraining.

    pip install torch transformers && python tests/goldens/record_videomae.py

Two clips of 4 frames of 8x8 pixels, patches of 2x2x2, 24 of 32 tokens masked, all parameters perturbed.
Stored: the encoder's tokens, the decoder's pixels, the targets that transformers computes from normalised pixels, and
the loss.
"""

import json
from pathlib import Path
from unittest import mock

import numpy as np
import recipe
import torch
from transformers import VideoMAEConfig, VideoMAEForPreTraining
from transformers.models.videomae import modeling_videomae

CONFIG = {
    "frames": 4, "size": 8, "patch": 2, "width": 24, "depth": 2, "heads": 3,
    "decoder_width": 12, "decoder_depth": 2, "decoder_heads": 3, "masked": 24,
}  # fmt: skip
BATCH = 2
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def build(config: dict) -> VideoMAEForPreTraining:
    """The original's model: a norm at the encoder's end and epsilon 1e-6, which Hugging Face's default is not."""
    width, decoder_width = config["width"], config["decoder_width"]
    model = VideoMAEForPreTraining(
        VideoMAEConfig(
            image_size=config["size"], patch_size=config["patch"], num_frames=config["frames"],
            hidden_size=width, num_hidden_layers=config["depth"], num_attention_heads=config["heads"],
            intermediate_size=4 * width, decoder_hidden_size=decoder_width,
            decoder_num_hidden_layers=config["decoder_depth"],
            decoder_num_attention_heads=config["decoder_heads"], decoder_intermediate_size=4 * decoder_width,
            layer_norm_eps=1e-6, use_mean_pooling=False,
        )
    ).eval()  # fmt: skip
    model.decoder.norm.eps = 1e-6  # its last norm does not ask the configuration
    return model


def fill(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Gives every parameter the value of its name; returns names and shapes."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(recipe.parameter(name, shape)) for name, shape in shapes.items()})
    return shapes


def outputs_of(model: VideoMAEForPreTraining, video: np.ndarray, masked: np.ndarray) -> dict[str, np.ndarray]:
    """Encoder, decoder, target and loss for a video `b t h w c` in [0, 1] and a mask `b n`, true where masked."""
    pixels = torch.from_numpy(((video - MEAN) / STD).astype(np.float32)).permute(0, 1, 4, 2, 3)
    mask, targets = torch.from_numpy(masked), []

    class Recorded(torch.nn.MSELoss):
        def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            targets.append(target)
            return super().forward(input, target)

    with torch.no_grad(), mock.patch.object(modeling_videomae, "MSELoss", Recorded):
        output = model(pixels, bool_masked_pos=mask)
        encoded = model.videomae(pixels, bool_masked_pos=mask).last_hidden_state
    outputs = {"encoded": encoded, "predicted": output.logits, "target": targets[0], "loss": output.loss}
    return {name: value.numpy() for name, value in outputs.items()}


def clips(config: dict) -> tuple[np.ndarray, np.ndarray]:
    """Videos in [0, 1] and a mask for each."""
    frames, size, side = config["frames"], config["size"], config["size"] // config["patch"]
    video = 1 / (1 + np.exp(-recipe.floats("video", (BATCH, frames, size, size, 3))))
    order = recipe.floats("mask", (BATCH, frames // 2 * side * side)).argsort(axis=1)
    return video.astype(np.float32), order < config["masked"]


def main() -> None:
    """Writes the golden next to this file."""
    model = build(CONFIG)
    shapes = fill(model)
    video, masked = clips(CONFIG)
    description = {
        "config": CONFIG,
        "inputs": [{"kind": "stored", "name": "video"}, {"kind": "stored", "name": "masked"}],
        "state_dict": shapes,
    }
    stem = Path(__file__).with_name("videomae_transformers")
    stem.with_suffix(".json").write_text(json.dumps(description, indent=0) + "\n")
    np.savez_compressed(stem.with_suffix(".npz"), video=video, masked=masked, **outputs_of(model, video, masked))


if __name__ == "__main__":
    main()
