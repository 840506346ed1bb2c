import importlib.util
import re
from pathlib import Path

import pytest

import vidjax
from vidjax.convert.published import ROWS
from vidjax.models import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("list_models", ROOT / "experiments" / "list_models.py")
list_models = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(list_models)


def test_a_line_has_the_cost_of_a_model(capsys):
    list_models.main(list_models.Config("videomae_small"))
    header, line, pretraining = capsys.readouterr().out.splitlines()
    assert header.startswith("model ") and "weights that load" in header
    assert line.split()[:9] == "videomae_small 16 x 224 x 224 22,033,936 56.88 K400".split()
    assert "79.0, 5x3 views" in line and "MCG-NJU/VideoMAE, Hugging Face's VideoMAE" in line
    assert "24,029,376    10.71" in pretraining


@pytest.mark.long
def test_only_layouts_that_load_are_listed(capsys):
    named = {}
    for name in ("i3d_rgb", "s3dg", "r2d_18", "r2plus1d_18", "r2plus1d_34_mmaction2"):
        list_models.main(list_models.Config(name, markdown=True))
        cells = [line.strip("| ").split("|") for line in capsys.readouterr().out.splitlines()]
        named |= {row[0].strip(" `"): row[6].strip() if len(row) > 6 else "" for row in cells[2:]}
    assert named == {
        "i3d_rgb": "piergiaj/pytorch-i3d, kinetics-i3d",
        "s3dg": "TengdaHan/CoCLR with gates",
        "r2d_18": "",
        "fr2d_18": "torchvision's 2-D ResNet",
        "r2plus1d_18": "torchvision's R(2+1)D",
        "r2plus1d_18_paper": "VMZ's R(2+1)D",
        "r2plus1d_34_mmaction2": "mmaction2's R(2+1)D",
    }


def test_markdown_is_a_table(capsys):
    list_models.main(list_models.Config("videomae_small_pretrain", markdown=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| model | input | parameters |") and lines[1] == "|" + "---|" * 7
    assert lines[2].startswith("| `videomae_small_pretrain` | 16 x 224 x 224 | 24,029,376 | 10.71 |")


def test_a_name_without_models_is_an_error():
    with pytest.raises(ValueError, match="no model's name contains 'mamba'"):
        list_models.main(list_models.Config("mamba"))


def test_the_readme_has_the_published_accuracies_of_checkpoints_that_download():
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\S+) \| (\S+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) == 6
    for name, model, top1, views in rows:
        row = ROWS[name]
        assert (row.model, row.data, f"{row.top1:.1f}", row.views) == (model, "K400", top1, views) and not row.is_page


def test_the_readme_lists_every_family():
    """By the name of its file, or by the first word of one of its variants, such as `i3d` of `i3d_rgb`."""
    text = (ROOT / "README.md").read_text().lower().replace("-", "").replace("_", " ")
    for family in FAMILIES:
        file = family.__name__.rpartition(".")[2]
        names = {file.replace("_", " "), *(variant.partition("_")[0] for variant in family.VARIANTS)} - {"video"}
        assert any(re.search(rf"\b{name}s?\b", text) for name in names), f"the README does not list {file}"


def test_published_checkpoints_are_listed(capsys):
    list_models.main(list_models.Config("base_k400", pretrained=True))
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["checkpoint", "model", "data", "top-1"]
    assert [line.split()[0] for line in lines] == vidjax.list_pretrained("*base_k400*")
    line = next(line for line in lines if line.startswith("videomae_base_k400 "))
    assert line.split()[1:6] == ["videomae_base", "K400", "80.9", "94.7", "5x3"]
    with pytest.raises(ValueError, match="no checkpoint's name contains 'nothing'"):
        list_models.main(list_models.Config("nothing", pretrained=True))
