"""Measures and writes a device's result file.

    python -m benchmarks [SUBJECT ...] [--device cpu|cuda] [--quick] [--minutes M] [--results FOLDER]

Without a subject: all of them. ``--quick`` measures small cells, to see that everything runs; its results go nowhere
unless a folder is named, and its exit code is 1 where something failed or was wrong.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from importlib import import_module
from pathlib import Path

import torch

from benchmarks import regression
from benchmarks.environment import RESULTS
from benchmarks.harness import Budget, Harness
from benchmarks.memory import available
from benchmarks.results_file import load, store

SUBJECTS = ("kd_divergence", "focal_contrastive", "training_step", "epoch")
SECONDS = {"cpu": 45.0, "cuda": 12.0}  # of one provider in one cell


def main() -> int:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", choices=[*SUBJECTS, []], metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--minutes", type=float, help="after which no cell is begun any more")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    if options.device == "cuda":
        memory = torch.cuda.mem_get_info()[0]
    else:
        memory = int(0.6 * available())
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    seconds = 5.0 if options.quick else SECONDS[options.device]
    harness = Harness(options.device, Budget(seconds, memory, deadline), lambda text: print(text, flush=True))
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.results or (Path(scratch) if options.quick else RESULTS)
        bad = []
        try:
            for name in options.subjects or SUBJECTS:
                subject = import_module(f"benchmarks.{name}").SUBJECT
                run = harness.run(subject, subject.cells("quick" if options.quick else "full", options.device))
                print(store(run, options.device, folder))
                for provider, reason in run["absent"].items():
                    print(f"  absent: {provider}: {reason}")
                bad += [row for row in run["rows"] if row["status"] in ("failed", "wrong")]
        finally:
            harness.close()
        if not options.quick:
            return 0
        for row in bad:
            print(f"{row['status']}: {row['subject']} {row['provider']}: {row.get('reason', row.get('error'))}")
        slower = regression.report(load(folder), load(), tolerance=regression.QUICK_TOLERANCE)
        return 1 if bad or slower else 0


if __name__ == "__main__":
    raise SystemExit(main())
