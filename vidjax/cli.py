"""Command lines of the experiments: a config from flags, one line for wrong input, a work directory of one run."""

import contextlib
import dataclasses
import difflib
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vidjax.errors import UserError

Config = TypeVar("Config")


def parse(
    config_class: type[Config],
    recipes: Mapping[str, Config] | None = None,
    default: Callable[[list[str]], str] | None = None,
    argv: list[str] | None = None,
) -> Config:
    """A frozen dataclass from the command line: `[RECIPE] [--field value] [--group.field value]`.

    Args:
      config_class: every field has a line of help below it.
      recipes: configs by name; an optional first word chooses the one that flags then change.
      default: names the recipe of a command line without one.
      argv: arguments, those of the process when None.

    An unknown flag or recipe ends the process with a line that says so, and exit status 2.
    """
    import tyro  # here, so that notebooks which never parse do not need it

    argv = sys.argv[1:] if argv is None else argv
    base, description = None, (sys.modules["__main__"].__doc__ or "").strip()
    description += "\n\n--debug shows the traceback of an error that is otherwise one line."
    if recipes:
        words = [argv[0]] if argv and not argv[0].startswith("-") else []
        name = words[0] if words else default(argv)
        if name not in recipes:
            fail(f"there is no recipe '{name}': choose one of {', '.join(recipes)}")
        base, argv = recipes[name], argv[len(words) :]
        description += "\n\nRecipes (an optional first word): " + ", ".join(recipes) + f". Defaults below: {name}."
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            config, unknown = tyro.cli(
                config_class,
                args=argv,
                default=base,
                description=description,
                use_underscores=True,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code:  # and not --help
            fail(_unboxed(said.getvalue()))
        raise
    if unknown:
        nearest = difflib.get_close_matches(unknown[0].lstrip("-"), _flags(config), n=2)
        hint = f"did you mean {' or '.join(f'--{flag}' for flag in nearest)}?" if nearest else "see --help"
        fail(f"unknown argument {unknown[0]}: {hint}")
    return config


def _unboxed(text: str) -> str:
    """The sentence in the box that tyro draws around an error, up to the rule above its remarks on help."""
    lines = [line.strip(" │|╭╮╰╯+─-") for line in text.splitlines()[1:]]  # a rule is empty then
    said = itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines))
    return re.sub(r"^Error parsing [\w.]+: ", "", " ".join(said))


def _flags(config: Any, prefix: str = "") -> list[str]:
    """Dotted names of all fields."""
    flags = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        flags += _flags(value, f"{prefix}{field.name}.") if nested else [prefix + field.name]
    return flags


def run(
    main: Callable[[Config], Any],
    config_class: type[Config],
    recipes: Mapping[str, Config] | None = None,
    default: Callable[[list[str]], str] | None = None,
    parse: Callable[..., Config] = parse,
) -> None:
    """Parses the config and calls `main`; a UserError is one line and exit status 2, or raised with `--debug`."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold what the locale cannot print
    debug = "--debug" in sys.argv[1:]
    argv = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        main(parse(config_class, recipes, default, argv))
    except UserError as error:
        if debug:
            raise
        fail(str(error))


def demo_without(flag: str, argv: Sequence[str]) -> str:
    """The recipe of a command line without one: `videos` where the flag gives a source of one's own, else `demo`."""
    return "videos" if any(word.split("=")[0] == flag for word in argv) else "demo"


def first_word_is(flag: str) -> None:
    """Lets the value of `flag` stand first, without it, for configs that must not import tyro to say so."""
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv.insert(1, flag)


def take_command(commands: Collection[str]) -> str:
    """The first word, which says what to do, taken off the command line; `--help` in its place says what there is."""
    word = sys.argv[1] if len(sys.argv) > 1 else None
    if word in ("-h", "--help"):
        print((sys.modules["__main__"].__doc__ or "").strip())
        raise SystemExit(0)
    if word not in commands:
        fail(f"the first word says what to do: choose one of {', '.join(commands)}")
    return sys.argv.pop(1)


def fail(message: str) -> None:
    """Ends the process with one line and exit status 2."""
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def make_folder(path: Path, flag: str, called: str = "the folder") -> None:
    """Makes a folder where there is none, and makes sure that it can be written.

    Args:
      flag: gives another one.
      called: in the error.

    Raises:
      UserError: it cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable_{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {called} {path} ({error.strerror}): choose another {flag}") from None


def check_files(**paths: str | None) -> None:
    """Makes sure that files can be written, while there is nothing to lose yet; what a file holds stays.

    Args:
      paths: by the flag that gives them; None is not wanted.

    Raises:
      UserError: two are the same.
      UserError: one cannot be written.
    """
    wanted = {flag: path for flag, path in paths.items() if path is not None}
    if len({os.path.realpath(path) for path in wanted.values()}) < len(wanted):
        raise UserError(f"--{' and --'.join(wanted)} are the same file: give each its own")
    for flag, path in wanted.items():
        is_new = not os.path.lexists(path)
        try:
            with open(path, "ab"):
                pass
            if is_new:
                os.remove(path)
        except OSError as error:
            raise UserError(f"cannot write --{flag} to {path} ({error.strerror}): give another file") from None


def as_dict(config: Any) -> dict[str, Any]:
    """A config as JSON's types."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
