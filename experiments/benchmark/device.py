"""One report from the JSON files that other commands of the benchmark wrote: JSON and a Markdown table."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmark.convolution import PARTS
from benchmark.table import digits, markdown
from vidjax.errors import UserError

COLUMNS = ("part", "measured", "side", "batch", "step ms", "clips/s", "MFU %", "GB")


@dataclasses.dataclass(frozen=True)
class Device:
    """A report of the parts that `device.sh` measured."""

    folder: str = "."
    """Folder with NAME.json, NAME.log and NAME.status (the exit status) of each part."""
    out: str = "device"
    """Write OUT.json and OUT.md."""

    def __post_init__(self) -> None:
        if not any(Path(self.folder).glob("*.status")):
            raise UserError(f"{self.folder} has no NAME.status: run experiments/benchmark/device.sh")


def read_parts(folder: Path) -> dict[str, dict[str, Any]]:
    """The parts in the order of their names: what each command wrote, its exit status, and how it failed, if it did.

    A part that ran out of time keeps the rows that it had measured.
    """
    parts = {}
    for file in sorted(folder.glob("*.status")):
        measured = file.with_suffix(".json")
        part = json.loads(measured.read_text()) if measured.exists() and measured.stat().st_size else {"rows": []}
        status = int(file.read_text())
        if status:
            lines = [line.strip() for line in file.with_suffix(".log").read_text().splitlines() if line.strip()]
            last = lines[-1] if lines else "it printed nothing"
            part["failed"] = "out of time" if status in (124, 137) else f"status {status}: {last[:200]}"
        parts[file.stem] = part | {"status": status}
    return parts


def lines_of(name: str, part: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The cells of a part's lines in the Markdown table."""
    for row in part["rows"]:
        if "failed" in row:
            yield (
                name,
                row.get("convolution", row["model"]),
                row["side"],
                str(row["batch_size"]),
                row["failed"],
                *[""] * 3,
            )
        elif "convolution" in row:
            for step in PARTS:
                time = digits(1e3 * row[step])
                yield name, f"{row['convolution']}, {step}", row["side"], str(row["batch_size"]), time, *[""] * 3
        else:
            figures = (1e3 * row["step_seconds"], row["clips_per_second"], row["mfu"] and 100 * row["mfu"])
            figures += (1e-9 * row["memory_bytes"],)
            yield name, row["model"], row["side"], str(row["batch_size"]), *map(digits, figures)
    if "failed" in part:
        yield name, "the part itself", "", "", part["failed"], *[""] * 3


def report_device(config: Device) -> list[dict[str, Any]]:
    """Writes the report; returns the rows of all parts."""
    parts = read_parts(Path(config.folder))
    machine = next((part["machine"] for part in parts.values() if "machine" in part), {})
    Path(f"{config.out}.json").write_text(json.dumps({"machine": machine, "parts": parts}, indent=2) + "\n")
    versions = ", ".join(f"{library} {version}" for library, version in machine.get("versions", {}).items())
    title = f"{machine.get('devices', 0)} x {machine.get('device', 'no device')}, {versions or 'nothing was measured'}"
    lines = [("-" * 3,) * len(COLUMNS), *(line for name, part in parts.items() for line in lines_of(name, part))]
    cells = "\n".join(map(markdown, (COLUMNS, *lines)))
    text = f"# Measured by experiments/benchmark/device.sh\n\n{title}\n\n{cells}\n"
    Path(f"{config.out}.md").write_text(text)
    print(text, end="")
    return [row for part in parts.values() for row in part["rows"]]
