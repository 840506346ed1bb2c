#!/usr/bin/env bash
# The frame count of a fragmented MP4 covers only its first fragment.
#
# PyAV 18.1.0 (FFmpeg 8.1), NumPy 2.4.0. stream.frames is the number of frames listed in the `moov` box. With
# movflags=frag_keyframe these are the frames of the first fragment, so comparing with zero does not detect the problem;
# with empty_moov the number is 0. Decoding outputs all frames in both cases.
#
# Seen: frag_keyframe: reports 10, decodes 40; frag_keyframe+empty_moov: reports 0, decodes 40
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

for flags, reported in (("frag_keyframe", 10), ("frag_keyframe+empty_moov", 0)):
    with av.open("video.mp4", "w", options={"movflags": flags}) as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = 10, 0
        for i in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 5 * i, np.uint8), "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with av.open("video.mp4") as file:
        stream = file.streams.video[0]
        frames = stream.frames
        decoded = sum(1 for _ in file.decode(stream))
    print(f"{flags}: reports {frames}, decodes {decoded}")
    assert (frames, decoded) == (reported, 40)
PYTHON
