"""The loop around a step: resume, feed, log, evaluate, save, stop. It knows no model and no objective."""

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
"""A device that waits for data for more than this fraction of its time is starved, and the run says what would help."""
NOTICED_AFTER = 30.0
"""Seconds of steps until that is judged: the first ones live on what was made during compilation."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How often the loop does what."""

    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    save_every: int = 1000
    """Steps between checkpoints; a killed run loses at most these."""
    keep: int = 2
    """Newest checkpoints that stay."""
    keep_every: int | None = None
    """Keep the checkpoints of these multiples of steps for good."""
    evaluate_every: int = 1000
    """Steps between evaluations (images of reconstructions, in pre-training)."""
    max_skipped_in_a_row: int = 5
    """Stop after this many steps in a row whose gradient was not finite."""

    def __post_init__(self) -> None:
        """Refuses values that cannot be meant."""
        for name in ("log_every", "save_every", "keep", "evaluate_every", "max_skipped_in_a_row"):
            if getattr(self, name) < 1:
                raise UserError(f"loop.{name} is {getattr(self, name)}: it must be 1 or more")
        if self.keep_every is not None and self.keep_every < 1:
            raise UserError(f"loop.keep_every is {self.keep_every}: it must be 1 or more (leave it out for none)")


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What `fit` did: the state, whether all steps are taken, and the speed of the steps taken this time."""

    state: TrainState
    finished: bool
    steps_taken: int
    clips_per_second: float
    data_wait_fraction: float
    advice: str = ""
    """What would have fed the device, where it was starved."""
    logged: tuple[dict[str, float], ...] = ()
    """The lines of metrics of these steps, as `metrics.jsonl` has them."""


class Feeder:
    """Batches on the device ahead of their use, made by a thread; `size` of them wait at most."""

    def __init__(self, batches: Iterator[dict[str, np.ndarray]], mesh: Mesh, size: int = 2):
        self._queue: queue.Queue = queue.Queue(size)
        self._stop = threading.Event()
        self._clips, self._seconds = 0, 0.0
        self._thread = threading.Thread(target=self._run, args=(batches, mesh), daemon=True)
        self._thread.start()

    def _run(self, batches: Iterator[dict[str, np.ndarray]], mesh: Mesh) -> None:
        try:
            start = None  # the first batch's time is that of building the pipeline
            for batch in batches:
                item = put_batch(batch, mesh)
                if start is not None:
                    self._clips += len(next(iter(batch.values())))
                    self._seconds += time.monotonic() - start
                self._put(item)
                if self._stop.is_set():
                    return
                start = time.monotonic()
            raise UserError("the batches ended before the last step: give as many as steps, or an iterator without end")
        except BaseException as error:  # raised again where the batch is asked for, which else would wait for ever
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                return self._queue.put(item, timeout=0.1)

    def get(self, done: Callable[[], bool] | None) -> tuple[dict[str, jax.Array], float]:
        """The next batch, and for how many seconds the device had nothing to do because of it.

        Args:
          done: whether the step under way is; waiting counts only from then on.
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
        """Clips a second of this process's batches while no full queue delayed them; 0 before the second batch."""
        return self._clips / max(self._seconds, 1e-9)

    def close(self) -> None:
        """Stops the thread."""
        self._stop.set()
        self._thread.join(timeout=10)


@contextlib.contextmanager
def _sigterm_flag() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, instead of ending the process.

    Of several processes JAX itself takes the signal and brings all to one step: its handler must stay in place.
    """
    asked = threading.Event()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


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
    """Trains from the newest checkpoint in `workdir`, or from `state`, up to `steps` steps.

    Args:
      step_fn: `(state, batch) -> (state, metrics)`, as of `training.step`.
      state: where there is no checkpoint yet.
      batches: host batches, or a function that gives them without end from the numbered one on. What is iterated over
        is begun anew by a run that goes on, and the batches of the steps taken are passed over.
      steps: in all.
      workdir: for checkpoints, metrics.jsonl and TensorBoard's events; None writes nothing and never resumes.
      mesh: the devices that the state lies on, and that `step_fn` is jitted for; the state is donated to it. Without a
        mesh the step is jitted here for all devices, and a copy of the state is put on them.
      loop: how often what is done.
      config: saved with every checkpoint; what differs from that of the one gone on from is said, here and in
        metrics.jsonl.
      schedule: learning rate of a step, for the log.
      evaluate: called with the state and its step; what it returns is logged with the prefix `evaluation/`.
      best: a number of `evaluate`'s; the state where it is highest stays in `workdir/best`.
      advise: says what would help, of the clips a second that the devices of a process could take and those that it
        makes, as `runs.announce.describe_starvation`; asked once the devices are starved (`STARVED`), and at the end.

    Returns:
      The result; `finished` is False when SIGTERM ended the run, with a checkpoint saved.

    Raises:
      UserError: too many steps in a row had a gradient that is not finite (their batches are in `workdir`), or the
        batches ended.

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
            print(f"note: from here on {describe_changes(changes)}")
    if first >= steps:
        saving.close()
        return FitResult(state, True, 0, 0.0, 0.0)

    writer = MetricWriter(saving.workdir, first, changes) if saving.workdir and is_main_process() else None
    progress = Progress(first, steps) if is_main_process() else None
    meter, logged = Meter(), []
    feeder = Feeder(batches(first) if callable(batches) else itertools.islice(batches, first, None), mesh)
    noticed = False

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
        """Waits for a step's numbers, logs them, and looks after a gradient that was not finite."""
        nonlocal noticed
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        skipped_in_a_row = int(values.pop("skipped_in_a_row"))
        if step == first + 1:
            meter.restart()  # what came before was compilation
        else:
            meter.add(values["clips"], waited)
        if progress is not None:
            progress.step()
        if skipped_in_a_row:
            kept = saving.keep_batch(step, batch)
            if progress is not None:
                progress.note(f"step {step}: the gradient is not finite; skipped{kept}")
        if progress is not None and (step % loop.log_every == 0 or step in (first + 1, steps)):
            if schedule is not None:  # the optimiser does not count the steps that were skipped
                values["learning_rate"] = float(schedule(step - 1 - int(values["skipped_steps"])))
            values |= meter.read() if step > first + 1 else {"clips_per_second": 0.0, "data_wait_fraction": 0.0}
            log(step, values)
            progress.log(step, values)
            if not noticed and (text := advice()):
                noticed = True
                progress.note(f"step {step}: waiting for data: {text}")
        if skipped_in_a_row >= loop.max_skipped_in_a_row:
            raise UserError(
                f"{skipped_in_a_row} steps in a row had a gradient that is not finite, up to step {step}: stopped; "
                + saving.advise_after_skipping()
            )

    n, stopped, pending = first, False, None
    try:
        with _sigterm_flag() as asked_to_stop:
            while n < steps and not stopped:
                batch, waited = feeder.get(pending[1]["loss"].is_ready if pending else None)
                with jax.transfer_guard("disallow"):
                    state, metrics = step_fn(state, batch)
                n += 1
                if pending:  # one step behind, so that the device always has the next one in hand
                    finish(*pending)
                pending = (n, metrics, batch, waited)
                stopped = asked_to_stop.is_set() if jax.process_count() == 1 else saving.reached_preemption(n)
                save = stopped or n == steps or n % loop.save_every == 0
                show = evaluate is not None and not stopped and (n == steps or n % loop.evaluate_every == 0)
                if save or show:
                    finish(*pending)
                    pending = None
                    with meter.paused():
                        if show:
                            try:
                                numbers = evaluate(state, n)
                            except Exception:  # nothing that was trained is lost by it
                                saving.save(state, n, wait=True)
                                raise
                            if progress is not None and numbers:
                                log(n, {f"evaluation/{name}": value for name, value in numbers.items()})
                                progress.note(f"step {n}: " + ", ".join(f"{k} {v:.4f}" for k, v in numbers.items()))
                            saving.save_best(state, n, numbers)
                        if save:  # last: a run that goes on from here has the evaluation of this step behind it
                            saving.save(state, n)
    finally:
        # What is being saved is saved, but one of several processes that fails does not wait for the others.
        if n == steps or stopped or jax.process_count() == 1:
            saving.close()
        feeder.close()
        if progress is not None:
            progress.close()
        if writer is not None:
            writer.close()
    return FitResult(state, not stopped, n - first, **meter.overall(), advice=advice(), logged=tuple(logged))


class _Saving:
    """What a run writes to its work directory beside its metrics; nothing where it has none.

    Attributes:
      workdir: the directory, or None.
      resumed: whether `resume` found a checkpoint.
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
        """The state to go on from, the number of its next batch, and what has changed in the config since."""
        restored = None if self._newest is None else self._newest.restore(state)
        if restored is None:
            return state, 0, {}
        self.resumed = True
        # The caller still names the state: both would stay on the device. Frozen parameters are those of the new one.
        jax.tree.map(lambda leaf: leaf.delete(), state.replace(frozen=None))
        return *restored, differing_fields(self._newest.newest_config(), self._config, self._config)

    def save(self, state: TrainState, step: int, wait: bool = False) -> None:
        """Saves the state after this step, in the background unless it is waited for."""
        if self._newest is not None:
            self._newest.save(state, self._config, next_batch=step)
            if wait:
                self._newest.wait()

    def save_best(self, state: TrainState, step: int, numbers: dict[str, float]) -> None:
        """Saves the state if its evaluation is above that of the best one so far."""
        # A resumed run meets again the values that it had before: none is higher than the one kept.
        if self._best is not None and numbers[self._name] > self._best_value:
            self._best_value = numbers[self._name]
            self._best.save(state, self._config, step, self._best_value)
            self._best.wait()

    def keep_batch(self, step: int, batch: dict[str, jax.Array]) -> str:
        """Writes this process's rows of a batch whose gradient was not finite; says where, for the end of a line."""
        if self.workdir is None:
            return ""
        path = self.workdir / f"skipped_step_{step}_process_{jax.process_index()}.npz"
        np.savez(path, **{name: _local(array) for name, array in batch.items()})
        return f", its batch is in {path.name}"

    def advise_after_skipping(self) -> str:
        """What to do once too many steps in a row were skipped."""
        if self.workdir is None:
            return "lower the learning rate, or clip the gradient's norm"
        return (
            f"look at skipped_step_*.npz in {self.workdir}, and go on from the last checkpoint with --accept_changes "
            "and a lower --optim.learning_rate or --optim.clip_norm 1"
        )

    def reached_preemption(self, step: int) -> bool:
        """See `Checkpoints.reached_preemption`; without a work directory nothing could be saved."""
        return self._newest is not None and self._newest.reached_preemption(step)

    def close(self) -> None:
        """Waits for the saves under way."""
        for each in (self._newest, self._best):
            if each is not None:
                each.close()


def _local(array: jax.Array) -> np.ndarray:
    """This process's rows of a global array."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])
