"""Sentences about untrimmed videos, with the moments they describe, and the features of the videos on disk.

Annotations are read in three forms, by their suffix: QVHighlights' `.jsonl` (qid, query, vid, duration,
relevant_windows, and optionally relevant_clip_ids and saliency_scores of clips of two seconds), Charades-STA's `.txt`
(`VIDEO START END##SENTENCE`), and ActivityNet Captions' `.json` (`{VIDEO: {duration, timestamps, sentences}}`). Times
are in seconds.

Features of several encoders are concatenated: a folder for each, as `data.feature_files` describes, all at one stride.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vidjax.data import untrimmed_shapes
from vidjax.data.feature_files import (
    FeatureFile,
    cut_spans,
    described_rate,
    examples,
    list_files,
    open_features,
    probe,
    read_description,
)
from vidjax.errors import UserError
from vidjax.fields import check_values, free

SHAPES = "synthetic:untrimmed_shapes"
CLIP = 2
"""Seconds of video that a rating is of."""
EPSILON = 1e-5
"""Added to the length of a feature before dividing by it, as in Moment-DETR's code."""


@dataclass(frozen=True)
class MomentConfig:
    """Sentences with annotated moments, and features of the videos on disk."""

    train: str = SHAPES
    """Annotations to train on: a file of QVHighlights' form (.jsonl), Charades-STA's (.txt) or ActivityNet Captions'
    (.json), or synthetic:untrimmed_shapes."""
    validation: str | None = SHAPES
    """Annotations to validate on."""
    features: tuple[str, ...] = ()
    """Folders of a .npy or .npz file for each video, whose features are concatenated; the demo makes its own."""
    clip_seconds: float | None = None
    """Seconds from one feature to the next; needed unless embed.py wrote the features."""
    text_features: str | None = None
    """Folder of a file qidID.npz for each query, with the array last_hidden_state (default: the text tower's)."""
    max_bad_share: float = free(0.0)
    """Stop if the videos of more than this fraction of the queries have no features."""

    repeats = 1

    def __post_init__(self) -> None:
        check_values(self, "data.")
        if self.clip_seconds is not None and self.clip_seconds <= 0:
            raise UserError(f"data.clip_seconds is {self.clip_seconds}: it must be above 0")
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"data.max_bad_share is {self.max_bad_share}: it must be between 0 and 1")


@dataclass(frozen=True)
class Query:
    """A sentence about a video.

    Attributes:
      name: its number, or the video's with a number.
      text: the sentence.
      video: the name of the video.
      windows: start and end of each moment in seconds.
      duration: of the video in seconds; None if the annotations do not say it.
      ratings: of each clip of two seconds by each annotator, 0 to 4, where 0 is irrelevant; None if there are none.
    """

    name: str
    text: str
    video: str
    windows: Float[np.ndarray, "m 2"]
    duration: float | None
    ratings: Int[np.ndarray, "clips annotators"] | None = None


@dataclass(frozen=True)
class MomentSource:
    """The queries of a file of annotations; what `runs.run.Run` reads of a `Source` has the same names.

    Attributes:
      files: for each video, its features of each encoder.
      widths: of these features.
    """

    name: str
    queries: Sequence[Query]
    files: Mapping[str, tuple[FeatureFile, ...]]
    widths: tuple[int, ...]
    notes: tuple[str, ...] = ()

    class_names = ()
    parts = ()
    listed = True
    unit = "queries"

    def __len__(self) -> int:
        return len(self.queries)

    @cached_property
    def ids(self) -> list[str]:
        """The name of each query and its video."""
        return [f"{query.name} of {query.video}" for query in self.queries]

    def label(self, index: int) -> tuple[Any, ...]:
        """Moments and ratings, by which a run that resumes knows its data."""
        query = self.queries[index]
        return query.windows.tolist(), None if query.ratings is None else query.ratings.tolist()

    def captions(self, index: int) -> tuple[str, ...]:
        """The sentence."""
        return (self.queries[index].text,)

    def read(self, video: str) -> Float[np.ndarray, "t c"]:
        """The features of a video: of each encoder with unit length, side by side, until the first of them ends.

        Raises:
          UserError: see `open_features`.
        """
        files = zip(self.files[video], self.widths, strict=True)
        return join_features([open_features(file.path, width) for file, width in files])


def join_features(streams: Sequence[Float[np.ndarray, "_ _"]]) -> Float[np.ndarray, "t c"]:
    """Features of several encoders with unit length, side by side, until the first of them ends."""
    steps = min(map(len, streams))
    return np.concatenate([unit_length(np.asarray(each[:steps], np.float32)) for each in streams], axis=1)


def unit_length(features: Float[np.ndarray, "t c"]) -> Float[np.ndarray, "t c"]:
    """Features of unit length."""
    return features / (np.linalg.norm(features, axis=1, keepdims=True) + EPSILON)


def require_words(text: str) -> None:
    """Raises UserError if a query has no word."""
    if not re.search(r"\w", text):
        raise UserError(f"the query {text!r} has no words: say what to look for")


def read_queries(path: str, split: str = "train") -> list[Query]:
    """The queries of a file of annotations, in its order.

    Args:
      split: of the embedded data set, for `synthetic:untrimmed_shapes`.

    Raises:
      UserError: the file cannot be read, or has another form (the message names the line or the video), or queries have
        no words.
    """
    readers = {".jsonl": _read_jsonl, ".txt": _read_lines, ".json": _read_captions}
    if path == SHAPES:
        queries = [_of_row(row) for row in untrimmed_shapes.queries(f"moments_{split}")]
    elif (suffix := Path(path).suffix) not in readers:
        raise UserError(f"annotations {path}: give a file that ends in {', '.join(readers)}, or {SHAPES}")
    else:
        try:
            queries = readers[suffix](path, Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"annotations {path} cannot be read ({error}): give another file") from error
    if not queries:
        raise UserError(f"annotations {path} have no queries: give another file")
    if silent := [f"{query.name} of {query.video}" for query in queries if not re.search(r"\w", query.text)]:
        raise UserError(
            f"{path}: {len(silent):,} of {len(queries):,} queries have no words: {examples(silent)}; remove them"
        )
    return queries


def _read_jsonl(path: str, text: str) -> list[Query]:
    queries = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            queries += [_of_row(json.loads(line))] if line.strip() else []
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f"{path}, line {number} is not in QVHighlights' form ({error!r}): a line has qid, query, vid, duration "
                "and relevant_windows, a list of [start, end], and may have relevant_clip_ids with saliency_scores"
            ) from error
    return queries


def _of_row(row: Mapping[str, Any]) -> Query:
    duration = float(row["duration"])
    ratings = None
    if "saliency_scores" in row:
        scores, clips = np.array(row["saliency_scores"], int), np.array(row["relevant_clip_ids"], int)
        if len(scores) != len(clips):
            raise ValueError(f"{len(scores)} saliency_scores of {len(clips)} clips")
        if (clips < 0).any():
            raise ValueError(f"relevant_clip_ids has {clips.min()}")
        ratings = np.zeros((int(duration / CLIP), scores.shape[1] if len(scores) else 1), int)
        if len(clips):  # a short moment may fill no clip
            ratings[clips] = scores
    return _query(str(row["qid"]), row["query"], row["vid"], row["relevant_windows"], duration, ratings)


def _query(name: str, text: str, video: str, windows: Any, duration: float | None, ratings: Any = None) -> Query:
    windows = np.array(windows, float).reshape(-1, 2)
    given = np.append(windows, 1.0 if duration is None else duration)
    if not np.isfinite(given).all() or given[-1] <= 0 or not isinstance(video, str):
        raise ValueError(f"times {windows.tolist()} of {duration} seconds of {video!r}")
    return Query(name, text.strip(), video, windows, duration, ratings)


def _read_lines(path: str, text: str) -> list[Query]:
    queries = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            times, _, sentence = line.partition("##")
            video, start, end = times.split()
            queries.append(_query(str(number), sentence, video, [[start, end]], None))
        except ValueError as error:
            raise UserError(
                f"{path}, line {number} is not in Charades-STA's form ({error}): a line is VIDEO START END##SENTENCE"
            ) from error
    return queries


def _read_captions(path: str, text: str) -> list[Query]:
    queries, video = [], None
    try:
        for video, entry in json.loads(text).items():
            for number, (window, sentence) in enumerate(zip(entry["timestamps"], entry["sentences"], strict=True)):
                queries.append(_query(f"{video}_{number}", sentence, video, [window], float(entry["duration"])))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not in ActivityNet Captions' form ({error!r} at {video}): videos by name, each with duration, "
            "timestamps, a list of [start, end], and as many sentences"
        ) from error
    return queries


def open_moments(data: MomentConfig) -> tuple[MomentSource, MomentSource | None]:
    """Opens the queries to train and to validate on, and checks annotations and features against each other.

    Raises:
      UserError: with counts and examples: queries without words, videos without features, times that are no seconds,
        features of another width or stride, or no moment at all.
    """
    if not data.features:
        raise UserError("no features are given: give --data.features, folders of .npy files (embed.py writes them)")
    folders = {folder: list_files(folder) for folder in data.features}
    train = _open(data, data.train, "train", folders)
    validation = None if data.validation is None else _open(data, data.validation, "validation", folders, train.widths)
    asked = {query.video for source in (train, validation) if source for query in source.queries}
    notes = []
    for folder, files in folders.items():
        # Not an error: such a folder often has the features of a test set, too.
        if others := sorted(files.keys() - asked):
            notes.append(f"{folder}: {len(others):,} of {len(files):,} videos have no query: {examples(others)}")
    return replace(train, notes=(*train.notes, *notes)), validation


def _open(
    data: MomentConfig,
    path: str,
    split: str,
    folders: Mapping[str, Mapping[str, str]],
    widths: tuple[int, ...] | None = None,
) -> MomentSource:
    queries, notes = _with_features(data, path, read_queries(path, split), folders)
    files = _feature_files(data, queries, folders)
    queries, more = _cut_windows(queries, files)
    widths = widths or tuple(open_features(file.path, None).shape[1] for file in files[queries[0].video])
    for column, width in enumerate(widths):
        probe([each[column] for each in files.values()], width, "--data.clip_seconds")
    return MomentSource(path, queries, files, widths, (*notes, *more))


def _with_features(
    data: MomentConfig, path: str, queries: list[Query], folders: Mapping[str, Mapping[str, str]]
) -> tuple[list[Query], list[str]]:
    """The queries about videos of which all folders have features, and notes; raises UserError if they are too few."""
    kept, notes = queries, []
    for folder, files in folders.items():
        if missing := [query.video for query in queries if query.video not in files]:
            names = list(dict.fromkeys(missing))
            about = f"{len(missing):,} of the {len(queries):,} queries of {path} are about {len(names):,} videos"
            line = f"{folder}: {about} without features: {examples(names)}"
            if len(missing) > data.max_bad_share * len(queries):
                raise UserError(f"{line}; add them, or allow such with --data.max_bad_share")
            notes.append(line)
        kept = [query for query in kept if query.video in files]
    if not kept:
        raise UserError(f"there are features of none of the videos of {path}: do the files have the videos' names?")
    return kept, notes


def _feature_files(
    data: MomentConfig, queries: list[Query], folders: Mapping[str, Mapping[str, str]]
) -> dict[str, tuple[FeatureFile, ...]]:
    """The files of each video; raises UserError if their stride is unknown, or differs."""
    described = {folder: read_description(folder) for folder in folders}
    durations = {query.video: query.duration for query in queries}
    videos = {}
    for name, annotated in durations.items():
        files = []
        for folder, paths in folders.items():
            if (written := described[folder]) is not None:
                rate = described_rate(folder, written, name)
                if data.clip_seconds is not None and not np.isclose(data.clip_seconds, rate[1] / rate[0], rtol=0.01):
                    raise UserError(
                        f"data.clip_seconds is {data.clip_seconds:g}, but the features of {name} in {folder} are "
                        f"{rate[1] / rate[0]:g} s apart: omit it, or make others"
                    )
                known = annotated or written["videos"][name]["duration"]
            elif data.clip_seconds is None:
                raise UserError(f"how far the features in {folder} are apart is unknown: give --data.clip_seconds")
            else:
                rate = 1.0, data.clip_seconds, data.clip_seconds
                known = annotated or len(open_features(paths[name], None)) * data.clip_seconds
            files.append(FeatureFile(name, paths[name], known, *rate))
        strides = [file.stride / file.fps for file in files]
        if not np.allclose(strides, strides[0], rtol=0.01):
            apart = ", ".join(f"{stride:g} s" for stride in strides)
            raise UserError(
                f"the features of {name} in {', '.join(folders)} are {apart} apart: make them at one stride"
            )
        videos[name] = tuple(files)
    return videos


def _cut_windows(queries: list[Query], files: Mapping[str, tuple[FeatureFile, ...]]) -> tuple[list[Query], list[str]]:
    """Queries whose moments are within their video, without those that have none, and notes."""
    durations = [files[query.video][0].duration for query in queries]
    spans = [
        (query.video, *window, duration)
        for query, duration in zip(queries, durations, strict=True)
        for window in query.windows.tolist()
    ]
    cut, notes = cut_spans(spans, "moments")
    each, kept, without = iter(cut), [], []
    for query in queries:
        windows = [window for window in (next(each) for _ in query.windows) if window is not None]
        if windows:
            kept.append(replace(query, windows=np.array(windows)))
        else:
            without.append(f"{query.name} of {query.video}")
    if not kept:
        raise UserError(f"none of the {len(queries):,} queries has a moment: annotate them")
    if without:
        notes.append(
            f"{len(without):,} of {len(queries):,} queries have no moment and are left out: {examples(without)}"
        )
    return kept, notes
