"""PyTorch's side: the same step of the same model, in eager mode or with torch.compile."""

import itertools
import time
from typing import Any

import jax
import numpy as np

from benchmark.ours import (
    EMA_DECAY,
    MASK_RATIO,
    block_masks,
    draw_inputs,
    is_aligned,
    is_followed,
    is_latent,
    is_masked_autoencoder,
    make_model,
)
from benchmark.peers import check_parameters, make_peer
from benchmark.process import forget_peak, keep_to, resident, timed
from benchmark.settings import Job
from vidjax.layers.patches import grid


def tube_masks(model: Any, clips: int) -> np.ndarray:
    """A boolean mask `b n`, True for masked tokens: per clip as many as `objectives.masking.tube` masks."""
    t, h, w = grid((model.num_frames, model.image_size, model.image_size), model.patch_size)
    rng = np.random.default_rng(0)
    order = rng.permuted(np.tile(np.arange(h * w), (clips, 1)), axis=1)
    return np.tile(order < int(MASK_RATIO * h * w), (1, t))


def drawn_blocks(model: Any, clips: int, draws: int = 100) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Indices that V-JEPA 2's encoder sees and predicts behind the masks of each step, cut to the batch's counts."""
    draw, steps = jax.jit(block_masks(model, clips)[0]), []
    for number in range(draws):
        steps.append(pairs := [])
        for mask in jax.device_get(draw(jax.random.key(number))):
            seen, asked = np.split(mask.valid[0], [mask.kept.shape[1]])
            pairs.append((mask.kept[:, seen], mask.predicted[:, asked]))
    return steps


def measure_pytorch(job: Job, compiled: bool, ours: int, positions: int) -> dict[str, Any]:
    """Runs a job in this process on one device: the first CUDA device, or else the CPU.

    Args:
      compiled: whether to use torch.compile.
      ours, positions: parameters of vidjax's model, see `peers.check_parameters`.

    Returns:
      `seconds` of each step, `compile` (with torch.compile, the extra seconds of the first step, else None), `memory`
      (bytes, as in `ours.measure_vidjax`), `loss`, `parameters` and a `remark`.
    """
    threads = keep_to(job.threads)
    import torch

    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True  # autotunes convolutions, as XLA does
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    model = make_model(job)
    drawn = drawn_blocks(model, job.batch_size) if is_latent(model) else []  # by JAX, which needs memory
    before = resident("now")
    peer, axes = make_peer(job.model, model)
    peer = peer.to(device)
    parameters, remark = check_parameters(peer, ours, positions)
    if getattr(getattr(peer, "config", None), "_attn_implementation", "") == "eager":
        remark += f"{'; ' if remark else ''}transformers has no SDPA attention for {job.model}"
    call = torch.compile(peer) if compiled else peer
    inputs = draw_inputs(model, job.batch_size)
    order = (0, 4, 1, 2, 3) if axes == "b c t h w" else (0, 1, 4, 2, 3)
    pixels = np.array(model.card.preprocess(inputs["video"])) if is_aligned(model) else inputs["video"]
    video = torch.from_numpy(pixels).to(device).permute(order).contiguous()
    target = torch.from_numpy(inputs["ids" if is_aligned(model) else "label"]).long().to(device)
    masks = torch.from_numpy(tube_masks(model, job.batch_size)).to(device) if is_masked_autoencoder(model) else None
    blocks = itertools.cycle(
        [tuple(torch.from_numpy(each).long().to(device) for each in pair) for pair in pairs] for pairs in drawn
    )
    if is_followed(model):
        peer.follow(EMA_DECAY)

    def forward() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=job.dtype == "bfloat16"):
            if masks is not None:
                return call(video, bool_masked_pos=masks).loss
            if drawn:
                return call(video, next(blocks))
            if is_aligned(model):
                return call(video, target)
            logits = call(video)
            return torch.nn.functional.cross_entropy(getattr(logits, "logits", logits).float(), target)

    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4, weight_decay=0.05, fused=True)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = forward()
        loss.backward()
        optimizer.step()
        if is_followed(model):
            peer.follow(EMA_DECAY)
        return loss.detach()

    def run() -> tuple[torch.Tensor, Any]:
        with torch.set_grad_enabled(job.training):
            loss = step() if job.training else forward()
        if not cuda:
            return loss, None
        done = torch.cuda.Event()
        done.record()
        return loss, done

    peer.train(job.training)
    forget_peak()
    start = time.perf_counter()
    loss, _ = run()
    float(loss)  # waits for the device
    first = time.perf_counter() - start
    seconds = timed(run, lambda pending: pending[1].synchronize() if cuda else None, job.steps, bool(drawn))
    return {
        "seconds": seconds,
        "compile": max(0.0, first - float(np.median(seconds))) if compiled else None,
        "memory": torch.cuda.max_memory_allocated() if cuda else resident("peak") - before,
        "loss": float(run()[0]),
        "parameters": parameters,
        "remark": remark,
    }
