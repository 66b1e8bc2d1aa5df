"""Measures and writes a device's result file.

    python -m benchmarks [SUBJECT ...] [--device cpu|cuda] [--quick] [--minutes M] [--results FOLDER]

Without a subject: all of them. ``--quick`` measures small cells on one thread, which busy neighbours disturb least, to
see that everything runs; its results go nowhere unless a folder is named. The exit code is 1 where something of ours
failed or was wrong; after ``--quick`` also where a peer did, or where something is slower beside its peer than in the
committed result of such a run.
"""

import argparse
import functools
import os
import tempfile
import time
from importlib import import_module
from pathlib import Path

import torch

from benchmarks import regression
from benchmarks.harness import Budget, Harness
from benchmarks.memory import available
from benchmarks.results_file import RESULTS, load, prepare, store

SUBJECTS = {"kd_divergence": 0.25, "focal_contrastive": 0.8, "training_step": 0.9, "epoch": 1.0}  # share of the time
SECONDS = {"cpu": 45.0, "cuda": 12.0}  # of one provider in one cell


def main() -> int:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--minutes", type=float, help="after which no cell is begun any more")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    subjects = options.subjects or list(SUBJECTS)
    if unknown := set(subjects) - set(SUBJECTS):
        parser.error(f"SUBJECT: expected some of {', '.join(SUBJECTS)}, got {', '.join(sorted(unknown))}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is available")
    memory = torch.cuda.mem_get_info()[0] if options.device == "cuda" else int(0.6 * available())
    budget = Budget(5.0 if options.quick else SECONDS[options.device], memory)
    if options.quick:
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"  # of the process that weighs
    started, last = time.monotonic(), max(SUBJECTS[name] for name in subjects)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.results or (Path(scratch) if options.quick else RESULTS)
        prepare(folder)
        scale = "quick" if options.quick else "full"
        keep = functools.partial(store, device=options.device, folder=folder, scale=scale)
        harness = Harness(
            options.device, budget, lambda text: print(text, flush=True), functools.partial(keep, finished=False)
        )
        bad = []
        try:
            for name in subjects:
                if options.minutes is not None:
                    budget.deadline = started + 60 * options.minutes * SUBJECTS[name] / last
                subject = import_module(f"benchmarks.{name}").SUBJECT
                run = harness.run(subject, subject.cells(scale, options.device))
                print(keep(run))
                for provider, reason in run["absent"].items():
                    print(f"  absent: {provider}: {reason}")
                bad += [row for row in run["rows"] if row["status"] in ("failed", "wrong")]
        finally:
            harness.close()
        for row in bad:
            print(f"{row['status']}: {row['subject']} {row['provider']}: {row.get('reason', row.get('error'))}")
        if not options.quick:
            return int(any(row["provider"].startswith("merc") for row in bad))
        slower = regression.report(load(folder), load())
        return 1 if bad or slower else 0


if __name__ == "__main__":
    raise SystemExit(main())
