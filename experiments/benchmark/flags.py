"""Command lines of `benchmark.py` and `scaling.py` that also work without tyro: the same flags with a simpler help.

Without tyro, configs must be flat: numbers, strings, switches, and lists of these.
"""

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, NoReturn, TypeVar

from vidjax import cli

Config = TypeVar("Config")


def run(main: Callable[[Config], Any], config_class: type[Config]) -> None:
    """`cli.run`, with the parser below if tyro is not installed."""
    try:
        import tyro  # noqa: F401
    except ImportError:
        cli.run(main, config_class, parse=parse)
    else:
        cli.run(main, config_class)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Ends the process with one line and exit status 2, like `cli.fail`."""
        cli.fail(f"{message}: see --help")


def parse(
    config_class: type[Config], recipes: None = None, default: None = None, argv: list[str] | None = None
) -> Config:
    """Parses a frozen dataclass from `--field value`; `argv` defaults to the arguments of the process.

    Args:
      recipes: unused (benchmarks have no recipes); the signature is that of `vidjax.cli.parse`.
      default: unused, likewise.

    An unknown flag or an invalid value ends the process with one line and exit status 2.
    """
    parser = _Parser(allow_abbrev=False)
    kinds = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(kinds[field.name]):
            cli.fail("this needs tyro, which is not installed: pip install 'vidjax[train]'")
        flag, given = f"--{field.name}", {"default": field.default, "help": f"default: {field.default}"}
        if kinds[field.name] is bool:
            parser.add_argument(flag, f"--no_{field.name}", dest=field.name, nargs=0, action=_Switch, **given)
            continue
        item = _item(kinds[field.name])
        many = typing.get_origin(kinds[field.name]) is tuple
        parser.add_argument(flag, type=_reader(item, kinds[field.name]), nargs="*" if many else None, **given)
    values = vars(parser.parse_args(sys.argv[1:] if argv is None else argv))
    return config_class(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


class _Switch(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, flag: str | None = None) -> None:
        """Stores True for `--field`, False for `--no_field`."""
        setattr(namespace, self.dest, flag == f"--{self.dest}")


def _item(kind: Any) -> Any:
    """The type of a single value: of the entries of a tuple, of an optional value, of the values of a Literal."""
    parts = [part for part in typing.get_args(kind) if part not in (types.NoneType, Ellipsis)]
    if typing.get_origin(kind) is Literal:
        return type(parts[0])
    return _item(parts[0]) if parts else kind


def _reader(item: Any, kind: Any) -> Callable[[str], Any]:
    """A converter from a word of the command line to a value."""

    def read(word: str) -> Any:
        if word == "None" and types.NoneType in typing.get_args(kind):
            return None
        if item is bool and word not in ("True", "False"):
            raise ValueError(word)
        return word == "True" if item is bool else item(word)

    read.__name__ = item.__name__  # for argparse's message "invalid int value"
    return read
