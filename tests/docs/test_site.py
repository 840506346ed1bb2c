"""The site builds without warnings, and its pages have complete tables, links and signatures."""

import html
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parents[2]

if not all(map(importlib.util.find_spec, ("mkdocs", "material", "mkdocstrings"))):
    pytest.skip("needs the extra docs", allow_module_level=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    # The models of one family: counting all of them takes a minute and a half.
    environment = os.environ | {"VIDJAX_DOCS_MODELS": "r2plus1d_tiny", "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text_of(page):
    """The visible text of a page's article."""
    article = re.search(r"<article.*?</article>", page.read_text(), re.DOTALL)[0]
    article = re.sub(r"<(script|style|details).*?</\1>", "", article, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", article)))


def test_generated_pages_have_the_models_and_recipes(site):
    models, recipes = text_of(site / "models.html"), text_of(site / "recipes.html")
    assert "r2plus1d_tiny 8 x 32 x 32 204,969 0.06 torchvision; arXiv:1711.11248" in models
    assert (
        "k400_base_1600 videomae_base 16 x 224 x 224, stride 4 2,048 1,600 0.0012, adamw 81.5 MCG-NJU/VideoMAE"
        in recipes
    )
    assert "uniformer_base_ssv2 uniformer_base_16" in recipes and "70.4 from K400, 1x3 views" in recipes
    assert "2.5e-4" not in recipes and "rule" not in recipes  # remarks without figures
    assert "actionclip_base_16_k400 actionclip_base_16 8 x 224 x 224, segments" in recipes


def test_the_reference_shows_arguments_examples_and_every_module(site):
    pages = {page.stem: text_of(page) for page in (site / "reference").glob("*.html")}
    for path in (ROOT / "vidjax").glob("*/[!_]*.py"):
        package = path.parent.name
        assert f"vidjax.{package}.{path.stem}" in pages[package], path
    assert "ViT( width: int, depth: int, heads: int, mlp_ratio: float = 4.0," in pages["models"]
    assert 'Examples: >>> model = create_model("videomae_tiny", num_classes=8)' in pages["models"]
    assert "mean ( tuple[float, ...] ) – per channel, of RGB pixels in [0, 1]" in re.sub(
        r"\s*([()])\s*", r" \1 ", pages["layers"]
    )


def test_nothing_is_loaded_from_other_hosts(site):
    for page in site.rglob("*.html"):
        fetched = re.findall(r'<(?:script|img|iframe)[^>]+src="(https?:[^"]+)"', page.read_text())
        fetched += re.findall(r'<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href="(https?:[^"]+)"', page.read_text())
        assert not fetched, f"{page}: {fetched}"


def test_links_within_the_site_exist(site):
    for page in site.glob("*.html"):
        content = page.read_text()
        for target in re.findall(r'href="([^"#:]+\.html)(?:#[^"]*)?"', content):
            if page.name != "404.html":
                assert (page.parent / target).exists(), f"{page.name}: {target}"
        for target, anchor in re.findall(r'href="([^":#]*\.html)?#([^"]+)"', content):
            if page.name != "404.html" and anchor:
                there = (page.parent / target).read_text() if target else content
                assert f'id="{anchor}"' in there, f"{page.name}: {target}#{anchor}"
