"""check_data.py on folders with valid, short and damaged videos."""

import json
import sys
from pathlib import Path

import pytest
import videos

from vidjax.data.config import DataConfig
from vidjax.data.sampling import sample
from vidjax.data.sources import Clip, open_source
from vidjax.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import check_data


@pytest.fixture
def folder(tmp_path):
    for label, count in (("wave", 40), ("jump", 40), ("jump", 8)):
        (tmp_path / "videos" / label).mkdir(parents=True, exist_ok=True)
        videos.write_video(tmp_path / "videos" / label / f"{count}.mp4", videos.numbered(count))
    (tmp_path / "videos" / "wave" / "damaged.mp4").write_bytes(b"no video")
    return tmp_path / "videos"


def run(folder, out, **more):
    data = DataConfig(frames=4, size=32, stride=5)
    return check_data.main(check_data.Config(source=str(folder), out=str(out), data=data, **more))


def test_the_summary_the_bad_files_and_the_contact_sheet(folder, tmp_path, capsys):
    summary = run(folder, tmp_path / "out")
    assert (summary["examples"], summary["unreadable"], summary["labelled"]) == (4, 1, 3)
    assert summary["classes"] == {"jump": 2, "wave": 1} and summary["codecs"] == {"h264": 3}
    assert summary["frames"] == {"min": 8, "median": 40, "max": 40} and summary["shorter_than_a_clip"] == 1
    assert summary["seconds_covered"]["max"] == pytest.approx(20 / 25)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    (listed,) = (json.loads(line) for line in (tmp_path / "out" / "bad_files.jsonl").read_text().splitlines())
    assert listed["path"].endswith("damaged.mp4") and listed["error"]
    assert (tmp_path / "out" / "contact_sheet.png").stat().st_size > 1000
    assert "4 examples, 4 looked at, 1 unreadable" in capsys.readouterr().out


def test_files_whose_packets_are_read_and_hdr_videos_are_reported(tmp_path, capsys):
    hdr = {"options": {"x264-params": "transfer=smpte2084"}}
    for name, more in (("a.mp4", {}), ("b.mp4", hdr), ("c.mkv", {})):
        videos.write_video(tmp_path / "videos" / name, videos.numbered(20), **more)
    summary = run(tmp_path / "videos", tmp_path / "out", clips=0)
    assert summary["hdr"] == {"PQ": 1} and summary["packets_read"] == [str(tmp_path / "videos" / "c.mkv")]
    printed = capsys.readouterr().out
    assert "HDR        PQ 1: not tone-mapped" in printed and "(.mkv 1;" in printed


def test_results_replace_only_those_of_an_earlier_check(folder, tmp_path):
    run(folder, tmp_path / "out", max_examples=2, clips=0)
    assert run(folder, tmp_path / "out", max_examples=2, clips=0)["looked_at"] == 2
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(ValueError, match=r"contains other files \(mine.txt\)"):
        run(folder, tmp_path / "out")


def test_an_unwritable_folder_is_refused_before_any_video_is_read(folder, tmp_path):
    (tmp_path / "file").touch()
    for out, reason in (("file", "File exists"), ("file/out", "Not a directory")):
        with pytest.raises(UserError, match=rf"cannot write to the folder \S+{out} \({reason}\): choose another --out"):
            run(folder, tmp_path / out)


def write_truncated(path):
    """A truncated file whose central clip is readable, but not the first clip of the contact sheet."""
    videos.write_video(path, videos.numbered(400), container_options={"movflags": "+faststart"})
    return videos.truncate(path, 0.73)


def test_a_file_with_a_readable_central_clip_only_is_listed_and_not_drawn(folder, tmp_path, capsys):
    cut = write_truncated(folder / "a" / "cut.mp4")
    (listed,) = (each for each in bad_files(folder, tmp_path / "out") if "damaged" not in each["path"])
    assert listed["path"] == str(cut) and listed["error"].startswith(str(cut))
    assert "5 examples, 5 looked at, 2 unreadable" in capsys.readouterr().out
    assert (tmp_path / "out" / "contact_sheet.png").stat().st_size > 1000
    assert run(folder, tmp_path / "out", clips=0)["unreadable"] == 1  # only its central clip is decoded
    assert not (tmp_path / "out" / "contact_sheet.png").exists()
    assert len(bad_files(cut.parent, tmp_path / "alone")) == 1
    assert not (tmp_path / "alone" / "contact_sheet.png").exists()


def bad_files(folder, out):
    run(folder, out)
    return [json.loads(line) for line in (out / "bad_files.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("frames", "stride", "fps"), [(4, 5, None), (4, 1, 5.0), (1, 9, None), (6, 3, None)])
def test_a_video_as_long_as_the_clip_is_not_short(frames, stride, fps, tmp_path):
    data = DataConfig(frames=frames, size=16, stride=stride, fps=fps)
    span = sample(data, 1000, 25.0, None)[-1] - sample(data, 1000, 25.0, None)[0] + 1
    for count in {span, max(span - 1, 1)}:
        videos.write_video(tmp_path / "videos" / f"{count}.mp4", videos.numbered(count), rate=25)
    config = check_data.Config(source=str(tmp_path / "videos"), out=str(tmp_path / "out"), data=data, clips=0)
    assert check_data.main(config)["shorter_than_a_clip"] == (span > 1)


def test_values_out_of_range_are_refused():
    for changes, message in [
        ({"clips": -1}, r"^clips is -1: it must be 0 \(no contact sheet\) or more$"),
        ({"max_examples": -3}, r"^max_examples is -3: it must be 1 or more$"),
        ({"max_examples": 0}, r"^max_examples is 0: it must be 1 or more$"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_data.Config(source="videos", **changes)


def test_checked_clips_have_no_pixels(folder):
    source = open_source(str(folder))
    clips = [clip for _, clip in check_data.look(source, DataConfig(), range(len(source)))]
    assert {clip.frames.base is None and clip.frames.nbytes == 0 for clip in clips if isinstance(clip, Clip)} == {True}


def test_captions_are_counted_and_shown(folder, tmp_path, capsys):
    files = sorted(path for path in folder.rglob("*.mp4") if path.name != "damaged.mp4")
    rows = [
        {"path": str(path), "caption": text} for path, text in zip(files, (None, ["one", "two"], "three"), strict=True)
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = run(tmp_path / "list.jsonl", tmp_path / "out")
    assert (summary["captioned"], summary["captions"], summary["caption"]) == (2, 3, "one")
    assert "captions   3 of 2 examples, such as 'one'" in capsys.readouterr().out
    assert run(folder, tmp_path / "other")["captioned"] == 0
    assert "captions   none" in capsys.readouterr().out
