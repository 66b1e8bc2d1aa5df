from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure

from merc_model import fonts, report
from merc_model.errors import UserError
from merc_model.evaluation import Predictions

NAMES = ["_calm", "开心", "cross$x$", "Größe", "tab\there", "\ud800"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, laid out."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *arguments: Any, **options: Any) -> None:
        save(self, *arguments, **options)
        figures.append(self)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.fixture
def forget_fonts() -> Iterator[None]:
    known = list(font_manager.fontManager.ttflist)
    fonts._upright.cache_clear()
    fonts._characters.cache_clear()
    yield
    font_manager.fontManager.ttflist[:] = known
    fonts._upright.cache_clear()
    fonts._characters.cache_clear()


def probabilities(length: int, classes: int = len(NAMES)) -> Any:
    return np.random.default_rng(0).dirichlet(np.ones(classes), length).astype(np.float32)


def predictions(rows: int = 40, classes: int = len(NAMES)) -> Predictions:
    generator = np.random.default_rng(1)
    embedded = generator.normal(size=(rows, 4)).astype(np.float32)
    return Predictions(generator.integers(0, classes, rows), {"fused": probabilities(rows)}, embedded)


def prototypes(classes: int = len(NAMES)) -> Any:
    return np.random.default_rng(2).normal(size=(classes, 4)).astype(np.float32)


def history() -> list[dict[str, Any]]:
    return [
        {"stage": stage, "epoch": epoch, "ce_loss": 1 / epoch, "loss": 2 / epoch, "valid_weighted_f1": 1 - 1 / epoch}
        for stage in ("teacher", "fusion")
        for epoch in range(1, 9)
    ]


PICTURES: dict[str, Callable[[Path], None]] = {
    "timeline": lambda path: report.timeline(path, probabilities(60), np.arange(60) % 2, NAMES, "开心 $\\frac$"),
    "confusion": lambda path: report.confusion(path, np.eye(6, dtype=int).tolist(), NAMES, "开心 $\\frac$"),
    "embeddings": lambda path: report.embeddings(path, predictions(), prototypes(), NAMES, "开心 $\\frac$"),
    "curves": lambda path: report.curves(path, history(), "开心 $\\frac$"),
}


def shown(figure: Figure) -> list[str]:
    """Every text of a figure."""
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.usefixtures("forget_fonts")
def test_names_in_any_script_are_shown_without_a_warning(picture: str, tmp_path: Path, drawn: list[Figure]) -> None:
    """Where no font has a character, as its number; no name is left out for its first letter."""
    font_manager.fontManager.ttflist[:] = [f for f in font_manager.fontManager.ttflist if "DejaVu" in f.name]
    PICTURES[picture](tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    texts = shown(drawn[0])
    assert any("U+5F00 U+5FC3" in text for text in texts)
    if picture != "curves":
        assert {"_calm", r"cross\$x\$", "Größe", "tab here"} <= set(texts)


def font_with(characters: str, path: Path) -> None:
    """A font of squares."""
    pen = TTGlyphPen(None)
    for move, *points in ((pen.moveTo, (50, 0)), (pen.lineTo, (50, 700)), (pen.lineTo, (700, 700))):
        move(*points)
    pen.closePath()
    glyphs = [".notdef", *(f"uni{ord(character):04X}" for character in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap({ord(character): glyph for character, glyph in zip(characters, glyphs[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(glyphs, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (750, 50)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(path)


@pytest.mark.usefixtures("forget_fonts")
def test_a_font_of_the_machine_that_has_the_characters_is_used(tmp_path: Path, drawn: list[Figure]) -> None:
    font_manager.fontManager.ttflist[:] = [f for f in font_manager.fontManager.ttflist if "DejaVu" in f.name]
    font_with("开心", tmp_path / "squares.ttf")
    font_manager.fontManager.addfont(tmp_path / "squares.ttf")
    PICTURES["timeline"](tmp_path / "p.png")
    assert "开心" in shown(drawn[0])
    name = next(text for text in drawn[0].findobj(lambda a: hasattr(a, "get_text")) if text.get_text() == "开心")
    assert name.get_fontfamily() == ["sans-serif", "Squares"]


@pytest.mark.parametrize("speakers", [1, 2, 40, pytest.param(300, marks=pytest.mark.full)])
def test_a_timeline_is_readable_with_any_number_of_speakers(speakers: int, tmp_path: Path, drawn: list[Figure]) -> None:
    length = 3 * speakers
    report.timeline(tmp_path / "p.png", probabilities(length), np.arange(length) % speakers, NAMES, "talk")
    (figure,) = drawn
    (axes,) = figure.axes
    width, height = figure.get_size_inches()
    assert axes.get_window_extent().height / figure.dpi / speakers >= 0.19
    assert max(width, height) <= 60
    assert height <= 3 or height <= 2 + 0.9 * speakers
    labels = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(below.y1 <= above.y0 for below, above in pairwise(labels))
    legend = figure.legends[0].get_window_extent()
    axis = axes.xaxis.get_tightbbox()
    assert legend.y1 <= axis.y0
    assert axis.y0 - legend.y1 < 0.3 * figure.dpi, "no empty band"
    assert legend.x0 >= 0
    assert legend.x1 <= width * figure.dpi
    assert all(tick == round(tick) for tick in axes.get_xticks())


@pytest.mark.parametrize("classes", [1, 6, 60])
def test_no_legend_covers_what_is_drawn(classes: int, tmp_path: Path, drawn: list[Figure]) -> None:
    names = [f"emotion {number}" for number in range(classes)]
    report.embeddings(tmp_path / "e.png", predictions(40, classes), prototypes(classes), names, "toy")
    report.curves(tmp_path / "c.png", history(), "toy")
    for figure in drawn:
        boxes = [axes.get_window_extent() for axes in figure.axes]
        boxes += [axes.xaxis.get_tightbbox() for axes in figure.axes if axes.get_xticks().size]
        for axes in figure.axes:
            legend = axes.get_legend().get_window_extent()
            assert not any(legend.overlaps(box) for box in boxes)
            assert legend.y0 >= 0
            assert legend.y1 <= figure.bbox.height


def test_prototypes_that_were_not_trained_are_left_out(tmp_path: Path, drawn: list[Figure]) -> None:
    report.embeddings(tmp_path / "with.png", predictions(), prototypes(), NAMES, "toy")
    report.embeddings(tmp_path / "without.png", predictions(), None, NAMES, "toy")
    stars = [sum(len(dots.get_offsets()) == 1 for dots in figure.axes[0].collections) for figure in drawn]
    assert stars == [len(NAMES), 0]
    assert [figure.axes[0].get_title() for figure in drawn] == [
        "toy: embeddings and label prototypes",
        "toy: embeddings",
    ]


def broken(path: Path) -> None:
    raise ValueError("no such colour\nmore")


def refused(path: Path) -> None:
    raise UserError(f"{path}: cannot be written: No space left on device")


@pytest.mark.parametrize(
    ("draw", "reason"), [(broken, "p.png: ValueError: no such colour"), (refused, "p.png: cannot be written: No space")]
)
def test_a_picture_that_fails_is_a_warning(
    draw: Callable[[Path], None], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not report.attempt(draw, Path("p.png"))
    line = capsys.readouterr().err
    assert line.startswith("warning: a picture was not drawn: p.png: ")
    assert reason in line
    assert line.count("\n") == 1
    assert report.attempt(lambda path: None, Path("p.png"))


def test_what_is_slow_to_import_waits_until_it_is_needed() -> None:
    program = "import sys, merc_model.cli; print({'matplotlib', 'scipy', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"
