"""The reports that training runs print."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidjax.data.config import ClipConfig
from vidjax.data.container import DecodeError
from vidjax.runs import announce
from vidjax.runs.announce import describe_losses, describe_speed, describe_starvation
from vidjax.training.loop import FitResult
from vidjax.training.state import create_state


@pytest.mark.parametrize(
    ("source", "workers", "wanted", "cores", "needed"),
    [
        ("videos.csv", 0, 84.0, 2, "2 cores: use about 8 cores, or TFRecords (experiments/write_tfrecords.py"),
        ("videos.csv", 2, 84.0, 16, "2 cores: use --data.workers 8 (of 16 cores), or TFRecords"),
        ("videos.csv", 8, 30.0, 1, "1 core: use about 2 cores, or TFRecords"),
        ("tfrecord:data", 0, 84.0, 2, "2 cores: use about 8 cores"),
        ("synthetic:moving_shapes", 0, 20.0, 2, "2 cores: use about 3 cores"),
    ],
)
def test_advice_for_slow_input_names_cores_or_a_format(source, workers, wanted, cores, needed, monkeypatch):
    monkeypatch.setattr(announce, "core_count", lambda: cores)
    line = describe_starvation(source, workers, wanted, 21.0)
    assert line.startswith(f"the device could process {wanted:.3g} clips/s, but received 21 from {needed}")
    assert ("TFRecords" in line) == (source == "videos.csv")


def test_each_note_is_printed_once(capsys):
    first, second = SimpleNamespace(notes=("a", "b")), SimpleNamespace(notes=("b",))
    announce.print_notes(first, None, second)
    assert capsys.readouterr().out == "note: a\nnote: b\n"


def test_losses_are_reported_even_if_none_was_finite():
    entries = [{"loss": None}, {"loss": 4.0}, {"evaluation/top1": 0.5}, *[{"loss": float(n)} for n in range(5)]]
    line, numbers = describe_losses(entries)
    assert line == "4.0000 at the start, 2.0000 at the end (mean of the last 5 logged steps)"
    assert numbers == {"first_loss": 4.0, "last_loss": 2.0}
    line, numbers = describe_losses([{"loss": None}])
    assert line == "not finite at any logged step" and np.isnan([*numbers.values()]).all()


def test_the_speed_report_has_advice_only_for_a_starved_device():
    state = create_state({"params": {"w": jnp.zeros(1)}}, optax.sgd(1.0), jax.random.key(0))
    fed = FitResult(state, True, 10, 20.0, 0.02)
    assert describe_speed(fed, 10**9) == "20.0 clips/s, waiting for data 2%"
    starved = FitResult(state, True, 10, 20.0, 0.5, advice="more cores")
    assert describe_speed(starved, 10**9) == "20.0 clips/s, waiting for data 50%\nstarved   more cores"


class Unreadable:
    """A source of two unreadable videos."""

    name = "videos"

    def __len__(self):
        return 2

    def read(self, index, indices, short_side):
        raise DecodeError("broken")


def test_an_unreadable_source_raises():
    with pytest.raises(ValueError, match="none of the first videos of videos can be read: check it with experiments/"):
        announce.describe_span(ClipConfig(), Unreadable())
