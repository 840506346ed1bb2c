#!/usr/bin/env bash
# A white video shrunk to an even width is not white; at an odd width it is.
#
# PyAV 18.1.0 (FFmpeg 8.1), NumPy 2.4.0. VideoFrame.reformat without flags converts and shrinks with swscale's fast paths.
# Luma 235 (white in limited range) becomes 253 at even widths and 255 at odd ones, so clips of a data set differ in
# brightness depending on their shape. With ACCURATE_RND and FULL_CHR_H_INT it is 255 at both. This is slower for
# interleaved output ("rgb24"), for which no vector code exists, but faster than the default via planes ("gbrp").
#
# Seen: default: width 170 253, width 171 255; exact: width 170 255, width 171 255; via planes the same pixels as exact
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import av
import numpy as np
from av.video.reformatter import Interpolation

EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
frame = av.VideoFrame(640, 480, "yuv420p")
for plane, value in zip(frame.planes, (235, 128, 128)):
    plane.update(np.full((plane.height, plane.line_size), value, np.uint8))
for name, flags, values in (("default", Interpolation.BILINEAR, {170: 253, 171: 255}), ("exact", EXACT, {170: 255, 171: 255})):
    for width, value in values.items():
        image = frame.reformat(width, 128, "rgb24", interpolation=flags).to_ndarray()
        print(f"{name}: width {width} {image.min()}")
        assert (image == value).all()
noise = av.VideoFrame.from_ndarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8), "rgb24").reformat(format="yuv420p")
planes = noise.reformat(341, 256, "gbrp", interpolation=EXACT).reformat(format="rgb24").to_ndarray()
assert (planes == noise.reformat(341, 256, "rgb24", interpolation=EXACT).to_ndarray()).all()
print("via planes the same pixels as exact")
PYTHON
