"""The table: what every row reached, and how sure its distance to others is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merc_model import report
from merc_model.ablation.cells import FORMAT, Ablation, Cell
from merc_model.ablation.rows import CROSS_ENTROPY, EARLY, LOGISTIC
from merc_model.ablation.significance import MEASURES, compare, resampled
from merc_model.ablation.tables import AVERAGES, markdown
from merc_model.checkpoint import environment
from merc_model.config import IGNORE_INDEX
from merc_model.evaluation import FUSED, metrics
from merc_model.files import write_whole


@dataclasses.dataclass(frozen=True)
class _Scores:
    """One head of a row.

    Attributes:
        of_seeds: the metrics of each seed.
        resamples: measure → its value in each resample of the utterances.
    """

    of_seeds: list[dict[str, Any]]
    resamples: dict[str, NDArray[np.float64]]

    def values(self, measure: str, seeds: int) -> NDArray[np.float64]:
        """One for each seed; a row without seeds repeats its value."""
        values = np.array([one[measure] for one in self.of_seeds])
        return np.resize(values, seeds) if len(values) == 1 else values


def summarize(ablation: Ablation) -> dict[str, Any]:
    """What ``results.json`` holds, from the files of all cells."""
    labels = _labels(ablation)
    known = labels != IGNORE_INDEX
    label_names = ablation.corpus.label_names.tolist()
    scores: dict[str, dict[str, _Scores]] = {}
    shared: dict[str, dict[str, _Scores]] = {}
    rows: list[dict[str, Any]] = []
    for row in ablation.rows:
        cells = ablation.cells(row)
        contents = [cell.read(ablation.folder) for cell in cells]
        key = cells[0].key
        if key not in shared:
            heads = {
                head: _by_seed(cells, [content["predicted"][head] for content in contents])
                for head in contents[0]["predicted"]
            }
            shared[key] = {
                head: _Scores(
                    [metrics(labels[known], one[known], label_names) for one in predicted],
                    resampled(labels[known], predicted[:, known], len(label_names)),
                )
                for head, predicted in heads.items()
            }
        scores[row.name] = shared[key]
        twin = next((other["name"] for other in rows if other["key"] == key), None)
        seconds = np.array([content["seconds"] for content in contents]).reshape(-1, ablation.folds or 1).sum(axis=1)
        rows.append(
            {
                "name": row.name,
                "title": row.title,
                "key": key,
                "same_as": twin,
                "before": row.before,
                "changes": dict(row.changes),
                "parameters": contents[0]["parameters"],
                "seconds": _spread(seconds),
                **_metrics(shared[key][FUSED].of_seeds, label_names),
                "heads": {h: _metrics(s.of_seeds, label_names) for h, s in shared[key].items() if h != FUSED},
            }
        )
    for number, entry in enumerate(rows):
        entry["over"] = _comparisons(entry, rows[:number], scores, ablation.seeds)
    return {
        "format": FORMAT,
        "corpus": ablation.corpus.name,
        "sha256": ablation.corpus.fingerprint(),
        "evaluated_on": "test" if ablation.folds is None else f"{ablation.folds} folds",
        "groups": ablation.corpus.groups is not None,
        "utterances": int(known.sum()),
        "seeds": ablation.seeds,
        "config": dataclasses.asdict(ablation.config),
        "environment": environment(),
        "rows": rows,
    }


def _labels(ablation: Ablation) -> NDArray[np.int64]:
    """Of the utterances predicted, fold after fold."""
    return np.concatenate([part.corpus.labels[part.corpus.rows(part.dialogues)] for part in ablation.parts()])


def _by_seed(cells: Sequence[Cell], predicted: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """``(S, U)``: the folds of a seed one after another."""
    seeds = sorted({cell.seed for cell in cells})
    return np.array(
        [np.concatenate([p for c, p in zip(cells, predicted, strict=True) if c.seed == seed]) for seed in seeds],
        dtype=np.int64,
    )


def _spread(values: Sequence[float] | NDArray[np.float64]) -> dict[str, Any]:
    """Mean and sd (n − 1; None for one value)."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd, "of_seeds": [float(value) for value in values]}


def _metrics(of_seeds: Sequence[dict[str, Any]], label_names: Sequence[str]) -> dict[str, Any]:
    return {
        **{name: _spread([one[name] for one in of_seeds]) for name in AVERAGES},
        "f1": {label: _spread([one["f1"][label] for one in of_seeds]) for label in label_names},
    }


def _comparisons(
    entry: dict[str, Any], above: Sequence[dict[str, Any]], scores: dict[str, dict[str, _Scores]], seeds: int
) -> dict[str, Any]:
    """Row above → head → measure → the difference to it."""
    keys = {row["name"]: row["key"] for row in above}
    wanted = dict.fromkeys((entry["before"], LOGISTIC, EARLY, CROSS_ENTROPY))
    over: dict[str, Any] = {}
    for other in wanted:
        if other is None or keys.get(other, entry["key"]) == entry["key"]:
            continue
        over[other] = {}
        for head, ours in scores[entry["name"]].items():
            theirs = scores[other].get(head)
            if theirs is not None:
                over[other][head] = {
                    measure: compare(
                        ours.resamples[measure],
                        theirs.resamples[measure],
                        ours.values(measure, seeds),
                        theirs.values(measure, seeds),
                    ).as_dict()
                    for measure in MEASURES
                }
    return over


def write(ablation: Ablation) -> str:
    """Write results.json, results.md and results.png; the Markdown."""
    summary = summarize(ablation)
    text = markdown(summary)
    content = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    write_whole(ablation.folder / "results.json", lambda file: file.write(content.encode()))
    write_whole(ablation.folder / "results.md", lambda file: file.write(text.encode()))
    report.scores(
        ablation.folder / "results.png",
        [row["title"] for row in summary["rows"]],
        {measure: [row[measure]["of_seeds"] for row in summary["rows"]] for measure in MEASURES},
        f"{summary['corpus']}, {summary['evaluated_on']}",
    )
    return text
