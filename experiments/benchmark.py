"""Measures vidjax on this machine, beside what it is to be compared with, in one run.

    python experiments/benchmark.py train --models videomae_base_pretrain --frames 16 --size 224 --batch_sizes 8 16 32
    python experiments/benchmark.py infer --models r3d_18 --dtypes float32 bfloat16 --peers eager compile
    python experiments/benchmark.py memory --models videomae_base_pretrain --budget_gb 40
    python experiments/benchmark.py loss --batch_size 16384 --chunks 1024 512
    python experiments/benchmark.py input videos.csv
    python experiments/benchmark.py clips --model videomae_base

`train` and `infer` time models of vidjax and, where PyTorch and the peer are installed, the same models there, each
measurement in a process of its own: compile time, step time, clips a second, model FLOP/s and their share of the
device's peak, memory. `memory` compares what saves memory in a training step, or says the largest batch that fits.
`loss` compares the contrastive losses whole and in chunks. `input` times reading, decoding and augmenting clips.
`clips` says how long a clip fits with each implementation of attention, by compiling alone. Without flags each takes at
most about three minutes on two cores, `clips` more. From Python, with
`experiments` on the path: `from benchmark.commands import Train, main; main(Train(models=("r3d_18",)))`.

All but `input` runs without TensorFlow, tyro and PyAV.
"""

from benchmark import flags  # of the package beside this file
from benchmark.commands import COMMANDS
from vidjax import cli

if __name__ == "__main__":
    mode = cli.take_command(COMMANDS)
    if mode == "input":
        cli.first_word_is("--source")
    flags.run(*COMMANDS[mode])
