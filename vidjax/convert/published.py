"""Published checkpoints of our families, by name: one row each.

The files were not downloaded when this table was written. Names, addresses and numbers are taken from the publishers'
model zoos (`facts` names the page); values not given there are omitted. Accuracy is top-1 and top-5 in per cent, views
are clips x crops of a test video.

Some families have no rows. No weights of DeepVideo and Video Mobile-Former were published, those of P3D are no longer
available, those of the two-stream networks are MATLAB's, and LRCN's are a Caffe model, of which `load_weights` reads
the blobs after pycaffe has extracted them. Image ViTs (`vit`) are starting points for video models: `load_pretrained`
takes their Hugging Face ids.
"""

import fnmatch
from types import MappingProxyType

from vidjax.convert.publication import Published
from vidjax.convert.published_convolutions import ROWS as CONVOLUTIONS
from vidjax.convert.published_encoders import ROWS as ENCODERS
from vidjax.convert.published_flow import ROWS as FLOW
from vidjax.convert.published_language import ROWS as LANGUAGE
from vidjax.convert.published_selection import ROWS as SELECTION
from vidjax.convert.published_self_supervised import ROWS as SELF_SUPERVISED
from vidjax.convert.published_transformers import ROWS as TRANSFORMERS
from vidjax.convert.published_uniformerv2 import ROWS as UNIFORMERV2

_ROWS: tuple[Published, ...] = (
    *TRANSFORMERS, *CONVOLUTIONS, *UNIFORMERV2, *SELF_SUPERVISED, *ENCODERS, *LANGUAGE, *FLOW, *SELECTION
)  # fmt: skip
ROWS = MappingProxyType({row.name: row for row in _ROWS})


def list_pretrained(pattern: str = "*") -> list[str]:
    """Sorted names of the published checkpoints for `load_pretrained` that match a pattern such as `*k400*`.

    `vidjax.convert.published.ROWS[name]` has the details of a checkpoint.
    """
    return sorted(fnmatch.filter(ROWS, pattern))
