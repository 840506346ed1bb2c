"""What each command of `experiments/benchmark.py` does: measure, print a table, write JSON, draw a chart."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmark import table
from benchmark.budget import largest_batch
from benchmark.clips import Clips, measure_clips
from benchmark.compiling import Compile, measure_compile
from benchmark.convolution import Convolution, measure_convolution
from benchmark.depthwise import Depthwise, measure_depthwise
from benchmark.device import Device, report_device
from benchmark.flow import OpticalFlow, measure_flow
from benchmark.formats import Formats, measure_formats
from benchmark.generate import Generate, measure_generate
from benchmark.input import Input, measure_input
from benchmark.localization import Localization, measure_localization
from benchmark.loss import Loss, measure_loss
from benchmark.measure import measure, measure_models, prepare
from benchmark.settings import Infer, Memory, Models, Train, jobs
from benchmark.startup import Startup, measure_startup
from benchmark.tpu import Tpu, measure_tpu, prepare_tpu
from benchmark.visible import Visible, measure_visible
from vidjax.data.config import core_count

Rows = list[dict[str, Any]]
Settings = (
    Models | Convolution | Depthwise | Localization | Loss | Input | Formats | Clips | Startup | Compile | Tpu
    | Visible | Generate | OpticalFlow | Device
)  # fmt: skip


def report(line: str) -> None:
    """Prints a measurement to stderr as soon as it is made; the table goes to stdout."""
    print(line, file=sys.stderr, flush=True)


def main(config: Settings) -> Rows:
    """Runs the command that the config belongs to."""
    return next(run for run, kind in COMMANDS.values() if kind is type(config))(config)


def models(config: Models) -> Rows:
    """Measures models; prints a table and returns its rows."""
    mode = type(config).__name__.lower()
    machine, remarks = prepare(config)
    shapes = [f"{f['frames']} x {f['size']} x {f['size']}" for f in machine["models"].values()]
    what = "forward passes in evaluation, loss included," if mode == "infer" else "training steps (AdamW)"
    title = f"{what} of clips of {', '.join(dict.fromkeys(shapes))} on {machine['devices']} x {machine['device']}"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(title, versions, sep="\n")
    print(*remarks, sep="\n", end="\n" if remarks else "")
    budget = getattr(config, "budget_gb", None)
    if budget is not None:
        return budgets(config, machine, budget, title)
    sides = [job.side for name in config.models for job in jobs(config, name, "float32", 1)]
    sides += [f"PyTorch {peer}" for peer in config.peers]
    batch = table.BEST if len(set(config.batch_sizes)) > 1 else table.BATCH
    columns = table.MEMORY_COLUMNS if mode == "memory" else table.SPEED_COLUMNS
    lines = table.Table(names_of(config, sides), (batch, *columns))
    print(lines.header(), flush=True)
    rows: Rows = []
    for group in measure_models(config, machine, report):
        print(*(lines.line(row) for row in group), sep="\n", flush=True)
        for remark in dict.fromkeys(row["remark"] for row in group if row.get("remark")):
            print(remark, flush=True)
        rows += group
        if config.json:  # after each group, in case a later one is interrupted
            table.write_json(config.json, mode, config, machine, rows)
    print("'vidjax is N x': clips per second of vidjax's best row divided by those of this row")
    if config.chart:
        draw(config, mode, f"{title}\n{versions}", rows)
    return rows


def names_of(config: Models, sides: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Title and width of the columns that identify a row."""
    return {
        "model": ("model", max(map(len, config.models))),
        "dtype": ("type", 8),
        "side": ("side", max(map(len, sides), default=0)),
    }


def budgets(config: Memory, machine: Mapping[str, Any], budget: float, title: str) -> Rows:
    """Finds the largest batches that fit into a memory budget; prints a table and returns its rows."""
    listed = [job for name in config.models for dtype in config.dtypes for job in jobs(config, name, dtype, 1)]
    lines = table.Table(names_of(config, [job.side for job in listed]), table.BUDGET_COLUMNS)
    what = f"the largest batch that fits into {budget:g} GB per device, by compiling only"
    print(what, lines.header(), sep="\n", flush=True)
    rows: Rows = []
    for job in listed:
        row = {"model": job.model, "dtype": job.dtype, "side": job.side, "batch_size": 0}
        rows.append(row | measure(largest_batch, job, budget))
        print(lines.line(rows[-1]), flush=True)
    if config.json:
        table.write_json(config.json, "memory", config, machine, rows)
    if config.chart:
        draw(config, "budget", f"{title}\n{what}", rows)
    return rows


def loss(config: Loss) -> Rows:
    """Measures the contrastive losses; prints a table and returns its rows."""
    machine, rows = measure_loss(config)
    devices = f"{machine['devices']} x {machine['device']}"
    title = f"{config.batch_size} pairs of {config.width} values on {devices}, loss and gradients"
    print(title)
    widths = {name: (name, max(len(row[name]) for row in rows)) for name in ("objective", "form")}
    lines = table.Table(widths, table.LOSS_COLUMNS)
    print(lines.header(), *map(lines.line, rows), sep="\n")
    if config.json:
        table.write_json(config.json, "loss", config, machine, rows)
    if config.chart:
        draw(config, "loss", title, rows)
    return rows


def show(
    config: Settings,
    machine: Mapping[str, Any],
    title: str,
    names: Mapping[str, tuple[str, int]],
    columns: Any,
    rows: Rows,
) -> Rows:
    """Prints the table of what was measured beside another library, and writes the JSON; returns the rows."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = table.Table(dict(names), columns)
    print(f"{title} on {machine['devices']} x {machine['device']}", versions, lines.header(), sep="\n")
    print(*map(lines.line, rows), sep="\n")
    if config.json:
        mode = next(name for name, (_, kind) in COMMANDS.items() if kind is type(config))
        table.write_json(config.json, mode, config, machine, rows)
    return rows


def depthwise(config: Depthwise) -> Rows:
    """Measures depthwise convolutions by themselves; prints a table and returns its rows."""
    machine, rows = measure_depthwise(config, report)
    names = {key: (key, max(len(row[key]) for row in rows)) for key in ("model", "convolution")}
    title = f"depthwise convolutions of {config.batch_size} clips"
    return show(config, machine, title, names, table.DEPTHWISE_COLUMNS, rows)


def localization(config: Localization) -> Rows:
    """Measures temporal localisation by length; prints a table and returns its rows."""
    machine, rows = measure_localization(config, report)
    title, names = f"training steps of {config.model} (AdamW, float32)", {"length": ("steps", 6)}
    return show(config, machine, title, names, table.LOCALIZATION_COLUMNS, rows)


def convolution(config: Convolution) -> Rows:
    """Measures 3-D convolutions by themselves; prints a table and returns its rows."""
    machine, rows = measure_convolution(config, report)
    names = {key: (key, max(len(row[key]) for row in rows)) for key in ("model", "convolution", "side")}
    title = f"3-D convolutions of {config.batch_size} clips, {config.dtype},"
    return show(config, machine, title, names, table.CONVOLUTION_COLUMNS, rows)


def read(config: Input) -> Rows:
    """Measures the input pipeline; prints a table and returns its rows."""
    rows, data = measure_input(config), config.data
    title = f"{config.source}: {config.clips} clips of {data.frames} frames, {data.size} pixels, {data.sampling}"
    print(title)
    lines = table.Table({"method": ("", max(len(row["method"]) for row in rows))}, table.number_columns(rows))
    print(lines.header(), *map(lines.line, rows), sep="\n")
    if config.json:
        table.write_json(config.json, "input", config, {"cores": core_count()}, rows)
    if config.chart:
        draw(config, "input", title, rows)
    return rows


def formats(config: Formats) -> Rows:
    """Measures formats of stored frames; prints a table and returns its rows."""
    rows, data = measure_formats(config), config.data
    print(f"{config.source}: {config.clips} clips of {data.frames} frames, crops of {data.size} pixels, one core")
    names = {"format": ("format", max(len(row["format"]) for row in rows))}
    lines = table.Table(names, table.number_columns(rows))
    print(lines.header(), *map(lines.line, rows), sep="\n")
    if config.json:
        table.write_json(config.json, "formats", config, {"cores": 1}, rows)
    return rows


def clips(config: Clips) -> Rows:
    """Measures memory by clip length; prints GB per device and the largest number of frames, and returns the rows."""
    machine, rows = measure_clips(config)
    print(
        f"{config.model}, training step of one clip at {config.size} pixels, {config.dtype}, compiled for "
        f"{machine['device']}: GB per device by frames, and the most frames (up to {max(config.frames)}) that fit"
    )
    titles = [f"{frames} frames" for frames in rows[0]["bytes"]] + [f"in {budget} GB" for budget in rows[0]["fits"]]
    print(f"{'attention':10}{'remat':8}{'devices':>8}" + "".join(f"{title:>12}" for title in titles))
    for row in rows:
        cells = [f"{needed / 1e9:.2f}" for needed in row["bytes"].values()] + [str(n) for n in row["fits"].values()]
        named = f"{row['implementation']:10}{row['remat']:8}{row['devices']:>8}"
        print(named + "".join(f"{cell:>12}" for cell in cells))
    if config.json:
        table.write_json(config.json, "clips", config, machine, rows)
    return rows


def startup(config: Startup) -> Rows:
    """Measures the time to the first answer and the first step; prints a table and returns its rows."""
    rows = measure_startup(config, report)
    print("seconds from the shell, and seconds of these for compiling (median, least to most of the rounds)")
    names = {"command": ("command", max(len(row["command"]) for row in rows)), "start": ("start", 6)}
    lines = table.Table(names, table.STARTUP_COLUMNS[: None if config.against else 2])
    print(lines.header(), *map(lines.line, rows), sep="\n")
    if config.json:
        table.write_json(config.json, "startup", config, {"cores": core_count()}, rows)
    return rows


def compiling(config: Compile) -> Rows:
    """Measures the compiler; prints a table and returns its rows."""
    rows = measure_compile(config, report)
    print(f"CPU seconds of tracing and compiling, clips of {config.frames} x {config.size} x {config.size}")
    names = {"model": ("model", max(len(row["model"]) for row in rows))}
    lines = table.Table(names, table.COMPILE_COLUMNS[: None if config.against else 2])
    print(lines.header(), *map(lines.line, rows), sep="\n")
    if config.json:
        table.write_json(config.json, "compile", config, {"cores": core_count()}, rows)
    return rows


def tpu(config: Tpu) -> Rows:
    """Compiles training steps for TPUs; prints a Markdown table, then what is moved and padded most; returns rows."""
    machine, devices = prepare_tpu(config)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"training steps (AdamW, {config.dtype}) compiled ahead of time for one chip: {versions}\n")
    titles = ["model", "topology", *(column.title for column in table.TPU_COLUMNS)]
    print(table.markdown(titles), table.markdown(["---"] * len(titles)), sep="\n", flush=True)
    rows: Rows = []
    for row in measure_tpu(config, machine, devices, report):
        texts = [row["failed"]] if "failed" in row else [column.text(row) for column in table.TPU_COLUMNS]
        print(table.markdown([row["model"], row["topology"], *texts]), flush=True)
        rows.append(row)
        if config.json:  # after each row, in case a later one is interrupted
            table.write_json(config.json, "tpu", config, machine, rows)
    for row in rows:
        print(f"\n{row['model']} on {row['topology']}")
        for what in ("moved", "padding"):
            for operation, count in row.get(f"most_{what}", {}).items():
                print(f"    {what} {count / 1e9:.2f} GB: {operation}")
    return rows


def visible(config: Visible) -> Rows:
    """Measures an encoder on visible tokens; prints a table and returns its rows."""
    machine, rows = measure_visible(config, report)
    clip = f"{config.frames} x {config.size} x {config.size}"
    title = f"the encoder of {config.model}, {config.batch_size} clips of {clip}, on {machine['device']}"
    print(title)
    lines = table.Table({"ratio": ("masked", 6)}, table.VISIBLE_COLUMNS)
    print(lines.header(), *map(lines.line, rows), sep="\n")
    if config.json:
        table.write_json(config.json, "visible", config, machine, rows)
    if config.chart:
        draw(config, "visible", title, rows)
    return rows


def generate(config: Generate) -> Rows:
    """Measures writing captions; prints a table and returns its rows."""
    machine, rows = measure_generate(config, report)
    names = {"model": ("model", max(len(row["model"]) for row in rows)), "beams": ("beams", 6)}
    title = f"{config.words} words for each of {config.batch_size} frames"
    return show(config, machine, title, names, table.GENERATE_COLUMNS, rows)


def flow(config: OpticalFlow) -> Rows:
    """Measures optical flow; prints a table and returns its rows."""
    machine, rows = measure_flow(config, report)
    title, names = f"a pair of frames of {config.size} x {config.size}", {"method": ("method", 10)}
    return show(config, machine, title, names, table.FLOW_COLUMNS, rows)


def draw(config: Any, mode: str, title: str, rows: Rows) -> None:
    """Writes the chart."""
    from benchmark import chart  # imports matplotlib, which nothing else needs

    chart.draw(config.chart, mode, title, rows)


COMMANDS = {
    "train": (models, Train),
    "infer": (models, Infer),
    "input": (read, Input),
    "formats": (formats, Formats),
    "memory": (models, Memory),
    "convolution": (convolution, Convolution),
    "depthwise": (depthwise, Depthwise),
    "localization": (localization, Localization),
    "loss": (loss, Loss),
    "clips": (clips, Clips),
    "startup": (startup, Startup),
    "compile": (compiling, Compile),
    "tpu": (tpu, Tpu),
    "visible": (visible, Visible),
    "generate": (generate, Generate),
    "flow": (flow, OpticalFlow),
    "device": (report_device, Device),
}
