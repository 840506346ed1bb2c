"""The steps that all training scripts share, called by each script in order."""

import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import fields
from functools import partial
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from vidjax.cli import as_dict
from vidjax.convert.checkpoint import write_model
from vidjax.errors import UserError
from vidjax.runs.adapting import WHOLE, Split
from vidjax.runs.announce import (
    describe_losses,
    describe_run,
    describe_span,
    describe_speed,
    describe_starvation,
    print_notes,
)
from vidjax.runs.clips import clip_arrays
from vidjax.runs.config import TrainConfig
from vidjax.runs.weights import class_names, require_source
from vidjax.runs.workdir import open_run
from vidjax.training.checkpoint import has_checkpoint, newest_step
from vidjax.training.cost import count_macs
from vidjax.training.initialize import fast_to_compile
from vidjax.training.loop import FitResult, fit
from vidjax.training.memory import dry_run
from vidjax.training.metrics import read_metrics
from vidjax.training.optimizer import make_optimizer
from vidjax.training.sharding import (
    array_sharding,
    check_batch_size,
    is_main_process,
    jit_into,
    jit_step,
    state_sharding,
    this_process,
)
from vidjax.training.standardized import standardize_head
from vidjax.training.state import TrainState, create_state
from vidjax.training.step import LossFn, make_train_step

if TYPE_CHECKING:  # PyAV and the tokenizers are imported when they are needed
    from vidjax.data.sources import Source


class Run:
    """One training run: `plan`, `build`, `dry_run` or `begin`, `announce`, `fit`, `finish`, in this order.

    There are no hooks: a script that needs a different step calls the functions used by that step directly.

    Attributes:
      config: config of the script, including `data`.
      mesh: the devices.
      workdir: the work directory.
      has_begun: whether there is a checkpoint to resume from, so that no initial weights need to be loaded.
      sources: data sources by the name of their field in `config.data`, the training data first; set by `plan`.
      source: the training data; set by `plan`.
      steps: total number of steps; set by `plan`.
      schedule: the learning rate as a function of the step; set by `plan`.
      model: the trained model; set by `build`.
      macs: multiply-accumulates of the forward pass of one clip; set by `build`.
      trained: number of trained parameters; set by `build`.
      shapes: shapes of the state; set by `build`.
      sharding: sharding of the state; set by `build`.
      batch: shapes and sharding of a batch; set by `build`.
      step: the compiled step, `(state, batch) -> (state, metrics)`; set by `build`.
      merge: the model's parameters, from the state's `params` and `frozen`; set by `build`.
    """

    def __init__(self, config: TrainConfig, mesh: Mesh):
        """Checks what does not depend on the data.

        Raises:
          UserError: the batch cannot be split over the devices, or the initial weights do not exist.
        """
        check_batch_size(config.batch_size, config.accumulation, config.data.repeats, config.sequence)
        names = [field.name for field in fields(config) if re.fullmatch(r"init_(\w+_)?from", field.name)]
        for name in names:
            require_source(name, getattr(config, name))
        self._loads_weights = any(getattr(config, name) for name in names)
        self.config, self.mesh, self.workdir = config, mesh, Path(config.workdir)
        self._bad_files: dict[str, Any] = {}
        self._compiling: threading.Thread | None = None
        self._reads_clips = True
        self.has_begun = has_checkpoint(self.workdir)

    def plan(self, **sources: "Source | None") -> None:
        """Sets the number of steps and the learning rate schedule.

        Args:
          sources: by the name of their field in `config.data`, the training data first; None is ignored.

        Raises:
          UserError: a source of a mix is too small for its share of a batch.
        """
        config, self.sources = self.config, {name: source for name, source in sources.items() if source is not None}
        self.source = next(iter(self.sources.values()))
        if self.source.parts:  # a mix
            from vidjax.data.mixing import require_enough

            require_enough(self.source, config.batch_size // config.data.repeats)
        if is_main_process():
            print_notes(*self.sources.values())
        per_epoch = len(self.source) * config.data.repeats / config.batch_size
        self.steps = config.steps or math.ceil(config.epochs * per_epoch)
        self.schedule = config.optim.schedule(config.batch_size, self.steps, per_epoch)

    def build(
        self,
        model: nn.Module,
        inputs: Sequence[jax.ShapeDtypeStruct],
        loss_fn: LossFn,
        keys: Sequence[jax.Array] | None = None,
        trained: PyTree[bool] | None = None,
        factors: Mapping[str, float] = MappingProxyType({}),
        numbers: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
        ema_decay: optax.Schedule | None = None,
        frozen: PyTree | None = None,
        example: Mapping[str, tuple[tuple[int, ...], Any]] | None = None,
        model_state: Mapping[str, PyTree] = MappingProxyType({}),
        fields: Mapping[str, tuple[tuple[int, ...], Any]] = MappingProxyType({}),
        adapt: Split = WHOLE,
        standardized: bool = False,
    ) -> None:
        """Sets up the sharded step from shapes; no array is allocated.

        Args:
          inputs: shapes of the model's arguments for one clip.
          keys: PRNG keys for initialisation and for the steps; by default split from the config's seed.
          trained, factors: see `training.optimizer.make_optimizer`.
          numbers: shapes of the integer fields of an example that the loss reads, besides `video` and `valid`.
          ema_decay: of the moving average by step, instead of the config's constant; only if the config has one.
          frozen: the parameters that `begin` gets as `frozen`, such as a teacher's, or their shapes.
          example: shapes and types of the arrays of an example, besides `valid`, if it is no clip of a video.
          model_state: initial values of collections that the loss keeps besides the model's variables.
          fields: shapes and types of other fields of an example that the loss reads.
          adapt: which few parameters are trained instead of the model's; not with `trained`.
          standardized: the head learns as if its inputs were standardised, see `head_start.measure_head`.

        Raises:
          UserError: the stream does not exist, or has another number of channels than the model.
          UserError: a pattern of `adapt` meets no parameter.
        """
        config, self.model, self._adapt = self.config, model, adapt
        self._reads_clips = example is None
        if example is None:
            clip = clip_arrays(self.source, config.data, model)
            example = clip | {name: (shape, jnp.int32) for name, shape in numbers.items()} | dict(fields)
        self._init_key, run_key = jax.random.split(jax.random.key(config.seed)) if keys is None else keys
        weight_decay = config.optim.weight_decay_by_step(self.steps)
        tx = make_optimizer(config.optim, self.schedule, trained, factors, weight_decay)
        tx = standardize_head(tx) if standardized else tx

        def init(key: jax.Array) -> dict[str, Any]:
            return model.init(key, *(jnp.zeros(each.shape, each.dtype) for each in inputs)) | dict(model_state)

        # Traced once: the forward pass is in it, and so are the shapes.
        traced, variables = jax.make_jaxpr(init, return_shape=True)(self._init_key)

        def create(variables: dict[str, Any], frozen: PyTree) -> TrainState:
            if adapt.used:
                few, base = adapt.split(variables["params"], self._init_key)
                variables, frozen = variables | {"params": few}, (base, frozen)
            return create_state(variables, tx, run_key, ema=config.ema_decay is not None, frozen=frozen)

        self._init = init if config.fsdp > 1 else fast_to_compile(traced, variables)
        self._create = create
        self.macs = count_macs(traced)
        self.shapes = jax.eval_shape(create, variables, frozen)
        is_trained = jax.tree.map(lambda _: True, self.shapes.params) if trained is None else trained
        sizes = jax.tree.map(lambda leaf, counts: leaf.size * counts, self.shapes.params, is_trained)
        self.trained = sum(jax.tree.leaves(sizes))
        self.sharding = state_sharding(self.mesh, self.shapes)
        self._variables_sharding = state_sharding(self.mesh, variables)
        self.merge = (lambda few, frozen: adapt.merge(few, frozen[0])) if adapt.used else (lambda params, _: params)
        loss_fn = adapt.loss(loss_fn) if adapt.used else loss_fn
        step = make_train_step(loss_fn, tx, config.accumulation, ema_decay or config.ema_decay)
        self.step = jit_step(step, self.sharding, self.mesh)
        arrays = {**example, "valid": ((), bool)}
        shapes = {name: ((config.batch_size, *shape), dtype) for name, (shape, dtype) in arrays.items()}
        self.batch = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=array_sharding(self.mesh, name, shape))
            for name, (shape, dtype) in shapes.items()
        }

    def dry_run(self) -> dict[str, float]:
        """Compiles the step and prints the memory that each device needs; see `training.memory.dry_run`."""
        return dry_run(self.config, self.step, self.shapes, self.sharding, self.batch, self.mesh)

    def new_variables(self) -> dict[str, Any]:
        """Newly initialised variables, sharded like the state."""
        if not self._loads_weights:  # which can fail, and should leave no work directory and wait for no compilation
            self._open()
        return jit_into(self._variables_sharding, self._init, self.mesh)(self._init_key)

    def begin(self, variables: dict[str, Any], frozen: PyTree | None = None) -> TrainState:
        """Opens the work directory, writes the model's description to it and returns the initial state.

        Without weights to load, `new_variables` has already opened it.

        Args:
          variables: newly initialised, or with loaded weights.
          frozen: parameters that the loss reads as `aux.frozen`; not saved in checkpoints.

        Raises:
          UserError: the work directory cannot be written, or contains a run with a different config or other classes.
          UserError: none of the first validation videos can be read.
        """
        from vidjax.data.batches import BadFiles

        self._open()
        if is_main_process():
            write_model(self.workdir, self.model)
        process = "" if is_main_process() else f"_{jax.process_index()}"
        for name, source in self.sources.items():
            path = self.workdir / f"bad_{'validation_' if name == 'validation' else ''}files{process}.jsonl"
            self._bad_files[name] = BadFiles(source, self.config.data.max_bad_share, path)
        state = jit_into(self.sharding, self._create, self.mesh)(variables, frozen)
        if self._adapt.used:
            self._adapt.remember(self.workdir, self.config.init_from, state.frozen[0])
        return state

    def _open(self) -> None:
        """Opens the work directory, and starts compiling the step; does nothing the second time."""
        if self._compiling is not None:
            return
        before = class_names(self.workdir) if self.has_begun else ()
        if before and before != (now := self.model.card.class_names):
            raise UserError(
                f"{self.workdir} was started with the classes {', '.join(before[:5])}, but {self.source.name} now has "
                f"{', '.join(now[:5])}: use the original classes or another --workdir"
            )
        if "validation" in self.sources and self._reads_clips:
            # Fails now rather than at the first validation if the videos are unreadable.
            describe_span(self.config.data, self.sources["validation"])
        open_run(self.config, self.shapes, **self.sources)
        # Not a daemon: XLA aborts the process if it is still compiling when the interpreter ends.
        self._compiling = threading.Thread(target=self._compile_step)
        if newest_step(self.workdir) < self.steps:
            self._compiling.start()

    def _compile_step(self) -> None:
        """Compiles the step while the main thread creates the state, and imports TensorFlow while XLA works.

        The first call of the step finds the result in JAX's cache, and raises errors, as the pipeline's import does.
        """
        # The context mesh of `runs.on_mesh` belongs to the main thread, and to the key of JAX's cache.
        with suppress(Exception), jax.set_mesh(self.mesh) if self.config.sequence > 1 else nullcontext():
            shapes = jax.tree.map(lambda leaf, spread: leaf.update(sharding=spread), self.shapes, self.sharding)
            lowered = self.step.lower(shapes, self.batch)
            if self._reads_clips:
                threading.Thread(target=_import_tensorflow).start()
            if jax.process_count() == 1:  # several compile in the same order
                lowered.compile()

    def announce(self, **more: str) -> None:
        """Prints the plan of the run; see `describe_run`.

        Args:
          more: additional lines by their first word.
        """
        if is_main_process():
            config, shapes = self.config, jax.eval_shape(self.merge, self.shapes.params, self.shapes.frozen)
            print(describe_run(config, self.source, shapes, self.macs, self.steps, more), flush=True)

    def describe_validation(self) -> str:
        """The number of validation examples, for `announce`."""
        source = self.sources.get("validation")
        return "no validation" if source is None else f"validation on {len(source):,} {source.unit} of {source.name}"

    def batches(self, first: int, **text: Any) -> Iterator[dict[str, np.ndarray]]:
        """This process's part of each training batch, starting at batch number `first`, without end.

        Args:
          text: `tokenizer` and `context`, if the batches include captions, and `fields` of the source.
        """
        from vidjax.data.pipeline import train_batches

        settings = {"batch_size": self.config.batch_size, "seed": self.config.seed, "first_batch": first}
        settings["bad_files"] = next(iter(self._bad_files.values()))
        return train_batches(self.source, self.config.data, **settings, **text, **this_process())

    def labelled_batches(self, first: int, fields: Sequence[str] = ()) -> Iterator[dict[str, np.ndarray]]:
        """`batches` of `video`, `label`, further fields, and `valid`, which is false for clips without a label too."""
        for batch in self.batches(first, fields=fields):
            valid = batch["valid"] & (batch["label"] >= 0)
            yield {name: batch[name] for name in ("video", "label", *fields)} | {"valid": valid}

    def evaluation_batches(self, source: "Source", **settings: Any) -> Iterator[dict[str, np.ndarray]]:
        """This process's part of each batch of one pass over a source; see `data.batches.evaluation_batches`."""
        from vidjax.data.batches import evaluation_batches

        size = self.config.batch_size // self.config.accumulation  # fits into memory, as it does in training
        return evaluation_batches(source, self.config.data, **({"batch_size": size, **this_process()} | settings))

    def validation_batches(self, **settings: Any) -> Iterator[dict[str, np.ndarray]]:
        """`evaluation_batches` of the validation videos; unreadable ones are listed in the work directory."""
        settings["bad_files"] = self._bad_files["validation"]
        return self.evaluation_batches(self.sources["validation"], **settings)

    def fit(
        self,
        state: TrainState,
        batches_from: Callable[[int], Iterator[dict[str, np.ndarray]]],
        evaluate: Callable[[TrainState, int], dict[str, float]] | None = None,
        best: str | None = None,
    ) -> FitResult:
        """Trains to the last step; see `training.loop.fit`."""

        def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
            if self._compiling.is_alive():  # not started if the run had ended; its last checkpoint may be damaged
                self._compiling.join()
            return self.step(state, batch)

        advise = partial(describe_starvation, self.source.name, self.config.data.workers) if self._reads_clips else None
        result = fit(
            step, state, batches_from, steps=self.steps, workdir=self.workdir, mesh=self.mesh, loop=self.config.loop,
            config=as_dict(self.config), schedule=self.schedule, evaluate=evaluate,
            best=None if evaluate is None else best, advise=advise,
        )  # fmt: skip
        if not result.finished and is_main_process():
            print(f"stopped by SIGTERM, saved at step {int(result.state.step)}: run the same command to resume")
        return result

    def evaluations(self) -> dict[int, dict[str, float]]:
        """The finite metrics of each evaluation by step, including those before an interruption."""
        prefix, evaluations = "evaluation/", {}
        for entry in read_metrics(self.workdir):
            numbers = {name.removeprefix(prefix): value for name, value in entry.items() if name.startswith(prefix)}
            if numbers:
                evaluations[entry["step"]] = {name: value for name, value in numbers.items() if value is not None}
        return evaluations

    def finish(
        self,
        result: FitResult,
        evaluation: str,
        lines: Sequence[str],
        advice: Mapping[str, str],
        curves: Sequence[str] = (),
    ) -> dict[str, float]:
        """Plots the curves and prints the results, the files written and suggested next steps.

        Args:
          evaluation: the metric to plot with the loss.
          lines: lines with the script's results.
          advice: commands or code by their purpose.
          curves: further metrics to plot.

        Returns:
          The first and the last loss.
        """
        from vidjax.visualize.curves import save_curves  # imports Matplotlib

        workdir, entries = self.workdir, read_metrics(self.workdir)
        names = ("loss", evaluation, "learning_rate", *curves)
        save_curves(workdir / "curves.png", entries, names, self.config.model)
        losses, numbers = describe_losses(entries)
        speed = [f"speed     {describe_speed(result, self.macs)}"] if result.steps_taken else []
        print("\n" + "\n".join([f"loss      {losses}", *speed, *lines]))
        if (bad := workdir / "bad_files.jsonl").exists():
            print(f"bad files {len(bad.read_text().splitlines())} could not be read: see {bad} for the reasons")
        drawn = [name for name in ("reconstructions", "pictures", "similarity") if (workdir / name).exists()]
        first = f"{drawn[0]}/ (start with the newest PNG), " if drawn else ""
        best = " and best/" if (workdir / "best").exists() else ""
        width = max(map(len, advice))
        print(
            f"\nFiles in {workdir}: {first}curves.png, metrics.jsonl, tensorboard/, config.json, vidjax.json and the "
            f"weights in checkpoints/ (last){best}.\nNext steps:\n"
            + "\n".join(f"  {purpose:<{width}}  {how}" for purpose, how in advice.items())
        )
        return numbers


def _import_tensorflow() -> None:
    """Imports the training pipeline, which takes seconds, while XLA compiles; errors are raised by the later import."""
    with suppress(Exception):
        import_module("vidjax.data.pipeline")
