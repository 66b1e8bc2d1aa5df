"""The results as Markdown tables."""

from __future__ import annotations

from typing import Any

from merc_model.ablation.rows import CROSS_ENTROPY, EARLY, FULL, LOGISTIC
from merc_model.ablation.significance import MEASURES
from merc_model.evaluation import FUSED

AVERAGES = ("weighted_f1", "macro_f1", "accuracy", "uar")


def markdown(summary: dict[str, Any]) -> str:
    """The tables of a `summarize`."""
    rows, titles = summary["rows"], {row["name"]: row["title"] for row in summary["rows"]}
    labels = list(rows[0]["f1"])
    where = "the test set" if summary["evaluated_on"] == "test" else f"the validation sets of {summary['evaluated_on']}"
    if summary["evaluated_on"] != "test":
        where += ", by group" if summary["groups"] else ", by dialogue"
    lines = [
        f"# {summary['corpus']}: {where}",
        "",
        f"{summary['utterances']} utterances, {summary['seeds']} seeds: mean ± sd. Seconds per seed, one thread.",
        "",
        *_table(
            ["", "weighted F1", "macro F1", "accuracy", "UAR", "parameters", "seconds"],
            [
                [row["title"] + (f" (= {titles[row['same_as']]})" if row["same_as"] else "")]
                + [_plus_minus(row[name]) for name in AVERAGES]
                + [f"{row['parameters']:,}", f"{row['seconds']['mean']:.0f}"]
                for row in rows
            ],
        ),
        "",
        "F1 of each class:",
        "",
        *_table(["", *labels], [[row["title"], *(_plus_minus(row["f1"][label]) for label in labels)] for row in rows]),
    ]
    differences = [line for row in rows for line in _difference_lines(row, titles)]
    if differences:
        lines += [
            "",
            "Differences in points of F1, with 95 % intervals and p of a paired bootstrap over utterances,",
            "and p of a paired t-test over seeds (– where seeds cannot tell).",
            "No p is corrected for the number of comparisons.",
            "",
            *_table(
                ["", "over", "weighted F1", "p utterances", "p seeds", "macro F1", "p utterances", "p seeds"],
                differences,
            ),
        ]
    heads = [(row, head) for row in rows for head in row["heads"] if not row["same_as"]]
    if heads:
        lines += [
            "",
            "Each modality's own head, and its distance to the same head under cross entropy alone:",
            "",
            *_table(
                ["", "head", "weighted F1", "macro F1", "points of weighted F1", "p utterances", "p seeds"],
                [_head_line(row, head) for row, head in heads],
            ),
        ]
    return "\n".join(lines) + "\n"


def _difference_lines(row: dict[str, Any], titles: dict[str, str]) -> list[list[str]]:
    """Against the row before and early concatenation; the full model also against the other controls."""
    shown = dict.fromkeys((row["before"], EARLY, *((CROSS_ENTROPY, LOGISTIC) if row["name"] == FULL else ())))
    lines = []
    for other in shown:
        if other in row["over"]:
            over = row["over"][other][FUSED]
            lines.append([row["title"], titles[other], *(cell for m in MEASURES for cell in _difference(over[m]))])
    return lines


def _head_line(row: dict[str, Any], head: str) -> list[str]:
    scores = row["heads"][head]
    over = row["over"].get(CROSS_ENTROPY, {}).get(head)
    cells = _difference(over["weighted_f1"]) if over else ["", "", ""]
    return [row["title"], head, _plus_minus(scores["weighted_f1"]), _plus_minus(scores["macro_f1"]), *cells]


def _difference(difference: dict[str, Any]) -> list[str]:
    points = [f"{100 * difference[name]:+.1f}" for name in ("mean", "low", "high")]
    p_seeds = difference["p_seeds"]
    return [
        f"{points[0]} [{points[1]}, {points[2]}]",
        f"{difference['p_utterances']:.3f}",
        "–" if p_seeds is None else f"{p_seeds:.3f}",
    ]


def _plus_minus(spread: dict[str, Any]) -> str:
    return f"{spread['mean']:.4f}" + ("" if spread["sd"] is None else f" ± {spread['sd']:.4f}")


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    return [line(head), line(["---"] * len(head)), *(line(row) for row in rows)]
