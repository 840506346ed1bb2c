#!/usr/bin/env bash
# PyAV reports a mirrored video as rotated.
#
# PyAV 18.1.0 (FFmpeg 8.1), NumPy 2.4.0. Front cameras write a display matrix that mirrors left and right. frame.rotation
# is an angle and cannot express this: it is -180, and rotating by it turns the image upside down. The matrix itself is in
# frame.side_data: nine 32-bit numbers, of which the first, second, fourth and fifth are a, b, c, d of x' = a x + c y,
# y' = b x + d y.
#
# Seen: rotation -180; matrix -65536 0 0 65536
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import struct
from fractions import Fraction

import av
import numpy as np

with av.open("video.mp4", "w") as out:
    stream = out.add_stream("libx264", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
    for i in range(5):
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
        frame.pts, frame.time_base = i, Fraction(1, 25)
        out.mux(stream.encode(frame))
    out.mux(stream.encode())
data = bytearray(open("video.mp4", "rb").read())
struct.pack_into(">9i", data, data.index(b"tkhd") + 44, -65536, 0, 0, 0, 65536, 0, 64 << 16, 0, 1 << 30)
open("video.mp4", "wb").write(data)
with av.open("video.mp4") as file:
    frame = next(file.decode(video=0))
    a, b, _, c, d = np.frombuffer(bytes(frame.side_data["DISPLAYMATRIX"]), np.int32)[:5].tolist()
print(f"rotation {frame.rotation}; matrix {a} {b} {c} {d}")
assert abs(frame.rotation) == 180 and (a, b, c, d) == (-65536, 0, 0, 65536)
PYTHON
