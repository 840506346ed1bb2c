"""Formats in which the frames of a record could be stored: speed on one core, bytes, and error.

The clips that training samples from the videos are encoded in each format. Then the time is measured from the encoded
frames of a clip, in memory, to its cropped and resized pixels, as by the input pipeline.
"""

import dataclasses
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from benchmark.process import keep_to
from vidjax.cli import check_files
from vidjax.data.config import AugmentConfig, DataConfig
from vidjax.errors import UserError
from vidjax.fields import check_values


@dataclasses.dataclass(frozen=True)
class Formats:
    """JPEG, H.264 of keyframes only, and uncompressed frames."""

    source: str
    """Videos, as for --data.source of the training scripts."""
    data: DataConfig = DataConfig(augment=AugmentConfig(flip=True))
    """How clips are sampled and cropped (source and workers are set by the benchmark)."""
    clips: int = 16
    """Number of clips."""
    rounds: int = 3
    """Measurements of each format."""
    json: str | None = None
    """Write the numbers to this file."""

    def __post_init__(self) -> None:
        check_values(self)
        for name in ("clips", "rounds"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        check_files(json=self.json)


class Format(NamedTuple):
    """A way to store the frames of a clip, uint8 (t h w 3) with even height and width."""

    encode: Callable[[np.ndarray], list[bytes]]
    part: Callable[[list[bytes], np.ndarray], tuple[Any, np.ndarray]]
    """From the encoded frames and a crop to frames for `augment.cut`, and the crop in them."""


def jpeg(quality: int) -> Format:
    """JPEG with halved chroma, as `write_tfrecords.py` writes it."""
    from vidjax.data.images import EncodedFrames, encode_frames

    return Format(
        lambda frames: encode_frames(frames, quality),
        lambda images, crop: (EncodedFrames(images, range(len(images)), None, "x"), crop),
    )


def h264(crf: int) -> Format:
    """H.264 in which every frame is a keyframe, with the preset that is decoded fastest."""
    import av

    from vidjax.data.display import Resizer

    def encode(frames: np.ndarray) -> list[bytes]:
        codec = av.CodecContext.create("libx264", "w")
        codec.height, codec.width = frames.shape[1:3]
        codec.pix_fmt, codec.time_base, codec.gop_size = "yuv420p", Fraction(1, 25), 1
        codec.options = {"crf": str(crf), "preset": "ultrafast", "tune": "zerolatency"}
        images = [av.VideoFrame.from_ndarray(frame) for frame in frames]
        return [bytes(packet) for image in [*images, None] for packet in codec.encode(image)]

    def part(packets: list[bytes], crop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codec, resize = av.CodecContext.create("h264", "r"), Resizer()
        codec.thread_count = 1
        images = [image for packet in [*map(av.Packet, packets), None] for image in codec.decode(packet)]
        return np.stack([resize(image, image.height, image.width) for image in images]), crop

    return Format(encode, part)


def planes(height: int, width: int) -> Format:
    """Uncompressed luma, and chroma of half the height and width (4:2:0)."""
    import av

    from vidjax.data.display import EXACT, Resizer

    sizes = ((height, width), (height // 2, width // 2), (height // 2, width // 2))

    def encode(frames: np.ndarray) -> list[bytes]:
        images = [
            av.VideoFrame.from_ndarray(frame).reformat(format="yuvj420p", interpolation=EXACT) for frame in frames
        ]
        return [b"".join(_rows(plane)[:, : plane.width].tobytes() for plane in image.planes) for image in images]

    def part(stored: list[bytes], crop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        top, left = crop[0] // 2 * 2, crop[1] // 2 * 2
        bottom, right = -(-(crop[0] + crop[2]) // 2) * 2, -(-(crop[1] + crop[3]) // 2) * 2
        resize, images = Resizer(), []
        for data in stored:
            image, start = av.VideoFrame(int(right - left), int(bottom - top), "yuvj420p"), 0
            for plane, size in zip(image.planes, sizes, strict=True):
                whole, step = np.frombuffer(data, np.uint8, size[0] * size[1], start).reshape(size), height // size[0]
                inside = whole[top // step : bottom // step, left // step : right // step]
                _rows(plane)[:, : plane.width] = inside
                start += whole.size
            images.append(resize(image, image.height, image.width))
        return np.stack(images), np.array([*crop[:2] - [top, left], *crop[2:4], bottom - top, right - left, crop[6]])

    return Format(encode, part)


def _rows(plane: Any) -> np.ndarray:
    return np.asarray(memoryview(plane)).reshape(plane.height, plane.line_size)


def pixels(height: int, width: int) -> Format:
    """Uncompressed RGB."""

    def part(stored: list[bytes], crop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from vidjax.data.crop import cut_region

        frames = np.frombuffer(b"".join(stored), np.uint8).reshape(-1, height, width, 3)
        region, (moved,) = cut_region(frames, crop[None])
        return region, moved

    return Format(lambda frames: [frame.tobytes() for frame in frames], part)


FORMATS: dict[str, Callable[[int, int], Format]] = {
    **{f"JPEG {quality}": lambda height, width, quality=quality: jpeg(quality) for quality in (75, 85, 90, 95)},
    **{f"H.264 intra, CRF {crf}": lambda height, width, crf=crf: h264(crf) for crf in (12, 18)},
    "uncompressed 4:2:0": planes,
    "uncompressed RGB": pixels,
}
"""Formats by name, for frames of a height and width."""


def measure_formats(config: Formats) -> list[dict[str, Any]]:
    """Measures every format in a process that is restricted to one core.

    Returns:
      A row for each: `format`, `clips_per_second` (median), `least`, `most`, `cpu_ms` (CPU time per clip),
      `frame_bytes` (mean), `error` (mean absolute difference from the frames that were encoded, of 255 levels) and
      `psnr` (in dB, None if they are equal).

    Raises:
      UserError: the source cannot be read.
    """
    with multiprocessing.get_context("spawn").Pool(1, keep_to, (1,)) as pool:
        return pool.apply(_measure, (config,))


def _measure(config: Formats) -> list[dict[str, Any]]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from vidjax.data.augment import cut
    from vidjax.data.crop import random_crop
    from vidjax.data.decode import DecodeError
    from vidjax.data.sampling import sample
    from vidjax.data.sources import open_source

    data, source, clips, number = config.data, open_source(config.source, config.data.split), [], 0
    while len(clips) < config.clips:
        if number >= len(source) and not clips:
            raise UserError(f"none of the videos of {config.source} can be read: run experiments/check_data.py on it")
        try:
            with source.open(number % len(source), ()) as example:
                video, rng = example.streams["video"], np.random.default_rng(number)
                frames, _ = video.read(
                    sample(data, video.info.num_frames, video.info.rate, rng), data.decode_short_side
                )
            height, width = (side // 2 * 2 for side in frames.shape[1:3])
            crop = random_crop(height, width, data.augment, data.size, (0, number), data.center_ratio)
            clips.append((np.ascontiguousarray(frames[:, :height, :width]), crop))
        except DecodeError:
            pass
        number += 1

    stored = {}
    for name, make in FORMATS.items():
        formats = [make(*frames.shape[1:3]) for frames, _ in clips]
        stored[name] = [(each, each.encode(frames), crop) for each, (frames, crop) in zip(formats, clips, strict=True)]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in FORMATS}
    for round_ in range(-1, config.rounds):  # the first is not counted
        for name, encoded in stored.items():
            start, cpu = time.perf_counter(), time.process_time()
            for each, images, crop in encoded:
                cut(*each.part(images, crop), data.size)
            if round_ >= 0:
                times[name].append((time.perf_counter() - start, time.process_time() - cpu))
    return [{"format": name, **_numbers(stored[name], clips, times[name])} for name in FORMATS]


def _numbers(encoded: list, clips: list, times: list[tuple[float, float]]) -> dict[str, Any]:
    differences, sizes = [], []
    for (each, images, _), (frames, _) in zip(encoded, clips, strict=True):
        height, width = frames.shape[1:3]
        decoded, _ = each.part(images, np.array([0, 0, height, width, height, width, 0], np.int32))
        differences.append((decoded[:, :, :].astype(np.int16) - frames).ravel())
        sizes += [len(image) for image in images]
    difference = np.concatenate(differences).astype(np.float64)
    speeds = [len(clips) / seconds for seconds, _ in times]
    squared = (difference**2).mean()
    return {
        "clips_per_second": statistics.median(speeds),
        "least": min(speeds),
        "most": max(speeds),
        "cpu_ms": 1e3 * statistics.median(cpu for _, cpu in times) / len(clips),
        "frame_bytes": round(statistics.mean(sizes)),
        "error": float(np.abs(difference).mean()),
        "psnr": 10 * float(np.log10(255**2 / squared)) if squared else None,
    }
