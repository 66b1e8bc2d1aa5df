"""The page of a run, and how sure its figures are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merc_model.cli import main
from merc_model.data.corpus import Corpus
from merc_model.evaluation import metrics
from merc_model.uncertainty import calibration, intervals, scores
from tests.browser import BROWSER, DRIVER, Browser
from tests.model.command import failure
from tests.model.small import LABEL_NAMES, small_corpus
from tests.model.test_talk_page import Elements


def guesses(utterances: int = 400, classes: int = 4) -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, utterances)
    predicted = np.where(generator.random(utterances) < 0.6, labels, generator.integers(0, classes, utterances))
    return labels, predicted


def test_scores_are_those_of_the_metrics() -> None:
    labels, predicted = guesses()
    labels[labels == 2] = 1  # a class that does not occur
    expected = metrics(labels, predicted, list("abcd"))
    found = scores(np.array([expected["confusion"]], float))
    for name in ("weighted_f1", "macro_f1", "accuracy", "uar"):
        assert found[name][0] == pytest.approx(expected[name])
    assert found["f1"][0] == pytest.approx(list(expected["f1"].values()))


def test_intervals_are_of_dialogues() -> None:
    labels, predicted = guesses()
    single, alike = np.arange(400), np.repeat(np.arange(20), 20)
    of_utterances = intervals(labels, predicted, single, 4)["accuracy"]
    share = float((labels == predicted).mean())
    assert of_utterances[0] < share < of_utterances[1]
    assert np.diff(of_utterances)[0] == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 400), rel=0.1)
    predicted = np.where(alike % 2 == 0, labels, (labels + 1) % 4)  # a dialogue is right throughout, or wrong
    of_dialogues = intervals(labels, predicted, alike, 4)["accuracy"]
    assert np.diff(of_dialogues)[0] == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 20), rel=0.15)
    assert intervals(labels, predicted, alike, 4)["f1"].shape == (2, 4)


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.25, 0.75], [1.0, 0.0]], np.float32)
    found = calibration(np.array([0, 1, 1, 0]), probabilities)
    np.testing.assert_allclose(found.confidence, [0.75, (0.95 + 0.95 + 1) / 3], rtol=1e-6)
    np.testing.assert_allclose(found.accuracy, [1, 2 / 3])
    assert found.counts.tolist() == [1, 3]
    assert found.error == pytest.approx((0.25 + 3 * (2.9 / 3 - 2 / 3)) / 4)


def test_report_makes_a_page(finished: Path, capsys: Any) -> None:
    assert main(["report", str(finished)]) == 0
    assert capsys.readouterr().out == f"report: {finished / 'report.html'}\n"
    data = (finished / "report.html").read_bytes()
    shown = Elements(data)
    text = " ".join(shown.text)
    assert main(["evaluate", str(finished)]) == 0
    weighted = re.search(r"weighted_f1  (\S+)", capsys.readouterr().out)
    assert weighted
    assert weighted[1] in text
    for title in ("Metrics", "Confusion", "Calibration", "Training", "Embeddings", "Errors, worst first"):
        assert title in text
    pictures = [attributes for tag, attributes in shown.found if tag == "img"]
    assert len(pictures) == 3
    assert all(picture["alt"] and str(picture["src"]).startswith("data:image/svg+xml;base64,") for picture in pictures)
    assert len(data) < 300_000
    assert main(["report", str(finished)]) == 0  # its own file is made anew
    out = str(finished / "other.html")
    assert main(["report", str(finished), "--split", "valid", "--out", out]) == 0
    assert "exists" in failure(["report", str(finished), "--out", out], capsys)
    assert "ends in .html" in failure(["report", str(finished), "--out", "a.pdf"], capsys)
    assert "is not a run folder" in failure(["report", str(finished.parent)], capsys)


def test_errors_stand_worst_first_with_their_words(finished: Path, tmp_path: Path) -> None:
    corpus = small_corpus()
    arrays = {**corpus.features, **{key: getattr(corpus, key) for key in corpus._keys()}}
    words = np.array([f"<i>said {row}</i>" for row in range(len(corpus.labels))])
    np.savez(tmp_path / "told.npz", **arrays, transcript=words)
    out = tmp_path / "report.html"
    assert main(["report", str(finished), "--data", str(tmp_path / "told.npz"), "--out", str(out)]) == 0
    errors = out.read_text().split("Errors, worst first")[1]
    given = [float(share) for share in re.findall(r"<td><bdi>\w+</bdi> ([\d.]+)%</td><td>", errors)]
    assert given
    assert given == sorted(given)
    rows = [int(row) for row in re.findall(r"&lt;i&gt;said (\d+)&lt;/i&gt;", errors)]
    assert len(rows) == len(given)
    assert set(rows) <= set(corpus.rows(corpus.dialogues("test")).tolist())


def test_one_dialogue_has_no_interval(finished: Path, tmp_path: Path) -> None:
    corpus = small_corpus()
    own: Corpus = corpus.only(corpus.dialogues("test")[:1])
    own.save(tmp_path / "one.npz")
    out = tmp_path / "one.html"
    assert main(["report", str(finished), "--data", str(tmp_path / "one.npz"), "--out", str(out)]) == 0
    assert "There is one dialogue, so no interval." in out.read_text()


@pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver (tests/browser.py)")
def test_the_page_of_a_run_in_a_browser(finished: Path) -> None:
    assert main(["report", str(finished)]) == 0
    with Browser(width=360, height=640) as browser:
        browser.open(finished / "report.html")
        browser.until("return [...document.images].every(image => image.complete && image.naturalWidth > 100)")
        assert browser.complaints() == []
        assert browser.run("return document.documentElement.scrollWidth") <= 360
        assert browser.run("return document.querySelectorAll('.confusion td').length") == len(LABEL_NAMES) ** 2
