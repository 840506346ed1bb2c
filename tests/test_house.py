"""The architecture: which packages may import which, the cost of `import vidjax`, and duplicated code in scripts."""

import ast
import functools
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

HEAVY = (
    "tensorflow", "tensorflow_datasets", "torch", "transformers", "av", "tyro", "safetensors", "orbax", "optax",
    "matplotlib", "tensorboard",
)  # fmt: skip
READERS = ("tensorflow", "tensorflow_datasets", "av")
"""Packages that read videos and take seconds to import."""
OUTSIDE_DATA = {
    "experiments/benchmark/formats.py": "encodes clips in formats that vidjax/data does not write",
    "experiments/benchmark/input.py": "compares vidjax/data with plain PyAV, and writes TFRecords for measuring",
    "experiments/benchmark/startup.py": "writes a clip, from which a script predicts",
}
"""Files outside vidjax/data that import these, inside functions."""


def run(*command: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)


def test_import_contracts(tmp_path):
    command = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    done = run(sys.executable, "-c", command, "--cache-dir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_vidjax_loads_no_heavy_package_and_builds_no_module():
    script = """
import json, sys
import flax.linen as nn
built = []
post_init = nn.Module.__post_init__
nn.Module.__post_init__ = lambda self: (built.append(type(self).__name__), post_init(self))[1]
import vidjax, vidjax.data.sampling
from jax._src import xla_bridge
print(json.dumps([sorted(sys.modules), built, xla_bridge.backends_are_initialized()]))
"""
    done = run(sys.executable, "-c", script)
    assert done.returncode == 0, done.stderr
    modules, built, started = json.loads(done.stdout)
    loaded = {module.split(".")[0] for module in modules}
    assert "vidjax" in loaded and not loaded & set(HEAVY)
    assert not built and not started  # no module built, no accelerator initialised


def imported(path: Path) -> dict[str, bool]:
    """The top-level packages that a file imports, and whether it does so at import time."""
    tree, packages = ast.parse(path.read_text()), {}
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    later = {id(inner) for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for name in names:
            first = name.partition(".")[0]
            packages[first] = packages.get(first, False) or id(node) not in later
    return packages


def test_no_script_imports_another():
    scripts = {path.stem: path for path in (ROOT / "experiments").glob("*.py")}
    names = scripts.keys() - {"benchmark"}  # the package benchmark/ shadows the script with this name
    files = [*scripts.values(), *(ROOT / "experiments" / "benchmark").glob("*.py")]
    assert {path: both for path in files if (both := imported(path).keys() & names)} == {}


def test_only_data_imports_tensorflow_and_av():
    outside = {}
    for path in sorted([*ROOT.glob("vidjax/**/*.py"), *ROOT.glob("experiments/**/*.py")]):
        readers = {name: at_import for name, at_import in imported(path).items() if name in READERS}
        if readers and path.parent != ROOT / "vidjax" / "data":
            outside[path.relative_to(ROOT).as_posix()] = any(readers.values())
    assert outside == dict.fromkeys(OUTSIDE_DATA, False)


def test_scripts_import_tensorflow_and_av_lazily():
    """So that --help and input errors are fast."""
    script = """
import json, pathlib, runpy, sys
sys.path.insert(0, "experiments")
loaded = {}
for path in sorted(pathlib.Path("experiments").glob("*.py")):
    runpy.run_path(str(path), run_name="imported")
    loaded[path.stem] = [name for name in sys.argv[1:] if name in sys.modules]
print(json.dumps(loaded))
"""
    done = run(sys.executable, "-c", script, *READERS)
    assert done.returncode == 0, done.stderr
    assert [name for name, heavy in json.loads(done.stdout).items() if heavy] == []


WITH_TENSORFLOW = ("augment", "images", "pipeline", "records", "stored")
"""Modules of vidjax/data that import TensorFlow: training batches, TFRecords and TFDS."""
WITHOUT = (
    "caption", "check_data", "detect_predict", "embed", "evaluate", "ground", "ground_predict", "localize",
    "localize_predict", "predict", "probe", "retrieve", "visualize", "zero_shot",
)  # fmt: skip
"""Scripts that read no training clips: they start in seconds, as they do not import TensorFlow."""


def test_scripts_that_do_not_train_import_no_tensorflow():
    """Except to read TFRecords and TFDS."""
    modules = sorted(path.stem for path in (ROOT / "vidjax" / "data").glob("[a-z]*.py"))
    without = [f"vidjax.data.{name}" for name in modules if name not in WITH_TENSORFLOW]
    done = run(sys.executable, "-c", f"import sys, {', '.join(without)}; sys.exit('tensorflow' in sys.modules)")
    assert done.returncode == 0, done.stderr
    for name in WITHOUT:
        text = (ROOT / "experiments" / f"{name}.py").read_text()
        assert [other for other in WITH_TENSORFLOW if f"vidjax.data.{other}" in text] == [], name


def test_imports_inside_functions_are_distinguished(tmp_path):
    (path := tmp_path / "a.py").write_text("import av.video\nif 1:\n    from os import path\ndef f():\n  import json\n")
    assert imported(path) == {"av": True, "os": True, "json": False}


READ_WEIGHTS = {"caption", "embed", "evaluate", "predict", "probe", "retrieve", "visualize", "zero_shot"}
"""Scripts whose configs share the fields that select the weights."""


def code_lines(path: Path) -> list[str]:
    """The lines of a file without imports, comments, and lines without a word."""
    lines, tree = path.read_text().splitlines(), ast.parse(path.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    excluded = {number for node in imports for number in range(node.lineno, node.end_lineno + 1)}
    stripped = [line.strip() for number, line in enumerate(lines, 1) if number not in excluded]
    return [line for line in stripped if re.search(r"\w", line) and not line.startswith("#")]


@functools.cache
def windows(path: Path, count: int) -> dict[tuple[str, ...], int]:
    """All runs of `count` code lines of a file, and where they begin."""
    lines = code_lines(path)
    return {tuple(lines[i : i + count]): i for i in range(len(lines) - count + 1)}


def common_lines(one: Path, other: Path, count: int = 6) -> list[str]:
    """The first `count` consecutive code lines that both files contain; empty if there are none."""
    common = windows(one, count).keys() & windows(other, count).keys()
    return list(min(common, key=windows(one, count).get, default=()))


def test_no_two_scripts_share_six_lines():
    scripts = sorted([*(ROOT / "experiments").glob("*.py"), *(ROOT / "experiments" / "recipes").glob("*.py")])
    pairs = itertools.combinations(scripts, 2)
    common = {f"{a.stem}, {b.stem}": lines for a, b in pairs if (lines := common_lines(a, b))}
    assert {names: lines for names, lines in common.items() if not set(names.split(", ")) <= READ_WEIGHTS} == {}


def test_training_scripts_are_under_200_lines():
    training = [path.stem for path in (ROOT / "experiments" / "recipes").glob("[!_]*.py")]
    assert len(training) >= 3
    long = {name: len((ROOT / "experiments" / f"{name}.py").read_text().splitlines()) for name in training}
    assert {name: count for name, count in long.items() if count >= 200} == {}


SHIFT_IN_PLACE = re.compile(r"(\b[\w.]+)\.at\[[^]]*:[^]]*\]\.\w+\([^)]*(?<![\w.])\1\[[^]]*:")
"""A slice of an array that is assigned to the array itself."""


def test_no_array_is_shifted_in_place():
    """XLA on CPUs computes it wrongly (openxla/xla#49176): see CONTRIBUTING.md."""
    paths = [*ROOT.glob("vidjax/**/*.py"), *ROOT.glob("experiments/**/*.py")]
    shifts = {str(path): [found[0] for found in SHIFT_IN_PLACE.finditer(path.read_text())] for path in paths}
    assert {path: found for path, found in shifts.items() if found} == {}


def test_shifts_in_place_are_found():
    shifts = "x.at[1:].set(x[:-1])", "self.x.at[:, 1:].add(-self.x[:, :-1])", "x.at[1:].set(\n    x[:-1]\n)"
    others = "x.at[1:].set(y[:-1])", "x.at[0].set(x[1:])", "x.at[1:].set(0)", "x.at[1:].set(max_x[:-1])"
    assert all(map(SHIFT_IN_PLACE.search, shifts)) and not any(map(SHIFT_IN_PLACE.search, others))


def test_paths_in_the_ci_script_exist():
    paths = re.findall(r"(?<=\s)(?:tests|experiments)/[\w./-]+", (ROOT / ".ci" / "run").read_text())
    assert len(paths) > 5 and [path for path in paths if not (ROOT / path).exists()] == []


def test_common_lines_are_found(tmp_path):
    shared = "x = 1\n\n# why\ny = (\n    2,\n)\nz = 3\nprint(x)\nprint(y)\n"
    for name, text in (
        ("a", f"import os\n{shared}"),
        ("b", f"w = 0\n{shared}v = 1\n"),
        ("c", shared.replace("3", "4")),
    ):
        (tmp_path / f"{name}.py").write_text(text)
    a, b, c = (tmp_path / f"{name}.py" for name in "abc")
    assert common_lines(a, b) == ["x = 1", "y = (", "2,", "z = 3", "print(x)", "print(y)"]
    assert common_lines(a, c) == []
