"""Without tyro, command lines give the same configs as with tyro."""

import pytest
from scaling import Config

from benchmark import commands, flags
from vidjax import cli

LINES = {
    "train": "--models r3d_18 c3d --frames None --batch_sizes 8 16 --dtypes bfloat16 --peers --scan True False",
    "infer": "--remat none blocks --implementation xla chunked --threads 2 --size 112 --json a.json",
    "memory": "--budget_gb 40 --chart a.png",
    "loss": "--batch_size 4096 --chunks 512 1024",
    "clips": "--model vivit_base_16x2_joint --budgets_gb 16 80.5",
    "scaling": "--chips 8 256 --scan --mfu 0.5 --topology v5e:4x4 --latency 1e-6",
    "unchanged": "",
}
KINDS = {name: kind for name, (_, kind) in commands.COMMANDS.items()} | {"scaling": Config, "unchanged": commands.Train}


@pytest.mark.parametrize("name", LINES)
def test_flags_are_read_as_tyro_reads_them(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = LINES[name].split()
    config = flags.parse(KINDS[name], argv=argv)
    assert config == cli.parse(KINDS[name], argv=argv) and (config == KINDS[name]()) == (not argv)


def test_a_switch_can_be_turned_off():
    assert flags.parse(Config, argv=["--scan", "--no_scan"]).scan is False


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--model", "r3d_18"], "unrecognized arguments: --model r3d_18: see --help"),
        (["--steps", "few"], "argument --steps: invalid int value: 'few': see --help"),
        (["--scan", "yes"], "argument --scan: invalid bool value: 'yes'"),
    ],
)
def test_an_invalid_argument_is_one_line(argv, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        flags.parse(commands.Train, argv=argv)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in message and len(message.splitlines()) == 1


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit):
        flags.parse(commands.Memory, argv=["--help"])
    text = capsys.readouterr().out
    assert "--budget_gb" in text and "default: ('none', 'dots', 'blocks')" in " ".join(text.split())


def test_the_input_benchmark_requires_tyro(capsys):
    with pytest.raises(SystemExit):
        flags.parse(commands.Input, argv=["--source", "videos"])
    assert "this needs tyro, which is not installed: pip install 'vidjax[train]'" in capsys.readouterr().err
