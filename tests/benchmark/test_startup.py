"""Start-up times: of scripts that stand in for the real ones, which the pages' tests start."""

from pathlib import Path

import pytest

from benchmark import startup
from benchmark.startup import Startup, covered, measure_startup, start
from vidjax.errors import UserError

SCRIPT = """
import pathlib, sys, time
import jax
print("started with", *sys.argv[1:])
if "fails" in sys.argv:
    raise SystemExit("no such model")
jax.jit(lambda x: x + {number})(1.0)
pathlib.Path("run").mkdir(exist_ok=True)
pathlib.Path("run/metrics.jsonl").write_text("a step")
time.sleep(600)
"""


def checkout(folder: Path, number: int) -> Path:
    (folder / "experiments").mkdir(parents=True)
    for name in ("finetune.py", "predict.py"):
        (folder / "experiments" / name).write_text(SCRIPT.format(number=number))
    return folder


def test_nested_and_overlapping_spans_count_once():
    assert covered([(0, 10), (1, 2), (5, 12), (20, 21)]) == 13
    assert covered([]) == 0


def test_a_process_ends_at_its_first_step_and_its_compiling_is_counted(tmp_path):
    root = checkout(tmp_path / "here", 1)
    result = start(
        root, ("finetune.py", "--steps", "8"), tmp_path / "work", tmp_path / "cache", Path("run/metrics.jsonl")
    )
    assert 0 < result["compile_seconds"] < result["seconds"] < 300
    assert "started with --steps 8" in (tmp_path / "work" / "output").read_text()


def test_a_failed_command_shows_its_output(tmp_path):
    root = checkout(tmp_path / "here", 1)
    with pytest.raises(RuntimeError, match="no such model"):
        start(root, ("finetune.py", "fails"), tmp_path / "work", tmp_path / "cache", Path("run/metrics.jsonl"))


def test_two_checkouts_are_measured_in_turn(tmp_path, monkeypatch):
    lines, order = [], []

    def fake(checkout: Path, name: str, folder: Path) -> list[dict[str, float]]:
        order.append(checkout.name)
        seconds = 2.0 if checkout.name == "other" else 1.0 + len(order)
        return [{"seconds": seconds, "compile_seconds": 0.5}, {"seconds": seconds / 2, "compile_seconds": 0.25}]

    monkeypatch.setattr(startup, "start_twice", fake)
    other = checkout(tmp_path / "other", 2)
    config = Startup(("finetune_tiny",), against=str(other), rounds=3)
    first, second = measure_startup(config, lines.append)
    assert order == [startup.HERE.name, "other"] * 3 and len(lines) == 6
    assert first["seconds"] == 4.0 and first["seconds_range"] == (2.0, 6.0)
    assert second["seconds"] == 2.0 and second["other_seconds"] == 2.0  # the other's first start
    assert second["compile_seconds"] == 0.25 and second["other_compile_seconds"] == 0.5


@pytest.mark.parametrize("fields", [{"commands": ("serve",)}, {"rounds": 0}, {"commands": ()}, {"against": "nowhere"}])
def test_mistakes_are_one_line(fields):
    with pytest.raises(UserError, match=r"choose|give"):
        Startup(**fields)
