"""Property tests of sampling and manifests with Hypothesis."""

import csv
import io
import json

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidjax.data.config import ClipConfig
from vidjax.data.labels import MISSING
from vidjax.data.manifest import list_manifest
from vidjax.data.sampling import dense, frame_times, frames_at, frames_spanned, sample, sampling_step, segments, views
from vidjax.data.windows import sampled_frames, window_starts

QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)
LENGTHS, FRAMES, RATES = st.integers(1, 500), st.integers(1, 40), st.sampled_from([12.5, 24000 / 1001, 25.0, 30.0])
OFFSETS = st.floats(0, 1, exclude_max=True)


@st.composite
def clip_configs(draw):
    sampling = draw(st.sampled_from(["dense", "segments", "uniform"]))
    fps = draw(st.none() | st.floats(0.5, 60))
    return ClipConfig(frames=draw(FRAMES), stride=draw(st.integers(1, 16)), fps=fps, sampling=sampling)


@QUICK
@given(clip_configs(), LENGTHS, RATES, st.none() | st.integers(0, 99))
def test_clips_consist_of_frames_of_the_video_in_order(config, length, rate, seed):
    indices = sample(config, length, rate, None if seed is None else np.random.default_rng(seed))
    assert indices.shape == (config.frames,) and indices.dtype == np.int64
    assert indices.min() >= 0 and indices.max() < length and (np.diff(indices) >= 0).all()


@QUICK
@given(LENGTHS, FRAMES, st.floats(0.1, 20), OFFSETS)
def test_dense_frames_are_a_step_apart_until_the_end(length, frames, step, offset):
    indices = dense(length, frames, step, offset)
    kept = indices < length - 1  # the last frame may be repeated
    distance = indices[kept] - indices[0]
    assert (np.abs(distance - np.arange(frames)[kept] * step) <= 0.5 + 1e-6).all()
    if length > np.floor((frames - 1) * step + 0.5):
        assert indices[-1] - indices[0] == np.floor((frames - 1) * step + 0.5)  # the clip is not shortened


@QUICK
@given(LENGTHS, FRAMES, st.integers(0, 99))
def test_segments_take_one_frame_from_each_part(length, frames, seed):
    indices = segments(length, frames, np.random.default_rng(seed).random(frames))
    parts = np.arange(frames + 1) * (length / frames)
    assert (indices > parts[:-1] - 1).all() and (indices < parts[1:]).all()


@QUICK
@given(clip_configs(), LENGTHS, RATES, st.integers(1, 6))
def test_views_cover_the_video_from_start_to_end(config, length, rate, count):
    if config.sampling == "uniform":
        count = 1
    actual = views(length, rate, config, count)
    assert actual.shape == (count, config.frames) and (np.diff(actual, axis=0) >= 0).all()
    if config.sampling == "dense" and count > 1:
        assert actual[0, 0] == 0
        if length >= frames_spanned(config, rate):
            assert actual[-1, -1] == length - 1


@QUICK
@given(st.lists(st.integers(0, 2000), min_size=1, max_size=20), RATES, RATES)
def test_frames_at_are_those_on_screen(indices, rate, other):
    times = frame_times(np.array([indices]), rate).astype(np.float32)
    np.testing.assert_array_equal(frames_at(times, 2001, rate), [indices])  # round trip
    actual = frames_at(times, 10**6, other)
    assert (actual / other <= times + 1e-3).all() and ((actual + 1) / other > times - 1e-3).all()
    assert frames_at(times, 3, other).max() <= 2


@QUICK
@given(LENGTHS, st.integers(1, 20), st.integers(1, 25), clip_configs(), RATES)
def test_windows_cover_the_video_to_its_end(length, window, hop, config, rate):
    sampled = sampled_frames(length, sampling_step(config, rate))
    assert sampled[0] == 0 and sampled[-1] < length and (np.diff(sampled) >= 0).all()
    starts = window_starts(len(sampled), window, hop)
    assert len(starts) == 0 if len(sampled) < window else starts[0] == 0
    if len(starts):
        assert (np.diff(starts) > 0).all() and starts[-1] + window <= len(sampled)
        if hop <= window:
            seen = {start + i for start in starts.tolist() for i in range(window)}
            assert seen == set(range(len(sampled)))


TEXTS = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(str.strip)
CLASSES = st.sampled_from(["run", "a b", "überholen", "x,y", 'say "hi"', "#1"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {"path": st.sampled_from(["a.mp4", "b c.mp4"]), "label": st.none() | CLASSES},
        optional={
            "caption": TEXTS.filter(lambda text: text == text.strip() and text not in MISSING),
            "start": st.floats(0, 5).map(lambda x: round(x, 3)),
            "end": st.floats(6, 9).map(lambda x: round(x, 3)),
            "reverse": st.booleans(),
        },
    ),
    min_size=1,
    max_size=6,
)


def listed(listing):
    names = [None if row.label < 0 else listing.class_names[row.label] for row in listing.rows]
    return [
        {"path": row.path.rpartition("/")[2], "label": name, "captions": row.captions, "part": (row.start, row.end)}
        | {"reverse": row.reverse}
        for row, name in zip(listing.rows, names, strict=True)
    ]


@settings(QUICK, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_csv_and_jsonl_manifests_are_equivalent(tmp_path, rows):
    for name in ("a.mp4", "b c.mp4"):
        (tmp_path / name).touch()
    columns = ("path", "label", "caption", "rejected", "start", "end", "reverse")
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / "list.csv").write_text(text.getvalue(), newline="")
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = [
        {
            "path": row["path"],
            "label": row["label"],
            "captions": (row["caption"],) if "caption" in row else (),
            "part": (row.get("start"), row.get("end")),
            "reverse": row.get("reverse", False),
        }
        for row in rows
    ]
    for name in ("list.csv", "list.jsonl"):
        assert listed(list_manifest(tmp_path / name)) == expected
