"""The page of a run: its figures and how sure they are, what is taken for what, and the worst errors."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merc_model import report
from merc_model.config import IGNORE_INDEX
from merc_model.data.corpus import Corpus
from merc_model.evaluation import FUSED, Predictions
from merc_model.pages.page import heading, page, plain
from merc_model.uncertainty import Calibration, calibration, intervals

_WORST = 100  # errors that are shown
_MEASURES = {"weighted_f1": "weighted F1", "macro_f1": "macro F1", "accuracy": "accuracy", "uar": "UAR"}


@dataclass(frozen=True)
class Judged:
    """A run, and what it says of one split of a corpus.

    Attributes:
        title: of the page.
        facts: lines on the run and the corpus.
        corpus: the corpus.
        dialogues: indices of the dialogues of the split, of which one has a label.
        predictions: of those dialogues.
        label_names: the C emotions.
        prototypes: ``(C, P)``, or None where none were trained.
        history: a row an epoch; empty where it is lost.
    """

    title: str
    facts: Sequence[str]
    corpus: Corpus
    dialogues: NDArray[np.int64]
    predictions: Predictions
    label_names: Sequence[str]
    prototypes: NDArray[np.float32] | None
    history: Sequence[dict[str, Any]]


def run_page(judged: Judged) -> bytes:
    """The page of a run."""
    names, predictions = judged.label_names, judged.predictions
    known = np.flatnonzero(predictions.labels != IGNORE_INDEX)
    labels, probabilities = predictions.labels[known], predictions.probabilities[FUSED][known]
    lengths = np.diff(judged.corpus.offsets)[judged.dialogues]
    dialogues = np.repeat(judged.dialogues, lengths)[known]
    metrics = predictions.metrics(names)
    several = len(np.unique(dialogues)) > 1
    spans = intervals(labels, probabilities.argmax(axis=1), dialogues, len(names)) if several else {}
    reliability = calibration(labels, probabilities)
    body = [
        heading(judged.title, *map(plain, judged.facts)),
        "<main>",
        _section("Metrics", _figures(metrics, spans), _classes(metrics, spans, names), _heads(predictions, names)),
        _section("Confusion", _confusion(metrics["confusion"], names)),
        _section("Calibration", *_calibration(reliability)),
        _section("Training", _picture("Losses over the epochs", report.curves, judged.history, "")),
        _section(
            "Embeddings",
            _picture(
                "Embeddings on their first two principal components; stars are the label prototypes",
                report.embeddings,
                predictions,
                judged.prototypes,
                names,
                "",
            ),
        ),
        _section("Errors, worst first", _errors(judged, known, labels, probabilities)),
        "</main>",
    ]
    return page(judged.title, "\n".join(body))


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{title}</h2>{''.join(parts)}</section>"


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "", shades: Any = None) -> str:
    """A table of HTML texts, the first of each row its heading; it scrolls by itself where it is too wide.

    Args:
        caption: what stands in it.
        head: of the columns.
        rows: as long as ``head``.
        kind: a class of page.css.
        shades: 0 to 10 for each cell that is no heading, or None.
    """
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = ""
    for number, (first, *cells) in enumerate(rows):
        marks = [""] * len(cells) if shades is None else [f' class="s{shade}"' for shade in shades[number]]
        shown = "".join(f"<td{mark}>{cell}</td>" for mark, cell in zip(marks, cells, strict=True))
        lines += f'<tr><th scope="row">{first}</th>{shown}</tr>'
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{caption}"><table class="figures {kind}">'
        f"<caption>{caption}</caption><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _span(values: NDArray[np.float64] | None) -> str:
    return "–" if values is None else f"{values[0]:.3f} to {values[1]:.3f}"


def _figures(metrics: dict[str, Any], spans: dict[str, NDArray[np.float64]]) -> str:
    rows = [[shown, f"{metrics[name]:.4f}", _span(spans.get(name))] for name, shown in _MEASURES.items()]
    hint = "There is one dialogue, so no interval."
    if spans:
        hint = (
            "The intervals are of a bootstrap over dialogues. They say how the figures would vary with other dialogues,"
            " not with other seeds."
        )
    table = _table(f"{metrics['utterances']:,} utterances", ["", "value", "95 % interval"], rows)
    return f'{table}<p class="hint">{hint}</p>'


def _classes(metrics: dict[str, Any], spans: dict[str, NDArray[np.float64]], names: Sequence[str]) -> str:
    counts = np.sum(metrics["confusion"], axis=1)
    rows = [
        [_name(name), f"{metrics['f1'][name]:.4f}", _span(spans["f1"][:, i] if spans else None), f"{counts[i]:,}"]
        for i, name in enumerate(names)
    ]
    return _table("F1 of each emotion", ["", "F1", "95 % interval", "utterances"], rows)


def _heads(predictions: Predictions, names: Sequence[str]) -> str:
    rows = []
    for head in predictions.probabilities:
        values = predictions.metrics(names, head)
        rows.append([plain(head), *(f"{values[name]:.4f}" for name in _MEASURES)])
    return _table("The fused prediction, and each modality by itself", ["", *_MEASURES.values()], rows)


def _confusion(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Counts, shaded by the share of the true emotion."""
    shares = np.asarray(counts) / np.maximum(np.sum(counts, axis=1, keepdims=True), 1)
    rows = [[_name(name), *(f"{count:,}" for count in line)] for name, line in zip(names, counts, strict=True)]
    head = ["true \\ predicted", *map(_name, names)]
    return _table(
        "A row is a true emotion, a column what was predicted",
        head,
        rows,
        "confusion",
        (10 * shares).round().astype(int),
    )


def _calibration(found: Calibration) -> tuple[str, str, str]:
    rows = [
        [f"{confidence:.1%}", f"{accuracy:.1%}", f"{count:,}"]
        for confidence, accuracy, count in zip(found.confidence, found.accuracy, found.counts, strict=True)
    ]
    text = (
        f"<p>Expected calibration error {found.error:.3f}: so far, on average, is the share that is right from the "
        "probability that the model gives.</p>"
    )
    picture = _picture("How often the model is right, over its confidence", report.reliability, found)
    return text, picture, _table("Where the model is so sure", ["confidence", "right", "utterances"], rows)


def _errors(
    judged: Judged, known: NDArray[np.int64], labels: NDArray[np.int64], probabilities: NDArray[np.float32]
) -> str:
    given = probabilities[np.arange(len(labels)), labels]
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    worst = wrong[np.argsort(given[wrong], kind="stable")][:_WORST]
    rows_of, said = judged.corpus.rows(judged.dialogues)[known], judged.corpus.transcript
    rows = []
    for place in worst:
        row, guess = int(rows_of[place]), int(probabilities[place].argmax())
        where = plain(judged.corpus.place(row))
        words = [] if said is None else [f'<span dir="auto">{plain(str(said[row]))}</span>']
        true = f"{_name(judged.label_names[labels[place]])} {given[place]:.1%}"
        rows.append([where, *words, true, f"{_name(judged.label_names[guess])} {probabilities[place, guess]:.1%}"])
    head = ["where", *([] if said is None else ["words"]), "true", "predicted"]
    count = f"{len(worst):,} of {len(wrong):,} errors" if len(worst) < len(wrong) else f"{len(wrong):,} errors"
    return _table(f"{count}, by how little the model gave the true emotion", head, rows, "errors")


def _name(name: str) -> str:
    return f"<bdi>{plain(name)}</bdi>"


def _picture(text: str, draw: Callable[..., None], *arguments: Any) -> str:
    """A picture as part of the page; a line where it cannot be drawn, because the figures stand without it."""
    buffer = BytesIO()
    if not report.attempt(draw, buffer, *arguments):
        return '<p class="hint">The picture could not be drawn.</p>'
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img alt="{text}" src="data:image/svg+xml;base64,{data}"><figcaption>{text}</figcaption></figure>'
