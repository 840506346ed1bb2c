"""Files of published checkpoints at plain addresses: fetched once into a cache, checked where a hash is published."""

import hashlib
import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

from vidjax.errors import UserError

CHUNK = 1 << 20


def cache_folder() -> Path:
    """Where files are kept: `VIDJAX_CACHE`, otherwise `vidjax` in the user's cache folder."""
    if folder := os.environ.get("VIDJAX_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vidjax"


def download(address: str, name: str, sha256: str = "") -> Path:
    """The file at an address, from the cache or fetched into it, with a line that says so.

    Args:
      name: of the checkpoint, by which its folder in the cache is called.
      sha256: the file's hash or the beginning of it; a file with another is removed.

    Raises:
      UserError: it cannot be fetched, is a page instead of a file, or has another hash.
    """
    path = cache_folder() / name / Path(urlsplit(address).path).name
    if path.is_file():
        return path
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"fetching {address} to {path}", flush=True)
        digest = _fetch(address, unfinished)
    except OSError as error:  # those of urllib among them
        unfinished.unlink(missing_ok=True)
        raise UserError(
            f"{name} cannot be fetched from {address} ({error}): fetch it by hand and give its path"
        ) from error
    with unfinished.open("rb") as file:
        page = file.read(64).lstrip().lower().startswith((b"<!doctype html", b"<html"))
    if page or not digest.startswith(sha256):
        unfinished.unlink()
        why = "a page and no file" if page else f"a file with the hash {digest}, and not {sha256}"
        raise UserError(f"at {address} is {why}: fetch {name} by hand and give its path")
    os.replace(unfinished, path)
    return path


def _fetch(address: str, path: Path) -> str:
    """Writes what is at the address, and returns its hash."""
    sha256 = hashlib.sha256()
    with urlopen(address, timeout=60) as answer, path.open("wb") as file:
        while chunk := answer.read(CHUNK):
            sha256.update(chunk)
            file.write(chunk)
    return sha256.hexdigest()
