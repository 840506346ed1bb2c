import pytest

from vidjax.data import prompts
from vidjax.data.prompts import check_names, fill, read_templates


def test_actionclip_has_sixteen_templates_of_three_kinds():
    templates = read_templates("actionclip")
    assert templates == prompts.ACTIONCLIP and len(set(templates)) == 16
    kinds = [(text.startswith("{}"), text.endswith("{}")) for text in templates]
    for kind in ((True, True), (False, True), (False, False), (True, False)):  # alone, prefix, cloze, suffix
        assert kind in kinds


def test_class_names_are_filled_in():
    assert fill(("{}", "a {} b"), ("Run_fast", "sit")) == [["Run fast", "sit"], ["a Run fast b", "a sit b"]]
    assert fill(read_templates("plain"), ["x {y}"]) == [["x {y}"]]
    assert len(fill(prompts.ACTIONCLIP, ("run", "sit"))) == 16


def test_templates_from_a_file_or_given_directly(tmp_path):
    (tmp_path / "t.txt").write_text("ein Film, in dem man {} übt\n\n  {} \n", encoding="utf-8")
    assert read_templates(str(tmp_path / "t.txt")) == ("ein Film, in dem man {} übt", "{}")
    assert read_templates("a clip of {}") == ("a clip of {}",)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a {}\na clip\n", r"t\.txt: 'a clip' has no slots \{\} for the class name: use exactly one$"),
        (b"{} and {}\n", r"'\{\} and \{\}' has 2 slots"),
        (b"{}\na {}\n{}\n", r"'\{\}' is repeated: remove one of them$"),
        (b"\n \n", r"t\.txt is empty: give one template per line"),
        (b"\xff\xfe{}", r"t\.txt is not a text file: save it as UTF-8$"),
        (None, r"t\.txt cannot be read \(No such file or directory\): give actionclip, plain, a text file"),
    ],
)
def test_wrong_templates_are_one_line(content, sentence, tmp_path):
    if content is not None:
        (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        read_templates(str(tmp_path / "t.txt"))
    assert "\n" not in str(caught.value)


def test_fill_refuses_invalid_templates_and_repeated_names():
    with pytest.raises(ValueError, match="'a clip' has no slots"):
        fill(["a clip"], ["run"])
    with pytest.raises(ValueError, match=r"^2 class names repeat, .*, such as 'Run_fast' and 'run FAST': give each"):
        fill(["{}"], ["Run_fast", "sit", "run FAST"])
    check_names(["run fast", "runfast"])
