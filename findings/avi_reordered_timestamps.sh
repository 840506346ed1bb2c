#!/usr/bin/env bash
# With B-frames, presentation timestamps of H.264 in AVI and WMV are out of order; decoding timestamps are right.
#
# PyAV 18.1.0 (FFmpeg 8.1), NumPy 2.4.0. Both containers store one timestamp per packet, in decoding order. FFmpeg derives
# a presentation timestamp from it (that of the next packet), which the decoder assigns to reordered frames: sorting or
# searching by frame.pts gives wrong frames. frame.dts increases and differs from the true time by a constant; only the
# last frames, which are flushed at the end, have none. MPEG-4 in AVI, whose B-frames the demuxer handles, is not affected.
#
# Seen: avi pts [1, 3, 4, 2, 6], dts [2, 3, 4, 5, 6]; wmv pts [40, 120, 160, 80, 240], dts [80, 120, 160, 200, 240];
#       mp4 pts [0, 512, 1024, 1536, 2048], dts [0, 512, 1024, 1536, 2048]
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

for suffix in ("avi", "wmv", "mp4"):
    with av.open(f"video.{suffix}", "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = 10, 2
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 10 * i, np.uint8), "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with av.open(f"video.{suffix}") as file:
        stream = file.streams.video[0]
        stream.codec_context.thread_count = 1
        frames = [(frame.pts, frame.dts, round(float(frame.to_ndarray(format="rgb24").mean()) / 10)) for frame in file.decode(stream)]
    pts, dts = [pts for pts, _, _ in frames], [dts for _, dts, _ in frames if dts is not None]
    print(f"{suffix} pts {pts[:5]}, dts {dts[:5]}")
    assert [number for _, _, number in frames] == list(range(20))  # frames are output in the right order
    assert (pts == sorted(pts)) == (suffix == "mp4")
    assert dts == sorted(dts)
PYTHON
