"""Training batches: reading, sampling and augmentation in a tf.data pipeline (evaluation batches: `batches`).

Batch n of a training run is a pure function of (seed, n). Row r of batch n is position p = n * batch_size + r in an
infinite sequence of epochs, and `index_shuffle` maps positions to examples. Every example therefore occurs once per
epoch, no example is dropped, and batches can span two epochs. All random choices for a clip depend on (seed, p). A run
can thus resume at `first_batch`, and processes need no communication. With repeated augmentation, a position
corresponds to several adjacent rows, which are read once and augmented differently.

In a mix of sources (see `mixing`), the positions of a batch are shuffled, each is assigned to a source by its place,
and the positions of a source are a sequence of epochs of its own. That, too, is a function of (seed, n) alone.

If a source has weights (see `hashtags`), an epoch has as many clips as the source has examples, but of each example as
many as its share of the weights: a number that is not whole is rounded up or down at random, another time in each
epoch, and is right on average.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from jaxtyping import Float

from vidjax.data.augment import cut
from vidjax.data.batches import BadFiles, closed_at_exit, local_rows
from vidjax.data.config import TrainClipConfig, core_count
from vidjax.data.crop import cut_region, random_crop
from vidjax.data.decode import DecodeError
from vidjax.data.example import Part, Source, field_specs, stream_names
from vidjax.data.mixing import slots
from vidjax.data.pixels import change_pixels
from vidjax.data.rows import Arrays, Batch, join_streams, read_clips, row_arrays, split_views, stored_names
from vidjax.data.sampling import sample
from vidjax.data.text import CaptionWriter, Tokenizer
from vidjax.errors import UserError

tf.config.set_visible_devices([], "GPU")  # leaves the GPU to JAX


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
    texts: int = 1,
    text_times: str | None = None,
) -> Iterator[Batch]:
    """Yields this process's rows of the batches first_batch, first_batch + 1, ... indefinitely.

    Args:
      source: the examples; each occurs once per epoch, in a different order in every epoch, or as often as its weight
        says. In a mix, this holds for the epochs of each of its sources, which have their shares of every batch.
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
      texts: captions of each row. If more than one, `ids` is (b k m), with rows of 0 where an example has fewer.
      text_times: one of the fields, of segments: start and end of each caption. Those nearest to the clip are taken,
        from the middle of one to that of the other, instead of any. The iterator raises UserError unless there are as
        many as captions.
    """
    repeats, count = config.repeats, len(source)
    rows = local_rows(batch_size, process_count)
    if rows % repeats:
        raise UserError(f"{rows} clips per process are not a multiple of {repeats} repeats: change one of them")
    specs = field_specs(source, config, fields)
    stored = stored_names(config, fields)
    if config.augment.rand_augment_ops and (boxes := [n for n in fields if specs[n].kind in ("boxes", "tracks")]):
        raise UserError(f"augment.rand_augment_ops moves pixels after the crop, but not {boxes[0]}: set it to 0")
    if config.augment.rand_augment_ops and len(streams := stream_names(config.stream)) > 1:
        raise UserError(f"augment.rand_augment_ops moves the pixels of {streams[0]}, but not {streams[1]}: set it to 0")
    if text_times is not None and specs[text_times].kind != "segments":
        raise UserError(f"{text_times} has {specs[text_times].kind}: give a field of segments, the times of captions")
    groups, write = rows // repeats, CaptionWriter(tokenizer, context, texts)
    if source.parts:
        order = _mixed_order(source.parts, seed, groups * process_count)
    else:
        order = _order(count, seed) if source.weights is None else _weighted_order(source.weights, seed)

    def read(index: int, position: int) -> dict[str, np.ndarray]:
        rng = np.random.Generator(np.random.Philox(key=[seed, position]))
        with source.open(index, stored) as example:
            info = example.streams[stored[0]].info
            indices = sample(config, info.num_frames, info.rate, rng)
            row, streams = read_clips(example, indices[None], config, specs)
        height, width = streams[stored[0]].shape[1:3]
        seeds = [(seed, position * repeats + i) for i in range(repeats)]
        how = (config.augment, config.size)
        crops = np.stack([random_crop(height, width, *how, each, config.center_ratio) for each in seeds])
        cuts = {}
        for name, frames in streams.items():
            spec = source.fields[name]
            # Several crops overlap: what contains them is decoded once.
            region, boxes = (frames, crops) if repeats == 1 else cut_region(frames, crops)
            clips = [cut(region, box, config.size, spec.mirrored) for box in boxes]
            if spec.color and config.augment.changes_pixels:
                clips = [change_pixels(*each, config.augment) for each in zip(clips, seeds, strict=True)]
            cuts[name] = np.stack(clips) if repeats > 1 else clips[0][None]
        row |= join_streams(cuts, config, specs)
        # Another part of the same random stream, so that the draws for captions and for frames are independent.
        draws = np.random.Generator(np.random.Philox(key=[seed, position], counter=[0, 0, 0, 1])).random(repeats)
        distances = None
        if text_times is not None:
            spans = np.reshape(example.values.get(text_times, ()), (-1, specs[text_times].shape[1]))
            distances = np.abs(spans[:, :2].mean(axis=1) - np.mean([row["times"].min(), row["times"].max()]))
        return row | {"crop": crops} | write(source.ids[index], example.captions, draws, distances)

    @tf.autograph.experimental.do_not_convert
    def position_and_index(element: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = first_batch + element // groups
        position = (batch * process_count + process_index) * groups + element % groups
        return position, order(position)

    elements = tf.data.Dataset.range(np.iinfo(np.int64).max).map(position_and_index)
    arrays = row_arrays(specs, config, 1, repeats) | write.arrays((repeats,))
    batches = _batches(elements, source, config, arrays, read, groups, bad_files)
    return closed_at_exit(_merge_views(*split_views(batch, specs, 1)) for batch in batches)


def _shuffle(index: tf.Tensor, seed: int, number: tf.Tensor, count: tf.Tensor | int) -> tf.Tensor:
    """Where an index below `count` is in the shuffle with this number."""
    return tf.random.experimental.index_shuffle(index, tf.stack([tf.constant(seed, tf.int64), number]), count - 1)


def _order(count: int, seed: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """The function from a position to the index of an example."""
    return lambda position: _shuffle(position % count, seed, position // count, count)


def _weighted_order(weights: Float[np.ndarray, "n"], seed: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """The function from a position to the index of an example that is drawn in proportion to its weight.

    An epoch is a systematic sample: each example has a part of the unit interval, and is drawn once for each of `n`
    evenly spaced points in it, whose offset is drawn for the epoch.
    """
    count, shuffled = len(weights), _order(len(weights), seed)
    ends = tf.constant(np.cumsum(weights) / np.sum(weights), tf.float64)

    def order(position: tf.Tensor) -> tf.Tensor:
        key = tf.stack([tf.constant(seed, tf.int64), position // count])
        offset = tf.random.stateless_uniform((), key, dtype=tf.float64)
        point = (tf.cast(shuffled(position), tf.float64) + offset) / count
        found = tf.searchsorted(ends, point[None], side="right", out_type=tf.int64)[0]
        return tf.minimum(found, count - 1)  # the last end may be rounded to less than one

    return order


def _mixed_order(parts: Sequence[Part], seed: int, positions: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """The function from a position to the index of an example in a mix.

    Args:
      parts: the sources of the mix.
      seed: seed of the order.
      positions: number of positions in a batch over all processes.
    """
    counts, weights = ([getattr(part, name) for part in parts] for name in ("count", "weight"))
    of_slot, before_slot = (tf.constant(each, tf.int64) for each in slots(weights))
    firsts = tf.constant(np.cumsum([0, *counts[:-1]]), tf.int64)
    counts, weights = tf.constant(counts, tf.int64), tf.constant(weights, tf.int64)

    def order(position: tf.Tensor) -> tf.Tensor:
        batch = position // positions
        # Shuffled, since clips of one source would otherwise lie at regular distances, and mixup pairs rows by place.
        # The numbers are negative, to differ from those of the epochs.
        place = batch * positions + _shuffle(position % positions, seed, -1 - batch, positions)
        cycle, slot = place // len(of_slot), place % len(of_slot)
        part = of_slot[slot]
        drawn = cycle * weights[part] + before_slot[slot]  # clips of this source before this one
        epoch = drawn // counts[part]
        return firsts[part] + _shuffle(drawn % counts[part], seed, epoch * len(parts) + part, counts[part])

    return order


def _batches(
    elements: tf.data.Dataset,
    source: Source,
    config: TrainClipConfig,
    arrays: Arrays,
    read: Callable[[int, int], dict[str, np.ndarray]],
    rows: int,
    bad_files: BadFiles | None,
) -> Iterator[Batch]:
    """Reads (position, index) elements in parallel and batches them in order."""
    workers = config.workers or core_count()
    empty_row = {name: np.full(shape, fill, dtype) for name, (dtype, shape, fill) in arrays.items()}
    defects: list[Exception] = []

    def read_or_report(position: np.integer, index: np.integer) -> tuple:
        values, error = empty_row, ""
        try:
            values = read(int(index), int(position))
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
        return row | {"valid": tf.equal(error, ""), "index": tf.cast(index, tf.int32), "error": error}

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
            if bad_files is not None and error:
                bad_files.add(source.ids[index], error.decode(errors="surrogatepass"))
        yield batch


def _merge_views(common: Batch, per_view: Batch) -> Batch:
    """Merges the axes b and v into rows."""
    per_view |= {name: common.pop(name) for name in ("ids", "truncated") if name in common}  # drawn for each
    views = per_view["crop"].shape[1]
    merged = {name: values.reshape(-1, *values.shape[2:]) for name, values in per_view.items()}
    return merged | {name: np.repeat(values, views, axis=0) for name, values in common.items()}
