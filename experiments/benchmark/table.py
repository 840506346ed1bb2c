"""Results as a text table and as JSON."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Column(NamedTuple):
    """A column: its title with the unit, a function from a row to its value (None is blank), and its width."""

    title: str
    text: Callable[[Row], str | float | None]
    width: int


def digits(value: float | None) -> str:
    """A number with three significant digits, or all digits before the point; integers are unchanged."""
    if value is None:
        return ""
    if isinstance(value, int) or value == 0 or not math.isfinite(value):
        return str(value)
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _scaled(name: str, factor: float) -> Callable[[Row], float | None]:
    return lambda row: None if row.get(name) is None else factor * row[name]


STEP = Column("step ms", _scaled("step_seconds", 1e3), 9)
SPREAD = Column(
    "least to most", lambda row: f"{digits(1e3 * row['least_seconds'])} to {digits(1e3 * row['most_seconds'])}", 16
)
COMPILE = Column("compile s", _scaled("compile_seconds", 1), 10)
PEAK = Column("peak GB", _scaled("memory_bytes", 1e-9), 9)
PROGRAM = Column("program GB", _scaled("program_bytes", 1e-9), 11)
CLIPS = Column("clips/s", _scaled("clips_per_second", 1), 9)
FLOPS = Column("TFLOP/s", _scaled("flops_per_second", 1e-12), 9)
MFU = Column("MFU %", _scaled("mfu", 100), 7)
SPEED = Column("vidjax is", lambda row: f"{digits(row['vidjax_speed'])} x" if row["vidjax_speed"] else None, 10)
BATCH = Column("batch", lambda row: str(row["batch_size"]), 6)
BEST = Column("batch", lambda row: f"{'best ' if row['best'] else ''}{row['batch_size']}", 10)

SPEED_COLUMNS = (COMPILE, STEP, SPREAD, CLIPS, FLOPS, MFU, PEAK, SPEED)
MEMORY_COLUMNS = (COMPILE, STEP, SPREAD, CLIPS, PROGRAM, PEAK, SPEED)
BUDGET_COLUMNS = (
    Column("largest batch", lambda row: str(row["batch_size"]), 14),
    PROGRAM,
    COMPILE,
    Column("compiled", lambda row: str(row["tried"]), 10),
)
LOSS_COLUMNS = (
    Column("temporary MB", _scaled("temporary_bytes", 1e-6), 13),
    COMPILE,
    STEP,
    SPREAD,
    Column("max diff", lambda row: f"{row['differs']:.1e}", 10),
)


def _median(name: str) -> Callable[[Row], str]:
    return lambda row: "{:.1f} ({:.1f} to {:.1f})".format(row[name], *row[f"{name}_range"])


def _ratio(name: str) -> Callable[[Row], str | None]:
    return lambda row: f"{row[name] / row[f'other_{name}']:.2f}" if f"other_{name}" in row else None


STARTUP_COLUMNS = (
    Column("seconds", _median("seconds"), 20),
    Column("compile s", _median("compile_seconds"), 20),
    Column("other's first", _median("other_seconds"), 20),
    Column("compile s", _median("other_compile_seconds"), 20),
    Column("ratio", _ratio("seconds"), 7),
    Column("compile", _ratio("compile_seconds"), 8),
)
COMPILE_COLUMNS = (
    Column("init s", lambda row: f"{row['init']:.1f}", 8),
    Column("step s", lambda row: f"{row['step']:.1f}", 8),
    Column("other's init", lambda row: f"{row['other_init']:.1f}", 13),
    Column("step s", lambda row: f"{row['other_step']:.1f}", 8),
    Column("ratio", lambda row: f"{(row['init'] + row['step']) / (row['other_init'] + row['other_step']):.2f}", 7),
)
DEPTHWISE_COLUMNS = (
    Column("times", lambda row: str(row["count"]), 6),
    Column("forward ms", _scaled("forward", 1e3), 11),
    Column("PyTorch's", _scaled("other_forward", 1e3), 10),
    Column("ratio", _ratio("forward"), 7),
    Column("gradients ms", _scaled("gradients", 1e3), 13),
    Column("PyTorch's", _scaled("other_gradients", 1e3), 10),
    Column("ratio", _ratio("gradients"), 7),
)
GENERATE_COLUMNS = (
    Column("ms", _scaled("seconds", 1e3), 8),
    Column("PyTorch's", _scaled("other_seconds", 1e3), 10),
    Column("ratio", _ratio("seconds"), 7),
    Column("same words %", _scaled("same_words", 100), 13),
)
FLOW_COLUMNS = (
    Column("ms", _scaled("seconds", 1e3), 8),
    Column("the other's", _scaled("other_seconds", 1e3), 12),
    Column("ratio", _ratio("seconds"), 7),
)
VISIBLE_COLUMNS = (
    Column("visible tokens", lambda row: str(row["tokens"]), 15),
    STEP,
    SPREAD,
    Column("time %", _scaled("time_share", 100), 8),
    Column("work %", _scaled("work_share", 100), 8),
)
CONVOLUTION_COLUMNS = tuple(
    Column(f"{part} ms", _scaled(part, 1e3), len(part) + 4)
    for part in ("forward", "input's gradient", "kernel's gradient")
)
LOCALIZATION_COLUMNS = (
    BATCH,
    Column("step ms", _scaled("seconds", 1e3), 9),
    Column("PyTorch's", _scaled("other_seconds", 1e3), 10),
    Column("ratio", _ratio("seconds"), 7),
    Column("memory GB", _scaled("memory", 1e-9), 10),
    Column("PyTorch's", _scaled("other_memory", 1e-9), 10),
    Column("ratio", _ratio("memory"), 7),
    Column("program GB", _scaled("program", 1e-9), 11),
)
TPU_COLUMNS = (
    Column("GB", _scaled("fixed_bytes", 1e-9), 6),
    Column("GB per clip", _scaled("clip_bytes", 1e-9), 11),
    Column("largest batch", lambda row: str(row["batch_size"]), 14),
    PROGRAM,
    Column("TFLOP per clip", _scaled("flops", 1e-12), 14),
    Column("GB written per clip", lambda row: 1e-9 * row.get("written_bytes", 0) / row["batch_size"] or None, 19),
    Column("moved %", _scaled("moved", 100), 8),
    Column("padding %", _scaled("padding", 100), 10),
    Column("CPU s", _scaled("compile_seconds", 1), 6),
)


class Table:
    """A text table with fixed column widths, so that rows can be printed as soon as they are measured.

    Attributes:
      names: keys that identify a row, with their titles and widths.
      columns: the measured values.
    """

    def __init__(self, names: Mapping[str, tuple[str, int]], columns: Sequence[Column]) -> None:
        self.names, self.columns = names, columns

    def header(self) -> str:
        """The line of titles."""
        named = [f"{title:{max(width, len(title))}}" for title, width in self.names.values()]
        return "  ".join(named) + "".join(f"{column.title:>{column.width + 1}}" for column in self.columns)

    def line(self, row: Row) -> str:
        """The line of a row; of a failed measurement, its reason."""
        named = [f"{row[name]:{max(width, len(title))}}" for name, (title, width) in self.names.items()]
        if "failed" in row:
            return "  ".join(named) + f"  batch {row['batch_size']}: {row['failed']}"
        texts = [column.text(row) for column in self.columns]
        texts = [text if isinstance(text, str) else digits(text) for text in texts]
        cells = [f"{text:>{column.width + 1}}" for text, column in zip(texts, self.columns, strict=True)]
        return ("  ".join(named) + "".join(cells)).rstrip()


def markdown(cells: Sequence[str | float | None]) -> str:
    """A line of a Markdown table; numbers as in `digits`."""
    texts = (cell if isinstance(cell, str) else digits(cell) for cell in cells)
    return f"| {' | '.join(text.replace('|', '/') for text in texts)} |"


def write_json(path: str, mode: str, settings: Any, machine: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Writes settings, machine and rows; values are in seconds, bytes and FLOP/s."""
    content = {"mode": mode, "settings": dataclasses.asdict(settings), "machine": machine, "rows": rows}
    Path(path).write_text(json.dumps(content, indent=2) + "\n")


def number_columns(rows: Sequence[Row]) -> list[Column]:
    """A column for every numeric value of the rows, titled by its key."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, int | float))
    titles = {name: name.replace("clips_per_second", "clips/s").replace("_", " ") for name in names}
    return [Column(titles[name], lambda row, name=name: row.get(name), max(9, len(titles[name]))) for name in names]
