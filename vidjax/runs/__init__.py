"""Training runs: the code that all training scripts share, and work directories as sources of models.

The names exported here suffice for reading a run, and importing them loads neither Optax nor Orbax. Training scripts
also use `runs.config.TrainConfig` and `runs.run.Run`.
"""

from vidjax.runs.clips import check_views, choose_views, cut_clips, read_views, square_pixels, trained_card, usual_clips
from vidjax.runs.computing import computing_fields, computing_type, on_mesh
from vidjax.runs.weights import (
    choose_head,
    class_names,
    export_adapter,
    fingerprint,
    keep_classes,
    load_pretrained,
    read_weights,
    require_source,
    start_classifier,
    start_from,
)
from vidjax.runs.workdir import is_run, open_run, open_workdir, read_config

__all__ = [
    "check_views",
    "choose_head",
    "choose_views",
    "class_names",
    "computing_fields",
    "computing_type",
    "cut_clips",
    "export_adapter",
    "fingerprint",
    "is_run",
    "keep_classes",
    "load_pretrained",
    "on_mesh",
    "open_run",
    "open_workdir",
    "read_config",
    "read_views",
    "read_weights",
    "require_source",
    "square_pixels",
    "start_classifier",
    "start_from",
    "trained_card",
    "usual_clips",
]
