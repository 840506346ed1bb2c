"""Time of writing captions word by word, beside transformers' `generate` of the same model, greedily and with beams.

Both sides encode the frames, keep keys and values of the words before, and write the same number of words, as none may
end earlier. The parameters are random, the same on both sides; each side runs in processes of its own, which alternate,
and a time is the median of the rounds' medians, in float32.
"""

import dataclasses
import importlib.util
import statistics
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import vidjax
from benchmark.measure import in_process, set_environment
from benchmark.ours import describe_devices
from benchmark.peers import import_transformers
from benchmark.process import keep_to, timed
from vidjax.cli import check_files
from vidjax.convert import export_pretrained
from vidjax.errors import UserError
from vidjax.evaluation.generation import beam_search
from vidjax.fields import check_values, require_positive
from vidjax.models.blip import Captioner
from vidjax.runs.generation import begin

END = 102
"""The id of BERT's [SEP], with which captions end; it is not drawn, as a minimum length forbids it."""


@dataclasses.dataclass(frozen=True)
class Generate:
    """Captions of BLIP, word by word."""

    models: tuple[str, ...] = ("blip_tiny_caption", "blip_base_caption")
    """BLIPs for captions (vidjax.list_models())."""
    beams: tuple[int, ...] = (1, 3)
    """Captions that are continued at the same time; 1 takes the likeliest word each time."""
    words: int = 20
    """Words of a caption."""
    batch_size: int = 2
    """Videos of one frame."""
    threads: int | None = None
    """CPU cores that each side may use; None for all."""
    rounds: int = 2
    """Processes per side, which alternate."""
    steps: int = 3
    """Timed calls per process, after warm-up."""
    json: str | None = None
    """Write the numbers to this file."""

    def __post_init__(self) -> None:
        """Rejects invalid values."""
        check_values(self)
        require_positive(self, "words", "batch_size", "threads", "rounds", "steps")
        if not self.beams or min(self.beams) < 1:
            raise UserError(f"beams is {self.beams}: give one or more numbers of 1 or more")
        for name in self.models:
            model = vidjax.create_model(name)
            if not isinstance(model, Captioner):
                raise UserError(f"{name} is no BLIP for captions: choose blip_base_caption or another *_caption")
            if self.words >= model.text.context:
                raise UserError(f"words is {self.words}: {name} writes fewer than {model.text.context}")
        check_files(json=self.json)


def created(name: str) -> Captioner:
    """The model with the norms of transformers, whose epsilon differs from the release's."""
    model = vidjax.create_model(name)
    return model.clone(video=model.video.clone(epsilon=1e-5))


def frames_of(model: Captioner, batch_size: int) -> np.ndarray:
    """Normalised pixels `b h w c`, the same on both sides."""
    side = model.video.image_size
    return np.random.default_rng(0).standard_normal((batch_size, side, side, 3), np.float32)


def drawn_variables(model: nn.Module, frames: np.ndarray) -> dict:
    """Initial parameters."""
    return jax.jit(lambda key: model.init(key, frames[:1, None]))(jax.random.key(0))


def ours(name: str, beams: int, config: Generate) -> dict[str, Any]:
    """vidjax: seconds of a call, and the ids."""
    keep_to(config.threads)
    model = created(name)
    frames = frames_of(model, config.batch_size)
    variables = drawn_variables(model, frames)

    @jax.jit
    def write(variables: dict, frames: jax.Array) -> jax.Array:
        seen = model.apply(variables, frames[:, None], method="seen")
        begun = begin(model, variables, seen, jnp.ones((len(frames), 1), jnp.int32), config.words, beams=beams)
        return beam_search(*begun, length=config.words, end=END, beams=beams, shortest=config.words)[0]

    frames = jnp.asarray(frames)
    seconds = timed(lambda: write(variables, frames), jax.block_until_ready, config.steps)
    return {"seconds": statistics.median(seconds), "ids": np.asarray(write(variables, frames))}


def pytorch(name: str, beams: int, config: Generate) -> dict[str, Any]:
    """transformers, on the CPU: seconds of a call, and the ids."""
    transformers = import_transformers()
    import torch

    torch.set_num_threads(keep_to(config.threads))
    model = created(name)
    frames = frames_of(model, config.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        export_pretrained(model, drawn_variables(model, frames), folder, layout="transformers")
        peer = transformers.BlipForConditionalGeneration.from_pretrained(folder).eval()
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    lengths = {"min_new_tokens": config.words, "max_new_tokens": config.words}

    def write() -> Any:
        with torch.inference_mode():
            return peer.generate(pixels, num_beams=beams, do_sample=False, **lengths)

    seconds = timed(write, lambda _: None, config.steps)
    return {"seconds": statistics.median(seconds), "ids": np.asarray(write())[:, -config.words :]}


def measure_generate(config: Generate, report: Callable[[str], Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The devices, and a row for each model and number of beams: PyTorch's numbers under `other_`.

    Args:
      report: called with one line before each process.
    """
    set_environment()
    sides = {"vidjax": ours}
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        sides["PyTorch"] = pytorch
    rows = []
    for name in config.models:
        for beams in config.beams:
            measured: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for number in range(config.rounds):
                for side, run in sides.items():
                    report(f"{name}, {beams} beams, {side}, round {number + 1} of {config.rounds}")
                    measured[side].append(in_process(run, name, beams, config))
            row: dict[str, Any] = {"model": name, "beams": str(beams)}
            for side, prefix in zip(sides, ("", "other_"), strict=False):
                row[f"{prefix}seconds"] = statistics.median(each["seconds"] for each in measured[side])
            if "PyTorch" in sides:
                same = measured["vidjax"][0]["ids"] == measured["PyTorch"][0]["ids"]
                row["same_words"] = float(same.mean())
            rows.append(row)
    versions = {lib: version(lib) for lib in ("jax", "torch", "transformers") if importlib.util.find_spec(lib)}
    return in_process(describe_devices) | {"versions": versions}, rows
