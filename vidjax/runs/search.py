"""Nearest-neighbour search in embeddings written by experiments/embed.py."""

from typing import Any

import numpy as np

from vidjax.evaluation.knn import nearest


def name_nearest(path: str, query: str, features: np.ndarray, count: int) -> list[dict[str, Any]]:
    """Prints and returns the windows of an embeddings file that are nearest to a query.

    Args:
      path: an `.npz` file of embed.py.
      query: the query's name in the output.
      features: the query's feature, `1 d`.
      count: number of windows.

    Raises:
      UserError: the widths of the features differ.
    """
    with np.load(path) as arrays:
        index = {name: arrays[name] for name in ("features", "ids", "start", "end", "labels", "class_names")}
    order, similarity = nearest(index["features"], features, count)
    print(f"\nNearest to {query}:\n  cosine    start      end")
    rows = []
    for i, value in zip(order[0], similarity[0], strict=True):
        label = str(index["class_names"][index["labels"][i]]) if index["labels"][i] >= 0 else None
        row = {"id": str(index["ids"][i]), "start": float(index["start"][i]), "end": float(index["end"][i])}
        rows.append(row | {"similarity": float(value), "label": label})
        print(f"  {value:.4f} {row['start']:8.2f} {row['end']:8.2f}  {row['id']}{f' ({label})' if label else ''}")
    return rows
