"""Asynchronous Orbax checkpoints of a run: state, config and data position."""

import contextlib
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import flax.struct
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from vidjax.errors import UserError
from vidjax.training.int8 import dequantized
from vidjax.training.state import Skipped, TrainState

log = logging.getLogger(__name__)

FOLDERS = MappingProxyType({"last": "checkpoints", "best": "best"})
"""Subdirectories of a work directory with the newest checkpoints and the one that validated best."""
FROZEN = "frozen"
"""Subdirectory of a work directory with the parameters of frozen parts, which no step changes."""


@flax.struct.dataclass
class _Stored:
    """A state in the form in which all versions of vidjax save it.

    The counts of skipped steps wrap the optimiser state in the form of `optax.apply_if_finite`, which earlier versions
    used. Frozen parameters are not saved: no step changes them, so the caller passes them again when resuming.
    """

    step: Any
    params: Any
    model_state: Any
    opt_state: optax.ApplyIfFiniteState
    ema: Any
    key: Any


def _to_stored(state: TrainState) -> _Stored:
    skipped = state.skipped
    opt_state = optax.ApplyIfFiniteState(skipped.in_a_row, skipped.last_finite, skipped.total, state.opt_state)
    return _Stored(state.step, state.params, state.model_state, opt_state, state.ema, state.key)


def _from_stored(stored: _Stored, frozen: Any) -> TrainState:
    counted = stored.opt_state
    return TrainState(
        step=stored.step,
        params=stored.params,
        model_state=stored.model_state,
        opt_state=counted.inner_state,
        skipped=Skipped(counted.total_notfinite, counted.notfinite_count, counted.last_finite),
        ema=stored.ema,
        frozen=frozen,
        key=stored.key,
    )


class Checkpoints:
    """The checkpoints in one directory, with one subdirectory per step.

    A save returns once the arrays are copied from the device. A checkpoint appears under its name only when complete;
    remains of an interrupted save are removed when the directory is opened again.

    Args:
      directory: the directory.
      keep: number of newest checkpoints to keep.
      keep_every: keep checkpoints whose step is a multiple of this forever.
    """

    def __init__(self, directory: Path, keep: int = 2, keep_every: int | None = None):
        self.directory = Path(directory).absolute()
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every, cleanup_tmp_directories=True, create=True
        )
        self._manager = ocp.CheckpointManager(self.directory, options=self._options)

    def save(self, state: TrainState, config: dict[str, Any], next_batch: int, value: float | None = None) -> None:
        """Starts saving the state, after waiting for a previous save to finish.

        `value` is the metric of the state, for checkpoints that are saved because of it.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_to_stored(state)),
            config=ocp.args.JsonSave(config),
            data=ocp.args.JsonSave({"next_batch": next_batch, "value": value}),
        )
        self._manager.save(int(jax.device_get(state.step)), args=items, force=True)

    def newest_value(self) -> float:
        """The metric saved with the newest checkpoint; minus infinity if there is none."""
        step = self._manager.latest_step()
        if step is None:
            return -math.inf
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))
        except Exception as error:  # Orbax raises various types for damaged files
            log.warning("checkpoint %d in %s cannot be read: %s", step, self.directory, str(error).splitlines()[:1])
            self._set_aside([step])
            return -math.inf
        return -math.inf if restored.data["value"] is None else float(restored.data["value"])

    def newest_config(self) -> dict[str, Any]:
        """The config saved with the newest checkpoint, which must be intact, as it is after `restore`."""
        items = ocp.args.Composite(config=ocp.args.JsonRestore())
        return self._manager.restore(self._manager.latest_step(), args=items).config

    def restore(self, like: TrainState) -> tuple[TrainState, int] | None:
        """The state of the newest intact checkpoint and the number of the next batch; None without checkpoints.

        A damaged checkpoint is reported and moved to `damaged_checkpoints/` next to the directory, and the previous one
        is used.

        Args:
          like: a state with the desired shapes and shardings; its frozen parameters become those of the result.

        Raises:
          UserError: there are checkpoints, but none can be read, or they are of another model or optimiser.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(_to_stored(like)), data=ocp.args.JsonRestore())
        damaged = []
        for step in steps:
            try:
                restored = self._manager.restore(step, args=items)
            except Exception as error:  # Orbax and TensorStore raise various types for damaged files
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                log.warning("checkpoint %d cannot be read (%s): trying the previous one", step, reason)
                damaged.append(step)
                continue
            self._set_aside(damaged)
            return _from_stored(restored.state, like.frozen), int(restored.data["next_batch"])
        if damaged and not _has_form(self.directory / str(steps[0]) / "state", like):
            raise UserError(
                f"the checkpoints in {self.directory} have other arrays than this run's model and optimiser: resume it "
                "with the version of vidjax that began it, or start again in a new work directory"
            )
        if damaged:
            raise UserError(
                f"none of the {len(damaged)} checkpoints in {self.directory} can be read: restore them from a copy, "
                "or start again in a new work directory"
            )
        return None

    def _set_aside(self, steps: list[int]) -> None:
        """Moves damaged checkpoints away, so that their steps can be saved again; nothing is deleted."""
        if not steps:
            return
        self._manager.close()
        if jax.process_index() == 0:
            aside = self.directory.with_name(f"damaged_{self.directory.name}")
            aside.mkdir(exist_ok=True)
            for step in steps:
                target = aside / str(step)
                while target.exists():
                    target = target.with_name(target.name + "_again")
                shutil.move(self.directory / str(step), target)
                log.warning("damaged checkpoint %d was moved to %s", step, target)
        if jax.process_count() > 1:
            jax.experimental.multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._manager = ocp.CheckpointManager(self.directory, options=self._options)

    def reached_preemption(self, step: int) -> bool:
        """True on all processes at the same step after any of them received SIGTERM."""
        return self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Waits until the current save has finished."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the current save and closes the manager."""
        self._manager.close()


def has_checkpoint(directory: Path, which: Literal["last", "best"] = "last") -> bool:
    """Whether the work directory has a checkpoint to resume from, or a best one."""
    saved_in = Path(directory) / FOLDERS[which]
    return saved_in.is_dir() and bool(ocp.utils.checkpoint_steps(saved_in))


def newest_step(directory: Path) -> int:
    """The step of the newest checkpoint of a work directory; 0 if there is none."""
    return (
        max(ocp.utils.checkpoint_steps(Path(directory) / FOLDERS["last"]), default=0)
        if has_checkpoint(directory)
        else 0
    )


def fits(directory: Path, like: TrainState) -> bool:
    """Whether the newest checkpoint of a work directory has the structure and shapes of this state.

    Also true if there is none, or if it is damaged, which `Checkpoints.restore` handles.

    Args:
      like: a state, or the shapes of one.
    """
    if not has_checkpoint(directory):
        return True
    saved_in = Path(directory) / FOLDERS["last"]
    return _has_form((saved_in / str(max(ocp.utils.checkpoint_steps(saved_in))) / "state").absolute(), like)


def _has_form(path: Path, like: TrainState) -> bool:
    """Whether a saved state has the structure and shapes of this one; also true if it is damaged."""
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        try:
            saved = handler.metadata(path).tree
        except Exception:  # Orbax raises various types for damaged files
            return True
    # PRNG keys are saved as their integer data.
    forms = [ocp.tree.to_flat_dict(tree | {"key": None}, sep="/") for tree in (saved, vars(_to_stored(like)))]
    shapes = [{name: getattr(leaf, "shape", None) for name, leaf in flat.items()} for flat in forms]
    return shapes[0] == shapes[1]


def load_variables(directory: Path, which: Literal["last", "best"] = "last") -> tuple[dict[str, np.ndarray], int]:
    """A run's variables on the host by path (`params/...`, `batch_stats/...`), and their step.

    The parameters are their moving average if the run keeps one.

    Args:
      directory: the work directory of a run.
      which: the newest checkpoint, or the one that validated best.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    saved_in = Path(directory) / FOLDERS[which]
    steps = ocp.utils.checkpoint_steps(saved_in) if saved_in.is_dir() else []
    if not steps:
        raise UserError(f"{directory} has no checkpoint in {saved_in.name}/: wait until the run has saved one")
    path = saved_in / str(max(steps)) / "state"

    def select(saved: dict) -> dict:
        params = "ema" if saved.get("ema") else "params"
        return {name: saved[name] for name in (params, "model_state") if saved.get(name)}

    restored = _read_arrays(path, select, f"checkpoint {max(steps)} in {saved_in}")
    variables = restored.pop("model_state", {})
    (params,) = restored.values()
    return flatten_dict({"params": params, **variables}, sep="/"), max(steps)


def save_frozen(directory: Path, params: PyTree) -> None:
    """Writes the parameters of frozen parts into a work directory; returns when they are complete."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((Path(directory) / FROZEN).absolute(), params, force=True)


def load_frozen(directory: Path) -> PyTree:
    """The parameters of a run's frozen parts on the host, int8 as float32; empty if it has none.

    Raises:
      UserError: they are damaged.
    """
    path = Path(directory) / FROZEN
    saved = _read_arrays(path, lambda saved: saved, f"{path}") if path.is_dir() else {}
    return unflatten_dict(dequantized(flatten_dict(saved, sep="/")), sep="/")


def _read_arrays(path: Path, select: Callable[[dict], dict], label: str) -> dict:
    """The arrays of a checkpoint on the host, as far as they are selected from its description."""
    handler = ocp.PyTreeCheckpointHandler()
    try:
        selected = select(handler.metadata(path.absolute()).tree)
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), selected)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        request = ocp.args.PyTreeRestore(target, restore_args=as_numpy, partial_restore=True)
        return handler.restore(path.absolute(), args=request)
    except Exception as error:  # Orbax and TensorStore raise various types for damaged files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{label} cannot be read ({reason}): restore it from a copy") from error
    finally:
        handler.close()
