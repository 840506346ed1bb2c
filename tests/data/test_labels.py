"""Labels and columns of manifests as written by other programs, and notes on those that are not used."""

import csv
import io
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidjax.data.labels import MISSING
from vidjax.data.sources import open_source


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an empty file a.mp4: opening a manifest does not open its videos."""
    folder = tmp_path_factory.mktemp("lists")
    (folder / "a.mp4").touch()
    return folder


def labels(folder, text, name="list.csv"):
    (folder / name).write_text(text)
    source = open_source(str(folder / name))
    return [source.label(i) for i in range(len(source))], source


def column(values, name="label"):
    return f"path,{name}\n" + "".join(f"a.mp4,{value}\n" for value in values)


def test_integers_that_pandas_wrote_as_floats_are_integers(folder):
    """pandas writes a column of integers with missing values as floats (1.0, 2.0, and an empty cell or nan)."""
    numbers = [*range(12), -1]
    assert labels(folder, column(f"{i}.0" for i in numbers))[0] == numbers
    assert labels(folder, column(["3.0", "", "1.0"]))[0] == [3, -1, 1]
    rows = [{"path": "a.mp4", "label": label} for label in (10.0, float("nan"), None, 2)]
    indices, source = labels(folder, "".join(json.dumps(row) + "\n" for row in rows), "list.jsonl")
    assert indices == [10, -1, -1, 2] and len(source.class_names) == 11


@pytest.mark.parametrize("label", ["1.5", "-0.5", ".5"])
def test_a_fraction_is_not_a_label(label, folder):
    for name, text in (("f.csv", column(["1", label])), ("f.jsonl", f'{{"path": "a.mp4", "label": "{label}"}}\n')):
        with pytest.raises(
            ValueError, match=rf"{name}, line [13]: its label is '{label}', but it must be a name, an i"
        ):
            labels(folder, text, name)


def test_words_for_missing_values_are_not_classes_and_are_counted(folder):
    """The words are among those that read_csv of pandas 2.3 reads as missing values."""
    words = [word for word in MISSING if word]
    indices, source = labels(folder, column(["run", *words, "nan", "", "-1", "walk"]))
    assert indices == [0, *[-1] * (len(words) + 3), 1] and source.class_names == ("run", "walk")
    count = len(words) + 3
    (note,) = source.notes
    assert note.startswith(f"{folder / 'list.csv'}: {count} of {count + 2} rows have no label (nan 2, ")
    assert labels(folder, column(["none", "Nan", "na"]))[1].class_names == ("Nan", "na", "none")
    assert labels(folder, column(["nan", "None"]))[1].notes[0].endswith("2 of 2 rows have no label (nan 1, None 1)")


def test_there_is_no_note_if_all_labels_are_given_or_all_are_missing(folder):
    assert labels(folder, column(["run", "walk"]))[1].notes == ()
    assert labels(folder, column(["", ""]))[1].notes == ()
    assert labels(folder, "path\na.mp4\n")[1].notes == ()


def test_a_word_for_a_missing_value_is_a_class_if_it_is_in_classes_json(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "classes.json").write_text('["run", "None"]')
    indices, source = labels(tmp_path, column(["None", "nan", "run"]))
    assert indices == [1, -1, 0] and source.notes[0].endswith("1 of 3 rows have no label (nan 1)")


def test_column_names_and_cells_are_stripped(folder):
    (folder / "list.csv").write_text("path ,label, start,\tend\na.mp4,run,0.08,0.16\n")
    assert open_source(str(folder / "list.csv")).ids == [f"{folder / 'a.mp4'}#t=0.08,0.16"]
    (folder / "list.jsonl").write_text('{" path": "a.mp4", "start ": 1}\n')
    assert open_source(str(folder / "list.jsonl")).ids == [f"{folder / 'a.mp4'}#t=1"]
    source = labels(folder, 'path, "label", "caption"\na.mp4, "run", "one, two"\n')[1]
    assert source.class_names == ("run",) and source.captions(0) == ("one, two",)
    with pytest.raises(ValueError, match=r"list\.csv has the column 'label' twice: remove one"):
        labels(folder, "path,label,label \na.mp4,1,2\n")


def test_unused_columns_are_noted_with_suggestions(folder):
    source = labels(folder, "path,class,start_time,lable,duration\n" + "a.mp4,run,1,2,3\n" * 2)[1]
    (note,) = source.notes
    assert note.startswith(f"{folder / 'list.csv'}: unused columns: ")
    for column in ("'class'", "'start_time' (did you mean start?)", "'lable' (did you mean label?)", "'duration'"):
        assert re.search(rf"{re.escape(column)}[,;]", note), note
    assert note.endswith("; known columns are path, label, caption, rejected, start, end, reverse")
    rows = '{"path": "a.mp4"}\n{"path": "a.mp4", "t_start": 3}\n'
    (note,) = labels(folder, rows, "list.jsonl")[1].notes
    assert "'t_start' in 1 rows (did you mean start?)" in note
    with pytest.raises(
        ValueError, match=r"has no 'path' column: .* but it is 'video_path,label' \(rename 'video_path' t"
    ):
        labels(folder, "video_path,label\na.mp4,1\n")
    with pytest.raises(ValueError, match=r"but it is 'path;label' \(separate them by commas\)"):
        labels(folder, "path;label\na.mp4;run\n")


def test_missing_times_and_captions_of_pandas_are_absent(folder):
    (folder / "list.csv").write_text("path,start,end,caption,reverse\na.mp4,nan,NaN,nan,None\n")
    source = open_source(str(folder / "list.csv"))
    assert source.ids == [str(folder / "a.mp4")] and source.captions(0) == ()
    (folder / "list.csv").write_text("path\nnan\n")
    with pytest.raises(ValueError, match=r"list\.csv, line 2: its path is missing, add it"):
        open_source(str(folder / "list.csv"))


NONE = st.sampled_from([*MISSING, "-1", "-1.0"])
NUMBER = st.tuples(st.integers(0, 30), st.sampled_from(["{}", "{}.0", " {}", "{}.00 "]))
NAME = st.sampled_from(["run", "walk", "Jump up", "a, b", "none", "café", '"x"'])
SPACE = st.sampled_from(["", " ", "\t"])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), named=st.booleans(), as_json=st.booleans())
def test_manifests_have_the_labels_that_were_written(data, named, as_json, folder):
    """With any order and spacing of columns, integers as integers or floats, names, and words for missing values."""
    cells = data.draw(st.lists(st.one_of(NONE, NAME if named else NUMBER), min_size=1, max_size=8))
    texts = [cell if isinstance(cell, str) else cell[1].format(cell[0]) for cell in cells]
    texts = [text.strip() for text in texts] if as_json else texts
    columns = data.draw(st.permutations(["path", "label", "start"]))
    columns = {name: data.draw(SPACE) + name + data.draw(SPACE) for name in columns}
    rows = [{"path": "a.mp4", "label": text, "start": "2"} for text in texts]
    path = folder / f"list.{'jsonl' if as_json else 'csv'}"
    if as_json:
        lines = [json.dumps({columns[name]: row[name] for name in columns}) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        out = io.StringIO()
        table = csv.writer(out)
        table.writerow(columns.values())
        table.writerows([row[name] for name in columns] for row in rows)
        path.write_text(out.getvalue(), encoding="utf-8", newline="")
    source = open_source(str(path))
    if named:
        classes = sorted({cell for cell in cells if cell not in MISSING and not cell.startswith("-1")})
        expected = [classes.index(cell) if cell in classes else -1 for cell in cells]
        assert source.class_names == tuple(classes)
    else:
        expected = [-1 if isinstance(cell, str) else cell[0] for cell in cells]
    assert [source.label(i) for i in range(len(source))] == expected
    assert source.ids == [f"{folder / 'a.mp4'}#t=2"] * len(cells)
    missing = expected.count(-1)
    words = {"empty" if text.strip() == "" else text for text, label in zip(texts, expected, strict=True) if label < 0}
    noted = (0 < missing < len(cells)) or bool(words - {"empty"})
    assert len(source.notes) == noted
    assert not noted or f"{missing} of {len(cells)} rows have no label" in source.notes[0]
