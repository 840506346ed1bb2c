"""The steps of docs/extend.md that register its model and its source, applied to a copy of the library."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from blocks import ROOT, blocks_of, text_of

from vidjax.data.batches import evaluation_batches
from vidjax.data.config import DataConfig

pytestmark = pytest.mark.pages

# Use of the two names: load a trained run, save it, and load it again without naming the model.
USE = """
import vidjax
model, variables = vidjax.load_pretrained("run", verbose=False)
assert type(model).__name__ == "ShiftNet" and model.card.class_names == ("jump", "wave"), model
vidjax.save_pretrained("saved", model, variables)
assert vidjax.load_pretrained("saved", verbose=False)[0] == model
import jax
row = vidjax.create_model("shiftnet_tiny")
shapes = jax.eval_shape(row.init, jax.random.key(0), *vidjax.models.example_inputs(row))
assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == COUNT, shapes
"""

LINT = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command(['--no-cache']))"


def insert(path, after, line):
    """Inserts a line after the only line that contains `after`, with the same indentation."""
    lines = path.read_text().splitlines()
    (place,) = [number for number, old in enumerate(lines) if after in old]
    indent = re.match(" *", lines[place])[0]
    lines[place + 1 : place + 1] = [indent + new for new in line.splitlines()]
    path.write_text("\n".join(lines) + "\n")


def test_a_model_and_a_source_are_registered(tmp_path, monkeypatch):
    page = text_of("docs/extend.md")
    model, _, source, images = (block.text for block in blocks_of("docs/extend.md")[:4])
    imported, variants = (re.search(rf"`({head} .+?)`", page)[1] for head in ("from types import", "VARIANTS ="))
    opened = re.search(r"`(if kind == \"images\".+?)`", page)[1]
    for folder in ("vidjax", "experiments"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    models = tmp_path / "vidjax" / "models"
    (models / "shiftnet.py").write_text(f"{imported}\n\n{model}\n\n{variants}\n")
    module = re.search(r"put it in `vidjax/data/(\w+)\.py`", page)[1]
    with (tmp_path / "vidjax" / "data" / f"{module}.py").open("x") as file:  # the page must not name a file of ours
        file.write(source)
    opened = f"from vidjax.data.{module} import open_images\n{opened}"
    insert(tmp_path / "vidjax" / "data" / "sources.py", 'kind, _, rest = name.partition(":")', opened)
    monkeypatch.chdir(tmp_path)
    made = {}
    with contextlib.redirect_stdout(None):
        exec(source + images, made)  # writes folders of images
    flags = """--model shiftnet_tiny --data.train images:images --data.frames 4 --data.size 32 --data.stride 2
    --data.workers 1 --batch_size 4 --steps 2 --loop.log_every 1 --optim.layer_decay 0.9 --workdir run"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    use = USE.replace("COUNT", re.search(r"`COUNTS = {\"shiftnet_tiny\": \(([\d_]+), None\)}`", page)[1])
    for command in (["-c", LINT], ["experiments/finetune.py", *flags.split()], ["-c", use]):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (Path("run") / "checkpoints").is_dir()


def test_an_unreadable_image_is_invalid_and_a_missing_folder_is_an_error(tmp_path, monkeypatch):
    source, images = (block.text for block in blocks_of("docs/extend.md")[2:4])
    monkeypatch.chdir(tmp_path)
    made = {}
    with contextlib.redirect_stdout(None):
        exec(source + images, made)
    Path("images/jump/2/00000.jpg").write_bytes(b"no image")
    whole = Path("images/wave/1/00003.jpg").read_bytes()
    Path("images/wave/1/00003.jpg").write_bytes(whole[: len(whole) // 2])
    batch = next(
        evaluation_batches(made["open_images"]("images"), DataConfig(frames=12, size=32, stride=1), batch_size=4)
    )
    assert batch["valid"].tolist() == [True, False, False, True]
    with pytest.raises(ValueError, match="there are no folders CLASS/VIDEO in absent: correct its path"):
        made["open_images"]("absent")
