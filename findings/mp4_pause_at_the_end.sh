#!/usr/bin/env bash
# A pause before the last frame of an MP4 can be missing from its duration, frame rate and index.
#
# PyAV 18.1.0 (FFmpeg 8.1), NumPy 2.4.0. With B-frames the last decoding timestamps are earlier than the last presentation
# timestamps, and the muxer computes the duration of the track from the former. A file of 40 frames of which the last is
# shown at 3.92 s thus has a duration of 1.6 s at 25 frames per second and an index with even steps. Only the packets of
# the last frames have the true time.
#
# Seen: 1.6 s, 25 frames per second, steps of the index [512]; the last frame is shown at 3.92 s
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.0
cd "$folder"
venv/bin/python - <<'PYTHON'
from fractions import Fraction

import av
import numpy as np

with av.open("video.mp4", "w") as out:
    stream = out.add_stream("libx264", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
    stream.codec_context.gop_size, stream.codec_context.max_b_frames = 10, 2
    for i, time in enumerate([*range(39), 98]):
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 5 * i, np.uint8), "rgb24")
        frame.pts, frame.time_base = time, Fraction(1, 25)
        out.mux(stream.encode(frame))
    out.mux(stream.encode())
with av.open("video.mp4") as file:
    stream = file.streams.video[0]
    length, rate = float(stream.duration * stream.time_base), stream.average_rate
    steps = set(np.diff([entry.timestamp for entry in stream.index_entries]).tolist())
    last = max(float(frame.pts * frame.time_base) for frame in file.decode(stream))
print(f"{length} s, {rate} frames per second, steps of the index {list(steps)}; the last frame is shown at {last} s")
assert (length, rate, steps, last) == (1.6, 25, {512}, 3.92)
PYTHON
