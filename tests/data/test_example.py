"""Specs of fields: invalid ones are refused, and files of specs are read as they were written."""

import json

import pytest

from vidjax.data.example import Field
from vidjax.data.field_files import check_value, parse_specs, write_specs
from vidjax.errors import UserError

SPECS = {"boxes": Field("boxes", (2, 4)), "flow": Field("frames", (2,), "uint8", mirrored=(0,))}
WRONG = [
    (b"[", r"fields\.json is not JSON \(.*\): it must be an object of names and specs$"),
    (b"[]", r"fields\.json must be an object of names and specs$"),
    (b'{"a": {"shape": [2]}}', r"fields\.json: 'a' must be an object with 'kind' and any of shape, dtype, "),
    (b'{"a": {"kind": "boxes", "size": 2}}', r"'a' must be an object with 'kind' and any of shape"),
    (b'{"a": {"kind": "box"}}', r"in 'a', kind is 'box': choose one of numbers, segments, boxes, tracks, frames"),
    (b'{"a": {"kind": "boxes", "shape": [4]}}', r"in 'a', shape is \[4\]: it must be \[n, 4\] for boxes$"),
    (b'{"a": {"kind": "samples", "shape": [4, 1]}}', r"it must be \[m, c\] with a rate for samples$"),
    (b'{"a": {"kind": "numbers", "shape": [0]}}', r"shape is \[0\]: it must be a list of numbers for numbers$"),
    (b'{"a": {"kind": "numbers", "dtype": "text"}}', r"dtype is 'text': choose one of float32, "),
    (b'{"a": {"kind": "numbers", "rate": 0}}', r"rate is 0: it must be more than 0$"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("content", "sentence"), WRONG)
def test_invalid_specs_are_refused(content, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_specs("fields.json", content)


def test_specs_round_trip():
    assert parse_specs("fields.json", write_specs(SPECS).encode()) == SPECS
    short = json.dumps({"flow": {"kind": "frames", "shape": [2], "mirrored": [0]}})
    assert parse_specs("fields.json", short.encode())["flow"] == SPECS["flow"]


def test_values_of_the_wrong_shape_are_refused():
    assert check_value(SPECS["boxes"], []).shape == (0, 4)
    for spec, value in ((SPECS["boxes"], [[1, 2, 3]]), (Field("numbers"), [1]), (Field("tracks", (1, 4)), [[0] * 4])):
        with pytest.raises(ValueError, match="it must be"):
            check_value(spec, value)
