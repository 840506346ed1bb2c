"""Small videos for the tests: every frame shows its number as bars that survive lossy coding."""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation

CLIPS = Path(__file__).resolve().parents[2] / "shared" / "clips"
"""Real clips, which not every machine has."""
REAL_CLIPS = tuple(
    sorted(p for p in CLIPS.glob("*") if p.suffix in (".avi", ".mkv", ".mov", ".mp4") and p.name != "corrupted.mp4")
)
_BITS = 10


def numbered(count: int, height: int = 48, width: int = 80, first: int = 0) -> np.ndarray:
    """Frames `t h w 3`: light and dark bars are the bits of the frame's number; the bottom third is red."""
    bits = (np.arange(first, first + count)[:, None] >> np.arange(_BITS)) & 1
    columns = np.arange(width) * _BITS // width
    frames = np.repeat((40 + 170 * bits[:, None, columns, None]).astype(np.uint8), height, axis=1)
    frames = np.repeat(frames, 3, axis=3)
    frames[:, -(height // 3) :] = (200, 30, 30)
    return frames


def numbers(frames: np.ndarray) -> list[int]:
    """Reads the numbers in frames made by `numbered`, at any size."""
    height, width = frames.shape[1:3]
    columns = (np.arange(_BITS) * 2 + 1) * width // (2 * _BITS)
    bits = frames[:, height // 4, columns].mean(-1) > 125
    return (bits << np.arange(_BITS)).sum(-1).tolist()


def write_video(
    path: Path,
    frames: np.ndarray,
    rate: float = 25,
    codec: str = "libx264",
    times: Sequence[float] | None = None,
    rotation: int = 0,
    b_frames: int = 2,
    keyframe_every: int = 12,
    skip: int = 0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    last: float = 1,
) -> Path:
    """Encodes frames `t h w 3`.

    Args:
      path: the suffix determines the container.
      frames: uint8 RGB.
      rate: frames per second.
      codec: libx264, mpeg4, mjpeg, ...
      times: presentation times in seconds (variable rate); None for a constant rate.
      rotation: degrees of the display matrix, counter-clockwise.
      b_frames: maximum number of consecutive B-frames.
      keyframe_every: keyframe interval in frames.
      skip: frames in the file that an edit list hides (mp4).
      options: options of the encoder.
      container_options: options of the container.
      last: duration of the last packet in frames.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        context = stream.codec_context
        context.gop_size, context.max_b_frames, context.thread_count = keyframe_every, b_frames, 1
        context.options = ({"sc_threshold": "0", "crf": "18"} if codec == "libx264" else {}) | (options or {})
        if times is not None:
            stream.time_base = context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        packets = []
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number if times is None else round(times[number] * 1000)
            frame.time_base = context.time_base if times is not None else 1 / Fraction(rate).limit_denominator(1001)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        packets[-1].duration = round(last / (Fraction(rate).limit_denominator(1001) * packets[-1].time_base))
        for packet in packets:
            shift = round(skip / stream.average_rate / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            container.mux(packet)
    return path


def write_sound(path: Path) -> Path:
    """Writes a file with audio only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="stereo")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def streamed(path: Path, indices: Sequence[int], short_side: int | None = None) -> np.ndarray:
    """The frames at increasing indices, read one by one."""
    from vidjax.data.decode import open_clip  # after the import hook of conftest.py

    with open_clip(path) as clip:
        frames = list(clip.iterate(indices, short_side))
    return np.stack(frames) if frames else np.zeros((0, 1, 1, 3), np.uint8)


def sequential(path: Path) -> np.ndarray:
    """Every frame of a file, upright, decoded from start to end."""
    with av.open(str(path)) as container:
        return np.stack([np.rot90(exact(f), f.rotation // 90) for f in container.decode(video=0)])


def exact(frame: av.VideoFrame) -> np.ndarray:
    """A frame as RGB without swscale's shortcuts (tests/data/test_display.py checks the arithmetic)."""
    flags = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    return frame.reformat(format="rgb24", interpolation=flags).to_ndarray()


def average_rate(path: Path) -> float:
    """Frames per second over the duration in the file's header."""
    with av.open(str(path)) as container:
        return float(container.streams.video[0].average_rate)


def truncate(path: Path, fraction: float) -> Path:
    """Truncates a file to this fraction of its bytes, like a broken download."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def write_shards(folder: Path) -> None:
    """Writes two TFRecord files of two numbered videos each, with labels, captions and a classes.json."""
    import tensorflow as tf

    from vidjax.data import images, records  # after the import hook of conftest.py

    for shard in range(2):
        with tf.io.TFRecordWriter(str(folder / f"videos-{shard}.tfrecord")) as writer:
            for i in range(2):
                number = 100 * shard + 10 * i
                frames = images.encode_frames(numbered(6, first=number), quality=90)
                writer.write(
                    records.encode_record(
                        records.Record(frames, 12.5, 48, 80, i, "ab"[i], ("a text", "another") * i, f"clip {number}")
                    )
                )
    (folder / "classes.json").write_text(json.dumps(["a", "b"]))
