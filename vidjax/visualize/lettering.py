"""Names that users gave, on pictures: as they are, whatever signs and scripts they are of."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import matplotlib
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from PIL import ImageDraw, ImageFont


class Lettering(NamedTuple):
    """How names are drawn by matplotlib.

    Attributes:
      texts: one for each name, its number where no font has its characters.
      families: of fonts, the usual one first; each character is of the first one that has it.
      note: a sentence on names that are numbers, empty where all can be drawn.
    """

    texts: list[str]
    families: list[str]
    note: str


def letter(names: Sequence[str]) -> Lettering:
    """The names in fonts that are installed; those that none of these can draw become `#0`, `#1`, their position."""
    printable = [_printable(name) for name in names]
    paths, lacking = _choose_fonts("".join(printable))
    texts = [f"#{i}" if lacking & set(name) else plain(name) for i, name in enumerate(printable)]
    numbered = sum(bool(lacking & set(name)) for name in printable)
    note = f"{numbered} of {len(names)} names are numbers, from #0 on: no font here has their characters"
    return Lettering(texts, [get_font(path).family_name for path in paths], note if numbered else "")


def plain(text: str) -> str:
    """Text that matplotlib draws as it is: what stands between two dollar signs would be mathematics to it."""
    return _printable(text).replace("$", r"\$")


def draw_line(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str) -> None:
    """Writes a text into a picture of Pillow, black, in one line whose upper left corner is at `place` (x, y)."""
    text = _printable(text)
    draw.text(place, text, "black", _pillow_font(text))


def line_width(text: str) -> int:
    """Pixels that `draw_line` takes."""
    text = _printable(text)
    return round(_pillow_font(text).getlength(text))


def _pillow_font(text: str) -> ImageFont.FreeTypeFont:
    """Of those that together draw a text, the font that has most of its characters; Pillow takes one."""
    paths, _ = _choose_fonts(text)
    return _open_font(max(paths, key=lambda path: sum(character in _characters(path) for character in text)))


@cache
def _open_font(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, 14)


def _printable(text: str) -> str:
    """One line, without what no font can have: half a character, or a byte of a file name that is no UTF-8."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def _choose_fonts(text: str) -> tuple[list[str], set[str]]:
    """Files of fonts that together draw a text, matplotlib's usual one first, and the characters that none has."""
    chosen = [findfont(FontProperties(family="DejaVu Sans"))]  # comes with matplotlib
    lacking = set(text) - _characters(chosen[0])
    while lacking:
        most = max(_installed(), key=lambda path: len(lacking & _characters(path)), default=chosen[0])
        if not lacking & _characters(most):
            break
        chosen.append(most)
        lacking -= _characters(most)
    return chosen, lacking


def _installed() -> list[str]:
    """Files of upright fonts but for those that come with matplotlib, which are of mathematics, or of boxes alone."""
    own = matplotlib.get_data_path()
    return sorted({e.fname for e in fontManager.ttflist if e.style == "normal" and not e.fname.startswith(own)})


@cache
def _characters(path: str) -> frozenset[str]:
    """What a font can draw; nothing where it cannot be opened, or has pixels in place of outlines."""
    try:
        font = get_font(path)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
