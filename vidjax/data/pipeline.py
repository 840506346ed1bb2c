"""Batches of clips: reading, sampling and augmentation in a tf.data pipeline.

Batch n of a training run is a pure function of (seed, n). Row r of batch n is position p = n * batch_size + r in an
infinite sequence of epochs, and `index_shuffle` maps positions to examples. Every example therefore occurs once per
epoch, no example is dropped, and batches can span two epochs. All random choices for a clip depend on (seed, p). A run
can thus resume at `first_batch`, and processes need no communication. With repeated augmentation, a position
corresponds to several adjacent rows, which are read once and augmented differently.
"""

import atexit
import json
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import tensorflow as tf
from jaxtyping import Int

from vidjax.data.augment import change_pixels, cut, join_views, random_crop, view_crops
from vidjax.data.config import ClipConfig, TrainClipConfig, core_count
from vidjax.data.decode import DecodeError
from vidjax.data.example import Example, Field, Source, boxes_in_crop, cut_value
from vidjax.data.sampling import frame_times, frames_at, sample, views
from vidjax.data.text import CaptionWriter, Tokenizer
from vidjax.errors import UserError

tf.config.set_visible_devices([], "GPU")  # leaves the GPU to JAX

Batch = dict[str, np.ndarray]
"""Arrays by name. Every batch contains

    video   uint8 (b t h w c)
    label   int32 (b,), -1 for none
    valid   bool (b,), False for unreadable examples and for padding rows; their video is black
    index   int32 (b,), index of the example, -1 for padding rows
    times   float32 (b t), times of the frames in seconds from the start of the video, or of the part of it; nan if the
            rate is unknown
    crop    int32 (b 7), top, left, height and width of the crop in the decoded frame, height and width of that frame,
            and 1 if mirrored; all 0 for invalid rows

and, with a tokeniser, `ids` int32 (b m), the tokens of a caption (all 0 for invalid rows), and `truncated` bool (b,),
whether the caption has more than m tokens; and the requested further fields, see `example.Field`."""

_Arrays = dict[str, tuple[str, tuple[int | None, ...], float]]
"""The dtype, shape and fill value of each array that is read for a row, before cropping."""
_Crops = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], list[tuple[tf.Tensor, tf.Tensor | None]]]
"""Maps height, width and position of a row to its crops, each with its augmentation seed (None for no augmentation)."""
BY_TIME = ("segments", "tracks", "samples")
"""Kinds of fields whose values differ between the clips of an example."""

_running: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # Without this, a script that does not exhaust its batches hangs at exit: tf.data waits for a decoding thread, which
    # can no longer acquire the GIL.
    for batches in list(_running):
        with suppress(ValueError):  # another thread is running the generator
            batches.close()


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
            fix = "mend them and delete that list" if self._path else "mend them"
            raise UserError(
                f"{len(self)} of the {len(self._source)} examples of {self._source.name} cannot be read, more than "
                f"data.max_bad_share {self._max_fraction:g} allows: {where}; {fix}, or allow more"
            )

    def __len__(self) -> int:
        """Number of unreadable examples so far."""
        return len(self.errors)

    def _remember(self, path: str, error: str) -> None:
        self.errors[path] = error


def train_batches(
    source: Source,
    config: TrainClipConfig,
    *,
    batch_size: int,
    seed: int,
    first_batch: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    bad_files: BadFiles | None = None,
    tokenizer: Tokenizer | None = None,
    context: int | None = None,
    fields: Sequence[str] = (),
) -> Iterator[Batch]:
    """Yields this process's rows of the batches first_batch, first_batch + 1, ... indefinitely.

    Args:
      source: the examples; each occurs once per epoch, in a different order in every epoch.
      config: stream, sampling, size, augmentation, repeats and workers.
      batch_size: rows per batch over all processes; process k gets rows [k * b / P, (k + 1) * b / P), whose number must
        be a multiple of the repeats.
      seed: seed of the order, the sampling and the augmentation.
      first_batch: number of the first batch.
      process_index: k.
      process_count: P, which must divide the batch size.
      bad_files: records unreadable examples. Their rows are black and not `valid`; they are not replaced.
      tokenizer: tokenises captions. For each row one of the example's captions is drawn, independently of the draws
        for its pixels. The iterator raises UserError for an example without captions.
      context: tokens per caption, including start and end.
      fields: further fields of the source to include in the batches.
    """
    repeats, count = config.repeats, len(source)
    rows = _rows(batch_size, process_count)
    if rows % repeats:
        raise UserError(f"{rows} clips per process are not a multiple of {repeats} repeats: change one of them")
    specs = _specs(source, config, fields)
    if config.augment.rand_augment_ops and (boxes := [n for n in fields if specs[n].kind in ("boxes", "tracks")]):
        raise UserError(f"augment.rand_augment_ops moves pixels after the crop, but not {boxes[0]}: set it to 0")
    groups, write = rows // repeats, CaptionWriter(tokenizer, context)

    def read(index: int, position: int) -> dict[str, np.ndarray]:
        rng = np.random.Generator(np.random.Philox(key=[seed, position]))
        with source.open(index, (*fields, config.stream)) as example:
            info = example.streams[config.stream].info
            indices = sample(config, info.num_frames, info.rate, rng)
            row = read_clips(example, indices[None], config, specs)
        # Another part of the same random stream, so that the draws for captions and for frames are independent.
        draws = np.random.Generator(np.random.Philox(key=[seed, position], counter=[0, 0, 0, 1])).random(repeats)
        return row | write(source.ids[index], example.captions, draws)

    def crops(height: tf.Tensor, width: tf.Tensor, position: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor | None]]:
        seeds = [tf.stack([tf.constant(seed, tf.int64), position * repeats + i]) for i in range(repeats)]
        return [
            (random_crop(height, width, config.augment, config.size, each, config.center_ratio), each) for each in seeds
        ]

    @tf.autograph.experimental.do_not_convert
    def position_and_index(element: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = first_batch + element // groups
        position = (batch * process_count + process_index) * groups + element % groups
        order_seed = tf.stack([tf.constant(seed, tf.int64), position // count])
        index = tf.random.experimental.index_shuffle(position % count, order_seed, count - 1)
        return position, index

    elements = tf.data.Dataset.range(np.iinfo(np.int64).max).map(position_and_index)
    arrays = _arrays(specs, config, 1) | write.arrays((repeats,))
    batches = _batches(elements, source, config, specs, arrays, read, crops, repeats, groups, bad_files)
    return _closing(_merge_views(common, per_view) for common, per_view in batches)


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
    rows = _rows(batch_size, process_count)
    indices = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
    batches = -(-len(indices) // batch_size)
    padded = np.full(batches * batch_size, -1, np.int64)
    padded[: len(indices)] = indices
    local = padded.reshape(batches, process_count, rows)[:, process_index].reshape(-1)

    write, specs = CaptionWriter(tokenizer, context), _specs(source, config, fields)
    clips, squares = view_counts or (1, 1)

    def read(index: int, position: int) -> dict[str, np.ndarray]:
        with source.open(index, (*fields, config.stream)) as example:
            info = example.streams[config.stream].info
            row = read_clips(example, views(info.num_frames, info.rate, config, clips), config, specs)
        return row | write(source.ids[index], example.captions, np.zeros(()))

    def crops(height: tf.Tensor, width: tf.Tensor, position: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor | None]]:
        return [(crop, None) for crop in view_crops(height, width, squares, config.center_ratio)]

    elements = tf.data.Dataset.from_tensor_slices((local, local))
    arrays = _arrays(specs, config, clips) | write.arrays(())
    batches = _batches(elements, source, config, specs, arrays, read, crops, squares, rows, bad_files)
    return _closing(common | (per_view if view_counts else _only_view(per_view)) for common, per_view in batches)


def read_clips(
    example: Example, indices: Int[np.ndarray, "v t"], config: ClipConfig, specs: Mapping[str, Field]
) -> dict[str, np.ndarray]:
    """Reads clips of an open example: decoded frames, with the clips in sequence, and fields cut to their times.

    Args:
      example: the example.
      indices: indices of frames of the stream `config.stream`.
      config: config of the clips.
      specs: specs of the fields to read: `video`, which stands for `config.stream`, and further fields.
    """
    stream = example.streams[config.stream]
    times = frame_times(indices, stream.info.rate)
    frames, _ = stream.read(indices.ravel(), config.decode_short_side)
    row = {"video": frames, "times": times.astype(np.float32), "label": np.int32(example.label)}
    for name in specs.keys() - row.keys():
        if specs[name].kind != "frames":
            row[name] = cut_value(specs[name], example.values.get(name), times)
        else:
            other = example.streams[name]
            same = other.info.rate == stream.info.rate or np.isnan(other.info.rate)
            chosen = indices if same else frames_at(times, other.info.num_frames, other.info.rate)
            chosen = np.minimum(chosen, other.info.num_frames - 1)  # flow between frames has one frame fewer
            row[name], _ = other.read(chosen.ravel(), config.decode_short_side)
    return row


def select(batches: Iterable[Batch], *names: str) -> Iterator[Batch]:
    """Keeps only the named arrays of each batch, so that the others are not copied to the device."""
    return ({name: batch[name] for name in names} for batch in batches)


def _rows(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"the batch size {batch_size} is not divisible by the {process_count} processes: make it a multiple"
        )
    return batch_size // process_count


def _specs(source: Source, config: ClipConfig, fields: Sequence[str]) -> dict[str, Field]:
    """Specs of the stream that the clips are made from, as `video`, and of the further fields."""
    (video,) = source.specs([config.stream]).values()
    if video.kind != "frames":
        raise UserError(f"data.stream {config.stream} is no field of frames of {source.name}: choose another")
    if {"video", "label"} & set(fields):
        raise UserError("video and label are in every batch: remove them from the fields")
    return {"video": video, **source.specs(fields)}


def _arrays(specs: Mapping[str, Field], config: ClipConfig, clips: int) -> _Arrays:
    arrays: _Arrays = {"label": ("int32", (), -1), "times": ("float32", (clips, config.frames), 0)}
    for name, spec in specs.items():
        shape = spec.shape
        if spec.kind == "frames":
            shape = (None, None, None, *shape)
        elif spec.kind == "tracks":
            shape = (clips, config.frames, *shape)
        elif spec.kind in BY_TIME:
            shape = (clips, *shape)
        arrays[name] = (spec.dtype, shape, spec.fill_value)
    return arrays


def _batches(
    elements: tf.data.Dataset,
    source: Source,
    config: ClipConfig,
    specs: Mapping[str, Field],
    arrays: _Arrays,
    read: Callable[[int, int], dict[str, np.ndarray]],
    crops: _Crops,
    squares: int,
    rows: int,
    bad_files: BadFiles | None,
) -> Iterator[tuple[Batch, Batch]]:
    """Reads (position, index) elements in parallel and batches them in order; an index of -1 is a padding row.

    `crops` returns `squares` crops. Yields the arrays common to all views of a row (b ...), and those that each view
    has separately (b v ...).
    """
    workers = config.workers or core_count()
    streams = [name for name, spec in specs.items() if spec.kind == "frames"]
    clips = arrays["times"][1][0]
    black = {name: (clips * config.frames, 1, 1, *specs[name].shape) for name in streams}
    empty_row = {name: np.full(black.get(name, shape), fill, dtype) for name, (dtype, shape, fill) in arrays.items()}
    defects: list[Exception] = []

    def read_or_report(position: np.integer, index: np.integer) -> tuple:
        values, error = empty_row, "padding"
        if index >= 0:
            try:
                values, error = read(int(index), int(position)), ""
            except DecodeError as failure:
                error = str(failure).encode(errors="surrogatepass")  # the path may not be UTF-8
            except Exception as failure:  # not caused by the file: raised again outside tf.data, with its traceback
                defects.append(failure)
                error = "defect"
        return *(values[name] for name in arrays), error

    @tf.autograph.experimental.do_not_convert
    def make_row(position: tf.Tensor, index: tf.Tensor) -> dict[str, tf.Tensor]:
        types = [*(tf.as_dtype(dtype) for dtype, _, _ in arrays.values()), tf.string]
        *values, error = tf.numpy_function(read_or_report, [position, index], types, stateful=False)
        row = dict(zip(arrays, values, strict=True))
        for name, (_, shape, _) in arrays.items():
            row[name].set_shape(shape)
        error.set_shape(())
        valid = tf.equal(error, "")
        decoded = {name: row.pop(name) for name in streams}

        def cut_views() -> dict[str, tf.Tensor]:
            """The decoded frames cropped by each crop (v t size size c), and the crops (v 7)."""
            crops_and_seeds = crops(tf.shape(decoded["video"])[1], tf.shape(decoded["video"])[2], position)
            cropped = {}
            for name in streams:
                cuts = [cut(decoded[name], crop, config.size, specs[name].mirrored) for crop, _ in crops_and_seeds]
                if specs[name].color:
                    pairs = zip(cuts, (seed for _, seed in crops_and_seeds), strict=True)
                    cuts = [each if seed is None else change_pixels(each, config.augment, seed) for each, seed in pairs]
                cropped[name] = join_views(cuts, config.frames)
            return cropped | {"crop": tf.tile(tf.stack([crop for crop, _ in crops_and_seeds]), (clips, 1))}

        count = clips * squares
        shapes = {name: (count, config.frames, config.size, config.size, *specs[name].shape) for name in streams}

        def leave_black() -> dict[str, tf.Tensor]:
            empty = {name: tf.zeros(shape, tf.uint8) for name, shape in shapes.items()}
            return empty | {"crop": tf.zeros((count, 7), tf.int32)}

        row |= tf.cond(valid, cut_views, leave_black)
        for name, shape in shapes.items():
            row[name].set_shape(shape)
        row["crop"].set_shape((count, 7))
        return row | {"valid": valid, "index": tf.cast(index, tf.int32), "error": error}

    dataset = elements.map(make_row, num_parallel_calls=workers, deterministic=True)
    dataset = dataset.batch(rows).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    for batch in dataset.with_options(options).as_numpy_iterator():
        if defects:
            raise defects[0]
        for index, error in zip(batch["index"], batch.pop("error"), strict=True):
            if bad_files is not None and error and index >= 0:
                bad_files.add(source.ids[index], error.decode(errors="surrogatepass"))
        yield _split_views(batch, specs, clips)


def _split_views(batch: Batch, specs: Mapping[str, Field], clips: int) -> tuple[Batch, Batch]:
    """Splits a batch into arrays common to all views and arrays per view, with boxes in coordinates of each crop."""
    crop = batch.pop("crop")
    squares = crop.shape[1] // clips
    per_view = {"crop": crop, "times": np.repeat(batch.pop("times"), squares, axis=1)}
    for name, spec in specs.items():
        if spec.kind == "numbers":
            continue
        per_view[name] = batch.pop(name)
        if spec.kind in BY_TIME:
            per_view[name] = np.repeat(per_view[name], squares, axis=1)  # (b v ...)
        if spec.kind == "boxes":
            per_view[name] = np.repeat(per_view[name][:, None], crop.shape[1], axis=1)
        if spec.kind in ("boxes", "tracks"):
            middle = (1,) * (per_view[name].ndim - 3)  # n, or t and n
            per_view[name] = boxes_in_crop(per_view[name], crop.reshape(*crop.shape[:2], *middle, 7), spec.fill_value)
    return batch, per_view


def _merge_views(common: Batch, per_view: Batch) -> Batch:
    """Merges the axes b and v into rows."""
    per_view |= {name: common.pop(name) for name in ("ids", "truncated") if name in common}  # drawn for each
    views = per_view["crop"].shape[1]
    merged = {name: values.reshape(-1, *values.shape[2:]) for name, values in per_view.items()}
    return merged | {name: np.repeat(values, views, axis=0) for name, values in common.items()}


def _only_view(per_view: Batch) -> Batch:
    return {name: values[:, 0] for name, values in per_view.items()}


def _closing(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches as a generator that is closed at exit."""
    running = (batch for batch in batches)
    _running.add(running)
    return running
