"""Video in: which examples exist, which frames, decoded, augmented, batched.

The only room of the house that imports TensorFlow and av, and only in the files that need them:
`config.py` and `sampling.py` import neither.
"""

import os

# TensorFlow reports on itself at import; what a user should read is what the run says.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
