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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from vidjax.data.augment import augment, center_crop, view_crops
from vidjax.data.config import ClipConfig, TrainClipConfig, core_count
from vidjax.data.decode import DecodeError
from vidjax.data.sampling import sample, views
from vidjax.data.sources import Source
from vidjax.data.text import Tokenizer, tokenize
from vidjax.errors import UserError

tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's

Batch = dict[str, np.ndarray]
"""`video` uint8 (b t h w c); `label` int32 (b,), -1 for none; `valid` bool (b,), False for rows that could not be
read or only fill the batch, whose video is black; `index` int32 (b,), the example, -1 for rows that fill. With a
tokeniser also `ids` int32 (b m), of a caption, all 0 for rows that are not valid, and `truncated` bool (b,), whether
the caption was longer than m tokens."""


_Row = tuple[np.ndarray, np.int32, np.ndarray, np.ndarray]
"""A clip's frames, its label, the ids of its captions and which of them were too long."""

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
) -> Iterator[Batch]:
    """This process's rows of the batches first_batch, first_batch + 1, ... without end.

    Args:
      source: the examples; each comes once an epoch, in an order of the epoch's own.
      config: sampling, size, augmentation, repeats and workers.
      batch_size: rows of the batch over all processes; process k gets rows [k * b / P, (k + 1) * b / P). The repeats
        must divide them.
      seed: of the order, the sampling and the augmentation.
      first_batch: number of the first batch.
      process_index: k.
      process_count: P, which must divide the batch size.
      bad_files: told of every example that cannot be read; its row is black and not `valid`, never replaced.
      tokenizer: makes ids of captions. Of an example's captions one is drawn for each row, whatever is drawn for the
        pixels; an example without any is an error, raised by the iterator.
      context: tokens of a caption, start and end included.
    """
    repeats, count = config.repeats, len(source)
    rows = _rows(batch_size, process_count)
    if rows % repeats:
        raise UserError(f"{rows} clips of a batch are not whole videos of {repeats} repeats: make them a multiple")
    groups, write = rows // repeats, _Writer(source, tokenizer, context)

    def read(index: int, position: int, short_side: int) -> _Row:
        rng = np.random.Generator(np.random.Philox(key=[seed, position]))
        clip = source.read(index, lambda info: sample(config, info.num_frames, info.rate, rng), short_side)
        # Far from there in the same stream, so that neither draw moves the other.
        draws = np.random.Generator(np.random.Philox(key=[seed, position], counter=[0, 0, 0, 1])).random(repeats)
        return clip.frames, np.int32(clip.label), *write(index, clip.captions, draws)

    @tf.autograph.experimental.do_not_convert
    def position_and_index(element: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = first_batch + element // groups
        position = (batch * process_count + process_index) * groups + element % groups
        order_seed = tf.stack([tf.constant(seed, tf.int64), position // count])
        index = tf.random.experimental.index_shuffle(position % count, order_seed, count - 1)
        return position, index

    def crop(video: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
        seeds = [tf.stack([tf.constant(seed, tf.int64), position * repeats + i]) for i in range(repeats)]
        ratio = config.center_ratio
        return tf.stack([augment(video, config.augment, config.size, clip_seed, ratio) for clip_seed in seeds])

    def merged() -> Iterator[Batch]:
        ids = (repeats, write.width)
        for batch in _batches(elements, source, config, read, crop, (repeats,), ids, groups, bad_files):
            own = {name: batch.pop(name) for name in ("video", "ids", "truncated") if name in batch}
            rows = {name: np.repeat(values, repeats) for name, values in batch.items()}
            yield {name: values.reshape(-1, *values.shape[2:]) for name, values in own.items()} | rows

    elements = tf.data.Dataset.range(np.iinfo(np.int64).max).map(position_and_index)
    batches = merged()
    _running.add(batches)
    return batches


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
) -> Iterator[Batch]:
    """This process's rows of batches that hold each example once, in order: middle clip, middle crop, or many views.

    The last batch is filled up with rows that are not `valid` and have index -1; every process gets the same number
    of batches.

    Args:
      source: the examples.
      config: sampling, size and workers; the augmentation is not used.
      batch_size: rows of the batch over all processes.
      view_counts: clips over time and crops over space of each example, as in (4, 3): `video` is then (b v t h w c),
        the crops of a clip next to each other.
      indices: which examples, all when None.
      process_index: this process gets rows [k * b / P, (k + 1) * b / P) of each batch.
      process_count: P, which must divide the batch size.
      bad_files: told of every example that cannot be read; its row is black and not `valid`.
      tokenizer: makes ids of the first caption of each example; one without any is an error, raised by the iterator.
      context: tokens of a caption, start and end included.
    """
    rows = _rows(batch_size, process_count)
    indices = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
    batches = -(-len(indices) // batch_size)
    padded = np.full(batches * batch_size, -1, np.int64)
    padded[: len(indices)] = indices
    mine = padded.reshape(batches, process_count, rows)[:, process_index].reshape(-1)

    write = _Writer(source, tokenizer, context)
    clips, crops = view_counts or (1, 1)

    def read(index: int, position: int, short_side: int) -> _Row:
        clip = source.read(index, lambda info: views(info.num_frames, info.rate, config, clips).ravel(), short_side)
        return clip.frames, np.int32(clip.label), *write(index, clip.captions, np.zeros(()))

    def crop(video: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
        if view_counts is None:
            return center_crop(video, config.size, config.center_ratio)
        return view_crops(video, config.frames, config.size, crops, config.center_ratio)

    elements = tf.data.Dataset.from_tensor_slices((mine, mine))
    leading = () if view_counts is None else (clips * crops,)
    batches = _batches(elements, source, config, read, crop, leading, (write.width,), rows, bad_files)
    _running.add(batches)
    return batches


def _rows(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"the batch size {batch_size} is not divisible by the {process_count} processes: make it a multiple"
        )
    return batch_size // process_count


@dataclass(frozen=True)
class _Writer:
    """Writes an example's captions as ids; without a tokeniser as rows of none."""

    source: Source
    tokenizer: Tokenizer | None
    context: int | None

    def __post_init__(self) -> None:
        if self.tokenizer is not None and self.context is None:
            raise UserError(
                "a tokenizer needs a context: give the number of tokens that a caption is cut or filled up to"
            )

    @property
    def width(self) -> int:
        return 0 if self.tokenizer is None else self.context

    def __call__(self, index: int, captions: tuple[str, ...], draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`ids` (... m) and `truncated` (...) of the captions that `draws` (...), numbers in [0, 1), fall on."""
        if self.tokenizer is None:
            return np.zeros((*draws.shape, 0), np.int32), np.zeros(draws.shape, bool)
        if not captions:
            raise UserError(f"{self.source.ids[index]} has no caption: give it one, or leave it out")
        chosen = [captions[int(draw * len(captions))] for draw in draws.ravel()]
        ids, truncated = zip(*(tokenize(self.tokenizer, text, self.context) for text in chosen), strict=True)
        return np.stack(ids).reshape(*draws.shape, self.width), np.array(truncated).reshape(draws.shape)


def _batches(
    elements: tf.data.Dataset,
    source: Source,
    config: ClipConfig,
    read: Callable[[int, int, int], _Row],
    crop: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    leading: tuple[int, ...],
    ids: tuple[int, ...],
    rows: int,
    bad_files: BadFiles | None,
) -> Iterator[Batch]:
    """Reads (position, index) elements side by side, in order; an index of -1 fills a batch.

    What `crop` gives has the axes `leading` before those of a clip. `ids` is the shape of an example's ids; where its
    last number is 0, batches have none.
    """
    workers = config.workers or core_count()
    black = np.zeros((config.frames, 1, 1, 3), np.uint8)
    nothing: _Row = (black, np.int32(-1), np.zeros(ids, np.int32), np.zeros(ids[:-1], bool))
    defects: list[Exception] = []

    def read_or_report(position: np.integer, index: np.integer) -> tuple:
        if index < 0:
            return *nothing, "fill"
        try:
            return *read(int(index), int(position), config.decode_short_side), ""
        except DecodeError as error:
            return *nothing, str(error).encode(errors="surrogatepass")  # TensorFlow takes no name that is no UTF-8
        except Exception as error:  # ours or the user's, not the file's: raised again where the user can see it
            defects.append(error)
            return *nothing, "defect"

    @tf.autograph.experimental.do_not_convert
    def make_row(position: tf.Tensor, index: tf.Tensor) -> dict[str, tf.Tensor]:
        types = [tf.uint8, tf.int32, tf.int32, tf.bool, tf.string]
        video, label, tokens, truncated, error = tf.numpy_function(
            read_or_report, [position, index], types, stateful=False
        )
        video.set_shape((None, None, None, 3))
        label.set_shape(())
        tokens.set_shape(ids)
        truncated.set_shape(ids[:-1])
        error.set_shape(())
        valid = tf.equal(error, "")
        shape = (*leading, config.frames, config.size, config.size, 3)
        video = tf.cond(valid, lambda: crop(video, position), lambda: tf.zeros(shape, tf.uint8))
        video.set_shape(shape)
        row = {"video": video, "label": label, "valid": valid, "index": tf.cast(index, tf.int32), "error": error}
        return row | ({"ids": tokens, "truncated": truncated} if ids[-1] else {})

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
        yield batch
