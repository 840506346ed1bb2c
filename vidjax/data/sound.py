"""Sound of video files: the waveform that belongs to a clip, decoded by PyAV and resampled to mono.

A sound is the field `sound` of an example, of the kind `samples`. Its samples start when the example's first frame is
shown: the time stamps of both streams are those of the file, so that a sound that starts later or earlier than the
picture stays in step with it, and a variable frame rate does not matter. Only what a clip needs is decoded.

A file without sound is no error, and its sound is not silence: it is missing, `sound_valid` is false. So is the sound
of a clip for which the file has less than half of the samples, or only zeros.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import av
import numpy as np
from jaxtyping import Float

from vidjax.data.container import LENIENT, as_fraction, blame_file
from vidjax.data.decode import DecodeError
from vidjax.data.example import Example, Field, Source
from vidjax.data.sources import FilePart
from vidjax.errors import UserError

MARGIN = 0.25
"""Seconds decoded before and after what is wanted: frames after a seek are incomplete, and resampling needs both."""
SLACK = 0.01
"""Seconds. Frames that begin so close to the end of the last one follow it: Matroska rounds to milliseconds."""
LOOKED_AT = 16
"""Videos that are looked at when a source is opened."""


@dataclass(frozen=True)
class Sound:
    """The sound of a video or of a part of it: `sound[a:b]` decodes samples a to b after the first frame."""

    path: str
    rate: int
    """Samples per second."""
    origin: float
    """Time of the first frame in the file, in seconds."""
    duration: float
    """Of the picture, in seconds: sound after it does not belong to it."""
    reverse: bool = False

    @classmethod
    def of(cls, part: FilePart, rate: int) -> "Sound":
        """The sound of a part of an open video file."""
        start = as_fraction(part.clip.stream.time_base) * (part.clip.stream.start_time or 0)
        first = part.first / part.clip.info.rate
        return cls(part.clip.path, rate, float(start) + first, part.info.duration, part.row.reverse)

    def __getitem__(self, wanted: slice) -> Float[np.ndarray, "n 1"]:
        """The samples, with zeros where some of them are missing; empty if half of them are, or none differs from 0.

        Raises:
          DecodeError: the file cannot be opened.
        """
        count = wanted.stop - wanted.start
        first = wanted.start
        if self.reverse:
            first = round(self.duration * self.rate) - wanted.stop
        with blame_file(self.path):
            samples, there = self._decode(first, count)
        inside = (np.arange(first, first + count) >= 0) & (np.arange(first, first + count) < self.duration * self.rate)
        samples, there = np.where(inside, samples, 0), there & inside
        if 2 * there.sum() < count or not samples.any():
            return np.zeros((0, 1), np.float32)
        return samples[:: -1 if self.reverse else 1, None]

    def _decode(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Samples from number `first` on, and which of them are in the file."""
        start = self.origin + first / self.rate
        with av.open(self.path if "://" in self.path else f"file:{self.path}", **LENIENT) as container:
            stream = container.streams.best("audio")
            if stream is None or stream.codec_context is None:  # no sound, or no decoder for it
                return np.zeros(count, np.float32), np.zeros(count, bool)
            stream.codec_context.thread_count = 1
            rate = stream.codec_context.sample_rate
            begin = start - MARGIN
            total = round((count / self.rate + 2 * MARGIN) * rate)
            source, known = np.zeros(total, np.float32), np.zeros(total, bool)
            following = None
            with suppress(av.FFmpegError):  # what was decoded before damage stays
                for time, samples in _frames(container, stream, begin, begin + total / rate):
                    place = round((time - begin) * rate)
                    if following is not None and abs(place - following) < SLACK * rate:
                        place = following
                    following = place + len(samples)
                    cut = slice(max(place, 0), max(min(place + len(samples), total), 0))
                    source[cut] = samples[cut.start - place : cut.stop - place]
                    known[cut] = True
        at = np.arange(count) / self.rate + MARGIN
        there = known[np.minimum(np.round(at * rate).astype(np.int64), total - 1)]
        return np.where(there, _resample(source, rate, self.rate)[_span(count, self.rate)], 0), there


def _span(count: int, rate: int) -> slice:
    skipped = round(MARGIN * rate)
    return slice(skipped, skipped + count)


def _frames(
    container: av.container.InputContainer, stream: av.AudioStream, begin: float, end: float
) -> Iterator[tuple[float, Float[np.ndarray, "n"]]]:
    """Time and mono samples of the frames between two times of the file; damaged ones are left out."""
    base = as_fraction(stream.time_base)
    start = stream.start_time or 0
    if begin / base > start:  # to before the first one that is wanted
        container.seek(max(int(begin / base), start), stream=stream)
    mono = av.AudioResampler(format="flt", layout="mono")
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            continue
        for frame in frames:
            if frame.time is None:
                continue
            if frame.time >= end:
                return
            for converted in mono.resample(frame):
                yield frame.time, converted.to_ndarray()[0]


def _resample(samples: Float[np.ndarray, "n"], rate: int, target: int) -> Float[np.ndarray, "m"]:
    """Samples at another rate, of which the first has the same time."""
    if rate == target:
        return samples
    frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="flt", layout="mono", rate=target)
    pieces = [each.to_ndarray()[0] for part in (frame, None) for each in resampler.resample(part)]
    return np.concatenate(pieces)


def with_sound(source: Source, rate: int, samples: int) -> Source:
    """A source whose examples have the field `sound`, from their files unless it is stored, see `example.Field`.

    Args:
      rate: samples per second.
      samples: number of samples of a clip.

    Raises:
      UserError: none of the videos looked at has sound, the source does not consist of video files, or its stored
        sound is no mono waveform of this rate.
    """
    field = Field("samples", (samples, 1), rate=rate)
    if (stored := source.fields.get("sound")) is not None:
        if (stored.kind, stored.shape[-1:], stored.rate) != ("samples", (1,), rate):
            raise UserError(
                f"the field sound of {source.name} is {stored.kind} of shape {list(stored.shape)} at {stored.rate} per "
                f"second: the model hears mono samples at {rate} per second, store it so"
            )
        return replace(source, fields={**source.fields, "sound": field})

    @contextmanager
    def open_example(index: int, names: Sequence[str]) -> Iterator[Example]:
        with source.open(index, [name for name in names if name != "sound"]) as example:
            if "sound" in names:
                video = example.streams["video"]
                example = replace(example, values={**example.values, "sound": Sound.of(_require_file(video), rate)})
            yield example

    def _require_file(stream: object) -> FilePart:
        if not isinstance(stream, FilePart):
            raise UserError(
                f"{source.name} has no sound: give video files, or store it in a field sound of samples at {rate} per "
                "second (fields.json)"
            )
        return stream

    heard = looked = 0
    for index in np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).astype(int)).tolist():
        try:
            with source.open(index, ()) as example:
                file = _require_file(example.streams["video"])
                heard += bool(file.clip.stream.container.streams.audio)
                looked += 1
        except DecodeError:
            continue  # counted when it is read
    if looked and not heard:
        raise UserError(f"none of the {looked} videos looked at in {source.name} has sound: choose others")
    note = f"sound: {heard} of {looked} videos looked at have some; clips without count as missing, not as silence"
    return replace(source, open=open_example, notes=(*source.notes, note), fields={**source.fields, "sound": field})
