"""Where evaluations write."""

import pytest

from vidjax.errors import UserError
from vidjax.runs import results


def test_results_go_into_a_directory_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert results.open_results("mine", "run", "evaluations").is_dir()
    assert results.open_results("mine", "run", "evaluations").name == "mine"  # nothing is in it yet
    (tmp_path / "mine" / "table.txt").touch()
    with pytest.raises(ValueError, match="mine is not an empty directory: choose another --out, nothing is"):
        results.open_results("mine", "run", "evaluations")
    taken = [results.open_results(None, "run", "evaluations") for _ in range(2)]
    monkeypatch.setattr(type(tmp_path), "exists", lambda self: False)  # as another sees it that looked at the same time
    taken.append(results.open_results(None, "run", "evaluations"))
    assert [str(path) for path in taken] == [f"runs/evaluations/{number}" for number in (1, 2, 3)]


def test_where_no_results_can_be_written_is_told(tmp_path):
    for name in ("config.json", "vidjax.json", "evaluations", "file"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"cannot write to the folder \S+evaluations \(File exists\): choose"):
        results.open_results(None, str(tmp_path), "evaluations")
    with pytest.raises(UserError, match=r"file/out \(Not a directory\): choose another --out"):
        results.open_results(str(tmp_path / "file" / "out"), str(tmp_path), "evaluations")
