#!/usr/bin/env bash
# transformers' VivitImageProcessor with default arguments produces pixels in [-3, 1] instead of [-1, 1].
#
# It scales pixels to [-1, 1] (rescale_factor 1/127.5, offset) and then normalises the result again with mean and std 0.5
# (do_normalize). ViViT was trained on [-1, 1]: google-research/scenic feeds it zero-centred frames without further
# normalisation. The published preprocessor_config.json of google/vivit-b-16x2-kinetics400 has the same values. With
# do_normalize=False the range is that of training.
#
# Seen with transformers 4.57.1 and 5.24.0:
#   default: -3.0 to 1.0
#   do_normalize=False: -1.0 to 1.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==4.57.1 numpy==2.2.6 pillow==11.3.0
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from transformers import VivitImageProcessor

ramp = np.linspace(0, 255, 224).astype(np.uint8)
frame = np.broadcast_to(ramp[None, :, None], (224, 224, 3)).copy()
for name, fields, expected in (("default", {}, (-3, 1)), ("do_normalize=False", {"do_normalize": False}, (-1, 1))):
    processor = VivitImageProcessor(size={"shortest_edge": 224}, **fields)
    pixels = np.asarray(processor([frame] * 2, return_tensors="np")["pixel_values"])
    print(f"{name}: {pixels.min():.1f} to {pixels.max():.1f}")
    assert np.allclose((pixels.min(), pixels.max()), expected, atol=1e-3)
PYTHON
