"""The house stands as it was drawn: who may import whom, and how light `import vidjax` is."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

HEAVY = (
    "tensorflow", "tensorflow_datasets", "torch", "transformers", "av", "tyro", "safetensors", "orbax", "optax",
    "matplotlib", "tensorboardX",
)  # fmt: skip
READERS = ("tensorflow", "tensorflow_datasets", "av")
"""What reads videos, and takes seconds to load."""
BESIDE_DATA = {
    "experiments/benchmark/input.py": "measures plain PyAV beside vidjax/data, and writes TFRecords to measure",
    "experiments/check_data.py": "draws batches of its own to look at",
}
"""Files outside of vidjax/data that import these themselves, inside of a function."""


def run(*command: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)


def test_every_room_imports_only_what_it_may(tmp_path):
    command = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    done = run(sys.executable, "-c", command, "--cache-dir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_vidjax_loads_nothing_heavy_and_builds_nothing():
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
    assert not built and not started  # no module made, and no accelerator touched


def imported(path: Path) -> dict[str, bool]:
    """First words of all that a file imports, and whether it does so as soon as it is imported itself."""
    tree, found = ast.parse(path.read_text()), {}
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    later = {id(inner) for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for name in names:
            first = name.partition(".")[0]
            found[first] = found.get(first, False) or id(node) not in later
    return found


def test_no_script_imports_another():
    scripts = {path.stem: path for path in (ROOT / "experiments").glob("*.py")}
    names = scripts.keys() - {"benchmark"}  # the package benchmark/ comes before the script of its name
    files = [*scripts.values(), *(ROOT / "experiments" / "benchmark").glob("*.py")]
    assert {path: both for path in files if (both := imported(path).keys() & names)} == {}


def test_tensorflow_and_av_live_in_data():
    beside = {}
    for path in sorted([*ROOT.glob("vidjax/**/*.py"), *ROOT.glob("experiments/**/*.py")]):
        found = {name: at_once for name, at_once in imported(path).items() if name in READERS}
        if found and path.parent != ROOT / "vidjax" / "data":
            beside[path.relative_to(ROOT).as_posix()] = any(found.values())
    assert beside == dict.fromkeys(BESIDE_DATA, False)


def test_scripts_load_tensorflow_and_av_only_once_they_run():
    """So that --help and wrong input are answered at once."""
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


def test_imports_are_told_from_those_within_functions(tmp_path):
    (path := tmp_path / "a.py").write_text("import av.video\nif 1:\n    from os import path\ndef f():\n  import json\n")
    assert imported(path) == {"av": True, "os": True, "json": False}
