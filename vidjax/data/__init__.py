"""Video in: which examples exist, which frames, decoded, augmented, batched.

The only room of the house that imports TensorFlow and av, and only in the files that need them:
`config.py` and `sampling.py` import neither.
"""
