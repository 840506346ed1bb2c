"""Output directories of evaluations."""

import pytest

from vidjax.errors import UserError
from vidjax.runs import results


def test_each_evaluation_has_its_own_output_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert results.open_results("mine", "run", "evaluations").is_dir()
    assert results.open_results("mine", "run", "evaluations").name == "mine"  # still empty
    (tmp_path / "mine" / "table.txt").touch()
    with pytest.raises(ValueError, match="mine is not an empty directory, and nothing is overwritten: choose another"):
        results.open_results("mine", "run", "evaluations")
    paths = [results.open_results(None, "run", "evaluations") for _ in range(2)]
    monkeypatch.setattr(type(tmp_path), "exists", lambda self: False)  # simulates a concurrent evaluation
    paths.append(results.open_results(None, "run", "evaluations"))
    assert [str(path) for path in paths] == [f"runs/evaluations/{number}" for number in (1, 2, 3)]


def test_an_output_directory_that_cannot_be_written_raises(tmp_path):
    for name in ("config.json", "vidjax.json", "evaluations", "file"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"cannot write to the folder \S+evaluations \(File exists\): choose"):
        results.open_results(None, str(tmp_path), "evaluations")
    with pytest.raises(UserError, match=r"file/out \(Not a directory\): choose another --out"):
        results.open_results(str(tmp_path / "file" / "out"), str(tmp_path), "evaluations")
