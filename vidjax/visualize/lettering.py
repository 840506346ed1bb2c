"""Drawing arbitrary text (class names, file names, captions) on images and plots, in any script."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import matplotlib
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from PIL import ImageDraw, ImageFont


class Lettering(NamedTuple):
    """Text and fonts with which matplotlib draws a list of names.

    Attributes:
      texts: one per name; `#i` for name number i if no font has its characters.
      families: font families, the default first; matplotlib takes each character from the first one that has it.
      note: a sentence about the names that were replaced by numbers; empty if there are none.
    """

    texts: list[str]
    families: list[str]
    note: str


def letter(names: Sequence[str]) -> Lettering:
    """Chooses installed fonts for the names; a name that they cannot draw becomes its position (`#0`, `#1`, ...)."""
    printable = [_printable(name) for name in names]
    paths, missing = _choose_fonts("".join(printable))
    texts = [f"#{i}" if missing & set(name) else plain(name) for i, name in enumerate(printable)]
    numbered = sum(bool(missing & set(name)) for name in printable)
    note = f"{numbered} of {len(names)} names are shown as numbers: no installed font has their characters"
    return Lettering(texts, [get_font(path).family_name for path in paths], note if numbered else "")


def plain(text: str) -> str:
    """Escapes text so that matplotlib draws it literally instead of parsing `$...$` as mathematics."""
    return _printable(text).replace("$", r"\$")


def draw_line(draw: ImageDraw.ImageDraw, position: tuple[int, int], text: str) -> None:
    """Draws one line of black text on a Pillow image; `position` is its upper left corner (x, y)."""
    text = _printable(text)
    draw.text(position, text, "black", _pillow_font(text))


def line_width(text: str) -> int:
    """Width in pixels of the text that `draw_line` draws."""
    text = _printable(text)
    return round(_pillow_font(text).getlength(text))


def _pillow_font(text: str) -> ImageFont.FreeTypeFont:
    """The font that has most of the text's characters: Pillow does not fall back to a second font."""
    paths, _ = _choose_fonts(text)
    return _open_font(max(paths, key=lambda path: sum(character in _characters(path) for character in text)))


@cache
def _open_font(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, 14)


def _printable(text: str) -> str:
    """Makes the text one line and replaces what no font can draw, such as surrogates from undecodable file names."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def _choose_fonts(text: str) -> tuple[list[str], set[str]]:
    """Font files that together draw a text, matplotlib's default first, and the characters that no font has."""
    chosen = [findfont(FontProperties(family="DejaVu Sans"))]  # comes with matplotlib
    missing = set(text) - _characters(chosen[0])
    while missing:
        best = max(_installed(), key=lambda path: len(missing & _characters(path)), default=chosen[0])
        if not missing & _characters(best):
            break
        chosen.append(best)
        missing -= _characters(best)
    return chosen, missing


def _installed() -> list[str]:
    """Upright fonts of the system. Those bundled with matplotlib are left out: they cover mathematics or only boxes."""
    own = matplotlib.get_data_path()
    return sorted({e.fname for e in fontManager.ttflist if e.style == "normal" and not e.fname.startswith(own)})


@cache
def _characters(path: str) -> frozenset[str]:
    """The characters of a font; empty if it cannot be opened or is a bitmap font."""
    try:
        font = get_font(path)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
