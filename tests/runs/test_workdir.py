"""A work directory belongs to one run, which resumes with configs that do not change its results."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from vidjax import cli
from vidjax.errors import UserError
from vidjax.fields import free, initial
from vidjax.runs.workdir import open_workdir, read_config


@dataclasses.dataclass(frozen=True)
class Part:
    rate: float = 0.1
    """A rate."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A job."""

    size: int = 8
    """A size."""
    workdir: str = "runs"
    """Where."""
    part: Part = Part()
    """A part."""


def test_a_work_directory_accepts_only_its_own_config(tmp_path):
    config = Config(workdir=str(tmp_path / "run"))
    open_workdir(config.workdir, config)
    (tmp_path / "run" / "metrics.jsonl").touch()
    assert read_config(config.workdir) == {"size": 8, "workdir": config.workdir, "part": {"rate": 0.1}}
    open_workdir(config.workdir, dataclasses.replace(config, workdir="elsewhere"))
    with pytest.raises(ValueError, match=r"another config: part.rate was 0.1, is 0.2; size was 8, is 9"):
        open_workdir(config.workdir, dataclasses.replace(config, size=9, part=Part(0.2)))


@dataclasses.dataclass(frozen=True)
class Begun(Config):
    """A job with fields that matter never, only at the start, or always."""

    threads: int = free(1)
    """Never matters."""
    log: Part = free(Part())
    """No field in it matters."""
    weights: str = initial("none")
    """Matters at the start."""
    accept_changes: bool = False
    """Resume with changed fields."""


def begin(folder, **changes):
    """Starts a run with these fields."""
    open_workdir(folder, Begun(**changes))
    (folder / "checkpoints").mkdir()


def test_a_run_resumes_with_changed_fields_that_do_not_matter_and_records_them(tmp_path):
    begin(tmp_path)
    open_workdir(tmp_path, Begun(threads=4, log=Part(0.5), workdir=str(tmp_path)))
    assert read_config(tmp_path) | {"threads": 4, "log": {"rate": 0.5}} == read_config(tmp_path)


def test_a_run_resumes_with_changed_fields_that_matter_only_with_accept_changes(tmp_path):
    begin(tmp_path)
    changed = Begun(size=9, threads=4)
    before = read_config(tmp_path)
    with pytest.raises(ValueError, match=r"another config: size was 8, is 9; .* --accept_changes") as refused:
        open_workdir(tmp_path, changed)
    assert "threads" not in str(refused.value) and read_config(tmp_path) == before
    open_workdir(tmp_path, dataclasses.replace(changed, accept_changes=True))
    assert read_config(tmp_path)["size"] == 9
    open_workdir(tmp_path, changed)  # now the config of the run
    open_workdir(tmp_path, Begun(size=10), same=["size"])  # an equivalent value needs no flag


def test_changes_that_a_run_cannot_accept_suggest_a_new_run(tmp_path):
    begin(tmp_path)
    for changed, fits in (
        (Begun(weights="mine", accept_changes=True), True),
        (Begun(accept_changes=True, size=9), False),
    ):
        with pytest.raises(ValueError, match=rf"another --workdir, with --init_from {tmp_path} to start") as refused:
            open_workdir(tmp_path, changed, fits=lambda fits=fits: fits)
        assert "accept_changes" not in str(refused.value)
    assert read_config(tmp_path) == cli.as_dict(Begun())


def test_the_config_of_a_run_without_steps_can_change(tmp_path):
    open_workdir(tmp_path, Config())
    open_workdir(tmp_path, Config(size=9))
    assert read_config(tmp_path)["size"] == 9


def test_a_field_added_since_the_start_of_a_run_has_its_default(tmp_path):
    config = Config(workdir=str(tmp_path))
    open_workdir(tmp_path, config)
    (tmp_path / "checkpoints").mkdir()
    old = read_config(tmp_path)
    del old["part"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    open_workdir(tmp_path, config)
    with pytest.raises(ValueError, match=r"part.*was"):
        open_workdir(tmp_path, dataclasses.replace(config, part=Part(0.2)))


def test_a_directory_with_other_files_is_not_modified(tmp_path):
    for name, text in (
        ("metrics.jsonl", "{}\n"), ("config.json", '{"model_type": "vit"}'), ("curves.png", "mine"),
        ("tokenizer", "mine"), ("reconstructions", "mine"), ("similarity", "mine"), ("bad_files_1.jsonl", "mine"),
        ("bad_validation_files.jsonl", "mine"), ("skipped_step_3_process_0.npz", "mine"),
    ):  # fmt: skip
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(ValueError, match=rf"contains {name}, which no vidjax run wrote: choose another"):
            open_workdir(folder, Config())
        assert os.listdir(folder) == [name] and (folder / name).read_text() == text


def test_a_process_that_starts_late_takes_the_files_of_another_for_those_of_its_run(tmp_path, monkeypatch):
    """The first process writes its config and its sources while the second one is looking."""
    glob = Path.glob

    def glob_late(path: Path, pattern: str) -> list[Path]:
        if not (tmp_path / "sources.json").exists():
            monkeypatch.setattr(Path, "glob", glob)
            open_workdir(tmp_path, Config())
            (tmp_path / "sources.json").write_text("{}")
        return list(glob(path, pattern))

    monkeypatch.setattr(Path, "glob", glob_late)
    assert open_workdir(tmp_path, Config()) == tmp_path


def test_a_work_directory_that_cannot_be_written_raises(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to the work directory .*: choose another --workdir"):
        open_workdir(tmp_path / "file" / "run", Config())
