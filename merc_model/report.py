"""Pictures: confusion matrix, training curves, map of the embeddings, timeline of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from merc_model.evaluation import Predictions
from merc_model.files import write_whole

_SPEAKER_HEIGHT = 0.5


def confusion(path: Path, counts: Sequence[Sequence[int]], label_names: Sequence[str], title: str) -> None:
    """A confusion matrix (C, C), rows as shares of the true class, with the counts written in."""
    label_names, title = [_plain(name) for name in label_names], _plain(title)
    table = np.asarray(counts, dtype=float)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(1.5 + 0.8 * len(table), 1.2 + 0.75 * len(table)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(table)), label_names, rotation=45, ha="right")
    axes.set_yticks(range(len(table)), label_names)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.5 else "black"
        axes.text(column, row, f"{int(table[row, column])}", ha="center", va="center", color=colour)
    _save(figure, path)


def curves(path: Path, history: Sequence[dict[str, Any]], title: str) -> None:
    """The losses over the epochs and, where the epoch was chosen on a set, its weighted F1."""
    chosen = [name for name in history[0] if name.endswith("weighted_f1")]
    figure = Figure(figsize=(5, 5.5 if chosen else 3.5), layout="constrained")
    figure.suptitle(_plain(title))
    epochs = [row["epoch"] for row in history]
    losses = figure.add_subplot(1 + len(chosen), 1, 1, xlabel="epoch")
    for name in history[0]:
        if name == "loss" or name.endswith("_loss"):
            losses.plot(epochs, [row[name] for row in history], label=name)
    losses.legend(fontsize="x-small")
    for name in chosen:
        scores = figure.add_subplot(2, 1, 2, xlabel="epoch")
        scores.plot(epochs, [row[name] for row in history], label=name.replace("_", " "))
        scores.legend(fontsize="x-small")
    _save(figure, path)


def embeddings(
    path: Path,
    predictions: Predictions,
    prototypes: NDArray[np.float32],
    label_names: Sequence[str],
    title: str,
) -> None:
    """The unit embeddings and the label prototypes (stars) on their first two principal components."""
    label_names, title = [_plain(name) for name in label_names], _plain(title)
    points = np.concatenate((_unit(predictions.embeddings), _unit(prototypes)))
    components = min(2, *points.shape)
    places = np.zeros((len(points), 2))
    places[:, :components] = PCA(components, svd_solver="full").fit_transform(points)
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot(title=f"{title}: embeddings and label prototypes")
    for index, (name, colour) in enumerate(zip(label_names, _colours(len(label_names)), strict=True)):
        members = np.flatnonzero(predictions.labels == index)
        axes.scatter(places[members, 0], places[members, 1], s=8, alpha=0.5, color=colour, label=name)
        x, y = places[len(predictions.labels) + index]
        axes.scatter(x, y, s=260, marker="*", color=colour, edgecolor="black")
    axes.set(xticks=[], yticks=[])
    axes.legend()
    _save(figure, path)


def timeline(
    path: Path,
    probabilities: NDArray[np.float32],
    speakers: NDArray[np.int64],
    label_names: Sequence[str],
    title: str,
) -> None:
    """A conversation along time: who speaks, with which emotion (colour), how surely (height).

    Args:
        path: the picture.
        probabilities: ``(L, C)``.
        speakers: ``(L,)``, a lane for each.
        label_names: the C emotions.
        title: of the picture.
    """
    label_names, title = [_plain(name) for name in label_names], _plain(title)
    emotions, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    lanes = np.unique(speakers, return_inverse=True)[1]
    width = float(np.clip(0.22 * len(emotions), 7, 60))
    figure = Figure(figsize=(width, 2.2 + 0.9 * (lanes.max() + 1)), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="utterance")
    for index, (name, colour) in enumerate(zip(label_names, _colours(len(label_names)), strict=True)):
        members = np.flatnonzero(emotions == index)
        if len(members):
            heights = 0.9 * confidence[members]
            axes.bar(members + 1, heights, bottom=lanes[members], width=0.9, color=colour, label=name)
    for lane in range(lanes.max() + 1):
        axes.axhline(lane, color="black", linewidth=0.8)
    axes.set_yticks(np.arange(lanes.max() + 1) + _SPEAKER_HEIGHT, [f"speaker {s}" for s in np.unique(speakers)])
    axes.set(xlim=(0.4, len(emotions) + 0.6), ylim=(0, lanes.max() + 1))
    axes.legend(ncols=len(label_names), loc="upper center", bbox_to_anchor=(0.5, -0.25), fontsize="small")
    axes.text(1, 1.01, "height = confidence", transform=axes.transAxes, ha="right", fontsize="small")
    _save(figure, path)


def scores(path: Path, titles: Sequence[str], values: dict[str, list[list[float]]], title: str) -> None:
    """Several ways of predicting, one below the other: a dot a seed, and a line at the mean.

    Args:
        path: the picture.
        titles: of the ways.
        values: measure → for each way, its value for each seed.
        title: of the picture.
    """
    titles = [_plain(one) for one in titles]
    figure = Figure(figsize=(4 + 3.2 * len(values), 1.4 + 0.32 * len(titles)), layout="constrained")
    figure.suptitle(_plain(title))
    places = range(len(titles))
    for column, (measure, ways) in enumerate(values.items()):
        axes = figure.add_subplot(1, len(values), column + 1, xlabel=measure.replace("_", " "))
        for place, seeds in zip(places, ways, strict=True):
            axes.plot(seeds, [place] * len(seeds), "o", color="tab:blue", alpha=0.5, markersize=4)
            axes.plot([float(np.mean(seeds))], [place], "|", color="black", markersize=12, markeredgewidth=1.5)
        axes.set_yticks(places, titles if column == 0 else [""] * len(titles))
        axes.set_ylim(len(titles) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
    _save(figure, path)


def _plain(text: str) -> str:
    """Text that matplotlib takes as it is: a dollar sign would start a formula."""
    return text.replace("$", r"\$")


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def _colours(count: int) -> list[Any]:
    return [
        matplotlib.colormaps["tab10" if count <= 10 else "turbo"](i if count <= 10 else i / count) for i in range(count)
    ]


def _save(figure: Figure, path: Path) -> None:
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=110))
