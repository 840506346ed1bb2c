"""The training loop: resuming, feeding batches, logging, evaluating, saving and stopping."""

import contextlib
import dataclasses
import itertools
import math
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vidjax.errors import UserError
from vidjax.fields import describe_changes, differing_fields
from vidjax.training.checkpoint import FOLDERS, Checkpoints
from vidjax.training.metrics import Meter, MetricWriter, Progress
from vidjax.training.sharding import is_main_process, jit_step, make_mesh, put_batch, state_sharding
from vidjax.training.state import TrainState

STARVED = 0.15
"""Fraction of time spent waiting for data above which the run prints advice."""
NOTICED_AFTER = 30.0
"""Seconds of steps before that is judged: the first steps use batches that were prepared during compilation."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Intervals of logging, saving and evaluation."""

    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    save_every: int = 1000
    """Steps between checkpoints; a killed run loses at most this many steps."""
    keep: int = 2
    """Number of newest checkpoints to keep."""
    keep_every: int | None = None
    """Keep checkpoints whose step is a multiple of this forever."""
    evaluate_every: int = 1000
    """Steps between evaluations (in masked pre-training: images of reconstructions)."""
    max_skipped_in_a_row: int = 5
    """Stop after this many steps in a row whose gradient is not finite."""

    def __post_init__(self) -> None:
        for name in ("log_every", "save_every", "keep", "evaluate_every", "max_skipped_in_a_row"):
            if getattr(self, name) < 1:
                raise UserError(f"loop.{name} is {getattr(self, name)}: it must be 1 or more")
        if self.keep_every is not None and self.keep_every < 1:
            raise UserError(f"loop.keep_every is {self.keep_every}: it must be 1 or more, or omitted")


@dataclasses.dataclass(frozen=True)
class FitResult:
    """Result of `fit`: the state, whether all steps were taken, and the speed of the steps taken by this call."""

    state: TrainState = dataclasses.field(repr=False)  # a notebook would print every array
    finished: bool
    steps_taken: int
    clips_per_second: float
    data_wait_fraction: float
    advice: str = ""
    """How to speed up the input, if the devices waited for data."""
    logged: tuple[dict[str, float], ...] = ()
    """The logged metrics of these steps, as in `metrics.jsonl`."""


class Feeder:
    """Prefetches batches to the device in a background thread, with at most `size` of them waiting."""

    def __init__(self, batches: Iterator[dict[str, np.ndarray]], mesh: Mesh, size: int = 2):
        self._queue: queue.Queue = queue.Queue(size)
        self._stop = threading.Event()
        self._clips, self._seconds = 0, 0.0
        self._thread = threading.Thread(target=self._run, args=(batches, mesh), daemon=True)
        self._thread.start()

    def _run(self, batches: Iterator[dict[str, np.ndarray]], mesh: Mesh) -> None:
        try:
            start = None  # the first batch is not timed, as it includes building the pipeline
            for batch in batches:
                item = put_batch(batch, mesh)
                if start is not None:
                    self._clips += len(next(iter(batch.values())))
                    self._seconds += time.monotonic() - start
                self._put(item)
                if self._stop.is_set():
                    return
                start = time.monotonic()
            raise UserError("the batches ended before the last step: give as many as steps, or an endless iterator")
        except BaseException as error:  # raised again by `get`, which would otherwise wait forever
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                return self._queue.put(item, timeout=0.1)

    def get(self, done: Callable[[], bool] | None) -> tuple[dict[str, jax.Array], float]:
        """The next batch, and for how many seconds the device was idle while waiting for it.

        Args:
          done: whether the current step has finished; waiting counts only after that. None if no step is running.
        """
        idle_since = None
        while True:
            try:
                item = self._queue.get(timeout=0.002)
                break
            except queue.Empty:
                if idle_since is None and (done is None or done()):
                    idle_since = time.monotonic()
        if isinstance(item, BaseException):
            raise item
        return item, 0.0 if idle_since is None else time.monotonic() - idle_since

    def rate(self) -> float:
        """Clips per second that this process can prepare, excluding time blocked by a full queue; 0 before batch 2."""
        return self._clips / max(self._seconds, 1e-9)

    def close(self) -> None:
        """Stops the thread."""
        self._stop.set()
        self._thread.join(timeout=10)


@contextlib.contextmanager
def _sigterm_flag() -> Iterator[threading.Event]:
    """An event that is set on SIGTERM, instead of ending the process.

    With several processes JAX's own handler must stay in place, which lets all of them stop at the same step.
    """
    received = threading.Event()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)


def fit(
    step_fn: Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]],
    state: TrainState,
    batches: Iterable[dict[str, np.ndarray]] | Callable[[int], Iterator[dict[str, np.ndarray]]],
    *,
    steps: int,
    workdir: str | Path | None = None,
    mesh: Mesh | None = None,
    loop: LoopConfig = LoopConfig(),
    config: dict[str, Any] | None = None,
    schedule: Callable[[int], Any] | None = None,
    evaluate: Callable[[TrainState, int], dict[str, float]] | None = None,
    best: str | None = None,
    advise: Callable[[float, float], str] | None = None,
) -> FitResult:
    """Trains from the newest checkpoint in `workdir`, or from `state`, up to step `steps`.

    Args:
      step_fn: `(state, batch) -> (state, metrics)`, as made by `training.step.make_train_step`.
      state: the initial state, used if there is no checkpoint.
      batches: an iterable of host batches, or a function that takes the number of the first batch and returns an
        endless iterator. When resuming, the batches of earlier steps are skipped if `batches` is an iterable.
      steps: total number of steps.
      workdir: directory for checkpoints, metrics.jsonl and TensorBoard events; None writes nothing and never resumes.
      mesh: the devices of the state and of `step_fn`, which must be jitted and donates the state. Without a mesh
        `step_fn` is jitted here for all devices and works on a copy of the state.
      loop: intervals of logging, saving and evaluation.
      config: saved with each checkpoint; differences from the config of the checkpoint that the run resumes from are
        printed and written to metrics.jsonl.
      schedule: the learning rate as a function of the step, for the log.
      evaluate: `(state, step) -> metrics`, which are logged with the prefix `evaluation/`.
      best: name of a metric of `evaluate`; the state with its highest value is saved in `workdir/best`.
      advise: returns advice on slow input from two rates in clips per second, the one that the devices of a process
        could process and the one that it prepares, such as `runs.announce.describe_starvation`. Called if the devices
        wait for data (`STARVED`), and at the end.

    Returns:
      The result; `finished` is False if the run was stopped by SIGTERM, after saving a checkpoint.

    Raises:
      UserError: too many steps in a row had a gradient that is not finite (their batches are saved in `workdir`), or
        the batches ended.

    Example:
      >>> result = fit(make_train_step(loss_fn, tx), create_state(variables, tx, key), batches, steps=100)
    """
    if mesh is None:
        mesh = make_mesh()
        sharding = state_sharding(mesh, state)
        step_fn = jit_step(step_fn, sharding, mesh)
        state = jax.device_put(jax.tree.map(jnp.copy, state), sharding)
    saving = _Saving(workdir, loop, {} if config is None else config, best)
    state, first, changes = saving.resume(state)
    if saving.resumed and is_main_process():
        print(
            f"resumed from step {first} of {steps}" if first < steps else f"already finished: all {steps} steps taken"
        )
        if changes and first < steps:
            print(f"note: from this step on {describe_changes(changes)}")
    if first >= steps:
        saving.close()
        return FitResult(state, True, 0, 0.0, 0.0)

    writer = MetricWriter(saving.workdir, first, changes) if saving.workdir and is_main_process() else None
    progress = Progress(first, steps) if is_main_process() else None
    meter, logged = Meter(), []
    feeder = Feeder(batches(first) if callable(batches) else itertools.islice(batches, first, None), mesh)
    has_advised = False

    def advice() -> str:
        speed = meter.overall()
        busy = 1 - speed["data_wait_fraction"]
        if advise is None or busy >= 1 - STARVED or meter.seconds < NOTICED_AFTER or not feeder.rate():
            return ""
        return advise(speed["clips_per_second"] / max(busy, 0.01) / jax.process_count(), feeder.rate())

    def log(step: int, values: dict[str, float]) -> None:
        logged.append({"step": step, **values})
        if writer is not None:
            writer.write(step, values)

    def finish(step: int, metrics: dict[str, jax.Array], batch: dict[str, jax.Array], waited: float) -> None:
        """Waits for the metrics of a step, logs them, and handles a gradient that is not finite."""
        nonlocal has_advised
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        skipped_in_a_row = int(values.pop("skipped_in_a_row"))
        if step == first + 1:
            meter.restart()  # excludes compilation
        else:
            meter.add(values["clips"], waited)
        if progress is not None:
            progress.step()
        if skipped_in_a_row:
            saved = saving.save_batch(step, batch)
            if progress is not None:
                progress.note(f"step {step}: the gradient is not finite; skipped{saved}")
        if progress is not None and (step % loop.log_every == 0 or step in (first + 1, steps)):
            if schedule is not None:  # the optimiser does not count skipped steps
                values["learning_rate"] = float(schedule(step - 1 - int(values["skipped_steps"])))
            values |= meter.read() if step > first + 1 else {"clips_per_second": 0.0, "data_wait_fraction": 0.0}
            log(step, values)
            progress.log(step, values)
            if not has_advised and (text := advice()):
                has_advised = True
                progress.note(f"step {step}: waiting for data: {text}")
        if skipped_in_a_row >= loop.max_skipped_in_a_row:
            raise UserError(
                f"{skipped_in_a_row} steps in a row had a gradient that is not finite, up to step {step}: stopped; "
                + saving.advise_after_skipping()
            )

    n, stopped, pending = first, False, None
    try:
        with _sigterm_flag() as sigterm:
            while n < steps and not stopped:
                batch, waited = feeder.get(pending[1]["loss"].is_ready if pending else None)
                with jax.transfer_guard("disallow"):
                    state, metrics = step_fn(state, batch)
                n += 1
                if pending:  # one step behind, so that the next step is already queued on the device
                    finish(*pending)
                pending = (n, metrics, batch, waited)
                stopped = sigterm.is_set() if jax.process_count() == 1 else saving.reached_preemption(n)
                saves = stopped or n == steps or n % loop.save_every == 0
                evaluates = evaluate is not None and not stopped and (n == steps or n % loop.evaluate_every == 0)
                if saves or evaluates:
                    finish(*pending)
                    pending = None
                    with meter.paused():
                        if evaluates:
                            try:
                                numbers = evaluate(state, n)
                            except Exception:  # a failed evaluation must not lose the training so far
                                saving.save(state, n, wait=True)
                                raise
                            if progress is not None and numbers:
                                log(n, {f"evaluation/{name}": value for name, value in numbers.items()})
                                progress.note(f"step {n}: " + ", ".join(f"{k} {v:.4f}" for k, v in numbers.items()))
                            saving.save_best(state, n, numbers)
                        if saves:  # last, since a run that resumes from here does not evaluate this step again
                            saving.save(state, n)
    finally:
        # Waits for saves in progress, unless one of several processes failed: it would wait for the others forever.
        if n == steps or stopped or jax.process_count() == 1:
            saving.close()
        feeder.close()
        if progress is not None:
            progress.close()
        if writer is not None:
            writer.close()
    return FitResult(state, not stopped, n - first, **meter.overall(), advice=advice(), logged=tuple(logged))


class _Saving:
    """The checkpoints and saved batches of a run; does nothing without a work directory.

    Attributes:
      workdir: the work directory, or None.
      resumed: whether `resume` restored a checkpoint.
    """

    def __init__(self, workdir: str | Path | None, loop: LoopConfig, config: dict[str, Any], best: str | None):
        self.workdir = None if workdir is None else Path(workdir)
        self.resumed = False
        self._config, self._name = config, best
        self._newest = self._best = None
        if self.workdir is not None:
            self._newest = Checkpoints(self.workdir / FOLDERS["last"], loop.keep, loop.keep_every)
            self._best = Checkpoints(self.workdir / FOLDERS["best"], keep=1) if best else None
        self._best_value = -math.inf if self._best is None else self._best.newest_value()

    def resume(self, state: TrainState) -> tuple[TrainState, int, dict[str, tuple[Any, Any]]]:
        """The state to start from, the number of its next batch, and the changes in the config since it was saved."""
        restored = None if self._newest is None else self._newest.restore(state)
        if restored is None:
            return state, 0, {}
        self.resumed = True
        # Frees the initial state, which the caller still references, except for the frozen parameters, which are used.
        jax.tree.map(lambda leaf: leaf.delete(), state.replace(frozen=None))
        return *restored, differing_fields(self._newest.newest_config(), self._config, self._config)

    def save(self, state: TrainState, step: int, wait: bool = False) -> None:
        """Saves the state after this step, in the background unless `wait` is set."""
        if self._newest is not None:
            self._newest.save(state, self._config, next_batch=step)
            if wait:
                self._newest.wait()

    def save_best(self, state: TrainState, step: int, numbers: dict[str, float]) -> None:
        """Saves the state if its metric is higher than that of the best one so far."""
        # A resumed run repeats evaluations with the same values, none of which exceeds the best one.
        if self._best is not None and numbers[self._name] > self._best_value:
            self._best_value = numbers[self._name]
            self._best.save(state, self._config, step, self._best_value)
            self._best.wait()

    def save_batch(self, step: int, batch: dict[str, jax.Array]) -> str:
        """Saves this process's rows of a batch whose gradient is not finite; returns a remark for the log."""
        if self.workdir is None:
            return ""
        path = self.workdir / f"skipped_step_{step}_process_{jax.process_index()}.npz"
        np.savez(path, **{name: _local(array) for name, array in batch.items()})
        return f", batch saved in {path.name}"

    def advise_after_skipping(self) -> str:
        """Advice after too many skipped steps in a row."""
        if self.workdir is None:
            return "lower the learning rate, or clip the gradient norm"
        return (
            f"inspect skipped_step_*.npz in {self.workdir}, and resume from the last checkpoint with --accept_changes "
            "and a lower --optim.learning_rate or --optim.clip_norm 1"
        )

    def reached_preemption(self, step: int) -> bool:
        """See `Checkpoints.reached_preemption`; False without a work directory, as nothing could be saved."""
        return self._newest is not None and self._newest.reached_preemption(step)

    def close(self) -> None:
        """Waits for saves in progress."""
        for each in (self._newest, self._best):
            if each is not None:
                each.close()


def _local(array: jax.Array) -> np.ndarray:
    """This process's rows of a global array."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])
