"""Bar charts of the results."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmark.table import digits
from vidjax.visualize.bars import Bar, save_bars

Row = Mapping[str, Any]


def draw(path: str, mode: str, title: str, rows: Sequence[Row]) -> None:
    """Writes the chart of a mode, unless nothing was measured."""
    panels, label = bars(mode, rows)
    if panels:
        save_bars(path, panels, label, title)


def bars(mode: str, rows: Sequence[Row]) -> tuple[dict[str, dict[str, Bar]], str]:
    """The panels of a chart, and the label of its axis.

    Bars show speed for `train`, `infer` and `input`, memory for `memory` and `loss` (with the time in the note), and
    the largest batch for `budget`, and time for `visible`.
    """
    panels: dict[str, dict[str, Bar]] = {}
    sides = [row.get("side") for row in rows]
    for row in sorted(rows, key=lambda row: sides.index(row.get("side"))):  # the same order in every panel
        if "failed" in row or not row.get("best", True):
            continue
        if mode in ("train", "infer"):
            panel, name = f"{row['model']}, {row['dtype']}", f"{row['side']}, batch {row['batch_size']}"
            least, most = (row["batch_size"] / row[key] for key in ("most_seconds", "least_seconds"))
            note = f"{digits(row['clips_per_second'])} clips/s"
            note += f", {row['mfu']:.0%} MFU" if row["mfu"] else ""
            note += (
                f": vidjax is {digits(row['vidjax_speed'])} x as fast" if row["vidjax_speed"] not in (None, 1) else ""
            )
            bar = Bar(row["clips_per_second"], least, most, note, row["side"].startswith("vidjax"))
            label = "clips per second (line: slowest to fastest step)"
        elif mode == "memory":
            panel = f"{row['model']}, {row['dtype']}, batch {row['batch_size']}"
            name, value = row["side"], row["memory_bytes"] / 1e9
            note = f"{digits(value)} GB, {digits(1e3 * row['step_seconds'])} ms per step"
            bar, label = Bar(value, value, value, note, name.startswith("vidjax")), "peak memory per device in GB"
        elif mode == "budget":
            panel, name, value = f"{row['model']}, {row['dtype']}", row["side"], row["batch_size"]
            note = f"{value} clips"
            bar, label = Bar(value, value, value, note, True), "largest batch in clips, over all devices"
        elif mode == "loss":
            panel, name, value = row["objective"], row["form"], row["temporary_bytes"] / 1e6
            note = f"{digits(value)} MB, {digits(1e3 * row['step_seconds'])} ms"
            bar = Bar(value, value, value, note, name != "whole")
            label = "memory per device in MB, without embeddings and gradients"
        elif mode == "visible":
            panel, name = "forward pass and gradients", f"{row['ratio']} masked, {row['tokens']} tokens"
            least, value, most = (1e3 * row[f"{which}_seconds"] for which in ("least", "step", "most"))
            note = f"{digits(value)} ms: {row['time_share']:.0%} of the time, {row['work_share']:.0%} of the work"
            bar, label = Bar(value, least, most, note, True), "milliseconds (line: fastest to slowest step)"
        else:
            panel, name, value = "reading clips", row["method"], row["clips_per_second"]
            bar = Bar(value, row["least"], row["most"], f"{digits(value)} clips/s", "plain" not in name)
            label = "clips per second (line: slowest to fastest round)"
        panels.setdefault(panel, {})[name] = bar
    return panels, label if panels else ""
