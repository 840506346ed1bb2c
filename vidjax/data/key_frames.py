"""Key frames with boxes, for spatio-temporal detection: a clip around each, as a source for the pipeline.

The files are AVA's, see `box_tables`; the videos are files in a folder, named by the video's id. The clip of a key
frame is `frames` frames a stride apart, of which number `frames // 2` is the key frame; beyond the ends of the video
its first and last frame are repeated (as in SlowFast on AVA).
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from vidjax.data import box_tables, many_shapes
from vidjax.data.box_tables import BoxTable, Key
from vidjax.data.config import SHAPES, ClipConfig, DetectionConfig
from vidjax.data.container import DecodeError
from vidjax.data.decode import VideoInfo, open_clip
from vidjax.data.example import LABEL, VIDEO, Example, Field, Source, Stream, in_pieces
from vidjax.data.manifest import walk_videos
from vidjax.data.moving_shapes import CLASSES
from vidjax.data.rendered import Rendered
from vidjax.data.sampling import sampling_step
from vidjax.errors import UserError

PROBED = 8
"""Videos that are opened at the start, evenly over the list."""


@dataclass(frozen=True)
class KeyFrame:
    """Boxes at a time of a video, and for each the positions of its actions in the class names."""

    video: str
    time: float
    boxes: Float[np.ndarray, "n 4"]
    actions: tuple[tuple[int, ...], ...]

    @property
    def key(self) -> Key:
        """What identifies it."""
        return self.video, self.time


@dataclass(frozen=True)
class KeyFrames:
    """Key frames whose boxes are classified, and the annotations that they are compared with.

    Attributes:
      source: an example for each of the frames, with the fields `boxes` and `actions` (one column per class).
      truth: the annotated key frames; those of `frames` unless these are of proposals.
      ids: of the classes in AVA's files.
      evaluated: the classes that count.
      excluded: key frames that do not.
    """

    source: Source
    frames: Sequence[KeyFrame]
    truth: Sequence[KeyFrame]
    ids: tuple[str, ...]
    evaluated: tuple[int, ...]
    excluded: frozenset[Key] = frozenset()

    @property
    def most(self) -> int:
        """Boxes of the frame that has most, to which the others are padded."""
        return self.source.fields["boxes"].shape[0]


@dataclass(frozen=True)
class Around:
    """The frames of a video around a key frame, as a stream."""

    stream: Stream
    first: int
    """Index of the first frame; it may lie before the video."""
    info: VideoInfo

    def read(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None
    ) -> tuple[UInt8[np.ndarray, "t h w c"], VideoInfo]:
        """See `example.Stream`."""
        inside = np.clip(self.first + np.asarray(indices, np.int64), 0, self.stream.info.num_frames - 1)
        frames, info = self.stream.read(inside, short_side)
        return frames, replace(info, num_frames=self.info.num_frames, duration=self.info.duration)

    def iterate(self, indices: Int[np.ndarray, "n"], short_side: int | None) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """See `example.Stream`."""
        return in_pieces(self, indices, short_side)


def around(stream: Stream, seconds: float, name: str, config: ClipConfig) -> Around:
    """The frames of the clip around a time.

    Raises:
      DecodeError: the video has ended.
    """
    info, step = stream.info, sampling_step(config, stream.info.rate)
    center = int(np.floor(seconds * info.rate + 0.5))
    if not 0 <= center < info.num_frames + info.rate:
        raise DecodeError(f"{name}: there is no key frame at {seconds:g} s, it lasts {info.duration:.1f} s")
    count = int(np.floor((config.frames - 1) * step + 0.5)) + 1
    first = center - int(config.frames * step // 2)
    return Around(stream, first, replace(info, num_frames=count, duration=count / info.rate))


def key_frame_source(
    name: str,
    frames: Sequence[KeyFrame],
    class_names: Sequence[str],
    open_stream: Callable[[str], AbstractContextManager[Stream]],
    config: ClipConfig,
    notes: Sequence[str] = (),
    start: float = 0.0,
) -> Source:
    """A source of the clips around key frames.

    Args:
      open_stream: opens a video by its name.
      start: time of the first frame of the videos.
    """

    @contextmanager
    def open_example(index: int, names: Sequence[str]) -> Iterator[Example]:
        frame = frames[index]
        actions = np.zeros((len(frame.boxes), len(class_names)), np.uint8)
        for row, positions in enumerate(frame.actions):
            actions[row, list(positions)] = 1
        with open_stream(frame.video) as stream:
            clip = around(stream, frame.time - start, frame.video, config)
            yield Example({"video": clip}, values={"boxes": frame.boxes, "actions": actions})

    most = max((len(frame.boxes) for frame in frames), default=1)
    fields = {"boxes": Field("boxes", (most, 4)), "actions": Field("numbers", (most, len(class_names)), "uint8")}
    return Source(
        name,
        tuple(class_names),
        [f"{frame.video}@{frame.time:g}" for frame in frames],
        open_example,
        # What a run that resumes knows its data by; the label of an example is -1.
        lambda index: (*frames[index].boxes.ravel().tolist(), *frames[index].actions),
        lambda index: (),
        listed=True,
        notes=tuple(notes),
        fields={"video": VIDEO, "label": LABEL, **fields},
    )


def open_key_frames(data: DetectionConfig) -> tuple[KeyFrames, KeyFrames | None]:
    """Opens the key frames for training and for validation, and checks files and videos against each other.

    Raises:
      UserError: with counts and examples: annotations without a video and the reverse, boxes outside the frame or in
        pixels, unknown classes, or time stamps beyond the ends of the videos.
    """
    if data.train == SHAPES:
        train = _rendered("train", data)
        if data.validation not in (None, SHAPES):
            raise UserError(f"data.validation {data.validation} has other classes than {SHAPES}: give --data.train too")
        return train, data.validation and _rendered("validation", data)
    tables = [box_tables.read_boxes(path) for path in (data.train, data.validation) if path]
    found = [box_tables.read_boxes(data.proposals, data.least_box_score)] if data.proposals and data.validation else []
    paths, notes = _match_videos(data, [*tables, *found])
    names = box_tables.read_label_map(data.classes) if data.classes else _own_classes(tables[0])
    _require_known(tables, names, data.classes)
    counted = box_tables.read_label_map(data.evaluated) if data.evaluated else names
    if unknown := [f"{number} ({name})" for number, name in counted.items() if number not in names]:
        raise UserError(f"data.evaluated has classes that the model does not know: {box_tables.examples(unknown)}")
    ids = tuple(names)
    evaluated = tuple(ids.index(number) for number in counted)
    lists = [_key_frames(table, ids, paths) for table in tables]
    _probe(lists, paths, data)
    excluded = box_tables.read_excluded(data.train_excluded)
    lists[0] = [frame for frame in lists[0] if frame.key not in excluded and any(frame.actions)]

    def opened(
        frames: Sequence[KeyFrame], truth: Sequence[KeyFrame], table: BoxTable, out: frozenset[Key]
    ) -> KeyFrames:
        if not frames:
            raise UserError(f"{table.path} has no key frames left, without those that are excluded or without a video")
        more = (*table.notes, *notes)
        source = key_frame_source(
            table.path, frames, tuple(names.values()), lambda video: _open(paths[video], data), data, more, data.start
        )
        return KeyFrames(source, frames, truth, ids, evaluated, out)

    train = opened(lists[0], lists[0], tables[0], excluded)
    if len(tables) == 1:
        return train, None
    excluded = box_tables.read_excluded(data.validation_excluded)
    table = found[0] if found else tables[1]
    boxes = _key_frames(replace(table, frames=_without_actions(table)), ids, paths) if found else lists[1]
    boxes = [frame for frame in boxes if frame.key not in excluded]
    return train, opened(boxes, lists[1], table, excluded)


def frames_of_video(path: str, video: str, least_score: float | None = None) -> list[KeyFrame]:
    """The key frames of one video in a file of boxes, in the order of time and without actions.

    Raises:
      UserError: see `box_tables.read_boxes`; or it has no boxes of the video.
    """
    table = box_tables.read_boxes(path, least_score)
    known = sorted({name for name, _ in table.frames})
    if video not in known:
        raise UserError(
            f"{path} has boxes of {box_tables.examples(known)}, none of {video}: rename the file or the ids"
        )
    frames = replace(table, frames=_without_actions(table))
    return _key_frames(frames, (), {video: path})


def _open(path: str, data: ClipConfig) -> AbstractContextManager[Stream]:
    return open_clip(path, data.square_pixels)


def _without_actions(table: BoxTable) -> dict[Key, dict[tuple[float, ...], list[str]]]:
    return {key: {box: [] for box in boxes} for key, boxes in table.frames.items()}


def _key_frames(table: BoxTable, ids: Sequence[str], paths: Mapping[str, str]) -> list[KeyFrame]:
    """The key frames of a table whose video exists."""
    places = {number: place for place, number in enumerate(ids)}
    return [
        KeyFrame(video, time, np.array(list(boxes)), tuple(tuple(places[each] for each in b) for b in boxes.values()))
        for (video, time), boxes in sorted(table.frames.items())
        if video in paths
    ]


def _own_classes(table: BoxTable) -> dict[str, str]:
    """The actions of a table, which are their own names: by number if all are numbers."""
    actions = sorted(table.actions)
    if not actions:
        raise UserError(f"{table.path} has no actions: give their ids or names in the seventh column")
    numbers = all(each.isdecimal() for each in actions)
    return {each: each for each in (sorted(actions, key=int) if numbers else actions)}


def _require_known(tables: Sequence[BoxTable], names: Mapping[str, str], label_map: str | None) -> None:
    for table in tables:
        if unknown := sorted(table.actions - names.keys()):
            raise UserError(
                f"{table.path} has {len(unknown):,} classes that are not in {label_map or 'the training boxes'}: "
                f"{box_tables.examples(unknown)}; add them to the label map (--data.classes), or remove their rows"
            )


def _match_videos(data: DetectionConfig, tables: Sequence[BoxTable]) -> tuple[dict[str, str], list[str]]:
    """The paths of the annotated videos by name, and notes; raises UserError if too many videos or rows are alone."""
    if not Path(data.videos).is_dir():
        raise UserError(f"data.videos {data.videos} is no folder: give the folder of the video files")
    paths = {os.path.splitext(os.path.basename(path))[0]: path for path in walk_videos(Path(data.videos))[0]}
    named = {video for table in tables for video, _ in table.frames}
    notes = []
    for missing, total, what, lacks in (
        (sorted(named - paths.keys()), len(named), "annotated videos", f"file in {data.videos}"),
        (sorted(paths.keys() - named), len(paths), f"videos in {data.videos}", "annotation"),
    ):
        line = f"{len(missing):,} of the {total:,} {what} have no {lacks}: {box_tables.examples(missing)}"
        if len(missing) > data.max_bad_share * total:
            raise UserError(f"{line}; add them, or allow such with --data.max_bad_share (files are named by video_id)")
        notes += [line] if missing else []
    return paths, notes


def _probe(lists: Sequence[Sequence[KeyFrame]], paths: Mapping[str, str], data: DetectionConfig) -> None:
    """Opens a few videos; raises UserError if most end before their last key frame."""
    last: dict[str, float] = {}
    for frame in (frame for frames in lists for frame in frames):
        last[frame.video] = max(last.get(frame.video, 0), frame.time)
    chosen = [sorted(last)[i] for i in np.unique(np.linspace(0, len(last) - 1, PROBED).astype(int))] if last else []
    wrong = []
    for video in chosen:
        try:
            with _open(paths[video], data) as clip:
                around(clip, last[video] - data.start, video, data)
        except DecodeError as error:
            wrong.append(str(error))
    if 2 * len(wrong) > len(chosen):
        raise UserError(
            f"{len(wrong)} of {len(chosen)} videos cannot be read at their last key frame: {wrong[0]}; time stamps are "
            "in seconds: give --data.start, the time stamp at which the files begin, or correct them"
        )


def _rendered(split: str, data: DetectionConfig) -> KeyFrames:
    """The key frames of the embedded data set."""
    indices = {many_shapes.video_name(split, n): index for n, index in enumerate(many_shapes.SPLITS[split])}
    frames = []
    for video, index in indices.items():
        for seconds in many_shapes.KEY_SECONDS:
            boxes, directions = many_shapes.boxes(index, seconds)
            frames.append(KeyFrame(video, seconds, boxes, tuple((int(each),) for each in directions)))

    @contextmanager
    def open_stream(video: str) -> Iterator[Stream]:
        yield Rendered(indices[video], many_shapes.render, many_shapes.NUM_FRAMES)

    source = key_frame_source(f"{SHAPES}, {split}", frames, CLASSES, open_stream, data)
    return KeyFrames(source, frames, frames, CLASSES, tuple(range(len(CLASSES))))
