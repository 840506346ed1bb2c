"""The notebooks run from top to bottom as a user runs them, and are stored as they should be.

Running them takes minutes: `pytest -m notebook -n 0 tests/colabs`. Plain `pytest` only looks at what is stored.
"""

import ast
import glob
import os
import re
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import jax
import nbformat
import numpy as np
import pytest
import videos
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import vidjax
from vidjax.models import example_inputs

ROOT = Path(__file__).parents[2]
COLABS = ROOT / "colabs"
LIMIT = 1800
"""Seconds after which a notebook counts as hanging; on two idle cores it takes one to three minutes."""
OF_TESTS = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "MPLBACKEND")
"""Variables that the tests set for themselves, which no user has."""
OF_COLAB = ("google",)
IN_FULL = "quickstart.ipynb"
"""Runs on one device, with all its steps; the others train for longer."""
SHORTENED = {
    "bring_your_own_module.ipynb": {"STEPS, CLIPS = 60, 32": "STEPS, CLIPS = 12, 8"},
    "mae_pretraining.ipynb": {
        "STEPS = 2000": "STEPS = 4",
        "np.arange(4096)": "np.arange(256)",
        "np.arange(1024)": "np.arange(64)",
    },
    "video_text.ipynb": {"STEPS = 240": "STEPS = 4", "BATCH = 64": "BATCH = 16"},
}
"""Fewer steps and clips in place of a notebook's own, whose results are then not asserted."""
FAST = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
"""As in conftest.py."""
CALLED_OTHERWISE = {"pillow": "PIL", "orbax-checkpoint": "orbax"}

NAMES = sorted(path.name for path in COLABS.glob("*.ipynb"))
notebooks = pytest.mark.parametrize("name", NAMES)


def read(name: str) -> nbformat.NotebookNode:
    notebook = nbformat.read(COLABS / name, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    return notebook


def code(name: str) -> list[str]:
    return [cell.source for cell in read(name).cells if cell.cell_type == "code"]


def execute(notebook: nbformat.NotebookNode, folder: Path, limit: int = LIMIT, **settings: str) -> None:
    """Runs all cells with a kernel of their own, in `folder`, in `limit` seconds; raises what a cell raises."""
    environment = {key: value for key, value in os.environ.items() if key not in OF_TESTS} | settings
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    end = time.monotonic() + limit
    client = NotebookClient(
        notebook,
        timeout_func=lambda cell: max(end - time.monotonic(), 1),
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)


@pytest.mark.notebook
def test_runs_from_top_to_bottom(tmp_path):
    execute(read(IN_FULL), tmp_path)


@pytest.mark.notebook
@pytest.mark.parametrize("name", [name for name in NAMES if name != IN_FULL])
def test_runs_on_eight_devices_as_a_tpu_has_them(name, tmp_path):
    notebook = read(name)
    for old, new in SHORTENED.get(name, {}).items():
        (cell,) = (cell for cell in notebook.cells if old in cell.source)
        cell.source = cell.source.replace(old, new)
    for cell in notebook.cells if name in SHORTENED else ():
        cell.source = re.sub(r"^( *)assert .*", r"\1pass", cell.source, flags=re.MULTILINE)
    # Programs that run for a few steps: compiling them fast takes a third less time in all.
    settings = {"JAX_NUM_CPU_DEVICES": "8", "XLA_FLAGS": FAST}
    execute(notebook, tmp_path, **settings)


@pytest.mark.notebook
def test_the_quickstart_takes_a_video_and_weights_of_ones_own(tmp_path):
    model = vidjax.create_model("videomae_tiny", num_classes=3)
    shapes, draw = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model)), np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: draw.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)
    vidjax.save_pretrained(tmp_path / "weights", model, variables)
    videos.write_video(tmp_path / "clip.mp4", videos.numbered(70, 48, 64))
    notebook = read("quickstart.ipynb")
    given = {"VIDEO = None": f'VIDEO = "{tmp_path}/clip.mp4"', "WEIGHTS = None": f'WEIGHTS = "{tmp_path}/weights"'}
    for old, new in given.items():
        (cell,) = (cell for cell in notebook.cells if re.search(f"^{old}", cell.source, re.MULTILINE))
        cell.source = cell.source.replace(old, new)
    execute(notebook, tmp_path)
    output = "".join(out.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs)
    assert "clip.mp4, 0.2 to 2.7 s" in output and "class 2" in output


@notebooks
def test_stores_no_outputs(name):
    notebook = read(name)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@notebooks
def test_first_a_title_then_the_one_install_cell(name):
    title, install = read(name).cells[:2]
    assert title.cell_type == "markdown" and title.source.startswith("# ") and "Open in Colab" in title.source
    assert install.source == code("quickstart.ipynb")[0]
    assert '"google.colab" in sys.modules' in install.source


@notebooks
def test_imports_only_what_the_extra_train_installs(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["train"]
    distributions = {re.match(r"[\w-]+", requirement).group() for requirement in asked}
    installed = {CALLED_OTHERWISE.get(each, each.replace("-", "_")) for each in distributions}
    nodes = [node for source in code(name) for node in ast.walk(ast.parse(source))]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    known = {"vidjax", "IPython", *installed, *OF_COLAB, *sys.stdlib_module_names}
    assert {module.split(".")[0] for module in imported} <= known


@pytest.mark.notebook
@pytest.mark.parametrize("source", ["assert False", "import os\nassert 'XLA_FLAGS' in os.environ"])
def test_a_cell_that_raises_fails(source, tmp_path):
    """The second one also shows that a kernel is run without the tests' own settings."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    with pytest.raises(CellExecutionError, match="AssertionError"):
        execute(notebook, tmp_path)


@pytest.mark.parametrize(
    ("place", "version", "extras"),
    [
        ("/proc/driver/nvidia/version", "Kernel Module  550.54.15  Thu Mar 14 2024", "train,cuda12"),
        ("/proc/driver/nvidia/version", "Kernel Module  580.65.06  Thu Mar 14 2024", "train,cuda"),
        ("/dev/accel*", "", "train,tpu"),
        ("none", "", "train"),
    ],
)
def test_the_install_cell_installs_what_lies_here_or_is_uploaded(monkeypatch, tmp_path, place, version, extras):
    install, asked, driver = code("quickstart.ipynb")[0], [], tmp_path / "driver"
    driver.write_text(f"NVRM version: NVIDIA UNIX x86_64 {version}\nGCC version: 12.3.0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subprocess.run", lambda command, check: asked.append(command[-1]))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(install, {})
    assert asked == []  # no Colab, no pip
    uploaded = {}
    colab = SimpleNamespace(files=SimpleNamespace(upload=lambda: uploaded))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    real = glob.glob
    monkeypatch.setattr("glob.glob", lambda pattern: [str(driver)] * (pattern == place) or real(pattern))
    with pytest.raises(FileNotFoundError, match="no vidjax to install: put a checkout or a wheel of it into this"):
        exec(install, {})
    assert asked == []
    uploaded["vidjax-main.zip"] = b""
    exec(install, {})
    Path("vidjax-0.1.0-py3-none-any.whl").touch()
    exec(install, {})
    for folder, name in (("clone", "vidjax"), ("another", "another")):
        Path(folder).mkdir()
        Path(folder, "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    exec(install, {})
    sources = ("vidjax-main.zip", "vidjax-0.1.0-py3-none-any.whl", "clone")
    assert asked == [f"{tmp_path / source}[{extras}]" for source in sources]
    for origin, count in ((None, 4), ("/vidjax/__init__.py", 4)):  # a folder of that name, and the package
        monkeypatch.setattr("importlib.util.find_spec", lambda name, origin=origin: SimpleNamespace(origin=origin))
        exec(install, {})
        assert len(asked) == count
