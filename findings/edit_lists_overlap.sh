#!/usr/bin/env bash
# Where two parts of an MP4's edit list meet, timestamps of reordered frames go back in time.
#
# PyAV 18.1.0 (FFmpeg 8.1), NumPy 2.4.0. A video of 40 frames with two consecutive B-frames has an edit list that plays
# frames 21 to 28, then 13 to 30, as editors write it to cut without re-encoding. Frames are output in the order of the
# edits, but the timestamps of the second part start before the first part ends: sorting or searching by timestamp mixes
# the parts up. Without B-frames the timestamps increase.
#
# Seen: with B-frames the timestamps go back at [8], without at []
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


def write(b_frames):
    with av.open("video.mp4", "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = 100, b_frames
        for i in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 5 * i, np.uint8), "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def box(data, path, start=0, end=None):
    """Offsets of the boxes of a path, and the size of the last one."""
    end = len(data) if end is None else end
    while start < end:
        size, kind = struct.unpack(">I4s", data[start : start + 8])
        if kind == path[0]:
            inner = box(data, path[1:], start + 8, start + size) if path[1:] else ([], size)
            return [start, *inner[0]], inner[1]
        start += size
    raise LookupError(path)


def edit(edits):
    """Replaces the edit list of the video by one of (milliseconds, first tick)."""
    data = bytearray(open("video.mp4", "rb").read())
    (moov, trak, edts), size = box(data, [b"moov", b"trak", b"edts"])
    entries = b"".join(struct.pack(">IiI", length, first, 1 << 16) for length, first in edits)
    listed = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
    data[edts : edts + size] = struct.pack(">I4s", 8 + len(listed), b"edts") + listed
    for place in (moov, trak):
        struct.pack_into(">I", data, place, struct.unpack_from(">I", data, place)[0] + 8 + len(listed) - size)
    open("video.mp4", "wb").write(data)


back = {}
for b_frames in (2, 0):
    write(b_frames)
    delay = 1024 if b_frames else 0  # ticks from the first packet to the first frame
    edit([(320, 21 * 512 + delay), (720, 13 * 512 + delay)])
    with av.open("video.mp4") as file:
        stamps = [frame.pts for frame in file.decode(video=0)]
    back[b_frames] = (np.flatnonzero(np.diff(stamps) <= 0) + 1).tolist()
print(f"with B-frames the timestamps go back at {back[2]}, without at {back[0]}")
assert len(back[2]) == 1 and not back[0]
PYTHON
