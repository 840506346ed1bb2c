"""The user's cache: downloaded weights and compiled programs."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path


def cache_folder() -> Path:
    """The directory of cached files: `VIDJAX_CACHE`, or `vidjax` in the user's cache directory."""
    if folder := os.environ.get("VIDJAX_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vidjax"


def keep_compiled() -> None:
    """Lets JAX keep programs that took over 0.1 s to compile, unless JAX_COMPILATION_CACHE_DIR is set (empty: none).

    They are in `cache_folder()`, up to 2 GiB. JAX's keys describe the program, the JAX version and the accelerator, but
    not what the CPU can do, which is in the name of the folder: machines with different CPUs may share a home.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax

    cpu = Path("/proc/cpuinfo")
    text = cpu.read_text().partition("\n\n")[0] if cpu.exists() else platform.processor()
    features = [line for line in text.splitlines() if line.startswith(("model name", "flags", "Features"))] or [text]
    name = hashlib.sha256("\n".join(features).encode()).hexdigest()[:8]
    with contextlib.suppress(RuntimeError):  # there is no home directory
        folder = cache_folder() / "compiled" / f"{platform.machine()}_{name}"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", 2**31)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
