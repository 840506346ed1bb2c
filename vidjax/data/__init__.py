"""Data loading: sources of examples, frame sampling, decoding, augmentation and batching.

The only package of vidjax that imports TensorFlow and PyAV, and only in the modules that need them: `config.py` and
`sampling.py` import neither.
"""

import os

# Silences the messages that TensorFlow prints at import, which would hide those of the run.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
