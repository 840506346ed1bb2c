"""Extract features of videos, for search or for training classifiers: a vector per video, window or token.

    python experiments/embed.py --run runs/b --data.source /videos --out embeddings.npz
    python experiments/embed.py --run runs/b --data.source /videos --out embeddings.npz --window 16 --stride 8
    python experiments/embed.py --run runs/b --data.source /videos --out features --window 16 --stride 8
    python experiments/embed.py --query clip.mp4 --index embeddings.npz --neighbours 5

`--run` is the work directory of a run, or a published checkpoint: a file, a directory or a hub id. Without `--window`
there is one clip per video, the central one; with it there is one for each window of that many sampled frames. Times
are seconds on the timeline of the video, or of the part that a manifest names.

OUT.npz contains features (n d; n tokens d with `--pooling tokens`), ids, start, end, labels (indices into class_names,
-1 for none), class_names, and meta, the settings as JSON. OUT.tfrecord has one record per window (features, shape, id,
start, end, label), with the rest in OUT.tfrecord.json. An OUT without suffix is a folder, as localize.py reads it: one
NAME.npy (n d) for each video, and videos.json with the settings, the rate of the sampled frames and the durations; its
windows are all one stride apart. Videos that cannot be read completely, or are shorter than a window, have no features
and are listed in OUT.bad_files.jsonl.

Completed parts are saved in OUT.parts: after an interruption the same command resumes from there, with the same result.
A query is the central clip of its file, as long as a window; windows are ranked by cosine similarity.
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
import numpy as np

import vidjax
from vidjax import cli, runs
from vidjax.data.config import ClipConfig, SourceConfig, core_count
from vidjax.data.embeddings import join, open_parts, read_bad, read_meta, require_names, write_part
from vidjax.errors import UserError
from vidjax.fields import check_values
from vidjax.runs.announce import print_notes
from vidjax.runs.embedding import Pooling, make_encode, pooling_model
from vidjax.runs.search import name_nearest
from vidjax.training.sharding import check_batch_size


@dataclasses.dataclass(frozen=True)
class Config:
    """A feature extraction job, or a search in its results."""

    run: str | None = None
    """The work directory of a run, or a published checkpoint (file, directory or hub id)."""
    model: str | None = None
    """One of vidjax.list_models(); needed if the checkpoint does not specify its model."""
    which: Literal["best", "last"] = "best"
    """Checkpoint of a run: the one that validated best, or the newest."""
    data: SourceConfig = SourceConfig()
    """The videos."""
    out: str = "embeddings.npz"
    """The new .npz or .tfrecord file, or without suffix a new folder with a .npy file for each video (of windows)."""
    pooling: Pooling = "mean"
    """The mean over all tokens (or grid positions), the input of the model's head, or all tokens."""
    window: int | None = None
    """Sampled frames per window, for features along each video (default: one clip per video)."""
    stride: int | None = None
    """Sampled frames from one window to the next (default: the window size)."""
    batch_size: int = 16
    """Clips per batch over all devices."""
    videos_per_part: int = 64
    """Number of videos after which the results so far are saved."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type: auto is bfloat16 on accelerators, float32 on a CPU."""
    feature_dtype: Literal["float16", "float32"] = "float32"
    """Type of the features on disk."""
    query: str | None = None
    """Search an index for windows similar to this video, instead of creating one."""
    index: str | None = None
    """The .npz file to search."""
    neighbours: int = 5
    """Number of windows to return."""

    def __post_init__(self) -> None:
        check_values(self)
        for name in ("window", "stride", "batch_size", "videos_per_part", "neighbours"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: it must be 1 or more")
        if self.stride is not None and self.window is None:
            raise UserError("stride applies to windows: give --window too (the stride of the frames is --data.stride)")
        if (self.query is None) != (self.index is None):
            raise UserError("a search needs both a query and an index: give --query clip.mp4 --index FILE.npz")
        if self.run is None and self.query is None:
            raise UserError("no model is given: give --run")
        if Path(self.out).suffix not in (".npz", ".tfrecord", ""):
            raise UserError(f"out is {self.out}: it must end in .npz or .tfrecord, or be a folder without suffix")
        if not Path(self.out).suffix and (self.window is None or self.pooling == "tokens"):
            raise UserError(f"out is the folder {self.out}, of one vector per window: give --window, and no tokens")


def load(config: Config) -> tuple[nn.Module, dict, ClipConfig, dict[str, Any]]:
    """The model, its variables, the clip settings, and a JSON description of all three.

    Raises:
      UserError: windows without dense sampling, or a model without pooling.
    """
    dtype = runs.computing_type(config.dtype)
    model, variables = vidjax.load_pretrained(config.run, config.model, which=config.which, dtype=dtype)
    model = pooling_model(model, config.pooling)
    clips = runs.cut_clips(config.run, model, config.data, config.window)
    meta = {name: getattr(config, name) for name in ("run", "model", "which", "pooling")}
    data = {f"data.{name}": value for name, value in dataclasses.asdict(clips).items()}
    data = {name: value for name, value in data.items() if name not in ("data.workers", "data.max_bad_share")}
    return model, variables, clips, meta | {"dtype": dtype.name, "weights": runs.fingerprint(variables)} | data


def embed(
    config: Config, videos: Any, chosen: Sequence[int], clips: ClipConfig, encode: Callable
) -> tuple[dict[str, np.ndarray], list[dict[str, str]]]:
    """The features and times of the windows of some examples, as arrays, and a list of unreadable examples."""
    from vidjax.data.windows import batches

    def read(index: int) -> Iterator:
        if config.window is None:
            return videos.clip(index, clips)
        return videos.windows(index, clips, config.stride or config.window)

    bad: dict[int, str] = {}
    rows: list[tuple[int, Any, np.ndarray]] = []

    def failed(number: int, error: ValueError) -> None:
        bad[chosen[number]] = str(error)

    streams = (read(index) for index in chosen)
    for batch, video in batches(streams, config.batch_size, clips.workers or core_count(), failed):
        for (number, window), feature in zip(batch, encode(video), strict=False):  # the batch may be padded
            rows.append((chosen[number], window, feature.astype(config.feature_dtype)))
    rows = [row for row in rows if row[0] not in bad]  # no features of partly readable videos
    index, windows, features = zip(*rows, strict=True) if rows else ((), (), ())
    label = {i: videos.label(i) for i in set(index)}
    arrays = {
        "features": np.array(features, config.feature_dtype),
        "index": np.array(index, np.int64),
        "start": np.array([window.start for window in windows]),
        "end": np.array([window.end for window in windows]),
        "first": np.array([window.first for window in windows], np.int64),
        "labels": np.array([label[i] for i in index], np.int32),
    }
    return arrays, [{"path": videos.source.ids[i], "error": error} for i, error in sorted(bad.items())]


def search(config: Config) -> list[dict[str, Any]]:
    """Prints and returns the windows of the index that are nearest to the query.

    Raises:
      UserError: the index cannot be searched, or was made with other weights.
    """
    from vidjax.data.windows import open_files

    meta = read_meta(Path(config.index))
    if Path(config.index).suffix != ".npz" or meta["pooling"] == "tokens":
        raise UserError(f"{config.index} cannot be searched: give an .npz file with one vector per window")
    data = {name.removeprefix("data."): value for name, value in meta.items() if name.startswith("data.")}
    data.pop("stream", None)  # follows from the run
    settings = {name: meta[name] for name in ("run", "model", "which", "pooling", "dtype")}
    settings |= {"run": config.run} if config.run else {}
    original = Config(**settings, data=SourceConfig(**data, workers=config.data.workers))
    model, variables, clips, current = load(original)
    if current["weights"] != meta["weights"]:
        raise UserError(f"{original.run} has other weights than those that {config.index} was made with: embed again")
    window = next(open_files([config.query], clips.square_pixels).clip(0, clips))
    feature = make_encode(model, variables, clips, original.pooling)(np.stack([window.frames] * jax.device_count()))[:1]
    query = f"{config.query}, {window.start:.2f} to {window.end:.2f} s"
    return name_nearest(config.index, query, feature, config.neighbours)


def main(config: Config) -> dict[str, Any] | list[dict[str, Any]]:
    """Extracts the features that are missing and writes the file; or searches an index."""
    if config.query is not None:
        return search(config)
    from vidjax.data.windows import open_videos

    check_batch_size(config.batch_size)
    square = config.run is None or runs.square_pixels(config.run, config.data)
    videos, out = open_videos(config.data.source, config.data.split, square), Path(config.out)
    source = videos.source
    print_notes(source)
    model, variables, clips, meta = load(config)
    names = ("window", "stride", "batch_size", "videos_per_part", "feature_dtype")
    meta |= {name: getattr(config, name) for name in names}
    if not out.suffix:
        require_names(source.ids)
        meta["stride"] = config.stride or config.window
    meta |= {"source": config.data.source, "split": config.data.split, "videos": len(source)}
    listing = repr((source.class_names, list(source.ids), videos.rows))  # including parts of videos and labels
    meta |= {"list": hashlib.sha256(listing.encode()).hexdigest()}
    encode = make_encode(model, variables, clips, config.pooling)
    if (folder := open_parts(out, meta)) is None:
        print(f"{out} is complete: nothing to do")
        return {"finished": True}

    chosen = np.array_split(np.arange(len(source)), -(-len(source) // config.videos_per_part))
    parts = [folder / f"part-{k:05d}-of-{len(chosen):05d}.npz" for k in range(len(chosen))]
    remaining = [k for k, path in enumerate(parts) if not path.exists()]
    done = f", {len(parts) - len(remaining)} of {len(parts)} parts are done" if len(remaining) < len(parts) else ""
    print(f"{len(source)} videos of {source.name} to {out}{done}", flush=True)
    start, windows, bad = time.monotonic(), 0, read_bad([path for path in parts if path.exists()])
    for k in remaining:
        arrays, unreadable = embed(config, videos, chosen[k].tolist(), clips, encode)
        bad += unreadable
        if len(bad) > clips.max_bad_share * len(source):
            raise UserError(
                f"{len(bad)} of the {len(source)} videos of {source.name} have no features, more than "
                f"data.max_bad_share {clips.max_bad_share:g} allows: fix them or increase it; the last error: "
                f"{bad[-1]['error']}"
            )
        write_part(parts[k], arrays, unreadable)
        windows += len(arrays["index"])
        print(
            f"part {k + 1} of {len(parts)}: {windows} windows, {windows / (time.monotonic() - start):.1f} per second, "
            f"{len(bad)} videos unreadable",
            flush=True,
        )
    list_file = out.with_name(f"{out.name}.bad_files.jsonl")
    if bad := read_bad(parts):  # in the order of the source, also after interruptions
        list_file.write_text("".join(json.dumps(entry) + "\n" for entry in bad))
    shape = join(parts, out, source.ids, source.class_names, meta)
    print(f"{out}: features {' x '.join(map(str, shape))} of {len(source) - len(bad)} of {len(source)} videos")
    if bad:
        print(f"{len(bad)} videos could not be read completely or are too short: {list_file}")
    return {"shape": shape, "videos": len(source), "unreadable": len(bad)}


if __name__ == "__main__":
    cli.run(main, Config)
