"""Trajectories of labelled videos and what is pooled along them, computed once and cached on disk, a file per video.

A video's file is written beside its final name and renamed, so that a job that was killed goes on where it stopped.
"""

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vidjax.cli import make_folder
from vidjax.data.config import LabelledSources, core_count
from vidjax.data.embeddings import check_same
from vidjax.data.trajectories import TrackConfig, Tracks, follow
from vidjax.errors import UserError
from vidjax.runs.sources import open_labelled
from vidjax.runs.weights import fingerprint
from vidjax.runs.workdir import describe_examples
from vidjax.training.metrics import clock

if TYPE_CHECKING:  # PyAV is imported when it is needed
    from vidjax.data.sources import Source

Which = Literal["train", "validation"]
SHOWN, PICTURES = 6, 4  # frames of a video in its picture, and videos


@dataclasses.dataclass(frozen=True)
class TrackedVideos(LabelledSources):
    """Labelled videos, and which of their frames are used."""

    validation: str | None = "synthetic:moving_shapes"
    """Labelled videos of the same classes, on which accuracy is measured."""
    square_pixels: bool = True
    """Stretch non-square pixels in width, as players do; False keeps frames as stored."""
    short_side: int = 240
    """Resize the shorter side to this many pixels, never enlarging."""
    max_frames: int = 1000
    """Use at most the first so many frames of a video."""
    max_tracks: int = 10_000
    """Keep at most so many tracks of a video, evenly."""
    max_bad_share: float = 0.2
    """Stop when more than this fraction of the videos cannot be read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation is None:
            raise UserError("there are no videos to measure on: give --data.validation, of the classes of data.train")
        for name in ("short_side", "max_frames", "max_tracks"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} is {getattr(self, name)}: it must be 1 or more")


@dataclasses.dataclass(frozen=True)
class Job:
    """What a process needs to follow the points of any of the videos."""

    data: TrackedVideos
    seed: int
    """Of the draw of examples."""
    track: TrackConfig
    camera: bool
    folder: str


@lru_cache(1)
def _sources(data: TrackedVideos, seed: int) -> dict[Which, "Source"]:
    return dict(zip(("train", "validation"), open_labelled(data, seed), strict=True))


def path_of(folder: Path, which: Which, index: int) -> Path:
    """The cached file of a video."""
    return folder / which / f"{index:07d}.npz"


def read(folder: Path, which: Which, videos: list[int]) -> Iterator[Float[np.ndarray, "n d"]]:
    """The cached descriptors of videos, one after the other."""
    for index in videos:
        with np.load(path_of(folder, which, index)) as stored:
            yield stored["descriptors"].astype(np.float32)


def _write(path: Path, **arrays: np.ndarray) -> None:
    unfinished = path.with_suffix(f".{os.getpid()}.partial")
    with open(unfinished, "wb") as file:
        np.savez(file, **arrays)
    os.replace(unfinished, path)


def track_video(job: Job, which: Which, index: int) -> str | None:
    """Writes the tracks of a video; returns the error if it cannot be read."""
    from vidjax.data.container import DecodeError

    source, data = _sources(job.data, job.seed)[which], job.data
    try:
        with source.open(index, ()) as example:
            video, size = example.streams["video"], []

            def frames() -> Iterator[np.ndarray]:
                for frame in video.iterate(np.arange(min(video.info.num_frames, data.max_frames)), data.short_side):
                    size[:] = frame.shape[1::-1]
                    yield frame

            tracks = follow(frames(), job.track, job.camera)
            label = example.label
    except DecodeError as error:
        return str(error)
    except UserError as error:  # frames smaller than a patch
        return f"{source.ids[index]}: {error}"
    if len(tracks.first) > data.max_tracks:
        kept = np.linspace(0, len(tracks.first) - 1, data.max_tracks).astype(int)
        tracks = Tracks(*(array[kept] for array in tracks))
    tracks = tracks._replace(descriptors=tracks.descriptors.astype(np.float16))
    _write(path_of(Path(job.folder), which, index), **tracks._asdict(), size=np.array(size), label=np.array(label))
    return None


def cache_tracks(job: Job, workers: int) -> dict[Which, list[int]]:
    """Follows the points of all videos that the cache lacks, in parallel processes; returns the readable videos.

    Raises:
      UserError: the cache has tracks of other videos or settings; or too many videos are unreadable.
    """
    from vidjax.data.batches import BadFiles

    sources, readable = _sources(job.data, job.seed), {}
    folder = _open_cache(Path(job.folder), job, sources)
    workers = workers or core_count()
    for which, source in sources.items():
        (folder / which).mkdir(exist_ok=True)
        todo = [index for index in range(len(source)) if not path_of(folder, which, index).exists()]
        bad_files, start, reported = BadFiles(source, job.data.max_bad_share), time.monotonic(), 0.0
        for done, (index, error) in enumerate(_track_all(job, which, todo, workers), 1):
            if error is not None:
                bad_files.add(source.ids[index], error)
            elapsed = time.monotonic() - start
            if elapsed - reported > 15 or done == len(todo):
                reported, left = elapsed, elapsed * (len(todo) - done) / done
                print(f"{which}: {done:,} of {len(todo):,} videos, {clock(elapsed)} elapsed, {clock(left)} left")
        if bad_files.errors:
            lines = [json.dumps({"path": path, "error": error}) for path, error in bad_files.errors.items()]
            (folder / f"bad_{which}.jsonl").write_text("\n".join(lines) + "\n")
            print(f"{len(bad_files)} videos could not be read: {folder / f'bad_{which}.jsonl'}")
        readable[which] = [index for index in range(len(source)) if path_of(folder, which, index).exists()]
        report_empty(source.name, folder, which, readable[which], job)
    return readable


def report_empty(name: str, folder: Path, which: Which, videos: list[int], job: Job) -> None:
    """Says how many videos have no tracks.

    Raises:
      UserError: none has.
    """
    counts = []
    for index in videos:
        with np.load(path_of(folder, which, index)) as stored:
            counts.append(len(stored["first"]))
    empty = counts.count(0)
    print(f"{which}: {sum(counts):,} tracks of {len(videos):,} videos of {name}, {empty:,} of them without any")
    if empty == len(videos):
        raise UserError(
            f"none of the {len(videos):,} videos of {name} has a track: they have fewer than {job.track.length + 1} "
            "frames, or nothing in them moves as tracks must; give other videos, or a lower --track.length"
        )


def _track_all(job: Job, which: Which, todo: list[int], workers: int) -> Iterator[tuple[int, str | None]]:
    if workers == 1 or len(todo) < 2:
        yield from ((index, track_video(job, which, index)) for index in todo)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:  # JAX has threads, which a fork would not copy
        for start in range(0, len(todo), 64 * workers):  # few results wait
            part = todo[start : start + 64 * workers]
            yield from zip(
                part, pool.map(track_video, *zip(*((job, which, i) for i in part), strict=True)), strict=True
            )


def _open_cache(folder: Path, job: Job, sources: dict[Which, "Source"]) -> Path:
    """Creates the folder of tracks, or checks that it has those of the same videos and settings."""
    make_folder(folder, "--out", "the cache")
    data, examples = job.data, {f"{which} videos": describe_examples(source) for which, source in sources.items()}
    settings = {name: getattr(data, name) for name in ("short_side", "max_frames", "max_tracks", "square_pixels")}
    _check(folder, dataclasses.asdict(job.track) | settings | {"camera": job.camera} | examples)
    return folder


def _check(folder: Path, meta: dict[str, Any]) -> None:
    path = folder / "meta.json"
    if path.exists():
        check_same(str(folder), json.loads(path.read_text()), meta)
    path.write_text(json.dumps(meta, indent=1) + "\n")


def make_maps(
    model: nn.Module, variables: dict
) -> Callable[[Iterator[UInt8[np.ndarray, "h w c"]]], Float[np.ndarray, "t y x d"]]:
    """The maps of a video by a model's `encode`: consecutive clips of its length, of frames of its size, in a row.

    Of the frames, one clip is in memory at a time. The last clip is filled with its last frame.
    """

    @jax.jit
    def encode(clip: UInt8[Array, "1 t h w c"]) -> Float[Array, "_ _ _ d"]:
        return model.apply(variables, model.card.preprocess(clip), method="encode")[0].astype(jnp.float32)

    def maps(frames: Iterator[UInt8[np.ndarray, "h w c"]]) -> Float[np.ndarray, "t y x d"]:
        encoded = []
        while clip := list(itertools.islice(frames, model.num_frames)):
            clip += [clip[-1]] * (model.num_frames - len(clip))
            encoded.append(np.asarray(encode(np.stack(clip)[None])))
        return np.concatenate(encoded)

    return maps


def require_maps(model: nn.Module, stream: str, sources: Iterable["Source"]) -> None:
    """Checks that a model has maps of clips, and that sources have the stream that it sees.

    Raises:
      UserError: it has none, or the stream is missing, or has other channels or another dtype.
    """
    if any(not hasattr(model, name) for name in ("encode", "num_frames", "image_size")):
        raise UserError(f"a {type(model).__name__} has no maps of clips to pool (`encode`): give a video model")
    for source in sources:
        spec, channels = source.specs([stream])[stream], len(model.card.mean)
        if spec.shape != (channels,):
            raise UserError(
                f"stream {stream} of {source.name} has {spec.shape[0]} channels, the model takes {channels}: "
                "choose another --stream, or a model for this one"
            )
        if spec.dtype != "uint8":
            raise UserError(f"stream {stream} of {source.name} is {spec.dtype}, maps are of uint8: store it as uint8")


def pool_along(maps: Float[np.ndarray, "t y x d"], places: Float[np.ndarray, "n s 3"]) -> Float[np.ndarray, "n c"]:
    """TDD (Wang et al. 2015, arXiv:1505.04868): normalised maps, summed along tracks at the nearest place.

    Each channel is divided by its maximum over the video, and beside it each place by its maximum over the channels.

    Args:
      places: (t, y, x) as fractions of the maps' sides.
    """
    size = np.abs(maps)
    both = [maps / np.maximum(size.max(axis=axes, keepdims=True), 1e-6) for axes in ((0, 1, 2), 3)]
    sides = np.array(maps.shape[:3])
    at = np.clip((places * sides).astype(int), 0, sides - 1)
    return np.concatenate([sum(part[tuple(at[:, s].T)] for s in range(at.shape[1])) for part in both], axis=1)


def cache_pooled(
    job: Job, readable: dict[Which, list[int]], model: nn.Module, variables: dict, stream: str, folder: Path
) -> int:
    """Writes the TDD of all videos that the cache in `folder` lacks; returns the channels of the maps.

    The maps of one whole video are in memory, as they are divided by their maximum over it. Videos without the stream
    are left out, also of `readable`.

    Raises:
      UserError: the cache is of another model.
    """
    import cv2

    from vidjax.data.container import DecodeError

    sources, maps_of, channels = _sources(job.data, job.seed), make_maps(model, variables), 0
    make_folder(folder, "--out", "the cache")
    tracks = json.loads((Path(job.folder) / "meta.json").read_text())
    _check(folder, {"stream": stream, "model": f"{type(model).__name__} {fingerprint(variables)[:16]}", **tracks})
    for which, source in sources.items():
        (folder / which).mkdir(exist_ok=True)
        for index in list(readable[which]):
            path = path_of(folder, which, index)
            if path.exists():
                continue
            try:
                with (
                    np.load(path_of(Path(job.folder), which, index)) as stored,
                    source.open(index, (stream,)) as example,
                ):
                    points, first, size = stored["points"], stored["first"], stored["size"]
                    frames = example.streams[stream]
                    count = min(frames.info.num_frames, job.data.max_frames)
                    side = (model.image_size, model.image_size)
                    maps = maps_of(
                        cv2.resize(frame, side, interpolation=cv2.INTER_AREA)
                        for frame in frames.iterate(np.arange(count), job.data.short_side)
                    )
            except DecodeError as error:  # such as a stream that this video lacks
                print(f"left out: {error}", flush=True)
                readable[which].remove(index)
                continue
            number = first[:, None] + np.arange(points.shape[1])
            total = -(-count // model.num_frames) * model.num_frames
            places = np.concatenate([((number + 0.5) / total)[..., None], (points / size)[..., ::-1]], axis=-1)
            _write(path, descriptors=pool_along(maps, places).astype(np.float16))
    with np.load(path_of(folder, "train", readable["train"][0])) as stored:
        channels = stored["descriptors"].shape[1] // 2
    return channels


def save_pictures(job: Job, videos: list[int], pictures: Path) -> None:
    """Draws tracks of the first videos: in frames over the video, those that end there."""
    from vidjax.visualize.contact_sheet import save_contact_sheet
    from vidjax.visualize.flow import draw_tracks

    source, folder = _sources(job.data, job.seed)["validation"], Path(job.folder)
    pictures.mkdir(exist_ok=True)
    for index in videos[:PICTURES]:
        with np.load(path_of(folder, "validation", index)) as stored:
            points, first = stored["points"].astype(float), stored["first"]
        starts = np.unique(first)[np.linspace(0, len(np.unique(first)) - 1, SHOWN).astype(int)] if len(first) else first
        if len(starts):
            frames = source.read(index, starts + job.track.length, job.data.short_side).frames
            drawn = [draw_tracks(f, points[first == s].swapaxes(0, 1)) for f, s in zip(frames, starts, strict=True)]
            title = f"tracks that end in frames {', '.join(map(str, starts + job.track.length))}"
            save_contact_sheet(pictures / f"{folder.name}_{index:05d}.png", [np.stack(drawn)], [title])
