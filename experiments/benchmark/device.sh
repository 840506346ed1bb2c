#!/usr/bin/env bash
# Measures the accelerator of this machine in under ten minutes: VideoMAE-B/L pre-training and ViViT-L, 3-D convolutions
# forwards and backwards, attention, rematerialisation and scan, beside PyTorch where it is installed.
#
#   experiments/benchmark/device.sh [OUT]    writes OUT.json and OUT.md (docs/device)
#   TINY=1 experiments/benchmark/device.sh OUT    parts 4 to 6 with tiny models, for a test
#
# A part that fails or runs out of its time is a line of the table.
set -uo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$here/../docs/device}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"

part() { # NAME SECONDS COMMAND...
  local name=$1 seconds=$2
  shift 2
  echo "$name: at most $seconds s" >&2
  timeout --kill-after=5 $((patience * seconds)) python "$here/benchmark.py" "$@" --json "$folder/$name.json" >"$folder/$name.log" 2>&1
  echo $? >"$folder/$name.status"
}

speed="--rounds 1 --dtypes bfloat16 --frames None --size None --steps 10"
base=videomae_base_pretrain tuned=videomae_base solid=r3d_18 many=32 few=8 patience=1 remat="none blocks"
if [[ ${TINY:-} ]]; then
  speed="--rounds 1 --dtypes bfloat16 --frames 4 --size 32 --steps 1"
  base=videomae_tiny_pretrain
  tuned=videomae_tiny solid=r3d_tiny many=2 few=2 patience=20 remat=blocks # a test may share its machine
fi
# Together 570 s.
if [[ ! ${TINY:-} ]]; then
  part 1-videomae-base 80 train $speed --models $base --batch_sizes $many --peers eager
  part 2-videomae-large 100 train $speed --models videomae_large_pretrain --batch_sizes $many --peers eager
  part 3-vivit-large 110 train $speed --models vivit_large_16x2_factorized_encoder --batch_sizes $few --peers eager
fi
part 4-convolution 100 convolution --models $solid --batch_size $few ${TINY:+--frames 4 --size 32 --steps 1}
part 5-attention 80 train $speed --models $tuned --batch_sizes $few --peers --implementation xla chunked cudnn
part 6-remat-scan 100 memory $speed --models $base --batch_sizes $many --peers --remat $remat --scan False True
python "$here/benchmark.py" device --folder "$folder" --out "$out"
