"""vidjax's side: a training step or a forward pass built from the library's parts, compiled and timed."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import vidjax
from benchmark.process import forget_peak, keep_to, resident, timed
from benchmark.settings import Job
from vidjax.layers.patches import grid
from vidjax.models import example_inputs, vjepa
from vidjax.models.blip import Blip
from vidjax.objectives import latent, masking, multi_block, reconstruction
from vidjax.objectives.multi_block import LONG_RANGE, SHORT_RANGE
from vidjax.runs import vision_language
from vidjax.training.cost import count_macs
from vidjax.training.initialize import fast_to_compile
from vidjax.training.memory import program_memory
from vidjax.training.optimizer import OptimizerConfig, make_optimizer
from vidjax.training.sharding import (
    array_sharding,
    batch_sharding,
    check_batch_size,
    jit_into,
    jit_step,
    make_mesh,
    put_batch,
    replicated,
    state_sharding,
)
from vidjax.training.state import Aux, TrainState, create_state
from vidjax.training.step import LossFn, make_train_step

CLASSES = 400
"""Classes of every classifier, on both sides."""
MASK_RATIO = 0.9
EMA_DECAY = 0.99925
WORDS = 32
"""Ids of every caption, on both sides."""


def make_model(job: Job) -> nn.Module:
    """The model of a job.

    Raises:
      UserError: see `create_model`.
    """
    own = vidjax.create_model(job.model)
    fields = {
        "num_frames": job.frames or own.num_frames,
        "image_size": job.size or own.image_size,
        "dtype": jnp.dtype(job.dtype),
        **dict(job.overrides),
    }
    if hasattr(own, "num_classes"):
        fields["num_classes"] = CLASSES
    return vidjax.create_model(job.model, **fields)


def is_masked_autoencoder(model: nn.Module) -> bool:
    """Whether the model is a masked autoencoder rather than a classifier."""
    return hasattr(model, "decoder_width")


def is_latent(model: nn.Module) -> bool:
    """Whether the model predicts the tokens of a moving average of its encoder (V-JEPA 2)."""
    return isinstance(model, vjepa.Pretraining)


def is_aligned(model: nn.Module) -> bool:
    """Whether the model is a BLIP for pre-training, with videos and captions."""
    return isinstance(model, Blip) and model.writes


def is_followed(model: nn.Module) -> bool:
    """Whether a moving average of the parameters takes part in the loss."""
    return is_latent(model) or is_aligned(model)


def block_masks(model: nn.Module, clips: int) -> tuple[Callable[[jax.Array], list[multi_block.Mask]], list[tuple]]:
    """The function that draws V-JEPA 2's two masks of a batch from a key, and the sizes of each."""
    tokens, group, kinds = _tokens(model), multi_block.largest_group(clips), (SHORT_RANGE, LONG_RANGE)
    shapes = [multi_block.several_sizes(group, tokens, blocks, model, clips // group) for blocks in kinds]

    def draw(key: jax.Array) -> list[multi_block.Mask]:
        masks = zip(jax.random.split(key), kinds, shapes, strict=True)
        return [multi_block.draw(key, clips, tokens, blocks, shape[-1], group) for key, blocks, shape in masks]

    return draw, shapes


def _tokens(model: nn.Module) -> tuple[int, int, int]:
    return grid((model.num_frames, model.image_size, model.image_size), model.patch_size)


def draw_inputs(model: nn.Module, batch_size: int) -> dict[str, np.ndarray]:
    """A batch of noise, with labels or captions; both sides get the same."""
    rng = np.random.default_rng(0)
    shape = (batch_size, model.num_frames, model.image_size, model.image_size, model.channels)
    if is_aligned(model):
        video, ids = rng.integers(256, size=shape, dtype=np.uint8), rng.integers(1, 256, (batch_size, WORDS), np.int32)
        return {"video": video, "ids": ids, "valid": np.ones(batch_size, bool)}
    label = rng.integers(CLASSES, size=batch_size, dtype=np.int32)
    return {"video": rng.standard_normal(shape, np.float32), "label": label, "valid": np.ones(batch_size, bool)}


def make_loss(model: nn.Module, train: bool, clips: int) -> LossFn:
    """The loss of `mae_pretrain.py` with 90% masked tubes, of `jepa_pretrain.py`, of BLIP, or cross entropy of classes.

    Args:
      clips: size of the batch.
    """
    draw, shapes = block_masks(model, clips) if is_latent(model) else (None, None)

    def reconstruct(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        mask_key, drop_key = jax.random.split(key)
        video = batch["video"]
        kept, masked, _ = masking.draw(mask_key, len(video), _tokens(model), "tube", MASK_RATIO)
        pixels = video * jnp.asarray(model.card.std) + jnp.asarray(model.card.mean)
        target = reconstruction.pixel_targets(pixels, model.patch_size)
        target = jnp.take_along_axis(target, masked[..., None], axis=1)
        output = model.apply({"params": params}, video, kept, masked, train=train, rngs={"drop_path": drop_key})
        return reconstruction.reconstruction_loss(output, target).mean(), (aux.model_state, {})

    def predict(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        mask_key, drop_key = jax.random.split(key)
        video = batch["video"]
        apply = partial(model.apply, train=train, rngs={"drop_path": drop_key})
        targets = latent.normalize_tokens(model.apply({"params": aux.ema}, video, method="tokens"))
        targets = jax.lax.stop_gradient(targets)
        loss, _ = latent.training_loss(apply, {"params": params}, video, targets, draw(mask_key), shapes, jnp.mean)
        return loss, (aux.model_state, {})

    def classify(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        keys = jax.random.split(key)
        rngs = {"dropout": keys[0], "drop_path": keys[1]}
        variables, changing = {"params": params, **aux.model_state}, list(aux.model_state) if train else []
        logits, changed = model.apply(variables, batch["video"], train=train, rngs=rngs, mutable=changing)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch["label"])
        return loss.mean(), ({**aux.model_state, **changed}, {})

    if is_latent(model):
        return predict
    if is_aligned(model):
        return vision_language.make_loss(model, ("itc", "itm", "lm"), alpha_steps=1)
    return reconstruct if is_masked_autoencoder(model) else classify


def make_program(job: Job, mesh: Mesh) -> tuple[Callable, Any, dict[str, jax.ShapeDtypeStruct]]:
    """The program of a job, with its inputs.

    Returns:
      A jitted `(state, batch) -> (state or None, loss)`; a function without arguments that creates the initial state;
      and the shapes of a batch.
    """
    model = make_model(job)
    inputs = draw_inputs(model, 1)  # a batch may exceed memory, and compiling only needs its shape
    batch = {
        name: jax.ShapeDtypeStruct(shape, x.dtype, sharding=array_sharding(mesh, name, shape))
        for name, x in inputs.items()
        for shape in [(job.batch_size, *x.shape[1:])]
    }
    schedule = OptimizerConfig().schedule(job.batch_size, 1000, 10)
    # A forward pass needs no moments, which would be counted in its memory.
    tx = make_optimizer(OptimizerConfig(), schedule) if job.training else optax.identity()

    def draw(key: jax.Array) -> dict[str, Any]:
        return model.init(key, *(jnp.zeros(each.shape, each.dtype) for each in example_inputs(model)))

    draw_fast = fast_to_compile(*jax.make_jaxpr(draw, return_shape=True)(jax.random.key(0)))  # as training does

    def init() -> TrainState:
        keys = jax.random.split(jax.random.key(0), 3)
        return create_state(draw_fast(keys[0]), tx, keys[2], ema=is_followed(model))

    sharding = state_sharding(mesh, jax.eval_shape(init))
    create = jit_into(sharding, init, mesh)
    loss = make_loss(model, job.training, job.batch_size)
    if job.training:
        step = make_train_step(loss, tx, ema_decay=EMA_DECAY if is_followed(model) else None)
        return jit_step(lambda *a: (lambda s, m: (s, m["loss"]))(*step(*a)), sharding, mesh), create, batch

    def evaluate(state: TrainState, batch: dict[str, jax.Array]) -> tuple[None, jax.Array]:
        return None, loss(state.params, state.aux, batch, state.key)[0]

    return jit_into(replicated(mesh), evaluate, mesh, in_shardings=(sharding, batch_sharding(mesh))), create, batch


def compile_program(job: Job, mesh: Mesh) -> tuple[jax.stages.Compiled, Any, float]:
    """The compiled program, a function that creates its state, and the seconds taken by tracing and compiling."""
    jax.config.update("jax_enable_compilation_cache", False)  # otherwise the time would be that of reading the cache
    program, create, batch = make_program(job, mesh)
    state = jax.eval_shape(create)
    start = time.perf_counter()
    compiled = program.lower(state, batch).compile()
    return compiled, create, time.perf_counter() - start


def measure_vidjax(job: Job) -> dict[str, Any]:
    """Runs a job in this process.

    Returns:
      `seconds` of each step, `compile` (seconds), `memory` (bytes: on CPUs, the peak of resident memory during steps,
      less what was resident before the state was created; elsewhere the allocator's peak, initialisation included,
      maximum over devices), `program` (bytes per device by XLA's memory analysis), `loss`.
    """
    keep_to(job.threads)
    mesh, model = make_mesh(), make_model(job)
    compiled, create, compile_seconds = compile_program(job, mesh)
    create = create.lower().compile()
    before = resident("now")
    states = [create()]
    batch = put_batch(draw_inputs(model, job.batch_size), mesh)
    jax.block_until_ready((states, batch))
    forget_peak()  # that of compiling, and of the initialisation, which may need more than a forward pass

    def run() -> jax.Array:
        state, loss = compiled(states[0], batch)
        if job.training:  # the previous state was donated
            states[0] = state
        return loss

    seconds = timed(run, jax.block_until_ready, job.steps, is_latent(model))
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    return {
        "seconds": seconds,
        "compile": compile_seconds,
        "memory": max(peaks) if peaks else resident("peak") - before,
        "program": program_memory(compiled).total,
        "loss": float(run()),
    }


def describe_devices() -> dict[str, Any]:
    """The devices that vidjax runs on."""
    devices = jax.devices()
    return {"device": devices[0].device_kind, "devices": len(devices), "platform": devices[0].platform}


def describe(listed: list[Job], batch_sizes: Sequence[int]) -> dict[str, Any]:
    """The devices, and the cost of one clip and the sizes of each model, by tracing only.

    Raises:
      UserError: a model cannot be created with these fields, or a batch cannot be split over the devices.
    """
    for batch_size in batch_sizes:
        check_batch_size(batch_size)
    models = {}
    for job in {(job.model, job.overrides): job for job in listed}.values():  # checks all compared values too
        make_model(job)  # checks the values
        # The cost does not depend on the implementation of attention, which may not exist on this device (cuDNN).
        overrides = tuple(override for override in job.overrides if override[0] != "implementation")
        job = dataclasses.replace(job, overrides=overrides)
        model = make_model(job)
        inputs = draw_inputs(model, 1)
        state = jax.eval_shape(make_program(job, make_mesh())[1])
        macs = count_macs(make_loss(model, False, 1), state.params, state.aux, inputs, state.key)
        sizes = {jax.tree_util.keystr(path): x.size for path, x in jax.tree_util.tree_leaves_with_path(state.params)}
        models[job.model] = {
            "macs": macs,
            "parameters": sum(sizes.values()),
            "positions": sum(size for path, size in sizes.items() if path.endswith("['table']")),
            "frames": model.num_frames,
            "size": model.image_size,
            "steps_differ": is_latent(model),  # by the sizes of their masks
        }
    return {**describe_devices(), "models": models}
