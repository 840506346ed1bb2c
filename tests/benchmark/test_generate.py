"""The benchmark of captions compares programs that write the same words."""

import json

import pytest

pytest.importorskip("transformers")

from benchmark.commands import main
from benchmark.generate import Generate


@pytest.mark.long
def test_both_sides_write_the_same_words(tmp_path):
    config = Generate(("blip_tiny_caption",), (2,), words=6, rounds=1, steps=1, json=str(tmp_path / "numbers.json"))
    (row,) = main(config)
    assert row["same_words"] == 1 and row["seconds"] > 0 and row["other_seconds"] > 0
    assert json.loads((tmp_path / "numbers.json").read_text())["rows"][0]["beams"] == "2"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"models": ("blip_tiny",)}, "blip_tiny is no BLIP for captions: choose blip_base_caption or another"),
        ({"beams": (0,)}, r"beams is \(0,\): give one or more numbers of 1 or more"),
        ({"words": 600}, "words is 600: blip_tiny_caption writes fewer than"),
    ],
)
def test_wrong_settings_are_one_line(flags, message):
    with pytest.raises(ValueError, match=message):
        Generate(**{"models": ("blip_tiny_caption",)} | flags)
