"""Tune a captioner by preferences: DPO (arXiv:2305.18290), a reward model, or GRPO (arXiv:2402.03300) with a reward.

The captioner, a run of vision_language_pretrain.py with the objective lm, is where training starts and, frozen, the
reference from which it should not diverge. Each caption of a video is preferred to a rejected one.

A captioner names motion at random, although its video tower, which is that of another captioner, sees it. By
preferences alone it learns to tell it:
python experiments/vision_language_pretrain.py demo_motion_seen
python experiments/vision_language_pretrain.py demo_motion_not_told
python experiments/preference_tune.py

Your videos, with the columns caption and rejected in the manifest:
python experiments/preference_tune.py videos --init_from runs/vl --data.source pairs.jsonl --workdir runs/preferred

The same with a reward model and captions that the policy draws (add `--workdir`):
python experiments/preference_tune.py videos --method reward --init_from runs/vl --data.source pairs.jsonl
python experiments/preference_tune.py videos --method grpo --reward runs/reward --init_from runs/vl \
    --data.source captions.jsonl

Running the same command again resumes the run.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import recipes.preference_tune
from jax.sharding import Mesh

from vidjax import cli, runs
from vidjax.data.config import CaptionedDataConfig
from vidjax.errors import UserError
from vidjax.fields import require_not_negative, require_positive
from vidjax.models import example_inputs
from vidjax.models.reward import RewardModel
from vidjax.runs import preferences
from vidjax.runs.config import TrainConfig
from vidjax.runs.pairs import trained_mask
from vidjax.runs.run import Run
from vidjax.runs.sources import open_captioned
from vidjax.runs.workdir import keep_tokenizer
from vidjax.training.loop import FitResult
from vidjax.training.optimizer import OptimizerConfig
from vidjax.training.sharding import is_main_process


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """Tuning by preferences."""

    init_from: str = ""
    """The captioner that is tuned and, frozen, the reference: a run or a published BLIP (always needed)."""
    method: Literal["dpo", "grpo", "reward"] = "dpo"
    """Learn pairs of captions, or a reward of captions that are drawn; or train a reward model on pairs."""
    reward: str | None = None
    """For grpo: a run with --method reward, or the attributes that are to be named rightly, joined by +."""
    beta: float = 0.1
    """Weight of the divergence from the reference, for dpo and grpo."""
    smoothing: float = 0.0
    """Probability that a preference is wrong, for dpo."""
    freeze: Literal["none", "video"] = "none"
    """Leave the video tower as it is."""
    group: int = 8
    """Captions that are drawn for each clip, for grpo."""
    attributes: tuple[str, ...] = ()
    """What captions name by one of several phrases, as NAME=PHRASE|PHRASE: evaluated, and a reward."""
    tokenizer: str | None = None
    """The captioner's, if its run or checkpoint does not contain it."""
    context: int | None = None
    """Tokens per caption, with start and end (default: the captioner's)."""
    data: CaptionedDataConfig = CaptionedDataConfig()
    """The videos, their captions, and rejected captions."""
    accumulation: int = 1
    """Micro-batches per step, to save memory."""
    workdir: str = "runs/preference_tune"
    batch_size: int = 32
    epochs: float = 3
    optim: OptimizerConfig = OptimizerConfig(learning_rate=8e-6, warmup_epochs=0.1, beta2=0.999, weight_decay=0.0)

    @property
    def model(self) -> str:
        """The name of the model in reports."""
        return self.init_from

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "beta")
        require_not_negative(self, "smoothing")
        if self.smoothing >= 0.5:
            raise UserError(f"smoothing is {self.smoothing}: it must be below 0.5, or the rejected would be preferred")
        if self.group < 2:
            raise UserError(f"group is {self.group}: give 2 or more, captions are compared with the others of the clip")
        if (self.method == "grpo") != (self.reward is not None):
            raise UserError("reward is what --method grpo increases, and no other method: give both or none")
        if self.context is not None and self.context < 3:
            raise UserError(f"context is {self.context}: it must be 3 or more, for a start, a word and an end")


RECIPES = {name: Config(**values) for name, values in recipes.preference_tune.RECIPES.items()}
DATA_FLAG = "--data.source"


def summarize(run: Run, result: FitResult, before: dict[str, float]) -> dict[str, float]:
    """Prints the results, the files written and suggested next steps."""
    config, last = run.config, next(reversed(run.evaluations().values()), {})
    shares = [f"{name} {before[name]:.1%} -> {last[name]:.1%}" for name in last if name != "kl"]
    lines = [f"validation {', '.join(shares)}" + (f", KL {last['kl']:.2f}" if "kl" in last else "")] if last else []
    curves = {"dpo": ("accuracy", "margin"), "grpo": ("reward", "kl"), "reward": ("accuracy", "margin")}[config.method]
    curves += tuple(f"evaluation/{name}" for name in last if name != "preferred")
    if config.method == "reward":
        advice = {
            "captions of high reward": f"python experiments/preference_tune.py videos --method grpo --reward "
            f"{run.workdir} --init_from {config.init_from} --data.source VIDEOS"
        }
    else:
        advice = {"captions of your videos": f"python experiments/caption.py --run {run.workdir} VIDEOS"}
    return run.finish(result, "evaluation/preferred", lines, advice, curves) | last


@runs.on_mesh
def main(config: Config, mesh: Mesh) -> dict[str, float]:
    """Runs the job; returns the first and last loss and the validation metrics, or the memory of a dry run."""
    from vidjax.data.preferences import PAIRS, with_pairs

    if not config.init_from:
        raise UserError(
            "init_from is missing: give a captioner, a run of vision_language_pretrain.py with lm, or a BLIP"
        )
    captioner, reference, tokenizer, context = preferences.load_captioner(config, config.context)
    config = dataclasses.replace(config, tokenizer=tokenizer.name)  # by which the new run finds it
    run, method = Run(config, mesh), config.method
    attributes = [preferences.Attribute.read(text, tokenizer) for text in config.attributes]
    source, validation = (
        each and with_pairs(each, tokenizer, context, required=method != "grpo")
        for each in open_captioned(config.data, config.seed)
    )
    preferences.check_attributes(attributes, source, tokenizer, context)
    run.plan(source=source, validation=validation)
    frozen, model = {"reference": reference}, captioner
    if method == "dpo":
        loss_fn = preferences.dpo_loss(model, config.beta, config.smoothing)
    elif method == "grpo":
        reward, frozen["reward"] = preferences.load_reward(
            config.reward, attributes, tokenizer, source.captions(0), context,
            (config.data.frames, config.data.size), runs.computing_type(config.dtype),
        )  # fmt: skip
        loss_fn = preferences.group_loss(model, reward, tokenizer.end, context, config.group, config.beta)
    else:
        model, frozen = RewardModel(captioner, card=captioner.card), None
        loss_fn = preferences.reward_loss(model)
    trained = trained_mask(config.freeze, captioner)
    if trained and method == "reward":
        trained = {"tower": trained, "reward_head": {"kernel": True, "bias": True}}
    if trained:
        loss_fn = preferences.without_gradients(loss_fn, trained)
    pairs = source.fields[PAIRS].shape
    run.build(model, example_inputs(model), loss_fn, trained=trained, numbers={PAIRS: pairs}, frozen=frozen)
    if config.dry_run:
        return run.dry_run()
    if method == "reward":
        new = run.new_variables()
        variables = {name: {**values, "tower": reference[name]} for name, values in new.items()}
    else:
        variables = jax.tree.map(jnp.copy, reference)  # the step reuses the memory of what it trains
    state = run.begin(variables, frozen)
    preferences.check_reference(run.workdir, config.init_from, reference)
    run.announce(method=method, text=f"{tokenizer.name}: {context} tokens per caption", pairs=f"{pairs[0]} per video")
    if is_main_process():
        keep_tokenizer(tokenizer.name, run.workdir)
    evaluate = None
    if validation and method == "reward":
        evaluate = preferences.reward_validator(run)
    elif validation:
        evaluate = preferences.tuning_validator(run, tokenizer, attributes, context)
    before = evaluate(state, 0) if evaluate else {}  # of the reference, also if the run resumes

    def batches_from(first: int) -> Iterator[dict[str, np.ndarray]]:
        return (
            {name: batch[name] for name in ("video", PAIRS, "valid")} for batch in run.batches(first, fields=(PAIRS,))
        )

    result = run.fit(state, batches_from, evaluate, best="preferred")
    return summarize(run, result, before) if result.finished and is_main_process() else {}


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, DATA_FLAG)
