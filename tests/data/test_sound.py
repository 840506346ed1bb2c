"""The sound of a clip: what the file has at the clip's times, resampled, and nothing where the file has none."""

from pathlib import Path

import av
import numpy as np
import pytest
import videos

from vidjax.data.batches import evaluation_batches
from vidjax.data.config import AugmentConfig, ClipConfig, DataConfig
from vidjax.data.pipeline import train_batches
from vidjax.data.sound import with_sound
from vidjax.data.sources import open_source
from vidjax.errors import UserError

RATE = 8000
CLIPS = Path(__file__).resolve().parents[3] / "shared" / "clips"


def wave(seconds: np.ndarray) -> np.ndarray:
    """A sound that differs at all times: a rising tone, which starts at 0.3 s."""
    return np.where(seconds < 0.3, 0, 0.5 * np.sin(2 * np.pi * (200 * seconds + 150 * seconds**2)))


def write(
    path: Path, codec: str, sound_from: float, video_from: float = 0, seconds: float = 2, level: float = 1
) -> Path:
    """A video of 25 frames per second, and mono sound at 22050 Hz: `wave` of the time in the file."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"bf": "0"})
        video.width, video.height, video.pix_fmt = 40, 24, "yuv420p"
        sound = out.add_stream(codec, rate=22050, layout="mono")
        out.start_encoding()
        for number, image in enumerate(videos.numbered(round(25 * seconds))):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts = number + round(25 * video_from)
            out.mux(video.encode(frame))
        out.mux(video.encode())
        times = sound_from + np.arange(round(22050 * seconds)) / 22050
        for first in range(0, len(times), 1024):
            values = level * wave(times[first : first + 1024])
            form = sound.format.name
            values = np.round(values * 32767).astype(np.int16) if form == "s16" else values.astype(np.float32)
            frame = av.AudioFrame.from_ndarray(values[None], format=form, layout="mono")
            frame.sample_rate, frame.pts = 22050, first + round(22050 * sound_from)
            out.mux(sound.encode(frame))
        out.mux(sound.encode())
    return path


def heard(folder: Path, samples: int = 4000, **settings) -> dict[str, np.ndarray]:
    source = with_sound(open_source(str(folder)), RATE, samples)
    clips = ClipConfig(**{"frames": 8, "size": 24, "stride": 1} | settings)
    return next(evaluation_batches(source, clips, batch_size=len(source), fields=("sound",)))


def lag(sound: np.ndarray, start: float) -> float:
    """By how many seconds a clip's sound that should begin at a time of the file is late; nan if it is another."""
    times, lags = start + np.arange(len(sound)) / RATE, np.linspace(-0.05, 0.05, 2001)
    steady = np.abs(times - 0.3) > 0.06
    errors = [np.abs(sound[:, 0] - wave(times - each))[steady].max() for each in lags]
    return float(lags[np.argmin(errors)]) if min(errors) < 0.1 else float("nan")


@pytest.mark.parametrize(
    ("name", "codec", "sound_from", "video_from"),
    [
        ("a.mkv", "pcm_s16le", 0, 0),
        ("late.mkv", "pcm_s16le", 0.6, 0),
        ("early.mkv", "flac", 0, 0.4),
        ("a.mp4", "aac", 0, 0),
        ("early.mp4", "aac", 0, 0.4),
        ("a.avi", "pcm_s16le", 0, 0),
    ],
)
def test_the_sound_of_a_clip_is_that_of_its_times_in_the_file(name, codec, sound_from, video_from, tmp_path):
    write(tmp_path / name, codec, sound_from, video_from)
    batch = heard(tmp_path)
    start = float(batch["times"][0, 0])  # of the central clip
    assert start > 0.5 and batch["sound"].shape == (1, 4000, 1) and batch["sound_valid"].all()
    assert abs(lag(batch["sound"][0], video_from + start)) < 1e-3


def test_before_its_start_there_is_no_sound_and_a_part_has_its_own(tmp_path):
    write(tmp_path / "a.mkv", "pcm_s16le", 0.2)
    rows = ["path,start,end,reverse", "a.mkv,0,1,", "a.mkv,1,1.52,", "a.mkv,0.52,1.52,true"]
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    batch = heard(tmp_path / "list.csv", samples=8000, frames=40)
    first, part, backwards = batch["sound"][..., 0]
    assert batch["times"][:, 0].tolist() == [0, 0, 0] and batch["sound_valid"].all()
    assert not first[: round(0.29 * RATE)].any() and abs(lag(first[:, None], 0)) < 1e-3
    assert abs(lag(part[:4000, None], 1)) < 1e-3 and not part[4160:].any()  # not what follows the part
    assert abs(lag(backwards[::-1, None], 0.52)) < 1e-3


def test_silent_files_are_missing_and_counted_instead_of_zeros(tmp_path):
    write(tmp_path / "a.mkv", "pcm_s16le", 0)
    write(tmp_path / "late.mkv", "pcm_s16le", 1.5)  # after the clip
    write(tmp_path / "mute.mkv", "pcm_s16le", 0, level=0)
    videos.write_video(tmp_path / "silent.mp4", videos.numbered(50))
    assert heard(tmp_path)["sound_valid"].tolist() == [True, False, False, False]
    source = with_sound(open_source(str(tmp_path)), RATE, 4000)
    assert source.notes[-1] == (
        "sound: 3 of 4 videos looked at have some; clips without count as missing, not as silence"
    )
    clips = DataConfig(frames=8, size=24, stride=1, augment=AugmentConfig(crop="center"))
    batch = next(train_batches(source, clips, batch_size=4, seed=0, fields=("sound",)))
    assert batch["valid"].all() and batch["sound_valid"][np.argsort(batch["index"])].tolist()[2:] == [False, False]


def test_sources_without_sound_are_one_line(tmp_path):
    videos.write_video(tmp_path / "silent.mp4", videos.numbered(8))
    with pytest.raises(UserError, match=r"none of the 1 videos looked at in .* has sound: choose others"):
        with_sound(open_source(str(tmp_path)), RATE, 4000)
    with pytest.raises(UserError, match="moving_shapes has no sound: give video files, or store it in a field sound"):
        with_sound(open_source("synthetic:moving_shapes"), RATE, 4000)


@pytest.mark.skipif(not CLIPS.is_dir(), reason="needs the real clips")
def test_a_real_clip_has_sound_in_step_with_the_whole_track():
    path = CLIPS / "flipping_pancake.mkv"
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
        frames = list(file.decode(stream))
        start = frames[0].time
        whole = np.concatenate([x.to_ndarray()[0] for f in (*frames, None) for x in resampler.resample(f)])
    from vidjax.data.sound import Sound

    sound = Sound(str(path), RATE, 0.0, 10.0)
    for first in (8000, 30_000, 60_000):
        part, place = sound[first : first + 4000][:, 0], first - round(start * RATE)
        likeness = [np.corrcoef(part, whole[place + lag : place + lag + 4000])[0, 1] for lag in range(-8, 9)]
        assert max(likeness) > 0.99, first  # within a millisecond
