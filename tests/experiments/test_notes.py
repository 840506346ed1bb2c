"""Scripts print the notes of a source that they open, before they write anything."""

import re
import sys
from pathlib import Path

import pytest
import videos

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import check_data  # noqa: E402
import finetune  # noqa: E402

from vidjax.data.config import LabelledDataConfig  # noqa: E402
from vidjax.errors import UserError  # noqa: E402


def test_each_script_that_opens_a_source_prints_its_notes():
    opens = re.compile(r"\bopen_(source|videos|files)\(")
    prints = re.compile(r"\b(print_notes|run\.plan)\(")
    silent = [
        path.name
        for path in EXPERIMENTS.glob("*.py")
        if opens.search(text := path.read_text()) and not prints.search(text)
    ]
    assert not silent


def test_ignored_files_of_a_folder_are_one_line(tmp_path, capsys):
    videos.write_video(tmp_path / "videos" / "a.mp4", videos.numbered(5))
    (tmp_path / "videos" / "b.gif").touch()
    config = check_data.Config(str(tmp_path / "videos"), str(tmp_path / "out"), clips=0)
    check_data.main(config)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes == [f"note: {tmp_path}/videos: 1 files are left out, as their suffix is none of a video (.gif 1)"]


@pytest.mark.parametrize("field", ["train", "validation"])
def test_fine_tuning_with_an_incomplete_label_column_raises(field, tmp_path):
    (tmp_path / "a.mp4").touch()
    for name, labels in (("half.csv", ("run", "walk", "", "nan")), ("whole.csv", ("run", "walk"))):
        (tmp_path / name).write_text("path,label\n" + "".join(f"a.mp4,{label}\n" for label in labels))
    given = {"train": str(tmp_path / "whole.csv"), field: str(tmp_path / "half.csv")}
    config = finetune.Config(data=LabelledDataConfig(**given), workdir=str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"^2 of the 4 examples of \S+half\.csv have no label: \S+, \S+; label them, "):
        finetune.main(config)
    assert not (tmp_path / "run").exists()
