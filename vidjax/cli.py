"""Command-line interface of the experiments: parsing configs, one-line errors, checks of output paths."""

import contextlib
import dataclasses
import difflib
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from vidjax import cache
from vidjax.errors import UserError
from vidjax.fields import choices

Config = TypeVar("Config")


def parse(
    config_class: type[Config],
    recipes: Mapping[str, Config] | None = None,
    data_flag: str | None = None,
    argv: list[str] | None = None,
) -> Config:
    """Parses a command line, `[RECIPE] [--field value] [--group.field value]`, into a frozen dataclass.

    An unknown flag or recipe ends the process with a one-line error and exit status 2.

    Args:
      config_class: a dataclass whose fields have docstrings, which become the help.
      recipes: configs by name; the optional first argument selects one, whose values the flags override. The default
        is `videos` if the arguments name the user's videos and `demo` otherwise. All need the user's videos, except
        those whose names begin with `demo`.
      data_flag: the flag that names the user's videos, or `--one or --other`.
      argv: the arguments; those of the process by default.
    """
    import tyro  # imported here, so that notebooks do not need it

    argv = sys.argv[1:] if argv is None else argv
    base, description = None, (sys.modules["__main__"].__doc__ or "").strip()
    description += "\n\n--debug shows the full traceback of one-line errors."
    if recipes:
        first = [argv[0]] if argv and not argv[0].startswith("-") else []
        has_data = any(word.split("=")[0] in (data_flag or "").split(" or ") for word in argv)
        name = first[0] if first else "videos" if has_data else "demo"
        if name not in recipes:
            fail(f"there is no recipe '{name}': choose one of {', '.join(recipes)}")
        base, argv = recipes[name], argv[len(first) :]
        description += f"\n\nRecipes (optional first argument): {', '.join(recipes)}. Defaults below: {name}."
    argv = [_kind_flags(config_class).get(word, word) for word in argv]
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            config, unknown = tyro.cli(
                config_class,
                args=argv,
                default=base,
                description=description,
                use_underscores=True,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code:  # zero for --help
            fail(_unboxed(stderr.getvalue()))
        raise
    if unknown:
        nearest = difflib.get_close_matches(unknown[0].lstrip("-"), _flags(config), n=2)
        hint = f"did you mean {' or '.join(f'--{flag}' for flag in nearest)}?" if nearest else "see --help"
        fail(f"unknown argument {unknown[0]}: {hint}")
    if recipes and not name.startswith("demo") and not has_data:
        fail(f"recipe {name} trains on your videos: give {data_flag}, a folder or a manifest")
    return config


def _kind_flags(config_class: type) -> dict[str, str]:
    """Flags of nested configs whose first field is a choice of words, and those of the field: `--adapt lora`."""
    flags = {}
    for name, kind in get_type_hints(config_class).items():
        first = dataclasses.fields(kind)[0].name if dataclasses.is_dataclass(kind) else None
        if first and choices(get_type_hints(kind)[first]):
            flags[f"--{name}"] = f"--{name}.{first}"
    return flags


def _unboxed(text: str) -> str:
    """The message in the box that tyro draws around an error, without the hints below the horizontal rule."""
    lines = [line.strip(" │|") for line in text.splitlines()[1:]]
    lines = ["" if re.fullmatch("[╭╮╰╯+─-]*", line) else line for line in lines]  # the border and the rule
    message = itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines))
    text = re.sub(r"^Error parsing [\w.]+: ", "", " ".join(message))
    required = re.findall(r" (--[\w.]+) ", text) if text.startswith("Missing from") else []
    return f"give {' and '.join(required)}: see --help" if required else text


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
    data_flag: str | None = None,
    parse: Callable[..., Config] = parse,
) -> None:
    """Parses the config and calls `main`; prints a UserError as one line and exits with 2, or raises if `--debug`."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # the locale may not be able to print all file names
    cache.keep_compiled()
    debug = "--debug" in sys.argv[1:]
    argv = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        main(parse(config_class, recipes, data_flag, argv))
    except UserError as error:
        if debug:
            raise
        fail(str(error))


def first_word_is(flag: str) -> None:
    """Makes the first argument the value of `flag`, for configs that cannot import tyro to declare it positional."""
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv.insert(1, flag)


def take_command(commands: Collection[str]) -> str:
    """Removes the subcommand from the command line and returns it; `--help` in its place prints the script's help."""
    command = sys.argv[1] if len(sys.argv) > 1 else None
    if command in ("-h", "--help"):
        print((sys.modules["__main__"].__doc__ or "").strip())
        raise SystemExit(0)
    if command not in commands:
        fail(f"the first argument must be a command: choose one of {', '.join(commands)}")
    return sys.argv.pop(1)


def fail(message: str) -> None:
    """Prints a one-line error and exits with status 2."""
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def make_folder(path: Path, flag: str, called: str = "the folder") -> None:
    """Creates a folder if it does not exist, and checks that it is writable.

    Args:
      flag: the flag that sets the folder, for the error message.
      called: what the error message calls the folder.

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
    """Checks at the start of a script that its output files can be written; existing files are not changed.

    Args:
      paths: output files by flag; None is ignored.

    Raises:
      UserError: two paths are the same file, or a file cannot be written.
    """
    given = {flag: path for flag, path in paths.items() if path is not None}
    if len({os.path.realpath(path) for path in given.values()}) < len(given):
        raise UserError(f"--{' and --'.join(given)} are the same file: give different ones")
    for flag, path in given.items():
        is_new = not os.path.lexists(path)
        try:
            with open(path, "ab"):
                pass
            if is_new:
                os.remove(path)
        except OSError as error:
            raise UserError(f"cannot write --{flag} to {path} ({error.strerror}): give another file") from None


def as_dict(config: Any) -> dict[str, Any]:
    """A config as a dict of JSON types."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
