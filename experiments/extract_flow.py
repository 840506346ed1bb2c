"""Computes the optical flow of videos, and stores it beside their frames as a stream of sharded TFRecords.

    python experiments/extract_flow.py /videos /records --method tvl1
    python experiments/finetune.py --model i3d_flow --data.train tfrecord:/records --data.stream flow

Without downloads: python experiments/extract_flow.py synthetic:moving_shapes records --method farneback --short_side 64
--examples 256

TV-L1 (Zach et al. 2007), Farnebäck's method (2003) and DIS (Kroeger et al. 2016) are OpenCV's (pip install
'vidjax[flow]'), RAFT (Teed and Deng 2020) takes published weights or a file. The flow of a frame is that to the next
frame that is kept, so --fps and --max_frames lengthen it; the last flow is repeated for the last frame. It is stored
with 8 bits, -20 to 20 pixels per frame as 0 to 255 (TSN, Wang et al. 2016), and what is beyond is cut; or in pixels
(--store float16). Running the same command again resumes, and several processes share the work by --part.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidjax import cli
from vidjax.data.flow import Store
from vidjax.errors import UserError
from vidjax.runs.announce import print_notes
from vidjax.runs.flow import Method, choose_flows
from vidjax.runs.records import RecordConfig, describe_training, further_fields, make_record, write_records

SHOWN, FIRST = 6, 64  # frames of a video in its picture, of its first ones


@dataclass(frozen=True)
class Config(RecordConfig):
    """Which videos, and how their flow is computed and stored."""

    method: Method = "tvl1"
    """How the flow is computed."""
    weights: str | None = None
    """RAFT's: a published checkpoint such as raft_small_c_t_v2, or a file."""
    store: Store = "uint8"
    """Numbers that flow is stored as: a byte, to 0.08 pixels and up to 20, or float16, to 0.05 % without bound."""
    name: str = "flow"
    """Name of the stream, for --data.stream; a field of this name in the source is replaced."""
    examples: int | None = None
    """Only this many of the videos, drawn at random (default: all)."""
    pictures: int = 4
    """Number of videos whose flow is drawn, in OUT/pictures."""
    videos_per_shard: int = 32

    def __post_init__(self) -> None:
        from vidjax.data.manifest import BATCH, COLUMNS

        super().__post_init__()
        if self.examples is not None and self.examples < 1:
            raise UserError(f"examples is {self.examples}: it must be 1 or more")
        if self.pictures < 0:
            raise UserError(f"pictures is {self.pictures}: it must be 0 or more")
        if not self.name.isidentifier() or self.name in {*COLUMNS, *BATCH}:
            raise UserError(f"name is '{self.name}': give a word that batches do not use, such as flow")
        if self.max_frames < 2:
            raise UserError(f"max_frames is {self.max_frames}: flow needs 2 or more")


def save_pictures(config: Config, out: Path) -> list[Path]:
    """Draws the flow of the first videos: frames, arrows on them, the colours of the wheel, and tracks by OpenCV."""
    from vidjax.data.flow import follow_points, from_stored
    from vidjax.data.sources import open_source
    from vidjax.visualize.contact_sheet import save_contact_sheet
    from vidjax.visualize.flow import color_flow, draw_arrows, draw_tracks

    (out / "pictures").mkdir(exist_ok=True)
    source, paths = open_source(f"tfrecord:{out}"), []
    for index in range(min(config.pictures, len(source))):
        with source.open(index, (config.name,)) as example:
            every = np.arange(min(example.streams["video"].info.num_frames, FIRST))
            shown = np.unique(np.linspace(0, every[-1], SHOWN).astype(int))
            (frames, _), (flow, _) = example.streams["video"].read(every), example.streams[config.name].read(shown)
        flow = from_stored(flow)
        longest = float(np.hypot(*np.moveaxis(flow, -1, 0)).max())
        arrows = np.stack([draw_arrows(*pair) for pair in zip(frames[shown], flow, strict=True)])
        rows = [frames[shown], arrows, color_flow(flow, longest + 1e-5)]
        titles = [f"frames {', '.join(map(str, shown))}", config.method, f"full colours: {longest:.1f} pixels"]
        if importlib.util.find_spec("cv2"):
            tracks = follow_points(frames)
            rows.append(np.stack([draw_tracks(frames[i], tracks[: i + 1]) for i in shown]))
            titles.append(f"{tracks.shape[1]} points, followed by Lucas and Kanade's method")
        path = out / "pictures" / f"{index:05d}.png"
        paths.append(save_contact_sheet(path, rows, titles))
    return paths


def main(config: Config) -> None:
    """Writes the missing shards and the pictures, and prints a summary."""
    from vidjax.data.decode import DecodeError
    from vidjax.data.example import Field
    from vidjax.data.flow import to_stored
    from vidjax.data.images import encode_stream
    from vidjax.data.sources import draw, open_source

    source = draw(open_source(config.source, config.split, config.square_pixels), config.examples, seed=0)
    print_notes(source)
    flows = choose_flows(config.method, config.weights)
    copied = {name: spec for name, spec in further_fields(source).items() if name != config.name}
    if len(copied) < len(further_fields(source)):
        print(f"note: {config.name} of {source.name} is replaced by that of {config.method}")

    def make(index: int) -> bytes:
        def make_streams(frames: Iterator[np.ndarray]) -> dict[str, list[bytes]]:
            stored = [encode_stream(to_stored(flow, config.store)[None])[0] for flow in flows(frames)]
            if not stored:
                raise DecodeError(f"{source.ids[index]}: it has one frame, and flow needs two")
            return {config.name: [*stored, stored[-1]]}

        return make_record(source, index, config, copied, make_streams)

    spec = Field("frames", (2,), config.store, mirrored=(0,))
    out = write_records(config, source, copied | {config.name: spec}, make)
    if config.pictures and any(out.glob("*.tfrecord")):  # a part may have no shards yet
        print(f"pictures: {', '.join(map(str, save_pictures(config, out)))}")
    print(f"train on them with {describe_training(out, '--data.train')} --data.stream {config.name}")


if __name__ == "__main__":
    cli.run(main, Config)
