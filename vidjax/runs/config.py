"""The config fields that all training scripts share."""

import dataclasses
from typing import Literal

from vidjax.data.config import CaptionedDataConfig
from vidjax.errors import UserError
from vidjax.fields import check_values, free, initial, require_not_negative, require_positive
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Base config of a training script, whose Config adds the model, the data and other defaults.

    `runs.run.Run` also reads `model`, `data` and `accumulation` (micro-batches per step). They are not fields here,
    because the type of `data` differs, and a loss that compares all clips of a batch cannot be accumulated.
    """

    accumulation = 1

    workdir: str = "runs/train"
    """Output directory; running the same command again resumes the run."""
    batch_size: int = 64
    """Clips per step over all devices; the learning rate is scaled by it."""
    epochs: float = 100
    """Passes over the training videos."""
    steps: int | None = None
    """Total number of steps; overrides epochs."""
    optim: OptimizerConfig = OptimizerConfig()
    """Optimiser and schedule."""
    loop: LoopConfig = free(LoopConfig())
    """Intervals of logging, saving and evaluation."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type (parameters are float32): auto is bfloat16 on accelerators, float32 on a CPU."""
    remat: Literal["none", "dots", "blocks"] = free("none")
    """What the backward pass recomputes to save memory."""
    scan: bool = free(False)
    """Compile one block and scan over all of them, at the cost of a copy of the parameters."""
    ema_decay: float | None = None
    """Keep a moving average of the parameters with this decay; it is evaluated too and selects the best checkpoint."""
    fsdp: int = free(1)
    """Devices over which each copy of the parameters is sharded."""
    sequence: int = free(1)
    """Devices over which the tokens of each clip are sharded (ring attention), for very long clips."""
    init_from: str | None = initial(None)
    """Start from the weights of a run's work directory or of a published checkpoint (file, directory or hub id)."""
    dry_run: bool = free(False)
    """Only compile the step and report the memory that each device needs; nothing is loaded or written."""
    distributed: bool = free(False)
    """Join the other processes of a cluster (jax.distributed); all must run the same command."""
    accept_changes: bool = False
    """Resume with different flags, even if they change the results; metrics.jsonl records the change."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Checks the values; scripts that add checks call this first."""
        check_values(self)
        require_positive(self, "batch_size", "accumulation", "epochs", "steps")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"ema_decay is {self.ema_decay}: it must be between 0 and 1")
        require_not_negative(self, "seed")


@dataclasses.dataclass(frozen=True)
class CaptionedConfig(TrainConfig):
    """Base config of a training script that learns from captioned videos."""

    tokenizer: str = "bytes"
    """bytes, CLIP's vocabulary (file or directory), or any tokenizer.json."""
    context: int | None = None
    """Tokens per caption, with start and end; longer captions are truncated (default: the text model's)."""
    init_video_from: str | None = initial(None)
    """Start the video tower from another run's work directory or from a published checkpoint of its family."""
    init_text_from: str | None = initial(None)
    """Start the text tower in the same way."""
    data: CaptionedDataConfig = CaptionedDataConfig()
    """The videos and their captions."""
    batch_size: int = 256
    epochs: float = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 2:
            raise UserError(f"batch_size is {self.batch_size}: contrastive training needs 2 or more")
        if self.context is not None and self.context < 3:
            raise UserError(f"context is {self.context}: it must be 3 or more, for a start, a token and an end")
        if self.optim.layer_decay != 1:
            raise UserError("optim.layer_decay is not supported with two towers: omit it")
        if self.init_from and (self.init_video_from or self.init_text_from):
            raise UserError("init_from loads both towers: give it, or init_video_from and init_text_from")

    def refuse_repeats(self, objective: str) -> None:
        """Raises `UserError` if a batch contains several clips of one video, for an objective that contrasts videos."""
        if self.data.repeats > 1:
            raise UserError(f"data.repeats: {objective} would contrast a video with itself: omit it")
