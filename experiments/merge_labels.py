"""Merges labelled data sets into one, as Kinetics-400, 600 and 700 are merged to Kinetics-710.

    python experiments/merge_labels.py --train k400=k400/train.csv k600=k600/train.csv --validation k400=k400/val.csv \
        k600=k600/val.csv --renamed kinetics --out k710

Classes are merged by name, regardless of case, quotes, spaces and underscores. A training video is left out if it is a
validation video of any of the sets, or if an earlier set has it. OUT then contains:

    train.csv, classes.json                            the merged training set and its classes
    NAME/train.csv, NAME/val.csv, NAME/classes.json    each data set, with the merged names of its classes
    table.csv, dropped.csv                             what was kept and left out, and every video that was left out
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vidjax import cli
from vidjax.errors import UserError
from vidjax.fields import check_values


@dataclasses.dataclass(frozen=True)
class Config:
    """Which data sets to merge, and where to write the lists."""

    train: tuple[str, ...]
    """Training videos of each set, NAME=SOURCE: a folder, LIST or LIST:FOLDER; the first set with a video keeps it."""
    out: str
    """A new or empty folder for the lists."""
    validation: tuple[str, ...] = ()
    """Validation videos of the same sets, likewise."""
    renamed: str | None = None
    """Classes with several names: kinetics for those of Kinetics-710, or a JSON file {"old name": "new name"}."""
    same: Literal["name", "file"] = "name"
    """Which videos are the same: those with the same file name (for YouTube clips, the id in it), or the same file."""

    def __post_init__(self) -> None:
        check_values(self)
        train, validation = (read_sets(flag, getattr(self, flag)) for flag in ("train", "validation"))
        if len(train) < 2:
            raise UserError("train names a single data set: give two or more, each as NAME=SOURCE")
        if unknown := sorted(validation.keys() - train.keys()):
            raise UserError(f"validation: {unknown[0]} is not among the sets of train, {', '.join(train)}")


def read_sets(flag: str, named: Sequence[str]) -> dict[str, str]:
    """The sources by the names of their sets, from `NAME=SOURCE`; raises UserError for another form."""
    sets: dict[str, str] = {}
    for text in named:
        name, _, source = text.partition("=")
        if not source or not re.fullmatch(r"[\w-]+", name):
            raise UserError(f"{flag}: {text} is not NAME=SOURCE with a name of letters, digits, _ and -")
        if name in sets:
            raise UserError(f"{flag} names {name} twice: give each data set once")
        sets[name] = source
    return sets


def main(config: Config) -> Any:
    """Reads the lists, writes the merged ones and prints the table; returns the `Merged`."""
    from vidjax.data.merge import merge, read_renamed, write_merged

    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder, and nothing is overwritten: give another --out")
    train, validation = read_sets("train", config.train), read_sets("validation", config.validation)
    sets = [open_set(name, source, validation.get(name)) for name, source in train.items()]
    listings = [listing for each in sets for listing in (each.train, each.validation) if listing is not None]
    for note in dict.fromkeys(note for listing in listings for note in listing.notes):
        print(f"note: {note}")
    names = [name for listing in listings for name in listing.class_names]
    renamed = read_renamed(config.renamed, names) if config.renamed else {}
    merged = merge(sets, renamed, config.same)
    cli.make_folder(out, "--out")
    write_merged(out, merged)
    print_table(merged)
    counts = f"{len(merged.train):,} training videos of {len(merged.class_names)} classes"
    print(f"\nwritten to {out}: {counts} in train.csv, each data set in a folder, table.csv and dropped.csv")
    return merged


def open_set(name: str, train: str, validation: str | None) -> Any:
    """Reads the lists of a data set; raises UserError for a source that is not a list or a folder of video files."""
    from vidjax.data.merge import LabelledSet
    from vidjax.data.sources import list_files

    listings = {}
    for split, source in (("train", train), ("validation", validation)):
        listings[split] = None if source is None else list_files(source, split)
        if source is not None and listings[split] is None:
            raise UserError(f"{name}={source} is not a folder or a list of video files: only these can be merged")
    return LabelledSet(name, **listings)


def print_table(merged: Any) -> None:
    """Prints the table, with a line for each of its columns and a column for each set, and some videos left out."""
    from vidjax.data.merge import table

    columns = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in table(merged)]
    widths = [max(map(len, column)) for column in columns]
    for line in zip(*columns, strict=True):
        first, *rest = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *rest]))
    reasons = [f"  {data_set}: {path} ({reason})" for data_set, path, reason in merged.dropped[:5]]
    if reasons:
        more = len(merged.dropped) - len(reasons)
        print("\n".join(["\nleft out:", *reasons, *([f"  and {more:,} more in dropped.csv"] if more else [])]))


if __name__ == "__main__":
    cli.run(main, Config)
