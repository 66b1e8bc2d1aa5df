"""All that a GPU can tell, in one command that installs nothing and ends inside nine minutes (``make gpu``).

    python3 -m benchmarks.gpu [--part 1|2] [--results FOLDER] [--minutes 8.6]

Part 1 (the default) goes in the order in which most is learned, so that a run cut off anywhere has told the most. It
builds the kernels in place against the torch of this Python, for this GPU alone (TORCH_CUDA_ARCH_LIST and MAX_JOBS are
honoured), and beside it measures the ceilings; then twelve cases say whether the kernels are right; the goal cells get
a time for each kernel; tiles are swept; ncu looks at four kernels, and compute-sanitizer at a small case. Part 2 builds
what is not built, runs all GPU tests, and then the benchmarks. A step that fails or runs out of its time does not stop
the next one. FOLDER gets ceilings.json, correctness.json, goals.json, tiles.json and ncu.csv, in part 2 the device's
result file, and of either gpu-run.json (what came of each step) and gpu-run.log (all output).
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

GOALS = {"cuda": 55, "triton": 85, "merc": 40, "eager": 40}  # seconds of the goal cells
PROFILED = ("pack_kernel", "pair_sums_kernel", "pair_gradient_kernel", "unpack_kernel")
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "ComputeWorkloadAnalysis", "Occupancy")


@dataclass(frozen=True)
class Step:
    """One command of the run; ``{minutes}`` in it becomes what it may take, less what it needs to end.

    Attributes:
        seconds: after which it is ended.
        reserve: seconds of the whole run that are kept for the steps behind it.
        least: seconds without which it is not begun.
    """

    name: str
    command: list[str]
    seconds: float
    reserve: float = 0.0
    least: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)


def stages(folder: Path, part: int = 1) -> list[list[Step]]:
    """In their order; the steps of a stage run side by side."""
    build = [PYTHON, "setup.py", "build_ext", "--inplace"]
    results = ["--results", str(folder)]
    timed = [*results, "--minutes", "{minutes}"]
    backends = [PYTHON, "-c", "import merc_kernels as m; print(m.backends())"]
    environment = {"MERC_FORCE_CUDA": "1"} | this_architecture()
    built = Step("build", build, 150, 60, environment=environment)
    if part == 2:
        benchmarks = [PYTHON, "-m", "benchmarks", "--device", "cuda", *timed]
        return [
            [built],
            [Step("backends", backends, 30, 55)],
            [Step("tests", [PYTHON, "-m", "tests.gpu"], 150, 50)],
            [Step("benchmarks", benchmarks, 480, 5, least=30)],
        ]
    return [
        [built, Step("ceilings", [PYTHON, "-m", "benchmarks.ceilings", *results], 50, 60)],
        [Step("backends", backends, 30, 55)],
        [Step("correctness", [PYTHON, "-m", "tests.gpu.cases", *results], 60, 50)],
        *([Step(f"goals {name}", [PYTHON, "-m", "benchmarks.goals", name, *timed], GOALS[name], 45)] for name in GOALS),
        [Step("tiles", [PYTHON, "-m", "benchmarks.tile_sweep", *timed], 120, 40)],
        [Step("ncu", ncu(folder), 40, 25)],
        list(sanitized()),
    ]


def this_architecture() -> dict[str, str]:
    """The setting that compiles for this GPU alone; what the user has set stays."""
    import torch

    if "TORCH_CUDA_ARCH_LIST" in os.environ or not torch.cuda.is_available():
        return {}
    return {"TORCH_CUDA_ARCH_LIST": "{}.{}".format(*torch.cuda.get_device_capability())}


def tool(name: str) -> str:
    """Where a program of the CUDA toolkit is."""
    return shutil.which(name) or f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/{name}"


def ncu(folder: Path) -> list[str]:
    """A command that profiles each of four kernels once."""
    sections = itertools.chain.from_iterable(("--section", name) for name in SECTIONS)
    command = [tool("ncu"), *sections, "--csv", "--log-file", str(folder / "ncu.csv"), "--kernel-name"]
    command += [f"regex:{'|'.join(PROFILED)}", "--launch-skip", "0", "--launch-count", str(len(PROFILED))]
    return [*command, PYTHON, "-m", "benchmarks.goals", "triton", "--once", "focal_contrastive"]


def sanitized() -> Iterator[Step]:
    """Each tool over the kernels of each operator."""
    sanitizer = tool("compute-sanitizer")
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that each tensor has bounds of its own
    for (name, options), operator in itertools.product(SANITIZERS.items(), OPERATORS):
        command = [sanitizer, *SANITIZER, name, *options, PYTHON, "-m", "tests.gpu.small_case", operator]
        yield Step(f"{name} {operator}", command, 120, 5, environment=alone if name == "memcheck" else {})


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


def told(folder: Path, part: int) -> list[str]:
    """What the files say, in short."""
    if part == 2:
        report = [PYTHON, "-m", "benchmarks.report", "--results", str(folder)]
        shown = subprocess.run(report, cwd=ROOT, capture_output=True, text=True, check=False)
        return [shown.stdout + shown.stderr]
    from benchmarks.goals import table

    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    rates = found.get("ceilings", {}).get("ceilings", {})
    lines = [f"{name} {rate:.3g}" for name, rate in rates.items()]
    lines += [table(found["goals"])] if "goals" in found else []
    return [*lines, *found.get("tiles", {}).get("best", [])]


def main() -> int:
    """Run every step; 0 where all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=int, choices=(1, 2), default=1)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--minutes", type=float, default=8.6)
    options = parser.parse_args()
    if problem := lacking():
        parser.exit(2, f"make gpu: {problem}\n")
    from benchmarks.results_file import prepare, write  # needs torch

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
            write(folder / "gpu-run.json", {"steps": [asdict(outcome) for outcome in outcomes]})
    unfinished = [f"not finished, but measured: {path}" for path in folder.glob("*.partial")]
    print(
        "\n".join(["", *told(folder, options.part), summary(outcomes), *unfinished, f"results: {folder}"]), flush=True
    )
    return int(any(outcome.status != "passed" for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
