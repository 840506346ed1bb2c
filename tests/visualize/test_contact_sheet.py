"""Contact sheets: the pixels that are written."""

import numpy as np
from PIL import Image

from vidjax.visualize.contact_sheet import save_contact_sheet


def test_every_frame_of_every_clip_is_on_the_sheet(tmp_path):
    shades = np.array([[10, 60, 110], [160, 210, 250]], np.uint8)
    clips = [np.broadcast_to(row[:, None, None, None], (3, 20, 30, 3)) for row in shades]
    path = save_contact_sheet(tmp_path / "sheet.png", clips, ["one", "two"], side=40)
    image = np.array(Image.open(path))
    counts = [int((image == shade).all(axis=-1).sum()) for shade in shades.ravel()]
    assert all(count >= 40 * 60 for count in counts)  # each enlarged to 40 by 60 pixels
