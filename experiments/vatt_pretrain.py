"""Pre-train transformers of video, sound and text together (VATT, Akbari et al. 2021, arXiv:2104.11178).

Shapes whose sound tells what the picture hides, minutes on a laptop: python experiments/vatt_pretrain.py

On captioned video files with sound: python experiments/vatt_pretrain.py vatt_base --data.source captions.jsonl

Files without sound are no error: their clips are compared with texts alone. Running the same command again resumes the
run. Expected results: docs/results.md.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import recipes.vatt_pretrain
from jax.sharding import Mesh

from vidjax import cli, runs
from vidjax.data.config import CaptionedDataConfig
from vidjax.errors import UserError
from vidjax.fields import require_not_negative, require_positive
from vidjax.layers.normalization import valid_clips
from vidjax.models import example_inputs
from vidjax.models.vatt_pretraining import Vatt
from vidjax.objectives import vatt
from vidjax.runs.config import TrainConfig
from vidjax.runs.run import Run
from vidjax.runs.sources import open_captioned
from vidjax.runs.vatt import make_vatt, probe_towers, sound_validator
from vidjax.runs.video_text import load_tokenizer
from vidjax.runs.workdir import keep_tokenizer
from vidjax.training.sharding import is_main_process
from vidjax.training.state import Aux

LOSSES = {"asymmetric": vatt.asymmetric_nce, "symmetric": vatt.symmetric_nce}


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """A run that contrasts videos with their sound and their captions."""

    model: str = "vatt_base"
    """vatt_tiny, _base, _medium, _large, or one transformer for all: vatt_tiny_agnostic, vatt_medium_agnostic."""
    objective: vatt.Contrast = "asymmetric"
    """One softmax over both directions (published), or one for each."""
    temperature: float = 0.07
    """Of the cosines."""
    sound_noise: float = 0.01
    """Standard deviation of the noise added to each sound, as a fraction of its loudest sample."""
    tokenizer: str = "bytes"
    """bytes, CLIP's vocabulary (file or directory), or any tokenizer.json."""
    context: int | None = None
    """Tokens per caption, with start and end; longer captions are truncated (default: the model's)."""
    texts: int = 1
    """Captions that are compared with a clip, any of which may match it; clips with fewer have those."""
    text_times: str | None = None
    """Field of segments with start and end of each caption, of which the nearest are taken (default: any)."""
    data: CaptionedDataConfig = recipes.vatt_pretrain.CLIPS
    """The videos and their captions."""
    probe_clips: int = 1024
    """Labelled clips for the linear probes at the end, half for fitting and half for scoring; 0 disables them."""
    batch_size: int = 2048
    workdir: str = "runs/vatt_pretrain"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "temperature", "context", "texts")
        require_not_negative(self, "sound_noise", "probe_clips")
        if self.data.repeats > 1:
            raise UserError("data.repeats: the objective would contrast a video with itself: omit it")


RECIPES = {name: Config(**values) for name, values in recipes.vatt_pretrain.RECIPES.items()}
DATA_FLAG = "--data.source"


def make_loss(config: Config, model: Vatt) -> Callable:
    """The loss function: the mean of the contrasts of video and sound and of video and text."""
    contrast = LOSSES[config.objective]

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        noise_key, *keys = jax.random.split(key, 3)
        sound, valid, heard = batch["sound"][..., 0], batch["valid"], batch["sound_valid"]
        ids = batch["ids"].reshape(len(valid) * config.texts, -1)
        there = ids.any(axis=1).reshape(len(valid), config.texts)
        loudest = jnp.abs(sound).max(axis=1, keepdims=True)
        sound = sound + config.sound_noise * loudest * jax.random.normal(noise_key, sound.shape)
        settings = {"rngs": dict(zip(("dropout", "masking"), keys, strict=True)), "mutable": list(aux.model_state)}
        variables, video = {"params": params, **aux.model_state}, model.card.preprocess(batch["video"])
        with valid_clips(valid):
            found, changed = model.apply(variables, video, sound, ids, train=True, **settings)
        text = found["text"].reshape(*there.shape, -1)
        of_sound = contrast(found["video_of_sound"], found["sound"][:, None], valid, heard[:, None], config.temperature)
        of_text = contrast(found["video_of_text"], text, valid, there, config.temperature)
        missing = (valid & ~heard).sum() / jnp.maximum(valid.sum(), 1)
        metrics = {"sound_loss": of_sound, "text_loss": of_text, "without_sound": missing}
        return (of_sound + of_text) / 2, ({**aux.model_state, **changed}, metrics)

    return loss_fn


@runs.on_mesh
def main(config: Config, mesh: Mesh) -> dict[str, float]:
    """Runs the job; returns the losses, the last validation and the probes, or the memory of a dry run."""
    from vidjax.data.sound import with_sound

    run, tokenizer = Run(config, mesh), load_tokenizer(config.tokenizer)
    fields = runs.computing_fields(config, f"{config.model}_pretrain")
    model = make_vatt(config.model, tokenizer, config.data, config.context, **fields)
    model = model.clone(card=runs.trained_card(model.card, config.data))
    samples, rate, context = model.sound.samples, model.sound.rate, model.text.context
    source, validation = open_captioned(config.data, config.seed, config.batch_size)
    source, validation = (each and with_sound(each, rate, samples) for each in (source, validation))
    if config.text_times is not None:
        source.specs([config.text_times])  # raises an error if there is no such field
    run.plan(source=source, validation=validation)
    sounds = {"sound": ((samples, 1), jnp.float32), "sound_valid": ((), bool)}
    numbers = {"ids": (context,) if config.texts == 1 else (config.texts, context)}
    run.build(model, example_inputs(model), make_loss(config, model), numbers=numbers, fields=sounds)
    if config.dry_run:
        return run.dry_run()
    hears, reads = f"{samples / rate:g} s at {rate:,} samples per second", f"{tokenizer.name}, {context} tokens"
    variables = run.new_variables()
    if config.init_from and not run.has_begun:
        variables, _ = runs.start_from(config.init_from, model, variables)
    state = run.begin(variables)
    if is_main_process():
        keep_tokenizer(config.tokenizer, run.workdir)
    objective = f"{config.objective} NCE; {run.describe_validation()}"
    run.announce(sound=hears, text=f"{reads}, {config.texts} for a clip", objective=objective)

    def batches_from(first: int) -> Iterator[dict[str, np.ndarray]]:
        names = ("video", "sound", "sound_valid", "ids", "valid")
        fields = ("sound",) if config.text_times is None else ("sound", config.text_times)
        several = {"texts": config.texts, "text_times": config.text_times}
        for batch in run.batches(first, tokenizer=tokenizer, context=context, fields=fields, **several):
            yield {name: batch[name] for name in names}

    result = run.fit(state, batches_from, sound_validator(run, tokenizer) if validation else None, best="score")
    if not result.finished:
        return {}
    last = next(reversed(run.evaluations().values()), {})
    trained = {"params": result.state.evaluated_params, **result.state.model_state}
    probes = probe_towers(run, trained, tokenizer, config.probe_clips)
    if not is_main_process():
        return {}
    lines = []
    if "score" in last:
        recalls = f"sound to video {last['sound_to_video_r1']:.1%}, video to sound {last['video_to_sound_r1']:.1%}"
        lines.append(f"retrieval R@1: {recalls}; {last['without_sound']:.0f} videos without sound are left out")
    if probes:
        lines.append("probe     " + ", ".join(f"{value:.1%} {name}" for name, value in probes.items()))
    advice = {"fine-tuning": f"python experiments/finetune.py --model {config.model} --init_from {run.workdir}"}
    return run.finish(result, "evaluation/score", lines, advice) | last | probes


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, DATA_FLAG)
