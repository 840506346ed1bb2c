"""Arbitrary names on images and plots are drawn literally, in a font that has their characters, and never raise."""

import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from vidjax.visualize import lettering
from vidjax.visualize.bars import Bar, save_bars
from vidjax.visualize.confusion import save_confusion
from vidjax.visualize.contact_sheet import save_contact_sheet
from vidjax.visualize.curves import save_bands, save_curves, save_points
from vidjax.visualize.lettering import letter, plain
from vidjax.visualize.reconstruction import save_reconstructions
from vidjax.visualize.similarity import save_similarity

AWKWARD = ("the $ sign # of $5", r"50 % of \$_$", "caf\udce9", "two\nlines\x00", "$x^2$", "第一", "")
"""Text that matplotlib would parse as mathematics, undecodable bytes of a file name, other scripts."""


@pytest.fixture(autouse=True)
def few_fonts(monkeypatch):
    """Only the fonts bundled with matplotlib, whatever the machine has installed."""
    bundled = [entry for entry in font_manager.fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", bundled)


@pytest.fixture
def chinese_font(few_fonts, tmp_path):
    """A font of two characters, each a square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0)), pen.lineTo((0, 900)), pen.lineTo((900, 900)), pen.lineTo((900, 0)), pen.closePath()
    square, font = pen.glyph(), FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "one", "two"])
    font.setupCharacterMap({ord("第"): "one", ord("一"): "two"})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "one": square, "two": square})
    font.setupHorizontalMetrics(dict.fromkeys((".notdef", "one", "two"), (1000, 0)))
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "squares.ttf")
    font_manager.fontManager.addfont(tmp_path / "squares.ttf")


def rendered(text, **settings):
    """The pixels of a text drawn by matplotlib."""
    figure = Figure(figsize=(3, 0.5), dpi=60)
    figure.text(0, 0.5, text, **settings)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


@pytest.mark.parametrize("text", ["the $ sign # of $5", r"\$5 or $6", "$", "no", r"a\b $ c $"])
def test_dollars_are_drawn_as_dollars(text):
    """matplotlib 3.11 parses text between two `$` as mathematics, unless given `parse_math=False`."""
    np.testing.assert_array_equal(rendered(plain(text)), rendered(text, parse_math=False))


def test_no_name_makes_a_plot_fail(tmp_path):
    """`$_$`, and `#` or `%` between two `$`, raise in matplotlib 3.11, as does a lone surrogate."""
    count, square = len(AWKWARD), np.eye(len(AWKWARD))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns about missing glyphs
        save_similarity(tmp_path / "1.png", square, AWKWARD, AWKWARD[0])
        save_confusion(tmp_path / "2.png", square.astype(int), AWKWARD, AWKWARD[0])
        save_contact_sheet(tmp_path / "3.png", [np.zeros((1, 4, 4, 3), np.uint8)] * count, AWKWARD)
        save_reconstructions(tmp_path / "4", [np.zeros((1, 1, 4, 4, 3))] * count, AWKWARD[0], AWKWARD)
    for text in AWKWARD[:4]:
        bar = Bar(1.0, 1.0, 1.0, text, ours=True)
        save_bars(tmp_path / "5.png", {text: {text: bar}}, text, text)
        save_curves(tmp_path / "6.png", [{"step": 1, text: 1.0}], (text,), text)
        save_points(tmp_path / "7.png", {text: (1.0, 0.5)}, text, text, {text: 0.5})
        save_bands(tmp_path / "8.png", {text: ([1], [[0.5]])}, text, text, {text: 0.5})


def test_names_that_no_font_can_draw_become_numbers_with_a_note():
    names, families, note = letter(["run", "第一", "jump $5"])
    assert names == ["run", "#1", r"jump \$5"] and families == ["DejaVu Sans"]
    assert note == "1 of 3 names are shown as numbers: no installed font has their characters"
    assert letter(["run", "walk"]).note == ""


def test_names_are_drawn_in_an_installed_font_that_has_their_characters(chinese_font, tmp_path):
    names, families, note = letter(["run", "第一", "第二"])
    assert names == ["run", "第一", "#2"] and families == ["DejaVu Sans", "Squares"]
    assert note.startswith("1 of 3 names are shown as numbers")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_confusion(tmp_path / "c.png", np.eye(2, dtype=int), ["第一", "run"])
    save_contact_sheet(tmp_path / "sheet.png", [np.full((1, 4, 4, 3), 255, np.uint8)], ["一"])
    black = (np.array(Image.open(tmp_path / "sheet.png").convert("L")) < 50).sum()
    assert black == pytest.approx((14 * 0.9) ** 2, rel=0.2)  # a square of nine tenths of the font's height


def test_a_font_that_cannot_be_opened_or_has_no_outlines_is_skipped(monkeypatch, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"?")
    assert lettering._characters(str(tmp_path / "broken.ttf")) == frozenset()
    pixels = type("Font", (), {"scalable": False, "get_charmap": lambda self: {ord("第"): 1}})  # as of emoji fonts
    monkeypatch.setattr(lettering, "get_font", lambda path: pixels())
    assert lettering._characters("emoji.ttf") == frozenset()
