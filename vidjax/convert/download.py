"""Downloads files of published checkpoints into a cache, and verifies their hash if one is published."""

import hashlib
import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

from vidjax.cache import cache_folder
from vidjax.errors import UserError

CHUNK = 1 << 20


def download(address: str, name: str, sha256: str = "") -> Path:
    """Returns the path of a file in the cache; if it is not there yet, prints a line and downloads it.

    Args:
      address: URL of the file.
      name: name of the checkpoint, which is also that of its folder in the cache.
      sha256: the file's hash or the first digits of it; a file with another hash is removed.

    Raises:
      UserError: the download fails, the address gives a web page instead of a file, or the hash is wrong.
    """
    path = cache_folder() / name / Path(urlsplit(address).path).name
    if path.is_file():
        return path
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"downloading {address} to {path}", flush=True)
        digest = _fetch(address, unfinished)
    except OSError as error:  # includes urllib's errors
        unfinished.unlink(missing_ok=True)
        raise UserError(
            f"{name} cannot be downloaded from {address} ({error}): download it manually and give its path"
        ) from error
    with unfinished.open("rb") as file:
        is_page = file.read(64).lstrip().lower().startswith((b"<!doctype html", b"<html"))
    if is_page or not digest.startswith(sha256):
        unfinished.unlink()
        reason = "gave a web page instead of a file" if is_page else f"gave a file with the hash {digest}, not {sha256}"
        raise UserError(f"{address} {reason}: download {name} manually and give its path")
    os.replace(unfinished, path)
    return path


def _fetch(address: str, path: Path) -> str:
    """Writes the content of the address to a file, and returns its hash."""
    sha256 = hashlib.sha256()
    with urlopen(address, timeout=60) as response, path.open("wb") as file:
        while chunk := response.read(CHUNK):
            sha256.update(chunk)
            file.write(chunk)
    return sha256.hexdigest()
