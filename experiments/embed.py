"""Features of videos, for search and for classifiers of one's own: one vector a video, a window, or a token.

    python experiments/embed.py --run runs/b --data.source /videos --out embeddings.npz
    python experiments/embed.py --run runs/b --data.source /videos --out embeddings.npz --window 16 --stride 8
    python experiments/embed.py --query clip.mp4 --index embeddings.npz --neighbours 5

`--run` is the work directory of a run, or a published checkpoint: a file, a directory or a hub id. Without `--window`
there is one clip of each video, the one in its middle; with it one for every so many sampled frames, to its end.
Times are seconds of the video, or of the part of it that a manifest names, in the order it is played.

OUT.npz holds features (n d; n tokens d with `--pooling tokens`), ids, start, end, labels (positions in class_names, -1
for none), class_names, and meta: how they were made, as JSON. OUT.tfrecord has a record for each window (features,
shape, id, start, end, label), and the rest in OUT.tfrecord.json. Videos that cannot be read, or not to their end, or
that are shorter than a window, have no features: they are listed in OUT.bad_files.jsonl.

What is done is kept in OUT.parts: the same command after an interruption goes on from there, to the same result.
A query is the clip in the middle of its file, as long as a window; the cosine similarity of features is what counts.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import vidjax
from vidjax import cli, runs
from vidjax.data.config import ClipConfig, SourceConfig, core_count
from vidjax.data.embeddings import join, open_parts, read_bad, read_meta, write_part
from vidjax.errors import UserError
from vidjax.fields import check_values
from vidjax.runs.announce import print_notes
from vidjax.runs.search import name_nearest
from vidjax.training.sharding import check_batch_size, jit_on_mesh, make_mesh, put_batch, replicated


@dataclasses.dataclass(frozen=True)
class Config:
    """What to embed, with what, and to where; or what to look for."""

    run: str | None = None
    """The work directory of a run, or a published checkpoint (file, directory or hub id)."""
    model: str | None = None
    """One of vidjax.list_models(), where the checkpoint does not say what it is."""
    which: Literal["best", "last"] = "best"
    """Of a run: the checkpoint that validated best, or the newest."""
    data: SourceConfig = SourceConfig()
    """The videos."""
    out: str = "embeddings.npz"
    """The new .npz or .tfrecord file."""
    pooling: Literal["mean", "model", "tokens"] = "mean"
    """Mean over tokens or places; what the model itself gives its head; or every token."""
    window: int | None = None
    """Sampled frames of a window that runs through each video (default: one clip a video)."""
    stride: int | None = None
    """Sampled frames from one window to the next (default: the window)."""
    batch_size: int = 16
    """Clips at a time, over all devices."""
    videos_per_part: int = 64
    """Videos after which the work so far is kept."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of computation: auto is bfloat16, on a CPU float32; features are float32."""
    query: str | None = None
    """Look for what is like this video in an index, instead of making one."""
    index: str | None = None
    """The .npz file to look in."""
    neighbours: int = 5
    """Windows to name."""

    def __post_init__(self) -> None:
        """Refuses values that cannot be meant."""
        check_values(self)
        for name in ("window", "stride", "batch_size", "videos_per_part", "neighbours"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: it must be 1 or more")
        if self.stride is not None and self.window is None:
            raise UserError("stride is about windows: give --window too (the clips' own stride is --data.stride)")
        if (self.query is None) != (self.index is None):
            raise UserError("a query needs an index and an index a query: give --query clip.mp4 --index FILE.npz")
        if self.run is None and self.query is None:
            raise UserError("there is nothing to embed with: give --run")
        if Path(self.out).suffix not in (".npz", ".tfrecord"):
            raise UserError(f"out is {self.out}: it must end in .npz or .tfrecord")


def load(config: Config) -> tuple[nn.Module, dict, ClipConfig, dict[str, Any]]:
    """The model, its weights, how clips are cut; and what says all that, as JSON has it.

    Raises:
      UserError: windows of no dense sampling, or a model without pooling.
    """
    dtype = runs.computing_type(config.dtype)
    model, variables = vidjax.load_pretrained(config.run, config.model, which=config.which, dtype=dtype)
    if config.pooling == "model":
        if not hasattr(model, "num_classes"):
            raise UserError(f"{type(model).__name__} has no pooling of its own: use --pooling mean or tokens")
        model = model if model.num_classes is None else model.clone(num_classes=None)  # before any norm of a head
    clips = runs.cut_clips(config.run, model, config.data, config.window)
    said = {name: getattr(config, name) for name in ("run", "model", "which", "pooling")}
    cut = {f"data.{name}": value for name, value in dataclasses.asdict(clips).items()}
    cut = {name: value for name, value in cut.items() if name not in ("data.workers", "data.max_bad_share")}
    return model, variables, clips, said | {"dtype": dtype.name, "weights": runs.fingerprint(variables)} | cut


def make_encode(config: Config, model: nn.Module, variables: dict, clips: ClipConfig) -> Callable:
    """Pixels (b 1 t h w c) to float32 features on the host, on all devices; compiled once for a shape.

    Raises:
      UserError: the model cannot take such clips.
    """

    def apply(variables: dict, video: jax.Array) -> jax.Array:
        video = model.card.preprocess(video[:, 0])
        if config.pooling == "model":
            return model.apply(variables, video).astype(jnp.float32)
        found = model.apply(variables, video, method="encode").astype(jnp.float32)
        tokens = found.reshape(found.shape[0], -1, found.shape[-1])  # the grid's places in the order (t h w)
        return tokens if config.pooling == "tokens" else tokens.mean(axis=1)

    mesh = make_mesh()
    jitted = jit_on_mesh(apply, mesh)
    jax.eval_shape(apply, variables, jax.ShapeDtypeStruct((1, 1, clips.frames, clips.size, clips.size, 3), jnp.uint8))
    variables = jax.device_put(variables, replicated(mesh))
    return lambda video: np.asarray(jitted(variables, put_batch({"video": video}, mesh)["video"]))


def embed(
    config: Config, videos: Any, chosen: Sequence[int], clips: ClipConfig, encode: Callable
) -> tuple[dict[str, np.ndarray], list[dict[str, str]]]:
    """Features and places of some examples' windows, as arrays, and the examples that have none."""
    from vidjax.data.windows import batches

    def read(index: int) -> Iterator:
        if config.window is None:
            return videos.clip(index, clips)
        return videos.windows(index, clips, config.stride or config.window)

    bad: dict[int, str] = {}
    found: list[tuple[int, float, float, np.ndarray]] = []

    def failed(number: int, error: ValueError) -> None:
        bad[chosen[number]] = str(error)

    streams = (read(index) for index in chosen)
    for batch, video in batches(streams, config.batch_size, clips.workers or core_count(), failed):
        for (number, window), feature in zip(batch, encode(video), strict=False):  # without what fills
            found.append((chosen[number], window.start, window.end, feature))
    found = [row for row in found if row[0] not in bad]  # nothing of a video that breaks off
    index, start, end, features = zip(*found, strict=True) if found else ((), (), (), ())
    label = {i: videos.label(i) for i in set(index)}
    arrays = {
        "features": np.array(features, np.float32),
        "index": np.array(index, np.int64),
        "start": np.array(start),
        "end": np.array(end),
        "labels": np.array([label[i] for i in index], np.int32),
    }
    return arrays, [{"path": videos.source.ids[i], "error": error} for i, error in sorted(bad.items())]


def search(config: Config) -> list[dict[str, Any]]:
    """The windows of the index that are nearest to the query, printed and returned.

    Raises:
      UserError: the index does not fit.
    """
    from vidjax.data.windows import open_files

    meta = read_meta(Path(config.index))
    if Path(config.index).suffix != ".npz" or meta["pooling"] == "tokens":
        raise UserError(f"{config.index} cannot be searched: give an .npz file with one vector a window")
    cut = {name.removeprefix("data."): value for name, value in meta.items() if name.startswith("data.")}
    told = {name: meta[name] for name in ("run", "model", "which", "pooling", "dtype")}
    told |= {"run": config.run} if config.run else {}
    made = Config(**told, data=SourceConfig(**cut, workers=config.data.workers))
    model, variables, clips, now = load(made)
    if now["weights"] != meta["weights"]:
        raise UserError(f"{made.run} holds other weights than those that made {config.index}: embed again")
    window = next(open_files([config.query], clips.square_pixels).clip(0, clips))
    feature = make_encode(made, model, variables, clips)(np.stack([window.frames] * jax.device_count()))[:1]
    query = f"{config.query}, {window.start:.2f} to {window.end:.2f} s,"
    return name_nearest(config.index, query, feature, config.neighbours)


def main(config: Config) -> dict[str, Any] | list[dict[str, Any]]:
    """Embeds what is not embedded yet and says what there is; or searches, with a query."""
    if config.query is not None:
        return search(config)
    from vidjax.data.windows import open_videos

    check_batch_size(config.batch_size)
    square = config.run is None or runs.square_pixels(config.run, config.data)
    videos, out = open_videos(config.data.source, config.data.split, square), Path(config.out)
    source = videos.source
    print_notes(source)
    model, variables, clips, meta = load(config)
    meta |= {name: getattr(config, name) for name in ("window", "stride", "batch_size", "videos_per_part")}
    meta |= {"source": config.data.source, "split": config.data.split, "videos": len(source)}
    listed = repr((source.class_names, list(source.ids), videos.rows))  # with parts and labels
    meta |= {"list": hashlib.sha256(listed.encode()).hexdigest()}
    encode = make_encode(config, model, variables, clips)
    if (folder := open_parts(out, meta)) is None:
        print(f"{out} is finished: nothing to do")
        return {"finished": True}

    chosen = np.array_split(np.arange(len(source)), -(-len(source) // config.videos_per_part))
    parts = [folder / f"part-{k:05d}-of-{len(chosen):05d}.npz" for k in range(len(chosen))]
    todo = [k for k, path in enumerate(parts) if not path.exists()]
    kept = f", {len(parts) - len(todo)} of {len(parts)} parts are done" if len(todo) < len(parts) else ""
    print(f"{len(source)} videos of {source.name} to {out}{kept}", flush=True)
    begun, done, bad = time.monotonic(), 0, read_bad([path for path in parts if path.exists()])
    for k in todo:
        arrays, unread = embed(config, videos, chosen[k].tolist(), clips, encode)
        bad += unread
        if len(bad) > clips.max_bad_share * len(source):
            raise UserError(
                f"{len(bad)} of the {len(source)} videos of {source.name} give no features, more than "
                f"data.max_bad_share {clips.max_bad_share:g} allows; mend them or allow more; the last one: "
                f"{bad[-1]['error']}"
            )
        write_part(parts[k], arrays, unread)
        done += len(arrays["index"])
        print(
            f"part {k + 1} of {len(parts)}: {done} windows, {done / (time.monotonic() - begun):.1f} a second, "
            f"{len(bad)} videos unreadable",
            flush=True,
        )
    listed = out.with_name(f"{out.name}.bad_files.jsonl")
    if bad := read_bad(parts):  # in order, whatever was interrupted
        listed.write_text("".join(json.dumps(entry) + "\n" for entry in bad))
    shape = join(parts, out, source.ids, source.class_names, meta)
    print(f"{out}: features of {' x '.join(map(str, shape))} of {len(source) - len(bad)} of {len(source)} videos")
    if bad:
        print(f"{len(bad)} videos could not be read, or not to their end, or are too short: {listed}")
    return {"shape": shape, "videos": len(source), "unreadable": len(bad)}


if __name__ == "__main__":
    cli.run(main, Config)
