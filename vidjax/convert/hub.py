"""Hugging Face's directories: fetched by id, and told by their `config.json` and their files of preprocessing."""

import difflib
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn

from vidjax.convert import preprocessing, published
from vidjax.convert.download import download
from vidjax.convert.files import SUFFIXES
from vidjax.errors import UserError

PATTERNS = (
    "config.json", *preprocessing.FILES, "*.safetensors", "*.safetensors.index.json",
    "merges.txt", "vocab.json", "tokenizer.json",
)  # fmt: skip


def fetch(source: str | Path) -> Path:
    """Where the source is on this machine: a path here comes first, whatever it is called.

    The name of a published checkpoint (`published.ROWS`) is what it stands for: an id of Hugging Face's, which is
    fetched through huggingface_hub, or a file, which is fetched into the cache (`download.cache_folder`).

    Raises:
      UserError: nothing is there, or it cannot be fetched.
    """
    path, name = Path(source).expanduser(), str(source)
    if path.exists():
        return path
    if row := published.ROWS.get(name):
        if row.is_page:
            raise UserError(
                f"{name} is handed out by hand alone: fetch it from {row.source} and give its path, with "
                f"name='{row.model}'" + (f" and {dict(row.fields)}" if row.fields else "")
            )
        return fetch(row.source) if row.is_hub else download(row.source, name, row.sha256)
    if not is_id(source):
        if name.count("/") or Path(name).suffix in SUFFIXES:
            return path  # whoever reads it says that nothing is there
        nearest = difflib.get_close_matches(name, published.ROWS, n=3, cutoff=0.3) or sorted(published.ROWS)[:3]
        raise UserError(
            f"there are no weights at {name}, and no published checkpoint is called so: the nearest are "
            f"{', '.join(nearest)}; vidjax.list_pretrained() has all"
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"nothing is at {source}, and fetching from Hugging Face lacks a package: pip install huggingface_hub"
        ) from error
    try:
        # The files that hold pickles are left where they are, unless there is nothing else.
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=PATTERNS))
        if not any(folder.glob("*.safetensors")):
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=(*PATTERNS, "pytorch_model*")))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"nothing is at {source}, and Hugging Face does not give it ({reason}): correct the name"
        ) from error
    return folder


def is_id(source: str | Path) -> bool:
    """Whether the source reads like an id of Hugging Face's, as in owner/name, or is a published checkpoint's name."""
    name = str(source)
    return name in published.ROWS or (
        name.count("/") == 1 and not name.startswith((".", "/", "~")) and Path(name).suffix not in SUFFIXES
    )


def read_config(path: Path) -> dict | None:
    """The directory's `config.json`; None where there is none."""
    file = path / "config.json"
    config = preprocessing.read_json(file) if file.is_file() else {}
    return config if "model_type" in config else None


def build(config: dict, known: dict[str, Callable[[dict], nn.Module]], source: str | Path) -> nn.Module:
    """The model that a configuration describes.

    Args:
      known: makers by `model_type`.
    """
    kind = config["model_type"]
    if not isinstance(kind, str) or kind not in known:
        raise UserError(f"{source} is a model of type '{kind}': give one of {', '.join(sorted(known))}")
    try:
        return known[kind](config)
    except KeyError as error:
        raise UserError(f"the config.json of {source} lacks {error}: add it, or fetch it again") from error
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"the config.json of {source} cannot be followed: {error}") from error


def expect(config: dict, field: str, *known: object) -> None:
    """Refuses a configuration with another value than those that our module computes.

    Args:
      known: the first is what a configuration means that says nothing.
    """
    value = config.get(field, known[0])
    if value not in known:
        raise UserError(
            f"{field} is {value!r}, and this model is computed with {' or '.join(map(repr, known))} alone: "
            "choose another"
        )


def read_card(config: dict, path: Path) -> dict:
    """What the directory says of input and classes, as fields of a `Card`."""
    told = dict(preprocessing.read(config, path).card)
    try:
        names = config.get("id2label") or {}
        if names and not all(str(name).startswith("LABEL_") for name in names.values()):
            told["class_names"] = tuple(names[index] for index in sorted(names, key=int))
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"the id2label of {path / 'config.json'} cannot be followed ({error}): fetch it again"
        ) from error
    return told
