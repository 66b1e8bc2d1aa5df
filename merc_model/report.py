"""Pictures: confusion matrix, training curves, map of the embeddings, timeline of a conversation.

matplotlib and scikit-learn are imported when they draw: who draws nothing need not wait for them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from merc_model.errors import UserError
from merc_model.evaluation import Predictions
from merc_model.files import write_whole
from merc_model.fonts import drawable
from merc_model.uncertainty import Calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Target = Path | IO[bytes]  # a PNG in a file, an SVG in a stream

_SPEAKER_HEIGHT = 0.5
_MOST_INCHES = 60.0  # of a side; at 110 dots each, a tenth of what the renderer takes


def attempt(draw: Callable[..., None], path: Target, *arguments: Any) -> bool:
    """Draw a picture at ``path``; where that fails, a warning, because the figures stand without it."""
    try:
        draw(path, *arguments)
    except Exception as error:  # a font, the disk, the memory, no matplotlib: none is worth the run
        lines = str(error).splitlines() or [""]
        where = f"{path}: " if isinstance(path, Path) else ""
        reason = lines[0] if isinstance(error, UserError) else f"{where}{type(error).__name__}: {lines[0]}"
        tqdm.write(f"warning: a picture was not drawn: {reason}", file=sys.stderr)
        return False
    return True


def confusion(path: Target, counts: Sequence[Sequence[int]], label_names: Sequence[str], title: str) -> None:
    """A confusion matrix (C, C), rows as shares of the true class, with the counts written in."""
    table = np.asarray(counts, dtype=float)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    with drawable(title, *label_names) as (title, *label_names):
        figure = _figure(1.5 + 0.8 * len(table), 1.2 + 0.75 * len(table))
        axes = figure.add_subplot()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(table)), label_names, rotation=45, ha="right")
        axes.set_yticks(range(len(table)), label_names)
        axes.set(xlabel="predicted", ylabel="true", title=title)
        for (row, column), share in np.ndenumerate(shares):
            colour = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{int(table[row, column])}", ha="center", va="center", color=colour)
        _save(figure, path)


def curves(path: Target, history: Sequence[dict[str, Any]], title: str) -> None:
    """The losses over the epochs and, where the epoch was chosen on a set, its weighted F1."""
    chosen = [name for name in history[0] if name.endswith("weighted_f1")]
    losses = [name for name in history[0] if name == "loss" or name.endswith("_loss")]
    shown = [losses, *([chosen] if chosen else [])]
    epochs = [row["epoch"] for row in history]
    with drawable(title) as (title,):
        figure = _figure(6, 4 * len(shown))
        figure.suptitle(title)
        for place, names in enumerate(shown, start=1):
            axes = figure.add_subplot(len(shown), 1, place, xlabel="epoch")
            for name in names:
                axes.plot(epochs, [row[name] for row in history], label=name.replace("_", " "))
            axes.locator_params(axis="x", integer=True)
            axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3)
        _save(figure, path)


def embeddings(
    path: Target,
    predictions: Predictions,
    prototypes: NDArray[np.float32] | None,
    label_names: Sequence[str],
    title: str,
) -> None:
    """The unit embeddings and, as stars, the label prototypes on their first two principal components.

    Without ``prototypes``, where none were trained, the embeddings alone.
    """
    from sklearn.decomposition import PCA

    unit = [_unit(predictions.embeddings)] + ([] if prototypes is None else [_unit(prototypes)])
    points = np.concatenate(unit)
    components = min(2, *points.shape)
    places = np.zeros((len(points), 2))
    places[:, :components] = PCA(components, svd_solver="full").fit_transform(points)
    with drawable(title, *label_names) as (title, *label_names):
        figure = _figure(8, 6)
        shown = "embeddings" if prototypes is None else "embeddings and label prototypes"
        axes = figure.add_subplot(title=f"{title}: {shown}" if title else "")
        handles = []
        for index, colour in enumerate(_colours(len(label_names))):
            members = np.flatnonzero(predictions.labels == index)
            handles.append(axes.scatter(places[members, 0], places[members, 1], s=8, alpha=0.5, color=colour))
            if prototypes is not None:
                x, y = places[len(predictions.labels) + index]
                axes.scatter(x, y, s=260, marker="*", color=colour, edgecolor="black")
        axes.set(xticks=[], yticks=[])
        columns = math.ceil(len(label_names) / 24)
        _legend(axes.legend, handles, label_names, loc="upper left", bbox_to_anchor=(1.01, 1), ncols=columns)
        _save(figure, path)


def reliability(path: Target, found: Calibration) -> None:
    """How often the model is right over how sure it is; a dot is as large as its bin is full."""
    figure = _figure(5, 4.5)
    axes = figure.add_subplot(xlabel="confidence", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    axes.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
    axes.plot(found.confidence, found.accuracy, color="tab:blue", linewidth=1)
    axes.scatter(found.confidence, found.accuracy, s=20 + 200 * found.counts / found.counts.max(), color="tab:blue")
    _save(figure, path)


def timeline(
    path: Target,
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
    emotions, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    names, lanes = np.unique(speakers, return_inverse=True)
    count = len(names)
    width = float(np.clip(0.22 * len(emotions), 7, _MOST_INCHES))
    lane_height = float(np.clip(7 / count, 0.3, 0.9))  # inches: many speakers stand closer
    with drawable(title, *label_names) as (title, *label_names):
        figure = _figure(width, min(2 + lane_height * count, _MOST_INCHES))
        axes = figure.add_subplot(title=title, xlabel="utterance")
        handles, shown = [], []
        for index, colour in enumerate(_colours(len(label_names))):
            members = np.flatnonzero(emotions == index)
            if len(members):
                heights = 0.9 * confidence[members]
                handles.append(axes.bar(members + 1, heights, bottom=lanes[members], width=0.9, color=colour))
                shown.append(label_names[index])
        for lane in range(count):
            axes.axhline(lane, color="black", linewidth=0.8)
        every = math.ceil(0.2 * count / (_MOST_INCHES - 2))  # names that stand closer would overlap
        axes.set_yticks(np.arange(0, count, every) + _SPEAKER_HEIGHT, [f"speaker {s}" for s in names[::every]])
        axes.locator_params(axis="x", integer=True)
        axes.set(xlim=(0.4, len(emotions) + 0.6), ylim=(0, count))
        columns = max(1, int(width / 1.3))
        _legend(figure.legend, handles, shown, loc="outside lower center", ncols=columns, fontsize="small")
        axes.set_title("height = confidence", loc="right", fontsize="small")
        _save(figure, path)


def scores(path: Target, titles: Sequence[str], values: dict[str, list[list[float]]], title: str) -> None:
    """Several ways of predicting, one below the other: a dot a seed, and a line at the mean.

    Args:
        path: the picture.
        titles: of the ways.
        values: measure → for each way, its value for each seed.
        title: of the picture.
    """
    places = range(len(titles))
    with drawable(title, *titles) as (title, *titles):
        figure = _figure(4 + 3.2 * len(values), 1.4 + 0.32 * len(titles))
        figure.suptitle(title)
        for column, (measure, ways) in enumerate(values.items()):
            axes = figure.add_subplot(1, len(values), column + 1, xlabel=measure.replace("_", " "))
            for place, seeds in zip(places, ways, strict=True):
                axes.plot(seeds, [place] * len(seeds), "o", color="tab:blue", alpha=0.5, markersize=4)
                axes.plot([float(np.mean(seeds))], [place], "|", color="black", markersize=12, markeredgewidth=1.5)
            axes.set_yticks(places, titles if column == 0 else [""] * len(titles))
            axes.set_ylim(len(titles) - 0.5, -0.5)
            axes.grid(axis="x", alpha=0.3)
        _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(min(width, _MOST_INCHES), min(height, _MOST_INCHES)), layout="constrained")


def _legend(place: Callable[..., Any], handles: list[Any], names: list[str], **options: Any) -> None:
    """A legend whose names may begin with "_", which matplotlib would leave out if they were given as labels."""
    legend = place(handles, [str(number) for number in range(len(names))], **options)
    for entry, name in zip(legend.get_texts(), names, strict=True):
        entry.set_text(name)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def _colours(count: int) -> list[Any]:
    import matplotlib

    return [
        matplotlib.colormaps["tab10" if count <= 10 else "turbo"](i if count <= 10 else i / count) for i in range(count)
    ]


def _save(figure: Figure, path: Target) -> None:
    if isinstance(path, Path):
        write_whole(path, lambda file: figure.savefig(file, format="png", dpi=110))
    else:
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})
