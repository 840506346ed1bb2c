"""Compile times: of two checkouts in turn, each in processes that import its own packages."""

from pathlib import Path

import pytest

from benchmark import commands, compiling
from benchmark.compiling import Compile, compile_once
from benchmark.startup import HERE
from vidjax.errors import UserError


def test_two_checkouts_are_compiled_in_turn_and_their_sums_compared(tmp_path, monkeypatch, capsys):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "predict.py").touch()
    order = []

    def fake(checkout: Path, config: Compile, model: str) -> dict[str, float]:
        order.append((model, checkout))
        return {"init": 1.0, "step": len(order)} if checkout == HERE else {"init": 10.0, "step": 20.0}

    monkeypatch.setattr(compiling, "compile_once", fake)
    config = Compile(("r3d_18", "c3d"), against=str(tmp_path), rounds=3)
    rows = commands.main(config)
    assert order == [*[("r3d_18", HERE), ("r3d_18", tmp_path)] * 3, *[("c3d", HERE), ("c3d", tmp_path)] * 3]
    assert [row["step"] for row in rows] == [3, 9, 12]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].split() == "r3d_18 1.0 3.0 10.0 20.0 0.13".split()
    assert lines[-1].split() == "sum 2.0 12.0 20.0 40.0 0.23".split()


def test_a_process_compiles_with_the_packages_of_the_checkout(tmp_path):
    """A package that stands in for an older one, in which the benchmark was a part of vidjax."""
    benchmark, training = tmp_path / "vidjax" / "benchmark", tmp_path / "vidjax" / "training"
    benchmark.mkdir(parents=True)
    training.mkdir()
    (benchmark / "settings.py").write_text("def Job(*values):\n    return values\n")
    (training / "sharding.py").write_text("def make_mesh():\n    return 'mesh'\n")
    (benchmark / "ours.py").write_text(
        "import jax\ndef make_program(job, mesh):\n"
        "    assert job[:5] == ('r3d_18', True, 4, 32, 3) and mesh == 'mesh'\n"
        "    return jax.jit(lambda x, y: x + y), jax.jit(lambda: 1.0), 2.0\n"
    )
    config = Compile(frames=4, size=32, batch_size=3)
    seconds = compile_once(tmp_path, config, "r3d_18")
    assert 0 < seconds["init"] < 60 and 0 < seconds["step"] < 60
    with pytest.raises(RuntimeError, match=r"(?s)x3d_m in .* failed: .*AssertionError"):
        compile_once(tmp_path, config, "x3d_m")


@pytest.mark.parametrize(
    "fields",
    [
        {"models": ("r4d",)},
        {"rounds": 0},
        {"against": "nowhere"},
        {"scanned": ("x3d_m",)},
        {"models": ("r3d_18",), "scanned": ("r3d_18",)},
    ],
)
def test_mistakes_are_one_line(fields):
    with pytest.raises(UserError, match=r"r4d|rounds|nowhere|x3d_m|no field .scan."):
        commands.main(Compile(**fields))
