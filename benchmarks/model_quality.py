"""Trains MERC-KDC on a corpus over several seeds and writes what came out as one result file.

    python -m benchmarks.model_quality CORPUS.npz --preset iemocap --seeds 3 [--set key=value ...] [--name NAME]

The result, benchmarks/results/NAME.json, holds the mean and sd of the test metrics of the fused model, the test
metrics of each modality's own head, the seconds of training, versions, machine, commit and command.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.environment import RESULTS, environment
from merc_model.cli import main as merc


def main() -> int:
    """Parse, train, write; the exit code of ``merc train``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value")
    parser.add_argument("--name", help="of the result file (default: the corpus's)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "runs"
        command = ["train", "--data", str(options.corpus), "--preset", options.preset, "--seeds", str(options.seeds)]
        command += ["--set", *options.set] if options.set else []
        code = merc([*command, "--out", str(out)])
        if code:
            return code
        summary = json.loads((out / "summary.json").read_text())
        runs = [json.loads((out / f"seed-{seed}" / "metrics.json").read_text()) for seed in summary["seeds"]]
    command[2] = options.corpus.name
    result = {
        "subject": "model quality",
        "corpus": options.corpus.name,
        "training": shlex.join(["merc", *command]),
        **summary,
        "environment": environment(),
        "heads": {head: _spread([run["heads"][head]["test"] for run in runs]) for head in runs[0]["heads"]},
        "seconds": {part: statistics.median(run["seconds"][part] for run in runs) for part in runs[0]["seconds"]},
        "runs": runs,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{options.name or options.corpus.stem}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)
    return 0


def _spread(metrics: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and sd of the plain metrics over the seeds."""
    found = {}
    for name in ("weighted_f1", "macro_f1", "accuracy", "uar"):
        scores = [run[name] for run in metrics]
        found[name] = {"mean": statistics.mean(scores), "sd": statistics.stdev(scores) if len(scores) > 1 else 0.0}
    return found


if __name__ == "__main__":
    sys.exit(main())
