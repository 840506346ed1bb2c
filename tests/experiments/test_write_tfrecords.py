import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import videos

from vidjax.data.sources import open_source
from vidjax.runs.records import kept_frames

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "write_tfrecords.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("write_tfrecords", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five videos of 40 frames in two classes; the fourth is damaged."""
    folder = tmp_path_factory.mktemp("folder")
    video = videos.write_video(folder / "run" / "0.mp4", videos.numbered(40), rate=10)
    for name in ("run/1.mp4", "walk/2.mp4", "walk/3.mp4", "walk/4.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(video, folder / name)
    videos.truncate(folder / "walk" / "3.mp4", 0.5)
    return folder


def read_all(out):
    source = open_source(f"tfrecord:{out}/*.tfrecord")
    clips = [source.read(i) for i in range(len(source))]
    return source, clips


def test_the_shards_contain_the_frames_of_the_videos(script, folder, tmp_path, capsys):
    script.main(script.Config(str(folder), str(tmp_path), videos_per_shard=2, short_side=24, workers=2))
    source, clips = read_all(tmp_path)
    assert source.class_names == ("run", "walk")
    assert [clip.label for clip in clips] == [0, 0, 1, 1]
    for clip in clips:
        assert videos.numbers(clip.frames) == list(range(40))
        assert clip.frames.shape == (40, 24, 40, 3)
        assert (clip.info.rate, clip.info.height, clip.info.width) == (10, 24, 40)
    assert [json.loads(line)["path"] for line in (tmp_path / "bad_files.jsonl").read_text().splitlines()] == [
        str(folder / "walk" / "3.mp4")
    ]
    printed = capsys.readouterr().out
    assert "shard 3 of 3: 5 of 5 videos" in printed
    assert ": 4 videos, " in printed and "1 videos could not be read" in printed


def test_subsampling_preserves_the_duration(script, folder, tmp_path):
    script.main(script.Config(str(folder), str(tmp_path / "fps"), fps=5.0))
    clip = read_all(tmp_path / "fps")[1][0]
    assert videos.numbers(clip.frames) == list(range(0, 40, 2))
    assert (clip.info.rate, clip.info.duration) == (5, 4)
    script.main(script.Config(str(folder), str(tmp_path / "few"), max_frames=10))
    clip = read_all(tmp_path / "few")[1][0]
    assert videos.numbers(clip.frames) == list(range(0, 40, 4))
    assert (clip.info.rate, clip.info.duration) == (2.5, 4)


def test_an_interrupted_conversion_is_resumed(script, folder, tmp_path, monkeypatch, capsys):
    config = script.Config(str(folder), str(tmp_path), videos_per_shard=2, workers=1)
    make_record = script.make_record

    def interrupted(source, index, *args):
        if index == 4:
            raise KeyboardInterrupt
        return make_record(source, index, *args)

    monkeypatch.setattr(script, "make_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.main(config)
    finished = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.tfrecord")}
    assert len(finished) == 2
    assert list(tmp_path.glob("videos-*.partial"))

    converted = []
    monkeypatch.setattr(script, "make_record", lambda s, i, *args: converted.append(i) or make_record(s, i, *args))
    script.main(config)
    assert converted == [4]
    assert "2 shards are complete from an earlier run" in capsys.readouterr().out
    assert finished.items() <= {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.tfrecord")}.items()
    assert not list(tmp_path.glob("*.partial"))
    assert len(read_all(tmp_path)[1]) == 4
    assert len((tmp_path / "bad_files.jsonl").read_text().splitlines()) == 1


def test_captions_are_stored_and_changed_captions_are_refused(script, folder, tmp_path):
    def write(captions):
        lines = [{"path": str(folder / "run" / "0.mp4"), "caption": caption} for caption in captions]
        (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        script.main(script.Config(str(tmp_path / "list.jsonl"), str(tmp_path / "out"), short_side=24, max_frames=2))

    for _ in range(2):
        write([["one", "two – ü"], None, "three"])
    source, clips = read_all(tmp_path / "out")
    assert [clip.captions for clip in clips] == [("one", "two – ü"), (), ("three",)]
    assert [source.captions(i) for i in range(3)] == [clip.captions for clip in clips]
    with pytest.raises(ValueError, match=r"another conversion \(captions was"):
        write([["one", "two"], None, "three"])


def test_another_conversion_in_the_same_folder_is_refused(script, folder, tmp_path):
    script.main(script.Config(str(folder), str(tmp_path)))
    script.main(script.Config(str(folder), str(tmp_path), workers=3))  # does not affect the records
    with pytest.raises(ValueError, match=r"another conversion \(quality was 90, is 80; max_frames was 300, is 7\)"):
        script.main(script.Config(str(folder), str(tmp_path), quality=80, max_frames=7))
    shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(ValueError, match=r"another conversion \(source was .*; list was"):
        script.main(script.Config(str(tmp_path / "other"), str(tmp_path)))
    (tmp_path / "meta.json").unlink()
    with pytest.raises(ValueError, match=r"no meta\.json of an earlier run"):
        script.main(script.Config(str(folder), str(tmp_path)))


def test_a_folder_that_cannot_be_written_is_refused(script, folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*file/out \(Not a directory\)"):
        script.main(script.Config(str(folder), str(tmp_path / "file" / "out")))


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("short_side", 0, "short_side is 0: it must be 1 or more"),
        ("max_frames", 0, "max_frames is 0: it must be 1 or more"),
        ("videos_per_shard", 0, "videos_per_shard is 0: it must be 1 or more"),
        ("quality", 101, "quality is 101: it must be between 1 and 100"),
        ("fps", 0.0, "fps is 0.0: it must be more than 0"),
        ("workers", -1, r"workers is -1: it must be 0 \(one per core\) or more"),
        ("part", "3/2", "part is 3/2: write number/count, such as 2/4"),
    ],
)
def test_values_out_of_range_are_refused(script, field, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        script.Config("a", "b", **{field: value})


def test_fps_needs_the_frame_rate(script):
    with pytest.raises(ValueError, match="fps needs the frame rate, which a does not store"):
        kept_frames(10, float("nan"), script.Config("a", "b", fps=2.0))


@pytest.mark.long
def test_invalid_input_exits_with_status_2_and_one_line(tmp_path):
    run = subprocess.run(
        [sys.executable, SCRIPT, str(tmp_path / "absent"), str(tmp_path / "out")], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].endswith("absent does not exist: give a folder, a manifest or KIND:NAME")
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists()
