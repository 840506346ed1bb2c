"""The fields that all training scripts share."""

import dataclasses
from typing import Literal

from vidjax.errors import UserError
from vidjax.fields import check_values, free, initial, require_not_negative, require_positive
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run; a script's Config adds what it trains on, and other defaults.

    `runs.run.Run` reads `model`, `data` and `accumulation` (micro-batches a step) of it too. They are no fields here:
    data are of several kinds, and a loss that compares all clips of a batch takes no micro-batches.
    """

    accumulation = 1

    workdir: str = "runs/train"
    """Where everything goes; the same command again resumes."""
    batch_size: int = 64
    """Clips a step, over all devices; the learning rate is scaled by it."""
    epochs: float = 100
    """Passes over the training videos."""
    steps: int | None = None
    """Steps in all, instead of epochs."""
    optim: OptimizerConfig = OptimizerConfig()
    """Optimiser and schedule."""
    loop: LoopConfig = free(LoopConfig())
    """Logging, saving, evaluating, stopping."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of computation (parameters are float32): auto is bfloat16, on a CPU float32."""
    remat: Literal["none", "dots", "blocks"] = free("none")
    """What the backward pass computes again to save memory."""
    scan: bool = free(False)
    """Compile one block for all and run it in a loop, at the cost of a copy of the parameters."""
    ema_decay: float | None = None
    """Keep a moving average of the parameters with this decay; it is evaluated too, and chosen by."""
    fsdp: int = free(1)
    """Devices that share one copy of the parameters."""
    sequence: int = free(1)
    """Devices that share the tokens of one clip, for clips too long for one (ring attention)."""
    init_from: str | None = initial(None)
    """Start from the weights of a run's work directory or of a published checkpoint (file, directory or hub id)."""
    dry_run: bool = free(False)
    """Only say how much memory each device needs, from the compiled step; nothing is loaded or written."""
    distributed: bool = free(False)
    """Join the other processes of a cluster (jax.distributed); all are given the same command."""
    accept_changes: bool = False
    """Go on with a begun run although flags that change its numbers are other ones; metrics.jsonl says since when."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        """Refuses values that cannot be meant; a script's own checks call this first."""
        check_values(self)
        require_positive(self, "batch_size", "accumulation", "epochs", "steps")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"ema_decay is {self.ema_decay}: it must lie between 0 and 1")
        require_not_negative(self, "seed")
