"""What runs say of themselves."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidjax.data.config import ClipConfig
from vidjax.runs import announce
from vidjax.runs.announce import describe_losses, describe_speed, describe_starvation
from vidjax.training.loop import FitResult
from vidjax.training.state import create_state


@pytest.mark.parametrize(
    ("source", "workers", "wanted", "cores", "needed"),
    [
        ("videos.csv", 0, 84.0, 2, "2 cores made 21: about 8 cores, or TFRecords (experiments/write_tfrecords.py"),
        ("videos.csv", 2, 84.0, 16, "2 cores made 21: --data.workers 8 (there are 16 cores), or TFRecords"),
        ("videos.csv", 8, 30.0, 1, "1 core made 21: about 2 cores, or TFRecords"),
        ("tfrecord:data", 0, 84.0, 2, "2 cores made 21: about 8 cores"),
        ("synthetic:moving_shapes", 0, 20.0, 2, "2 cores made 21: about 3 cores"),
    ],
)
def test_a_starved_device_is_told_how_many_cores_or_which_format(source, workers, wanted, cores, needed, monkeypatch):
    monkeypatch.setattr(announce, "core_count", lambda: cores)
    line = describe_starvation(source, workers, wanted, 21.0)
    assert line.startswith(f"the device could take {wanted:.3g} clips/s, {needed}")
    assert ("TFRecords" in line) == (source == "videos.csv")


def test_what_was_left_out_is_told_once(capsys):
    first, second = SimpleNamespace(notes=("a", "b")), SimpleNamespace(notes=("b",))
    announce.print_notes(first, None, second)
    assert capsys.readouterr().out == "note: a\nnote: b\n"


def test_losses_are_told_also_where_none_was_finite():
    entries = [{"loss": None}, {"loss": 4.0}, {"evaluation/top1": 0.5}, *[{"loss": float(n)} for n in range(5)]]
    line, numbers = describe_losses(entries)
    assert line == "4.0000 at first, 2.0000 at last (mean of the last 5 logged)"
    assert numbers == {"first_loss": 4.0, "last_loss": 2.0}
    line, numbers = describe_losses([{"loss": None}])
    assert line == "no logged step had a finite one" and np.isnan([*numbers.values()]).all()


def test_the_last_line_of_a_run_says_it_only_where_the_device_was_starved():
    state = create_state({"params": {"w": jnp.zeros(1)}}, optax.sgd(1.0), jax.random.key(0))
    fed = FitResult(state, True, 10, 20.0, 0.02)
    assert describe_speed(fed, 10**9) == "20.0 clips/s, waiting for data 2%"
    starved = FitResult(state, True, 10, 20.0, 0.5, advice="more cores")
    assert describe_speed(starved, 10**9) == "20.0 clips/s, waiting for data 50%\nstarved   more cores"


class Unreadable:
    """Two videos."""

    name = "videos"

    def __len__(self):
        return 2

    def read(self, index, indices, short_side):
        raise ValueError("broken")


def test_a_source_of_which_nothing_can_be_read_is_told():
    with pytest.raises(ValueError, match="none of the first videos of videos can be read: look with experiments/check"):
        announce.describe_span(ClipConfig(), Unreadable())
