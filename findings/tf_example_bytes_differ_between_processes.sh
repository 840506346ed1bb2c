#!/usr/bin/env bash
# The same tf.train.Example is written as other bytes by each process.
#
# TensorFlow 2.21.0, protobuf 7.36.2. An Example holds its features in a map, and protobuf's default implementation
# writes a map in the order of a hash table whose seed changes from process to process, whatever PYTHONHASHSEED is.
# TFRecord files of the same clips, written twice, therefore have the same size and other checksums: shards cannot be
# compared with those of another machine, and a conversion that is done again looks like other data to rsync or to a
# cache. SerializeToString(deterministic=True) writes the features in one order.
#
# Seen: 6 processes wrote 6 different byte strings of the same length; with deterministic=True they wrote 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 protobuf==7.36.2
cat > "$folder/write.py" <<'PYTHON'
import tensorflow as tf


def feature(value):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


names = ("frames", "label", "captions", "name", "times", "sound")
example = tf.train.Example(features=tf.train.Features(feature={name: feature(name.encode()) for name in names}))
print(example.SerializeToString().hex(), example.SerializeToString(deterministic=True).hex())
PYTHON
for _ in 1 2 3 4 5 6; do
  PYTHONHASHSEED=0 TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" "$folder/write.py" 2> "$folder/errors" \
    || { cat "$folder/errors" >&2; exit 1; }
done > "$folder/written"
"$folder/venv/bin/python" - "$folder/written" <<'PYTHON'
import sys

usual, ordered = zip(*(line.split() for line in open(sys.argv[1])))
assert len(usual) == 6 and len({len(each) for each in usual}) == 1
print(f"{len(usual)} processes wrote {len(set(usual))} different byte strings of the same length; "
      f"with deterministic=True they wrote {len(set(ordered))}")
assert len(set(usual)) > 1 and len(set(ordered)) == 1
PYTHON
