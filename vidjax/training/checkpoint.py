"""Checkpoints of a run, by Orbax: state, config and data position together, written in the background."""

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from vidjax.training.state import TrainState

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints in one directory, one subdirectory a step.

    A save returns once the arrays are copied off the device. A checkpoint appears under its name only when it is whole;
    what a killed save left behind is removed the next time the directory is opened.

    Attributes:
      directory: where they are.
      keep: how many of the newest stay.
      keep_every: checkpoints of these multiples of steps stay for good.
    """

    def __init__(self, directory: Path, keep: int = 2, keep_every: int | None = None):
        self.directory = Path(directory).absolute()
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every, cleanup_tmp_directories=True, create=True
        )
        self._manager = ocp.CheckpointManager(self.directory, options=self._options)

    def save(self, state: TrainState, config: dict[str, Any], next_batch: int) -> None:
        """Starts to save the state after step `state.step`; waits only for a save that is still under way."""
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            config=ocp.args.JsonSave(config),
            data=ocp.args.JsonSave({"next_batch": next_batch}),
        )
        self._manager.save(int(jax.device_get(state.step)), args=items, force=True)

    def restore(self, like: TrainState) -> tuple[TrainState, int] | None:
        """The newest whole checkpoint, and the number of the next batch; None when there is none yet.

        A damaged one is reported, moved to `damaged_checkpoints/` beside the directory, and the one before it used.

        Args:
          like: a state of the shapes and shardings wanted.

        Raises:
          ValueError: there are checkpoints, and none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(like), data=ocp.args.JsonRestore())
        damaged = []
        for step in steps:
            try:
                restored = self._manager.restore(step, args=items)
            except Exception as error:  # whatever Orbax or TensorStore makes of a damaged file
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                log.warning("checkpoint %d cannot be read (%s): trying the one before it", step, reason)
                damaged.append(step)
                continue
            self._set_aside(damaged)
            return restored.state, int(restored.data["next_batch"])
        if damaged:
            raise ValueError(
                f"none of the {len(damaged)} checkpoints in {self.directory} can be read: restore them from a copy, "
                "or start again in a new work directory"
            )
        return None

    def _set_aside(self, steps: list[int]) -> None:
        """Frees the names of damaged checkpoints, so that their steps can be saved again; nothing is deleted."""
        if not steps:
            return
        self._manager.close()
        if jax.process_index() == 0:
            aside = self.directory.with_name("damaged_checkpoints")
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
        """True on every process at the same step once the cluster asked one of them to stop (SIGTERM)."""
        return self._manager.reached_preemption(step)

    def close(self) -> None:
        """Waits for the save under way."""
        self._manager.close()


def load_params(directory: Path, like: PyTree[Any]) -> tuple[PyTree[Any], int]:
    """Parameters of the newest checkpoint in a run's work directory, and its step.

    The moving average where the run kept one, otherwise the parameters.

    Args:
      directory: the work directory of a run.
      like: arrays or shapes (`jax.eval_shape`) of the parameters wanted.

    Raises:
      ValueError: no checkpoint there, or parameters of other names or shapes.
    """
    saved_in = Path(directory) / "checkpoints"
    steps = ocp.utils.checkpoint_steps(saved_in) if saved_in.is_dir() else []
    if not steps:
        raise ValueError(f"{directory} holds no checkpoint: give the work directory of a run that has saved one")
    path = (saved_in / str(max(steps)) / "state").absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        saved = checkpointer.metadata(path).item_metadata.tree
        collection = "ema" if saved.get("ema") else "params"
        have, want = _shapes(saved[collection]), _shapes(like)
        differing = sorted(name for name in have.keys() | want.keys() if have.get(name) != want.get(name))
        if differing:
            first = differing[0]
            raise ValueError(
                f"the run in {directory} has another model: {len(differing)} parameters differ, first {first} "
                f"({have.get(first, 'absent')} there, {want.get(first, 'absent')} here)"
            )
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
        restore = ocp.args.PyTreeRestore(
            {collection: target},
            restore_args=ocp.checkpoint_utils.construct_restore_args({collection: target}),
            partial_restore=True,
        )
        return checkpointer.restore(path, args=restore)[collection], max(steps)


def _shapes(tree: PyTree[Any]) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
