"""Batches: a source, sampling and augmentation in one tf.data pipeline.

Batch n of a training run is a pure function of (seed, n). Row r of batch n is position p = n * batch_size + r in an
endless sequence of epochs; `index_shuffle` says which example that is, so every example comes once an epoch, nothing
is dropped, and batches run on across the ends of epochs. All random choices of a clip come from (seed, p). So a run
resumes by `first_batch` and hosts agree without talking to each other. With repeated augmentation a position stands for
several rows next to each other: one reading, augmented anew for each.
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

tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's

Batch = dict[str, np.ndarray]
"""What every batch holds:

    video   uint8 (b t h w c)
    label   int32 (b,), -1 for none
    valid   bool (b,), False for rows that could not be read or only fill the batch, whose video is black
    index   int32 (b,), the example, -1 for rows that fill
    times   float32 (b t), seconds of the frames from the start of the video or of the part of it; nan without a rate
    crop    int32 (b 7): top, left, height and width of the square in the decoded frame, the height and width of that
            frame, and 1 if it was mirrored; all 0 for rows that are not valid

and, with a tokeniser, `ids` int32 (b m), of a caption, all 0 for rows that are not valid, and `truncated` bool (b,),
whether the caption was longer than m tokens; and the further fields that were asked for, see `example.Field`."""

_Arrays = dict[str, tuple[str, tuple[int | None, ...], float]]
"""By name the type, shape and filling of what is read for a row, before it is cropped."""
_Crops = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], list[tuple[tf.Tensor, tf.Tensor | None]]]
"""Height, width and position of a row to its crops, each with the seed of its random changes (None for none)."""
BY_TIME = ("segments", "tracks", "samples")
"""Kinds of fields that each clip of an example has of its own."""

_running: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # A decoding thread that asks for Python's lock while the interpreter ends never gets it, and tf.data waits for
    # that thread: without this a script that leaves its endless batches open would hang at its last line.
    for batches in list(_running):
        with suppress(ValueError):  # another thread is in it
            batches.close()


class BadFiles:
    """The examples that could not be read, each listed once; stops a run that has too many of them."""

    def __init__(self, source: Source, max_share: float, path: str | Path | None = None):
        """Starts from the list at `path`, if there is one; without a path the list is kept in memory only."""
        self.errors: dict[str, str] = {}
        """By the example's id."""
        self._source, self._max_share, self._path = source, max_share, path and Path(path)
        if self._path and self._path.exists():
            ids = set(source.ids)  # data that were moved have other names
            for entry in map(json.loads, self._path.read_text().splitlines()):
                if entry["path"] in ids:
                    self._remember(**entry)

    def add(self, path: str, error: str) -> None:
        """Lists an example's id with its error, unless it is listed.

        Raises:
          UserError: more than the allowed share of the source's examples is bad.
        """
        if path not in self.errors:
            self._remember(path, error)
            if self._path:
                with open(self._path, "a") as file:
                    file.write(json.dumps({"path": path, "error": error}) + "\n")
        if len(self) > self._max_share * len(self._source):
            where = f"they are listed in {self._path}" if self._path else f"the last one: {error}"
            mend = "mend them and delete that list" if self._path else "mend them"
            raise UserError(
                f"{len(self)} of the {len(self._source)} examples of {self._source.name} cannot be read, more than "
                f"data.max_bad_share {self._max_share:g} allows: {where}; {mend}, or allow more"
            )

    def __len__(self) -> int:
        """The number of bad examples met so far."""
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
    """This process's rows of the batches first_batch, first_batch + 1, ... without end.

    Args:
      source: the examples; each comes once an epoch, in an order of the epoch's own.
      config: stream, sampling, size, augmentation, repeats and workers.
      batch_size: rows of the batch over all processes; process k gets rows [k * b / P, (k + 1) * b / P). The repeats
        must divide them.
      seed: of the order, the sampling and the augmentation.
      first_batch: number of the first batch.
      process_index: k.
      process_count: P, which must divide the batch size.
      bad_files: lists every example that cannot be read; its row is black and not `valid`, never replaced.
      tokenizer: makes ids of captions. Of an example's captions one is drawn for each row, whatever is drawn for the
        pixels; an example without any is an error, raised by the iterator.
      context: tokens of a caption, start and end included.
      fields: further fields of the source that the batches hold.
    """
    repeats, count = config.repeats, len(source)
    rows = _rows(batch_size, process_count)
    if rows % repeats:
        raise UserError(f"{rows} clips of a batch are not whole videos of {repeats} repeats: make them a multiple")
    specs = _specs(source, config, fields)
    if config.augment.rand_augment_ops and (boxes := [n for n in fields if specs[n].kind in ("boxes", "tracks")]):
        raise UserError(f"augment.rand_augment_ops turns and shifts frames, and {boxes[0]} cannot follow: set it to 0")
    groups, write = rows // repeats, CaptionWriter(tokenizer, context)

    def read(index: int, position: int) -> dict[str, np.ndarray]:
        rng = np.random.Generator(np.random.Philox(key=[seed, position]))
        with source.open(index, (*fields, config.stream)) as example:
            info = example.streams[config.stream].info
            indices = sample(config, info.num_frames, info.rate, rng)
            row = read_clips(example, indices[None], config, specs)
        # Far from there in the same stream, so that neither draw moves the other.
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
    return _closing(_merge_views(shared, own) for shared, own in batches)


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
    """This process's rows of batches that hold each example once, in order: middle clip, middle crop, or many views.

    The last batch is filled up with rows that are not `valid` and have index -1; every process gets the same number
    of batches.

    Args:
      source: the examples.
      config: stream, sampling, size and workers; the augmentation is not used.
      batch_size: rows of the batch over all processes.
      view_counts: clips over time and crops over space of each example, as in (4, 3): `video` is then (b v t h w c),
        the crops of a clip next to each other, and so have `times`, `crop` and the further fields that follow the clip
        an axis v.
      indices: which examples, all when None.
      process_index: this process gets rows [k * b / P, (k + 1) * b / P) of each batch.
      process_count: P, which must divide the batch size.
      bad_files: lists every example that cannot be read; its row is black and not `valid`.
      tokenizer: makes ids of the first caption of each example; one without any is an error, raised by the iterator.
      context: tokens of a caption, start and end included.
      fields: further fields of the source that the batches hold.
    """
    rows = _rows(batch_size, process_count)
    indices = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
    batches = -(-len(indices) // batch_size)
    padded = np.full(batches * batch_size, -1, np.int64)
    padded[: len(indices)] = indices
    mine = padded.reshape(batches, process_count, rows)[:, process_index].reshape(-1)

    write, specs = CaptionWriter(tokenizer, context), _specs(source, config, fields)
    clips, squares = view_counts or (1, 1)

    def read(index: int, position: int) -> dict[str, np.ndarray]:
        with source.open(index, (*fields, config.stream)) as example:
            info = example.streams[config.stream].info
            row = read_clips(example, views(info.num_frames, info.rate, config, clips), config, specs)
        return row | write(source.ids[index], example.captions, np.zeros(()))

    def crops(height: tf.Tensor, width: tf.Tensor, position: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor | None]]:
        return [(crop, None) for crop in view_crops(height, width, squares, config.center_ratio)]

    elements = tf.data.Dataset.from_tensor_slices((mine, mine))
    arrays = _arrays(specs, config, clips) | write.arrays(())
    batches = _batches(elements, source, config, specs, arrays, read, crops, squares, rows, bad_files)
    return _closing(shared | (own if view_counts else _only_view(own)) for shared, own in batches)


def read_clips(
    example: Example, indices: Int[np.ndarray, "v t"], config: ClipConfig, specs: Mapping[str, Field]
) -> dict[str, np.ndarray]:
    """Some clips of an open example: decoded frames, one clip after the other, and what is cut with them by time.

    Args:
      example: to read from.
      indices: frames of the stream that the config names.
      config: of the clips.
      specs: of what is read: `video`, which is that stream, and the further fields.
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
            chosen = np.minimum(chosen, other.info.num_frames - 1)  # of flow between frames there is one less
            row[name], _ = other.read(chosen.ravel(), config.decode_short_side)
    return row


def select(batches: Iterable[Batch], *names: str) -> Iterator[Batch]:
    """The batches with the arrays of these names alone: what a model does not need is not brought to the device."""
    return ({name: batch[name] for name in names} for batch in batches)


def _rows(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"the batch size {batch_size} is not divisible by the {process_count} processes: make it a multiple"
        )
    return batch_size // process_count


def _specs(source: Source, config: ClipConfig, fields: Sequence[str]) -> dict[str, Field]:
    """Of the stream that makes the clips, as `video`, and of the further fields."""
    (video,) = source.specs([config.stream]).values()
    if video.kind != "frames":
        raise UserError(f"data.stream {config.stream} is no field of frames of {source.name}: choose another")
    if {"video", "label"} & set(fields):
        raise UserError("video and label are in every batch: leave them out of the fields")
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
        arrays[name] = (spec.dtype, shape, spec.filling)
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
    """Reads (position, index) elements side by side, in order; an index of -1 fills a batch.

    `crops` gives `squares` of them. Yields what all views of a row share (b ...), and what each has for itself
    (b v ...).
    """
    workers = config.workers or core_count()
    streams = [name for name, spec in specs.items() if spec.kind == "frames"]
    clips = arrays["times"][1][0]
    black = {name: (clips * config.frames, 1, 1, *specs[name].shape) for name in streams}
    nothing = {name: np.full(black.get(name, shape), fill, dtype) for name, (dtype, shape, fill) in arrays.items()}
    defects: list[Exception] = []

    def read_or_report(position: np.integer, index: np.integer) -> tuple:
        found, error = nothing, "fill"
        if index >= 0:
            try:
                found, error = read(int(index), int(position)), ""
            except DecodeError as failure:
                error = str(failure).encode(errors="surrogatepass")  # TensorFlow takes no name that is no UTF-8
            except Exception as failure:  # ours or the user's, not the file's: raised again where the user can see it
                defects.append(failure)
                error = "defect"
        return *(found[name] for name in arrays), error

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
            """The decoded frames cut by each crop, (v t size size c), and the crops (v 7)."""
            made = crops(tf.shape(decoded["video"])[1], tf.shape(decoded["video"])[2], position)
            made_of = {}
            for name in streams:
                cuts = [cut(decoded[name], crop, config.size, specs[name].mirrored) for crop, _ in made]
                if specs[name].color:
                    pairs = zip(cuts, (seed for _, seed in made), strict=True)
                    cuts = [each if seed is None else change_pixels(each, config.augment, seed) for each, seed in pairs]
                made_of[name] = join_views(cuts, config.frames)
            return made_of | {"crop": tf.tile(tf.stack([crop for crop, _ in made]), (clips, 1))}

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
        yield _follow_crops(batch, specs, clips)


def _follow_crops(batch: Batch, specs: Mapping[str, Field], clips: int) -> tuple[Batch, Batch]:
    """What the views of a row share, and their own: a clip's times and values for each of its crops, boxes within."""
    crop = batch.pop("crop")
    squares = crop.shape[1] // clips
    own = {"crop": crop, "times": np.repeat(batch.pop("times"), squares, axis=1)}
    for name, spec in specs.items():
        if spec.kind == "numbers":
            continue
        own[name] = batch.pop(name)
        if spec.kind in BY_TIME:
            own[name] = np.repeat(own[name], squares, axis=1)  # (b v ...)
        if spec.kind == "boxes":
            own[name] = np.repeat(own[name][:, None], crop.shape[1], axis=1)
        if spec.kind in ("boxes", "tracks"):
            middle = (1,) * (own[name].ndim - 3)  # n, or t and n
            own[name] = boxes_in_crop(own[name], crop.reshape(*crop.shape[:2], *middle, 7), spec.filling)
    return batch, own


def _merge_views(shared: Batch, own: Batch) -> Batch:
    """Rows (b * v) of views (b v)."""
    own |= {name: shared.pop(name) for name in ("ids", "truncated") if name in shared}  # drawn for each
    views = own["crop"].shape[1]
    merged = {name: values.reshape(-1, *values.shape[2:]) for name, values in own.items()}
    return merged | {name: np.repeat(values, views, axis=0) for name, values in shared.items()}


def _only_view(own: Batch) -> Batch:
    return {name: values[:, 0] for name, values in own.items()}


def _closing(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches, in a generator that is closed at the end of the program."""
    running = (batch for batch in batches)
    _running.add(running)
    return running
