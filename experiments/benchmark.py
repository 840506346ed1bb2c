"""Measure vidjax on this machine, compared with PyTorch and other libraries.

    python experiments/benchmark.py train --models videomae_base_pretrain --frames 16 --size 224 --batch_sizes 8 16 32
    python experiments/benchmark.py infer --models r3d_18 --dtypes float32 bfloat16 --peers eager compile
    python experiments/benchmark.py memory --models videomae_base_pretrain --budget_gb 40
    python experiments/benchmark.py convolution --models r3d_18
    python experiments/benchmark.py depthwise --models x3d_m ircsn_50 --threads 1
    python experiments/benchmark.py localization --lengths 2304 9216
    python experiments/benchmark.py loss --batch_size 16384 --chunks 1024 512
    python experiments/benchmark.py input videos.csv
    python experiments/benchmark.py formats videos.csv
    python experiments/benchmark.py visible --model vjepa2_tiny_pretrain
    python experiments/benchmark.py generate --beams 1 3
    python experiments/benchmark.py flow --methods raft_small raft_large
    python experiments/benchmark.py clips --model videomae_base
    python experiments/benchmark.py startup --against ../older_vidjax
    python experiments/benchmark.py compile --against ../older_vidjax
    python experiments/benchmark.py tpu --models videomae_base_pretrain --topologies v5e:2x2 v5p:2x2x1

`train` and `infer` time vidjax's models and, if PyTorch and the library with the peer are installed, the same models in
PyTorch, each measurement in a separate process: compile time, step time, clips per second, model FLOP/s, MFU and
memory. `memory` compares the options that save memory in a training step, or finds the largest batch that fits.
`convolution` and `depthwise` time the 3-D and the depthwise convolutions of models, each by itself, on both sides.
`localization` times a training step of ActionFormer by the length of the videos. `loss` compares the contrastive losses
computed whole and in chunks. `input` times reading, decoding and augmenting clips, `formats` the formats in which
frames can be stored. `visible` times an encoder on the visible tokens of a clip, by mask ratio, and `generate` captions
of BLIP beside transformers'. `flow` times optical flow beside torchvision and OpenCV. `clips` finds the longest clip
that fits with each implementation of attention, by compiling only. `startup` times the scripts from the shell to an
answer or the first training step. `compile` measures the CPU time of compiling initialisation and training step. `tpu`
compiles training steps for TPUs, which need not be present. `device` is the last step of `benchmark/device.sh`, which
measures an accelerator in under ten minutes. Without flags each command takes at most about three minutes on two cores
(`clips`, `startup` and `tpu` take longer). To call it from Python, put `experiments` on the path: `from
benchmark.commands import Train, main`, then `main(Train(models=("r3d_18",)))`.

All commands except `input`, `formats` and `startup` run without TensorFlow, tyro and PyAV.
"""

from benchmark import flags  # the package next to this file
from benchmark.commands import COMMANDS
from vidjax import cli

if __name__ == "__main__":
    mode = cli.take_command(COMMANDS)
    if mode in ("input", "formats"):
        cli.first_word_is("--source")
    flags.run(*COMMANDS[mode])
