"""The search behind the presets: settings of MERC-KDC and of its control, compared on folds of the training dialogues.

    python -m benchmarks.model_search CORPUS.npz --preset iemocap --folds 4 [--groups prefix:5] [--trials early full]

Test dialogues are never trained on, nor predicted. A trial is a training with every seed on every fold; it lasts its
fixed number of epochs, so that no epoch is chosen on the fold that is predicted. The folder of --out is gone on with
after an interruption; its table says what each trial reached and the seconds that it took: the budget.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merc_model.ablation import cells, results
from merc_model.ablation.processes import cores
from merc_model.ablation.rows import Row
from merc_model.config import load_preset
from merc_model.data.corpus import Corpus

_BARE: Mapping[str, Any] = {
    "kd": False,
    "feature_kd": False,
    "fcl": False,
    "elcl": False,
    "memory": False,
    "linear": False,
}
_EARLY: Mapping[str, Any] = {**_BARE, "fusion": "early"}


def _trials() -> tuple[Row, ...]:
    """Around the control, around our architecture with cross entropy alone, and around the full model."""
    early, ours, full = "early", "ours", "full"
    changes: dict[str, tuple[str | None, Mapping[str, Any]]] = {
        early: (None, _EARLY),
        "early, 48 epochs": (early, {**_EARLY, "epochs": 48}),
        "early, dropout .5": (early, {**_EARLY, "dropout": 0.5}),
        "early, absolute features alone": (early, {**_EARLY, "speaker_relative": False}),
        "early, memory": (early, {**_EARLY, "memory": True}),
        ours: (early, _BARE),
        "ours, 48 epochs": (ours, {**_BARE, "epochs": 48}),
        "ours, dropout .5": (ours, {**_BARE, "dropout": 0.5}),
        "ours, heads at .3": (ours, {**_BARE, "modality_ce_weight": 0.3}),
        "ours, no modality dropout": (ours, {**_BARE, "modality_dropout": 0.0}),
        "ours, none leads": (ours, {**_BARE, "text_leading": False}),
        "ours, memory": (ours, {**_BARE, "memory": True}),
        "ours, KD": (ours, {**_BARE, "kd": True, "feature_kd": True}),
        "ours, FCL": (ours, {**_BARE, "fcl": True}),
        "ours, FCL, ELCL": (ours, {**_BARE, "fcl": True, "elcl": True}),
        full: (ours, {}),
        "full, prior adjusted": (full, {"prior_adjustment": 0.5}),
        "full, FCL at 1": (full, {"fcl_weight": 1.0}),
        "full, FCL at .1": (full, {"fcl_temperature": 0.1}),
        "full, prototypes as anchors": (full, {"prototype_anchors": True}),
    }
    return tuple(Row(name, name, before, values) for name, (before, values) in changes.items())


def main() -> int:
    """Train what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--folds", type=int, required=True)
    parser.add_argument("--groups", metavar="prefix:N", help="as merc convert has it")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=cores())
    rows = _trials()
    names = [row.name for row in rows]
    parser.add_argument("--trials", nargs="+", default=names, choices=names, metavar="NAME", help="default: all")
    parser.add_argument("--out", type=Path, default=Path("search"))
    options = parser.parse_args()
    corpus = Corpus.load(options.corpus)
    search = cells.Ablation(
        corpus=corpus.with_groups(options.groups) if options.groups else corpus,
        config=load_preset(options.preset),
        rows=tuple(row for row in rows if row.name in options.trials),
        seeds=options.seeds,
        folds=options.folds,
        device="cpu",
        folder=options.out,
    )
    cells.run(search, options.jobs, lambda line: print(line, file=sys.stderr))
    print(results.write(search), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
