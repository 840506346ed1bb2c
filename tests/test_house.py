"""The house stands as it was drawn: who may import whom, and how light `import vidjax` is."""

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
