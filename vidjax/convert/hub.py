"""Hugging Face directories: downloads them by id, and reads their configuration."""

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
    "merges.txt", "vocab.json", "tokenizer.json", "qformer_tokenizer/tokenizer.json",
)  # fmt: skip


def nearest_names(name: str) -> str:
    """The published checkpoints with the most similar names, in parentheses for an error message; empty if none is."""
    nearest = difflib.get_close_matches(name, published.ROWS, n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(nearest)}?)" if nearest else ""


def fetch(source: str | Path) -> Path:
    """Returns the local path of a source, after downloading it if necessary.

    An existing local path takes precedence. A Hugging Face id is downloaded with huggingface_hub. The name of a
    published checkpoint (`published.ROWS`) refers to such an id or to a file, which is downloaded into the cache
    (`cache.cache_folder`).

    Raises:
      UserError: the source does not exist or cannot be downloaded.
    """
    path, name = Path(source).expanduser(), str(source)
    if path.exists():
        return path
    if row := published.ROWS.get(name):
        if row.is_page:
            raise UserError(
                f"{name} can only be downloaded manually: get it from {row.source} and give its path, with "
                f"name='{row.model}'" + (f" and {dict(row.fields)}" if row.fields else "")
            )
        return fetch(row.source) if row.is_hub else download(row.source, name, row.sha256)
    if not is_id(source):
        if name.count("/") or Path(name).suffix in SUFFIXES:
            return path  # reading it raises the error for a missing file
        raise UserError(
            f"there are no weights at {name}, and no published checkpoint has this name{nearest_names(name)}: "
            "vidjax.list_pretrained() lists all"
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{source} does not exist, and downloading from Hugging Face needs a package: pip install huggingface_hub"
        ) from error
    try:
        # Pickles are downloaded only if there are no safetensors files.
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=PATTERNS))
        if not any(folder.glob("*.safetensors")):
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=(*PATTERNS, "pytorch_model*")))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{source} does not exist, and cannot be downloaded from Hugging Face ({reason}): correct the name"
        ) from error
    return folder


def is_id(source: str | Path) -> bool:
    """Whether the source has the form of a Hugging Face id (owner/name), or is the name of a published checkpoint."""
    name = str(source)
    return name in published.ROWS or (
        name.count("/") == 1 and not name.startswith((".", "/", "~")) and Path(name).suffix not in SUFFIXES
    )


def read_config(path: Path) -> dict | None:
    """The content of the directory's `config.json`; None if there is none."""
    file = path / "config.json"
    config = preprocessing.read_json(file) if file.is_file() else {}
    return config if "model_type" in config else None


def build(config: dict, known: dict[str, Callable[[dict], nn.Module]], source: str | Path) -> nn.Module:
    """The model described by a configuration.

    Args:
      known: functions that build a model from a configuration, by `model_type`.
    """
    kind = config["model_type"]
    if not isinstance(kind, str) or kind not in known:
        raise UserError(f"{source} is a model of type '{kind}': give one of {', '.join(sorted(known))}")
    try:
        return known[kind](config)
    except KeyError as error:
        raise UserError(f"the config.json of {source} lacks {error}: add it, or download it again") from error
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"the config.json of {source} is not supported: {error}") from error


def expect(config: dict, field: str, *known: object) -> None:
    """Raises `UserError` if a field of a configuration has a value that our module does not support.

    Args:
      known: the supported values, starting with the default.
    """
    value = config.get(field, known[0])
    if value not in known:
        raise UserError(
            f"{field} is {value!r}, but this model supports only {' or '.join(map(repr, known))}: "
            "choose another checkpoint"
        )


def read_card(config: dict, path: Path) -> dict:
    """Fields of the model's `Card` (normalisation, cropping, class names) from a Hugging Face directory."""
    fields = dict(preprocessing.read(config, path).card)
    try:
        names = config.get("id2label") or {}
        if names and not all(str(name).startswith("LABEL_") for name in names.values()):
            fields["class_names"] = tuple(names[index] for index in sorted(names, key=int))
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f"the id2label of {path / 'config.json'} is invalid ({error}): download it again") from error
    return fields
