"""Clips with their times, for prediction and embedding: one clip per video, or sliding windows over the whole video.

A window contains `frames` sampled frames and advances by a number of sampled frames (the hop); the distance between
sampled frames is that of dense sampling (`stride` or `fps`). The last window ends at the last sampled frame and may
therefore overlap more with the previous one. A video is read once from start to end, keeping only the frames of one
window, so that memory does not depend on its length.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from jaxtyping import Int, UInt8

from vidjax.data import manifest, sources
from vidjax.data.config import ClipConfig
from vidjax.data.crop import center_crop, view_crops
from vidjax.data.decode import DecodeError
from vidjax.data.example import Source, field_specs
from vidjax.data.rows import cut_streams, join, read_clips, stored_names
from vidjax.data.sampling import sampling_step, seconds_covered, views


@dataclass(frozen=True)
class Window:
    """A clip and its times, relative to the part of the video that a manifest names, in the order it is played."""

    start: float
    """Time of the first frame in seconds; nan if the source does not store a rate."""
    end: float
    """Time in seconds of the sampled frame after the last one, or the end of the example."""
    frames: UInt8[np.ndarray, "v t h w c"]
    """Views of the clip; a window has one."""
    first: int = 0
    """Number of the window's first frame among the sampled ones."""


@dataclass(frozen=True)
class Videos:
    """A source whose examples can be read as clips with times or as windows."""

    source: Source
    rows: Sequence[manifest.Row] | None
    """The video files of the examples; None if the source does not consist of video files."""

    def label(self, index: int) -> int:
        """Index into the source's class names, -1 for none. Raises DecodeError."""
        return self.source.label(index)

    def clip(self, index: int, config: ClipConfig, view_counts: tuple[int, int] = (1, 1)) -> Iterator[Window]:
        """Yields one clip: the one used in evaluation, with its views. Raises DecodeError."""
        specs, names = field_specs(self.source, config, ()), stored_names(config)
        with self.source.open(index, names) as example:
            info = example.streams[names[0]].info
            indices = views(info.num_frames, info.rate, config, view_counts[0])
            _, streams = read_clips(example, indices, config, specs)
        firsts = indices[:, 0]
        start = firsts.min() / info.rate if config.sampling == "dense" else 0.0
        end = start + (firsts.max() - firsts.min()) / info.rate + seconds_covered(config, info.num_frames, info.rate)
        crops = view_crops(*streams[names[0]].shape[1:3], view_counts[1], config.center_ratio, config.protocol)
        squares = cut_streams(streams, crops, config, self.source.fields, specs)["video"]
        yield Window(float(start), float(min(end, info.duration)), squares)

    def windows(self, index: int, config: ClipConfig, hop: int) -> Iterator[Window]:
        """Yields windows of `config.frames` sampled frames, `hop` sampled frames apart, with a central crop.

        Raises:
          DecodeError: the example cannot be read to its end, or has fewer sampled frames than a window.
        """
        field_specs(self.source, config, ())  # fails if there is no such stream
        names = stored_names(config)
        with self.source.open(index, names) as example:
            info = example.streams[names[0]].info
            for name in names[1:]:
                if (own := example.streams[name].info) and (own.num_frames, own.rate) != (info.num_frames, info.rate):
                    raise DecodeError(
                        f"{self.source.ids[index]}: {name} has {own.num_frames} frames at {own.rate:g} per second, and "
                        f"{names[0]} {info.num_frames} at {info.rate:g}: windows need equally many"
                    )
            sampled = sampled_frames(info.num_frames, sampling_step(config, info.rate))
            starts = window_starts(len(sampled), config.frames, hop)
            if not len(starts):
                raise DecodeError(
                    f"{self.source.ids[index]}: its {info.num_frames} frames, {len(sampled)} at this stride or rate, "
                    f"are too few for a window of {config.frames}: use a shorter window or a smaller stride"
                )
            spans = sampled[starts[:, None] + np.arange(config.frames)]
            bounds = np.append(sampled, info.num_frames)[np.stack([starts, starts + config.frames], axis=1)]
            wanted, seconds = np.unique(spans), bounds / info.rate

            kept: deque[tuple[int, np.ndarray]] = deque()  # indices and cropped frames of the next windows
            following = 0
            streams = [example.streams[name].iterate(wanted, config.decode_short_side) for name in names]
            how = config.size, config.center_ratio, config.protocol
            for position, frames in enumerate(zip(*streams, strict=True)):
                cropped = np.array(join([center_crop(frame[None], *how)[0] for frame in frames]))
                kept.append((int(wanted[position]), cropped))  # copied: a view would keep the whole frame in memory
                while following < len(spans) and spans[following, -1] == wanted[position]:
                    while kept[0][0] < spans[following, 0]:
                        kept.popleft()
                    by_index = dict(kept)
                    (start, end), first = seconds[following].tolist(), int(starts[following])
                    yield Window(start, end, np.stack([by_index[i] for i in spans[following].tolist()])[None], first)
                    following += 1


def open_videos(name: str, split: str, square_pixels: bool = True) -> Videos:
    """Opens a source by name, see `sources.open_source`."""
    if (listing := sources.list_files(name, split)) is not None:
        return Videos(sources.video_files(name, listing, square_pixels), listing.rows)
    return Videos(sources.open_source(name, split), None)


def open_files(paths: Sequence[str], square_pixels: bool = True) -> Videos:
    """Opens video files without their labels; folders and lists are expanded, see `sources.list_files`.

    Files are not opened before they are read.

    Raises:
      UserError: a folder contains no videos, or a list is invalid.
    """
    rows, notes, fields = [], [], {}
    for path in paths:
        listed = sources.list_files(path) or manifest.Listing((), [manifest.Row(path, -1)])
        rows += [replace(row, label=-1) for row in listed.rows]
        notes += listed.notes
        fields |= listed.fields
    listing = manifest.Listing((), rows, tuple(notes), fields)
    return Videos(sources.video_files("the given files", listing, square_pixels), rows)


def sampled_frames(num_frames: int, step: float) -> Int[np.ndarray, "n"]:
    """Indices of all frames `step` frames apart from the first frame on, rounded as in `sampling.dense`."""
    indices = np.floor(np.arange(math.ceil(num_frames / step) + 1) * step + 0.5).astype(np.int64)
    return indices[indices < num_frames]


def window_starts(count: int, window: int, hop: int) -> Int[np.ndarray, "w"]:
    """Start positions of windows among `count` sampled frames; empty if there are fewer frames than in a window.

    A final window that ends at the last frame is added if frames remain after the last regular window, except frames in
    a gap between windows (with a hop larger than the window).
    """
    starts = np.arange(0, max(count - window + 1, 0), hop)
    if len(starts) and starts[-1] + max(window, hop) < count:
        starts = np.append(starts, count - window)
    return starts


def batches(
    streams: Iterable[Iterator[Window]], rows: int, workers: int, failed: Callable[[int, DecodeError], None]
) -> Iterator[tuple[list[tuple[int, Window]], UInt8[np.ndarray, "b v t h w c"]]]:
    """Batches the windows of many streams in order; the last batch is padded with black windows.

    Args:
      streams: one iterator of windows per example.
      rows: windows per batch.
      workers: number of streams read in parallel, a few windows ahead.
      failed: called with the index of each stream that ends with an error, and the error. The windows before the error
        are kept.

    Yields:
      The windows of a batch with the indices of their streams, and their pixels.
    """
    batch: list[tuple[int, Window]] = []
    for number, window in _side_by_side(streams, workers):
        if isinstance(window, DecodeError):
            failed(number, window)
            continue
        batch.append((number, window))
        if len(batch) == rows:
            yield batch, np.stack([window.frames for _, window in batch])
            batch = []
    if batch:
        fill = [np.zeros_like(batch[0][1].frames)] * (rows - len(batch))
        yield batch, np.stack([window.frames for _, window in batch] + fill)


def _side_by_side(
    streams: Iterable[Iterator[Window]], workers: int, chunk: int = 8
) -> Iterator[tuple[int, Window | DecodeError]]:
    """Yields the windows of each stream and its error, if any, with its index; at most `workers` streams are open."""

    def pull(stream: Iterator[Window]) -> list[Window | DecodeError]:
        windows: list[Window | DecodeError] = []
        try:
            for window in islice(stream, chunk):
                windows.append(window)
        except DecodeError as error:
            windows.append(error)
        return windows

    numbered = enumerate(streams)
    with ThreadPoolExecutor(workers) as pool:

        def begin(count: int) -> list[tuple[int, Iterator[Window], Future]]:
            return [(number, stream, pool.submit(pull, stream)) for number, stream in islice(numbered, count)]

        running = deque(begin(workers))
        while running:
            number, stream, future = running.popleft()
            while windows := future.result():
                future = pool.submit(pull, stream)  # reads ahead while these windows are used
                yield from ((number, window) for window in windows)
            running.extend(begin(1))
