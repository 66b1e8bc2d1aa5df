"""The model card of a run, written from its own config.json and metrics.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from merc_model.config import Config

METRICS = {"weighted_f1": "weighted F1", "macro_f1": "macro F1", "accuracy": "accuracy", "uar": "unweighted accuracy"}
_USE = """```python
import torch
from merc_model.pretrained import PretrainedPredictor

predictor = PretrainedPredictor.from_pretrained(".")  # this folder
features = {{{features}}}  # (dialogues, utterances, width); a row with a NaN is missing
speakers = torch.tensor([[0, 1, 0, 1, 1]])  # who speaks
probabilities = predictor(features, speakers, torch.ones(1, 5, dtype=torch.bool))
print(predictor.model.label_names, probabilities.shape)  # (dialogues, utterances, emotions)
```"""


def measured(metrics: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The split that a run's figures are of, and they: the test set, else the validation set; {} without either."""
    split = "test" if metrics["test"] else "valid"
    return split, metrics[split]


def card(run: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The card as Markdown, without its metadata.

    Args:
        run: the contents of config.json.
        metrics: the contents of metrics.json.
    """
    config = Config().changed(run["config"])
    corpus, emotions = run["corpus"], ", ".join(run["label_names"])
    features = ", ".join(f'"{modality}": torch.randn(1, 5, {dim})' for modality, dim in corpus["dims"].items())
    sections = {
        f"Emotions in conversations, learnt from {corpus['name']}": [
            f"MERC-KDC, of merc-kdc {run['environment']['merc-kdc']}: from the features of a conversation's utterances"
            f" it tells how likely each of {len(run['label_names'])} emotions is in each utterance: {emotions}."
        ],
        "Use": [_USE.format(features=features), "", "Or `merc predict . conversation.json`, in this folder."],
        "What goes in": [
            *_table(("modality", "width"), corpus["dims"].items()),
            "",
            "Features must be made as those of the training corpus were; they are standardised inside. Any modality may"
            " be missing, in a row or throughout.",
        ],
        "Learnt from": [
            *_table(
                ("split", "dialogues", "utterances"),
                [(split, count, corpus["utterances"][split]) for split, count in corpus["dialogues"].items()],
            ),
            "",
            f"Corpus {corpus['name']}, SHA-256 of its contents {corpus['sha256']}; seed {run['seed']}.",
        ],
        "Measured": list(_figures(metrics)),
        "Settings": list(_settings(config)),
        "Limits": [f"- {limit}" for limit in _limits(run, config, metrics)],
    }
    text = [
        f"{'#' if number == 0 else '##'} {title}\n\n" + "\n".join(lines)
        for number, (title, lines) in enumerate(sections.items())
    ]
    return "\n\n".join(text) + "\n"


def _figures(metrics: Mapping[str, Any]) -> Iterator[str]:
    split, values = measured(metrics)
    if not values:
        yield "Not measured: the corpus had no labelled utterance in a test or validation set."
        return
    named = "test" if split == "test" else "validation"
    error = 1.96 * math.sqrt(values["accuracy"] * (1 - values["accuracy"]) / max(values["utterances"], 1))
    yield f"On the {named} set of {values['utterances']} utterances: accuracy ± {error:.3f} is about its 95 % interval."
    yield ""
    yield from _table(("metric", "value"), [(title, f"{values[name]:.4f}") for name, title in METRICS.items()])
    yield ""
    yield from _table(("emotion", "F1"), [(name, f"{score:.4f}") for name, score in values["f1"].items()])
    heads = [
        (head, f"{scores[split]['weighted_f1']:.4f}") for head, scores in metrics["heads"].items() if split in scores
    ]
    if heads:
        yield ""
        yield from _table(("one modality by itself", "weighted F1"), heads)


def _settings(config: Config) -> Iterator[str]:
    defaults = dataclasses.asdict(Config())
    changed = [(f"`{name}`", value) for name, value in dataclasses.asdict(config).items() if value != defaults[name]]
    yield (
        "All are in config.json; those that differ from the defaults:" if changed else "The defaults; see config.json."
    )
    if changed:
        yield ""
        yield from _table(("setting", "value"), changed)


def _limits(run: Mapping[str, Any], config: Config, metrics: Mapping[str, Any]) -> Iterator[str]:
    split, values = measured(metrics)
    if run["corpus"]["source"] is None:
        yield "**Learnt from made-up data**: the figures say that the software works, nothing about people."
    if config.select_on == "test":
        yield "**The epoch was chosen on the test set**: the figures are too good, and no test result."
    if values and split == "valid":
        yield "There was no test set. The figures are of the validation set."
    if values:
        weak = sorted(values["f1"].items(), key=lambda item: item[1])[:2]
        yield "It errs most on " + " and ".join(f"{name} (F1 {score:.2f})" for name, score in weak) + "."
    if config.causal:
        yield "An utterance is judged by what came before it alone."
    else:
        yield "An utterance is judged by what comes after it too, so a conversation must be over."
    if config.memory:
        yield (
            "The weights hold the features of the labelled training utterances, and their labels: share them only where"
            " those may be shared."
        )
    yield "It knows the speakers, the language and the situations of its corpus, and no others."
    yield "A label is what annotators saw, not what somebody felt: decide nothing about people by it."


def _table(head: tuple[str, ...], rows: Any) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"
