"""Command lines."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import pytest

from vidjax import cache, cli, runs
from vidjax.errors import UserError


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


RECIPES = {"demo": Config(), "videos": Config(size=32), "large": Config(size=64)}


def parse(*argv):
    return cli.parse(Config, RECIPES, "--workdir", argv=list(argv))


def test_the_first_argument_selects_a_recipe_and_flags_override_it():
    assert parse() == Config()
    assert parse("--workdir", "a", "--part.rate", "0.5") == Config(32, "a", Part(0.5))
    assert parse("large", "--workdir=a") == Config(64, "a")


def test_unknown_flags_and_recipes_exit_with_one_line_and_status_2(capsys):
    for argv, message in (
        (["--part.rat", "1"], "unknown argument --part.rat: did you mean --part.rate?"),
        (["large"], "recipe large trains on your videos: give --workdir, a folder or a manifest"),
        (["videos", "--size", "4"], "recipe videos trains on your videos: give --workdir, a folder or a manifest"),
        (["huge"], "there is no recipe 'huge': choose one of demo, videos, large"),
    ):
        with pytest.raises(SystemExit) as stop:
            parse(*argv)
        assert stop.value.code == 2
        line = capsys.readouterr().err
        assert message in line and line.count("\n") == 1


def test_flags_keep_their_dashes_where_a_message_was_broken(capsys):
    message = " and ".join(["--part.rate"] * 20)

    @dataclasses.dataclass(frozen=True)
    class Refused(Config):
        def __post_init__(self):
            raise UserError(message)

    with pytest.raises(SystemExit):
        cli.parse(Refused, argv=["--size", "4"])
    assert capsys.readouterr().err.endswith(f": error: {message}\n")


def test_only_user_errors_become_one_line_and_debug_shows_their_traceback(monkeypatch, capsys):
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
    """A job with a check."""

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(
                f"size is {self.size}: it must be above 0, or nothing that is long enough to be wrapped fits"
            )


def test_invalid_values_exit_with_one_line_and_status_2(capsys):
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


def test_a_user_error_is_one_line_but_other_errors_keep_their_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["job.py"])

    def main(config):
        runs.read_config("/nowhere")

    with pytest.raises(SystemExit) as stop:
        cli.run(main, Config, RECIPES, "--data.source")
    assert stop.value.code == 2
    expected = "job.py: error: /nowhere is not a vidjax run, it has no config.json: give the work directory of a run\n"
    assert capsys.readouterr().err == expected
    with pytest.raises(ValueError, match="Expecting property name"):
        cli.run(lambda config: json.loads("{"), Config, RECIPES, "--data.source")


def test_the_first_argument_is_a_command_and_help_prints_the_docstring(monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "Measures: read, write.\n")
    monkeypatch.setattr(sys, "argv", ["job.py", "write", "--size", "8"])
    assert cli.take_command(("read", "write")) == "write" and sys.argv == ["job.py", "--size", "8"]
    for argv, status, out, err in (
        (["--help"], 0, "Measures: read, write.\n", ""),
        (["-h"], 0, "Measures: read, write.\n", ""),
        ([], 2, "", "job.py: error: the first argument must be a command: choose one of read, write\n"),
        (["walk"], 2, "", "job.py: error: the first argument must be a command: choose one of read, write\n"),
    ):
        monkeypatch.setattr(sys, "argv", ["job.py", *argv])
        with pytest.raises(SystemExit) as stop:
            cli.take_command(("read", "write"))
        assert stop.value.code == status and capsys.readouterr() == (out, err)


def test_output_files_are_checked_without_changing_them(tmp_path):
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
    with pytest.raises(ValueError, match="--json and --csv are the same file: give different ones"):
        cli.check_files(json=str(old), csv=f"{tmp_path}/./old.json")


def test_compiled_programs_are_kept_in_the_cache_folder(monkeypatch, tmp_path):
    options = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size")
    before = {name: getattr(jax.config, name) for name in options}
    try:
        cache.keep_compiled()  # the tests' own folder is set
        assert {name: getattr(jax.config, name) for name in options} == before
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        monkeypatch.setenv("VIDJAX_CACHE", str(tmp_path))
        cache.keep_compiled()
        assert Path(jax.config.jax_compilation_cache_dir).parent == tmp_path / "compiled"
        for name in ("VIDJAX_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)

        def no_home(path):
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "expanduser", no_home)
        cache.keep_compiled()  # a container without a home directory
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
