"""The report of an open-set evaluation: the table, and the files with the uncertainty of each video."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidjax.evaluation.open_set import ACCEPTED, OpenSet, histogram
from vidjax.runs.results import write_csv


def describe_open_set(results: Mapping[str, OpenSet], name: str) -> str:
    """A text report: a table of the uncertainties.

    Args:
      name: of the source of the unknown videos.
    """
    known, unknown = (len(videos) for videos in (results["softmax"].known, results["softmax"].unknown))
    lines = [
        f"open set: {known:,} known videos, {unknown:,} of unknown classes from {name}",
        f"{'uncertainty':12} {'AUROC':>7} {'FPR at 95 %':>12} {'macro-F1':>9} {'threshold':>10}   "
        f"(accepts {ACCEPTED} % of the known)",
    ]
    lines += [
        f"{kind:12} {each.auroc:7.2%} {each.fpr95:12.2%} {each.macro_f1:9.2%} {each.threshold:10.4g}"
        for kind, each in results.items()
    ]
    return "\n".join(lines)


def write_open_set(out: Path, results: Mapping[str, OpenSet], rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Writes uncertainty.csv, with a row for each video, and uncertainty.png; returns the metrics and the histograms.

    Args:
      rows: `predictions` of the known videos, followed by those of the unknown ones.
    """
    values = {kind: np.r_[each.known, each.unknown] for kind, each in results.items()}
    known = ["yes"] * len(results["softmax"].known) + ["no"] * len(results["softmax"].unknown)
    write_csv(
        out / "uncertainty.csv",
        [
            {**row, "known": known[i], **{kind: f"{column[i]:.6g}" for kind, column in values.items()}}
            for i, row in enumerate(rows)
        ],
    )
    from vidjax.visualize.uncertainty import save_uncertainty  # imports Matplotlib

    bins = {kind: histogram(each.known, each.unknown) for kind, each in results.items()}
    save_uncertainty(
        out / "uncertainty.png", {f"{kind}, AUROC {each.auroc:.1%}": bins[kind] for kind, each in results.items()}
    )
    return {
        kind: {
            **{name: getattr(each, name) for name in ("auroc", "fpr95", "macro_f1", "threshold")},
            "histogram": {
                name: column.tolist() for name, column in zip(("edges", "known", "unknown"), bins[kind], strict=True)
            },
        }
        for kind, each in results.items()
    }
