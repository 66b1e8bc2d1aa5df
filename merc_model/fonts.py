"""Fonts for names in any script: a picture shows what some font of the machine has."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_FIRST = ("noto sans", "wenquanyi", "source han", "droid sans fallback", "microsoft yahei", "simhei", "pingfang")


@contextmanager
def drawable(*texts: str) -> Iterator[list[str]]:
    """Inside, matplotlib draws with fonts that have the characters of ``texts``; gives the texts to draw.

    They stand as they are, but for a dollar sign, which would start a formula, a control character, which
    has no picture, and a character of which the machine has no font: that is written as its number, U+5F00.
    """
    import matplotlib

    families = list(matplotlib.rcParams["font.family"])
    wanted = {character for text in texts for character in text if _visible(character)}
    lacking = wanted - _characters(tuple(families))
    for family in _upright() if lacking else ():
        if lacking & _characters((family,)):
            families.append(family)
            lacking -= _characters((family,))
        if not lacking:
            break
    with matplotlib.rc_context({"font.family": families}):
        yield ["".join(_shown(character, lacking) for character in text) for text in texts]


def _visible(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")


def _shown(character: str, lacking: set[str]) -> str:
    if character == "$":
        return r"\$"
    if not _visible(character):
        return " "
    return f"U+{ord(character):04X} " if character in lacking else character


@cache
def _characters(families: tuple[str, ...]) -> frozenset[str]:
    """What the upright fonts of these families have."""
    from matplotlib import font_manager

    found: set[str] = set()
    for family in families:
        try:
            wanted = font_manager.FontProperties(family=[family])  # "sans-serif" by itself would be read as a pattern
            path = _upright().get(family) or font_manager.findfont(wanted, fallback_to_default=False)
            found.update(map(chr, font_manager.get_font(path).get_charmap()))
        except (ValueError, OSError, RuntimeError):  # not installed, or a file that cannot be read
            continue
    return frozenset(found)


@cache
def _upright() -> dict[str, str]:
    """Family → its file, of every family of the machine with an upright font of usual weight.

    Those known to have most scripts come first.
    """
    from matplotlib import font_manager

    usual = (400, 500, "normal", "regular", "book", "medium")
    fonts = {
        font.name: font.fname
        for font in font_manager.fontManager.ttflist
        if font.style == "normal" and font.weight in usual and "LastResort" not in font.name.replace(" ", "")
    }
    order = sorted(fonts, key=lambda family: (not family.lower().startswith(_FIRST), family))
    return {family: fonts[family] for family in order}
