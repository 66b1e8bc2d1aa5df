"""All that a GPU can tell, in one command that installs nothing and ends inside nine minutes (``make gpu``).

    python3 -m benchmarks.gpu [--part 1|2] [--results FOLDER] [--minutes 8.6]

Part 1 builds the kernels in place against the torch of this Python (TORCH_CUDA_ARCH_LIST and MAX_JOBS are honoured)
and runs the GPU tests beside compute-sanitizer's memcheck and racecheck; part 2 builds what is not built, and measures.
Both where none is named. A step that fails or runs out of its time does not stop the next one. FOLDER gets the device's
result file, gpu-run.json (what came of each step, written after each stage) and gpu-run.log (all output).
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from benchmarks import process
from benchmarks.process import ROOT, Outcome

PYTHON = sys.executable
OPERATORS = ("focal_contrastive", "kd_divergence")
# The kernels' own errors alone: not those of compilers that are started, nor of calls that PyTorch tries and handles.
SANITIZERS = {"memcheck": ["--report-api-errors", "no"], "racecheck": []}
SANITIZER = ["--error-exitcode", "9", "--print-limit", "20", "--target-processes", "application-only"]
SANITIZER += ["--destroy-on-device-error", "kernel", "--tool"]  # so that the next kernel is checked too


@dataclass(frozen=True)
class Step:
    """One command of the run; ``{minutes}`` in it becomes what it may take, less what it needs to end.

    Attributes:
        parts: in which it runs.
        seconds: after which it is ended.
        reserve: seconds of the whole run that are kept for the steps behind it.
        least: seconds without which it is not begun.
    """

    name: str
    command: list[str]
    parts: tuple[int, ...]
    seconds: float
    reserve: float = 0.0
    least: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)


def stages(folder: Path, part: int | None = None) -> list[list[Step]]:
    """In their order; the steps of a stage run side by side."""
    build = [PYTHON, "setup.py", "build_ext", "--inplace"]
    backends = [PYTHON, "-c", "import merc_kernels as m; print(m.backends())"]
    benchmarks = [PYTHON, "-m", "benchmarks", "--device", "cuda", "--results", str(folder), "--minutes", "{minutes}"]
    every = [
        [Step("build", build, (1, 2), 200, 240, environment={"MERC_FORCE_CUDA": "1"})],
        [Step("backends", backends, (1, 2), 60, 210)],
        [Step("tests", [PYTHON, "-m", "tests.gpu"], (1,), 120, 150), *sanitized()],
        [Step("benchmarks", benchmarks, (2,), 400, 5, least=30)],
    ]
    wanted = [[step for step in stage if part is None or part in step.parts] for stage in every]
    return [stage for stage in wanted if stage]


def sanitized() -> Iterator[Step]:
    """Each tool over the kernels of each operator."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    sanitizer = shutil.which("compute-sanitizer") or f"{home}/bin/compute-sanitizer"
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that each tensor has bounds of its own
    for (tool, options), operator in itertools.product(SANITIZERS.items(), OPERATORS):
        command = [sanitizer, *SANITIZER, tool, *options, PYTHON, "-m", "tests.gpu.small_case", operator]
        yield Step(f"{tool} {operator}", command, (1,), 120, 150, environment=alone if tool == "memcheck" else {})


def lacking() -> str | None:
    """What this machine or this Python lacks for every step, in one line; what one step needs, that step says."""
    absent = [name for name in ("torch", "numpy", "pytest") if importlib.util.find_spec(name) is None]
    if "torch" not in absent:
        import torch

        if not torch.cuda.is_available():
            return f"torch {torch.__version__} of {PYTHON} finds no CUDA device"
    if absent:
        return f"{PYTHON} has no {', '.join(absent)}: name another with make gpu PYTHON=, or install it there"
    return None


def run(step: Step, left: float, log: TextIO) -> Outcome:
    """Run a step in what is left of the whole run, less its reserve."""
    limit = min(step.seconds, left - step.reserve)
    command = [word.replace("{minutes}", f"{(limit - 20) / 60:.2f}") for word in step.command]
    title = f"\n=== {step.name} (at most {limit:.0f} s): {' '.join(command)}\n"
    log.write(title)
    print(title, end="", flush=True)
    if limit <= step.least:
        return Outcome(step.name, "out of time", 0.0, "no time was left", " ".join(command))
    return process.run(step.name, command, limit, log, step.environment)


def summary(outcomes: list[Outcome]) -> str:
    """A line a step."""
    return "\n".join(f"{o.status:12} {o.name:27} {o.seconds:6.1f} s  {o.last_line[:120]}" for o in outcomes)


def main() -> int:
    """Run every step; 0 where all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=int, choices=(1, 2))
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--minutes", type=float, default=8.6)
    options = parser.parse_args()
    if problem := lacking():
        parser.exit(2, f"make gpu: {problem}\n")
    from benchmarks.results_file import prepare  # needs torch

    folder = options.results.resolve()
    prepare(folder)
    finish = time.monotonic() + 60 * options.minutes
    outcomes: list[Outcome] = []
    with (folder / "gpu-run.log").open("w") as log:
        for stage in stages(folder, options.part):
            left = finish - time.monotonic()
            with ThreadPoolExecutor(len(stage)) as pool:
                try:
                    outcomes += pool.map(run, stage, itertools.repeat(left), itertools.repeat(log))
                except KeyboardInterrupt:
                    for each in list(process.running):
                        process.end(each)
                    parser.exit(130, "make gpu: interrupted\n")
            (folder / "gpu-run.json").write_text(json.dumps({"parts": [asdict(o) for o in outcomes]}, indent=1) + "\n")
    report = [PYTHON, "-m", "benchmarks.report", "--results", str(folder)]
    shown = subprocess.run(report, cwd=ROOT, capture_output=True, text=True, check=False)
    unfinished = [f"not finished, but measured: {path}" for path in folder.glob("*.partial")]
    tail = [shown.stdout + shown.stderr, summary(outcomes), *unfinished, f"results: {folder}"]
    print("\n".join(["", *tail]), flush=True)
    return int(any(outcome.status != "passed" for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
