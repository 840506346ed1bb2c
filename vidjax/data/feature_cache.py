"""A cache of features on disk: one memory-mapped `.npy` file per kind of features, with a row for every example.

The folder also has `labels.npy`; for each kind of features KIND, `KIND_done.npy`, which is True for the rows that are
written; and `meta.json`, how the features were made. A row is marked after it is on the disk, so that a process that is
killed at any time leaves no damaged row behind.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from vidjax.data.embeddings import check_same
from vidjax.errors import UserError


class FeatureCache:
    """Features of the examples of a source.

    Attributes:
      labels: -1 for examples without a label, and for those that are not written yet.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any], examples: int):
        """Opens the cache in `folder`, or creates it.

        Raises:
          UserError: it contains features that were made in another way; the message names the differing settings.
        """
        self.folder, self.examples, path = folder, examples, folder / "meta.json"
        self._arrays: dict[str, np.memmap] = {}
        if path.exists():
            check_same(str(folder), json.loads(path.read_text()), meta)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".partial").write_text(json.dumps(meta, indent=1) + "\n")
            os.replace(path.with_suffix(".partial"), path)
        self.labels = self._open("labels", (), np.int32, -1)

    def add(self, kind: str, shape: Sequence[int], dtype: str) -> None:
        """Opens the features of a kind, or creates them; must be called before the other methods.

        Args:
          shape: of the features of an example.

        Raises:
          UserError: the disk is too small for them.
        """
        size = self.examples * int(np.prod(shape)) * np.dtype(dtype).itemsize
        free = shutil.disk_usage(self.folder).free
        if not self._path(kind).exists() and size > free:  # a full disk would end the process without a message
            raise UserError(
                f"{kind} features of {self.examples:,} videos take {size / 1e9:,.1f} GB, and {self.folder} has "
                f"{free / 1e9:,.1f} GB left: choose another --out, or fewer videos"
            )
        self._open(kind, shape, dtype)
        self._open(f"{kind}_done", (), bool)

    def done(self, *kinds: str) -> Bool[np.ndarray, "n"]:
        """Which examples have features of all of these kinds."""
        return np.logical_and.reduce([self._arrays[f"{kind}_done"] for kind in kinds])

    def write(
        self, rows: Int[np.ndarray, "b"], labels: Int[np.ndarray, "b"], features: Mapping[str, np.ndarray]
    ) -> None:
        """Writes features of examples, by kind.

        Raises:
          UserError: a feature is not finite, or too large for the type in which it is saved.
        """
        self.labels[rows] = labels
        self.labels.flush()
        for kind, values in features.items():
            array = self._arrays[kind]
            with np.errstate(over="ignore"):
                saved = values.astype(array.dtype)
            if not np.isfinite(saved).all():
                reason = f"too large for {array.dtype}: give --cache_dtype float32"
                reason = reason if np.isfinite(values).all() else "not finite: use other weights, these seem damaged"
                raise UserError(f"{kind} features are {reason}")
            array[rows] = saved
            array.flush()
            self._arrays[f"{kind}_done"][rows] = True
            self._arrays[f"{kind}_done"].flush()

    def __getitem__(self, kind: str) -> np.memmap:
        """The features of a kind, `n ...`; rows that are not `done` are zeros."""
        return self._arrays[kind]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _open(self, name: str, shape: Sequence[int], dtype: Any, fill: int = 0) -> np.memmap:
        path = self._path(name)
        if not path.exists():
            unfinished = path.with_suffix(".partial")
            new = np.lib.format.open_memmap(unfinished, "w+", np.dtype(dtype), (self.examples, *shape))
            if fill:
                new[:] = fill
            new.flush()
            os.replace(unfinished, path)
        self._arrays[name] = np.load(path, mmap_mode="r+", allow_pickle=False)
        return self._arrays[name]
