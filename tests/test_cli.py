"""Command lines, and the work directory that is one run's."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest

from vidjax import cli
from vidjax.errors import UserError
from vidjax.fields import free, initial


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


RECIPES = {"small": Config(), "large": Config(size=64)}


def parse(*argv):
    return cli.parse(Config, RECIPES, lambda argv: "small", argv=list(argv))


def test_a_recipe_is_the_first_word_and_flags_change_it():
    assert parse() == Config()
    assert parse("large", "--part.rate", "0.5") == Config(size=64, part=Part(0.5))


def test_unknown_flags_and_recipes_end_with_one_line_and_status_2(capsys):
    for argv, message in (
        (["--part.rat", "1"], "unknown argument --part.rat: did you mean --part.rate?"),
        (["huge"], "there is no recipe 'huge': choose one of small, large"),
    ):
        with pytest.raises(SystemExit) as stop:
            parse(*argv)
        assert stop.value.code == 2
        line = capsys.readouterr().err
        assert message in line and line.count("\n") == 1


def test_a_user_error_alone_becomes_a_line_and_debug_shows_its_traceback(monkeypatch, capsys):
    def stop(error):
        def main(config):
            raise error

        return main

    monkeypatch.setattr(sys, "argv", ["job.py", "--size", "3"])
    with pytest.raises(SystemExit):
        cli.run(stop(UserError("no such video:\n  give another")), Config)
    assert capsys.readouterr().err == "job.py: error: no such video: give another\n"
    for error in (ValueError("of a library"), OSError("no space"), ImportError("a module"), KeyError("a key")):
        with pytest.raises(type(error)):
            cli.run(stop(error), Config)
    monkeypatch.setattr(sys, "argv", ["job.py", "--debug", "--size", "3"])
    with pytest.raises(UserError, match="no such video"):
        cli.run(stop(UserError("no such video")), Config)


@dataclasses.dataclass(frozen=True)
class Checked(Config):
    """A job that cannot be meant."""

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(
                f"size is {self.size}: it must be above 0, or nothing that is long enough to be wrapped fits"
            )


def test_values_that_cannot_be_are_one_line_and_status_2(capsys):
    for argv, message in (
        (["--size", "0"], "error: size is 0: it must be above 0, or nothing that is long enough to be wrapped fits\n"),
        (["--size", "many"], "'many'"),
        (["--size"], "--size"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.parse(Checked, argv=argv)
        assert stop.value.code == 2
        line = capsys.readouterr().err
        assert message in line and line.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        cli.parse(Checked, argv=["--help"])
    assert not stop.value.code and "A size." in capsys.readouterr().out


def test_our_sentence_is_one_line_but_a_defect_keeps_its_trace(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["job.py"])

    def ours(config):
        cli.read_config("/nowhere")

    with pytest.raises(SystemExit) as stop:
        cli.run(ours, Config, RECIPES, lambda argv: "small")
    assert stop.value.code == 2
    said = "job.py: error: /nowhere is no vidjax run, as it has no config.json: give the directory of one\n"
    assert capsys.readouterr().err == said
    with pytest.raises(ValueError, match="Expecting property name"):
        cli.run(lambda config: json.loads("{"), Config, RECIPES, lambda argv: "small")


def test_a_work_directory_takes_its_own_config_again_and_no_other(tmp_path):
    config = Config(workdir=str(tmp_path / "run"))
    cli.open_workdir(config.workdir, config)
    (tmp_path / "run" / "metrics.jsonl").touch()
    assert cli.read_config(config.workdir) == {"size": 8, "workdir": config.workdir, "part": {"rate": 0.1}}
    cli.open_workdir(config.workdir, dataclasses.replace(config, workdir="elsewhere"))
    with pytest.raises(ValueError, match=r"another config: part.rate was 0.1, is 0.2; size was 8, is 9"):
        cli.open_workdir(config.workdir, dataclasses.replace(config, size=9, part=Part(0.2)))


@dataclasses.dataclass(frozen=True)
class Begun(Config):
    """A job whose fields say what they matter for."""

    threads: int = free(1)
    """Never."""
    log: Part = free(Part())
    """Nothing in it."""
    weights: str = initial("none")
    """At the start."""
    accept_changes: bool = False
    """Go on."""


def begin(folder, **changes):
    """A begun run with these fields, and what another config is told."""
    cli.open_workdir(folder, Begun(**changes))
    (folder / "checkpoints").mkdir()


def test_a_begun_run_goes_on_with_fields_that_change_no_number_and_its_config_shows_them(tmp_path):
    begin(tmp_path)
    cli.open_workdir(tmp_path, Begun(threads=4, log=Part(0.5), workdir=str(tmp_path)))
    assert cli.read_config(tmp_path) | {"threads": 4, "log": {"rate": 0.5}} == cli.read_config(tmp_path)


def test_a_begun_run_goes_on_with_other_fields_by_the_flag_that_the_refusal_names(tmp_path):
    begin(tmp_path)
    changed = Begun(size=9, threads=4)
    before = cli.read_config(tmp_path)
    with pytest.raises(ValueError, match=r"another config: size was 8, is 9; .* --accept_changes") as refused:
        cli.open_workdir(tmp_path, changed)
    assert "threads" not in str(refused.value) and cli.read_config(tmp_path) == before
    cli.open_workdir(tmp_path, dataclasses.replace(changed, accept_changes=True))
    assert cli.read_config(tmp_path)["size"] == 9
    cli.open_workdir(tmp_path, changed)  # it is of this config now
    cli.open_workdir(tmp_path, Begun(size=10), same=["size"])  # what means the same needs no flag


def test_what_a_begun_run_cannot_take_is_refused_with_the_way_to_begin_anew(tmp_path):
    begin(tmp_path)
    for changed, fits in (
        (Begun(weights="mine", accept_changes=True), True),
        (Begun(accept_changes=True, size=9), False),
    ):
        with pytest.raises(ValueError, match=rf"another --workdir, with --init_from {tmp_path} to start") as refused:
            cli.open_workdir(tmp_path, changed, fits=lambda fits=fits: fits)
        assert "accept_changes" not in str(refused.value)
    assert cli.read_config(tmp_path) == cli.as_dict(Begun())


def test_a_run_that_took_no_step_may_be_given_another_config(tmp_path):
    cli.open_workdir(tmp_path, Config())
    cli.open_workdir(tmp_path, Config(size=9))
    assert cli.read_config(tmp_path)["size"] == 9


def test_a_field_new_since_the_run_began_had_its_default(tmp_path):
    config = Config(workdir=str(tmp_path))
    cli.open_workdir(tmp_path, config)
    (tmp_path / "checkpoints").mkdir()
    old = cli.read_config(tmp_path)
    del old["part"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    cli.open_workdir(tmp_path, config)
    with pytest.raises(ValueError, match=r"part.*was"):
        cli.open_workdir(tmp_path, dataclasses.replace(config, part=Part(0.2)))


def test_somebody_elses_directory_is_left_alone(tmp_path):
    for name, text in (
        ("metrics.jsonl", "{}\n"), ("config.json", '{"model_type": "vit"}'), ("curves.png", "mine"),
        ("tokenizer", "mine"), ("reconstructions", "mine"), ("similarity", "mine"), ("bad_files_1.jsonl", "mine"),
        ("bad_validation_files.jsonl", "mine"), ("skipped_step_3_process_0.npz", "mine"),
    ):  # fmt: skip
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(ValueError, match=rf"holds {name}, which is not of a run of vidjax: choose another"):
            cli.open_workdir(folder, Config())
        assert os.listdir(folder) == [name] and (folder / name).read_text() == text


def test_the_first_word_is_a_command_and_help_says_which_there_are(monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "Measures: read, write.\n")
    monkeypatch.setattr(sys, "argv", ["job.py", "write", "--size", "8"])
    assert cli.take_command(("read", "write")) == "write" and sys.argv == ["job.py", "--size", "8"]
    for argv, status, out, err in (
        (["--help"], 0, "Measures: read, write.\n", ""),
        (["-h"], 0, "Measures: read, write.\n", ""),
        ([], 2, "", "job.py: error: the first word says what to do: choose one of read, write\n"),
        (["walk"], 2, "", "job.py: error: the first word says what to do: choose one of read, write\n"),
    ):
        monkeypatch.setattr(sys, "argv", ["job.py", *argv])
        with pytest.raises(SystemExit) as stop:
            cli.take_command(("read", "write"))
        assert stop.value.code == status and capsys.readouterr() == (out, err)


def test_a_directory_that_cannot_be_written_is_said_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to the work directory .*: choose another --workdir"):
        cli.open_workdir(tmp_path / "file" / "run", Config())


def test_files_that_cannot_be_written_are_told_before_there_is_anything_to_write(tmp_path):
    (old := tmp_path / "old.json").write_text("{}")
    (link := tmp_path / "link").symlink_to(tmp_path / "nothing")
    cli.check_files(json=str(old), csv=str(tmp_path / "new.csv"), link=str(link), chart=None)
    assert old.read_text() == "{}" and not (tmp_path / "new.csv").exists() and link.is_symlink()
    for path, reason in (
        (tmp_path, "Is a directory"),
        (tmp_path / "nowhere" / "a.json", "No such file or directory"),
        (old / "a.json", "Not a directory"),
        (Path("/proc/a.json"), "No such file or directory"),  # nobody can write there, not even root
    ):
        with pytest.raises(UserError, match=rf"cannot write --json to {path} \({reason}\): give another file"):
            cli.check_files(json=str(path))
    with pytest.raises(ValueError, match="--json and --csv are the same file: give each its own"):
        cli.check_files(json=str(old), csv=f"{tmp_path}/./old.json")
