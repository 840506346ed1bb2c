"""Searching the embeddings that experiments/embed.py wrote."""

from typing import Any

import numpy as np

from vidjax.evaluation.knn import nearest


def name_nearest(path: str, query: str, features: np.ndarray, count: int) -> list[dict[str, Any]]:
    """The windows of a file of embed.py whose features are nearest to a query's `1 d`, printed and returned.

    Args:
      query: what the sentence calls it.

    Raises:
      UserError: the features have another width.
    """
    with np.load(path) as arrays:
        index = {name: arrays[name] for name in ("features", "ids", "start", "end", "labels", "class_names")}
    order, similarity = nearest(index["features"], features, count)
    print(f"\n{query} is most like\n  cosine    start      end")
    rows = []
    for i, value in zip(order[0], similarity[0], strict=True):
        label = str(index["class_names"][index["labels"][i]]) if index["labels"][i] >= 0 else None
        row = {"id": str(index["ids"][i]), "start": float(index["start"][i]), "end": float(index["end"][i])}
        rows.append(row | {"similarity": float(value), "label": label})
        print(f"  {value:.4f} {row['start']:8.2f} {row['end']:8.2f}  {row['id']}{f' ({label})' if label else ''}")
    return rows
