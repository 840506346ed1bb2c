"""Batches of clips for evaluation, and what training shares with it: unreadable examples, and closing at exit.

Imports no TensorFlow, which takes seconds: training alone needs it (`pipeline`).
"""

import atexit
import json
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np

from vidjax.data.config import ClipConfig, core_count
from vidjax.data.crop import view_crops
from vidjax.data.decode import DecodeError
from vidjax.data.example import Source, field_specs
from vidjax.data.rows import Batch, cut_streams, read_clips, row_arrays, split_views, stored_names
from vidjax.data.sampling import views
from vidjax.data.text import CaptionWriter, Tokenizer
from vidjax.errors import UserError

_running: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # Without this, a script that does not exhaust its batches hangs at exit: tf.data waits for a decoding thread, which
    # can no longer acquire the GIL.
    for batches in list(_running):
        with suppress(ValueError):  # another thread is running the generator
            batches.close()


def closed_at_exit(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches as a generator that is closed at exit."""
    running = (batch for batch in batches)
    _running.add(running)
    return running


class BadFiles:
    """Records examples that cannot be read, each once, and stops the run if there are too many."""

    def __init__(self, source: Source, max_fraction: float, path: str | Path | None = None):
        """Loads the list at `path` if it exists; without a path the list is kept in memory only."""
        self.errors: dict[str, str] = {}
        """Error messages by the id of the example."""
        self._source, self._max_fraction, self._path = source, max_fraction, path and Path(path)
        if self._path and self._path.exists():
            ids = set(source.ids)  # skips entries from before the data were moved
            for entry in map(json.loads, self._path.read_text().splitlines()):
                if entry["path"] in ids:
                    self._remember(**entry)

    def add(self, path: str, error: str) -> None:
        """Adds an example's id with its error, unless it is listed already.

        Raises:
          UserError: more than the allowed fraction of the examples cannot be read.
        """
        if path not in self.errors:
            self._remember(path, error)
            if self._path:
                with open(self._path, "a") as file:
                    file.write(json.dumps({"path": path, "error": error}) + "\n")
        if len(self) > self._max_fraction * len(self._source):
            where = f"they are listed in {self._path}" if self._path else f"the last one: {error}"
            fix = "repair or remove them and delete that list" if self._path else "repair or remove them"
            raise UserError(
                f"{len(self)} of the {len(self._source)} examples of {self._source.name} cannot be read, more than "
                f"data.max_bad_share {self._max_fraction:g} allows: {where}; {fix}, or allow more"
            )

    def __len__(self) -> int:
        """Number of unreadable examples so far."""
        return len(self.errors)

    def _remember(self, path: str, error: str) -> None:
        self.errors[path] = error


def evaluation_batches(
    source: Source,
    config: ClipConfig,
    *,
    batch_size: int,
    view_counts: tuple[int, int] | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
    process_index: int = 0,
    process_count: int = 1,
    bad_files: BadFiles | None = None,
    tokenizer: Tokenizer | None = None,
    context: int | None = None,
    fields: Sequence[str] = (),
) -> Iterator[Batch]:
    """Yields this process's rows of batches that contain each example once, in order: the central clip, or many views.

    The last batch is padded with rows that are not `valid` and have index -1; every process gets the same number of
    batches.

    Args:
      source: the examples.
      config: stream, sampling, size and workers; any augmentation is ignored.
      batch_size: rows per batch over all processes.
      view_counts: clips in time and crops in space for each example, such as (4, 3). `video` is then (b v t h w c),
        with the crops of a clip adjacent, and `times`, `crop` and the further fields that depend on the clip have an
        axis v as well.
      indices: indices of the examples, by default all.
      process_index: k; this process gets rows [k * b / P, (k + 1) * b / P) of each batch.
      process_count: P, which must divide the batch size.
      bad_files: records unreadable examples. Their rows are black and not `valid`.
      tokenizer: tokenises the first caption of each example. The iterator raises UserError for an example without
        captions.
      context: tokens per caption, including start and end.
      fields: further fields of the source to include in the batches.
    """
    rows = local_rows(batch_size, process_count)
    indices = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
    batches = -(-len(indices) // batch_size)
    padded = np.full(batches * batch_size, -1, np.int64)
    padded[: len(indices)] = indices
    local = padded.reshape(batches, process_count, rows)[:, process_index].reshape(-1)

    write, specs = CaptionWriter(tokenizer, context), field_specs(source, config, fields)
    stored = stored_names(config, fields)
    clips, squares = view_counts or (1, 1)
    arrays = row_arrays(specs, config, clips, clips * squares) | write.arrays(())
    empty = {name: np.full(shape, fill, dtype) for name, (dtype, shape, fill) in arrays.items()}
    workers = config.workers or core_count()

    def read(index: int) -> tuple[dict[str, np.ndarray], str | None]:
        """The arrays of a row, and why they are empty: "" for a padding row, None if they are not."""
        if index < 0:
            return empty, ""
        try:
            with source.open(index, stored) as example:
                info = example.streams[stored[0]].info
                row, streams = read_clips(example, views(info.num_frames, info.rate, config, clips), config, specs)
            crops = view_crops(*streams[stored[0]].shape[1:3], squares, config.center_ratio, config.protocol)
            row |= cut_streams(streams, crops, config, source.fields, specs)
        except DecodeError as error:
            return empty, str(error)
        row |= {"crop": np.tile(crops, (clips, 1))} | write(source.ids[index], example.captions, np.zeros(()))
        return row, None

    def merge() -> Iterator[Batch]:
        with closing(_in_order(read, local.tolist(), workers, workers + 2 * rows)) as results:
            for first in range(0, len(local), rows):
                numbers = local[first : first + rows]
                read_rows, errors = zip(*islice(results, rows), strict=True)
                for index, error in zip(numbers, errors, strict=True):
                    if bad_files is not None and error:
                        bad_files.add(source.ids[index], error)
                batch = {name: np.stack([row[name] for row in read_rows]) for name in arrays}
                batch |= {"valid": np.array([error is None for error in errors]), "index": numbers.astype(np.int32)}
                common, per_view = split_views(batch, specs, clips)
                yield common | (per_view if view_counts else {name: array[:, 0] for name, array in per_view.items()})

    return closed_at_exit(merge())


def _in_order(function: Callable[[Any], Any], items: Iterable[Any], workers: int, ahead: int) -> Iterator[Any]:
    """Yields `function(item)` for each item, computed by `workers` threads at most `ahead` items ahead."""
    items = iter(items)
    with ThreadPool(workers) as pool:  # its threads are daemons: exit does not wait for items that are still queued
        waiting = deque(pool.apply_async(function, (item,)) for item in islice(items, ahead))
        while waiting:
            result = waiting.popleft().get()
            waiting.extend(pool.apply_async(function, (item,)) for item in islice(items, 1))
            yield result


def select(batches: Iterable[Batch], *names: str) -> Iterator[Batch]:
    """Keeps only the named arrays of each batch, so that the others are not copied to the device."""
    return ({name: batch[name] for name in names} for batch in batches)


def local_rows(batch_size: int, process_count: int) -> int:
    """The rows of one process in a batch; raises UserError if they are not as many for each."""
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"the batch size {batch_size} is not divisible by the {process_count} processes: make it a multiple"
        )
    return batch_size // process_count
