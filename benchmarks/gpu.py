"""All that a GPU can tell, in one command that installs nothing and ends inside nine minutes (``make gpu``).

    python3 -m benchmarks.gpu [--results FOLDER] [--minutes 8.6]

Builds the kernels in place against the torch of this Python (TORCH_CUDA_ARCH_LIST and MAX_JOBS are honoured); runs the
GPU tests beside compute-sanitizer's memcheck and racecheck; then, alone, the benchmarks. A part that fails or runs out
of its time does not stop the next one. FOLDER gets the device's result file, gpu-run.json (the parts) and gpu-run.log
(all output).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
CUDA_USUALLY = "/usr/local/cuda"
OPERATORS = ("focal_contrastive", "kd_divergence")
# The kernels' own errors alone: not those of compilers that are started, nor of calls that PyTorch tries and handles.
SANITIZERS = {"memcheck": ["--report-api-errors", "no"], "racecheck": []}
SANITIZER = ["--error-exitcode", "9", "--print-limit", "20", "--target-processes", "application-only"]
SANITIZER += ["--destroy-on-device-error", "kernel", "--tool"]  # so that the next kernel is checked too
LEAST_SECONDS = 30.0  # that the benchmarks need, to measure anything
running: list[subprocess.Popen[str]] = []


@dataclass
class Part:
    """One part of the run.

    Attributes:
        seconds: after which it is ended.
        reserve: seconds of the whole run that are kept for the parts behind it.
    """

    name: str
    command: list[str]
    seconds: float
    reserve: float = 0.0
    environment: dict[str, str] | None = None


@dataclass
class Outcome:
    """What came of it."""

    name: str
    status: str  # passed, failed, out of time, missing
    seconds: float
    last_line: str
    command: str


def stages(folder: Path) -> list[list[Part]]:
    """In their order; the parts of a stage run side by side."""
    python = sys.executable
    benchmarks = [python, "-m", "benchmarks", "--device", "cuda", "--results", str(folder)]
    return [
        [Part("build", [python, "setup.py", "build_ext", "--inplace"], 200, 240, {"MERC_FORCE_CUDA": "1"})],
        [Part("backends", [python, "-c", "import merc_kernels as m; print(m.backends())"], 60, 210)],
        [Part("tests", [python, "-m", "tests.gpu"], 120, 150), *sanitized(python)],
        [Part("benchmarks", benchmarks, 400, 5)],
    ]


def sanitized(python: str) -> Iterator[Part]:
    """Each tool over the kernels of each operator."""
    sanitizer = (
        shutil.which("compute-sanitizer") or f"{os.environ.get('CUDA_HOME', CUDA_USUALLY)}/bin/compute-sanitizer"
    )
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that each tensor has bounds of its own
    for (tool, options), operator in itertools.product(SANITIZERS.items(), OPERATORS):
        command = [sanitizer, *SANITIZER, tool, *options, python, "-m", "tests.gpu.small_case", operator]
        yield Part(f"{tool} {operator}", command, 120, 150, alone if tool == "memcheck" else None)


def lacking() -> str | None:
    """What this machine or this Python lacks for every part, in one line; what one part needs, that part says."""
    python = sys.executable
    absent = [name for name in ("torch", "numpy", "pytest") if importlib.util.find_spec(name) is None]
    if "torch" not in absent:
        import torch

        if not torch.cuda.is_available():
            return f"torch {torch.__version__} of {python} finds no CUDA device"
    if absent:
        return f"{python} has no {', '.join(absent)}: name another with make gpu PYTHON=, or install it there"
    return None


def run(part: Part, left: float, log: IO[str]) -> Outcome:
    """Run a part; its output goes to the screen and to the log."""
    limit = min(part.seconds, left - part.reserve)
    command = list(part.command)
    if part.name == "benchmarks":
        command += ["--minutes", f"{(limit - 20) / 60:.2f}"]
    shown = " ".join(command)
    log.write(f"\n=== {part.name}: {shown}\n")
    print(f"\n=== {part.name} (at most {limit:.0f} s): {shown}", flush=True)
    if limit <= (LEAST_SECONDS if part.name == "benchmarks" else 0):
        return Outcome(part.name, "out of time", 0.0, "no time was left", shown)
    started = time.monotonic()
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | (part.environment or {})
    try:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
        )
    except OSError as error:
        return Outcome(part.name, "missing", 0.0, str(error), shown)
    running.append(process)
    last, status = _follow(part.name, process, started + limit, log)
    running.remove(process)
    seconds = time.monotonic() - started
    return Outcome(part.name, status or ("passed" if process.returncode == 0 else "failed"), seconds, last, shown)


def _follow(name: str, process: subprocess.Popen[str], end: float, log: IO[str]) -> tuple[str, str]:
    """Copy the output until the process ends, or end it; its last line, and ``out of time`` where it was ended."""
    last = [""]

    def copy() -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for text in lines:
                log.write(f"[{name}] {text}")
                sys.stdout.write(f"[{name}] {text}")  # print writes the end of a line apart
                sys.stdout.flush()
                last[0] = text.strip() or last[0]

    reader = threading.Thread(target=copy, daemon=True)
    reader.start()
    status = ""
    try:
        process.wait(timeout=max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        status = "out of time"
        _kill(process)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold a process that was killed
            process.wait(timeout=5)
    reader.join(timeout=5)
    return last[0], status


def _kill(process: subprocess.Popen[str]) -> None:
    """The group that this process itself started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def summary(outcomes: list[Outcome]) -> str:
    """A line a part."""
    return "\n".join(f"{o.status:12} {o.name:27} {o.seconds:6.1f} s  {o.last_line[:120]}" for o in outcomes)


def main() -> int:
    """Run every part; 0 where all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--minutes", type=float, default=8.6)
    options = parser.parse_args()
    if problem := lacking():
        parser.exit(2, f"make gpu: {problem}\n")
    from benchmarks.results_file import prepare  # needs torch

    folder = options.results.resolve()
    prepare(folder)
    end = time.monotonic() + 60 * options.minutes
    outcomes: list[Outcome] = []
    with (folder / "gpu-run.log").open("w") as log:
        for stage in stages(folder):
            left = end - time.monotonic()
            with ThreadPoolExecutor(len(stage)) as pool:
                try:
                    outcomes += pool.map(run, stage, itertools.repeat(left), itertools.repeat(log))
                except KeyboardInterrupt:
                    for process in list(running):
                        _kill(process)
                    parser.exit(130, "make gpu: interrupted\n")
            log.flush()
            (folder / "gpu-run.json").write_text(json.dumps({"parts": [asdict(o) for o in outcomes]}, indent=1) + "\n")
    report = [sys.executable, "-m", "benchmarks.report", "--results", str(folder)]
    shown = subprocess.run(report, cwd=ROOT, capture_output=True, text=True, check=False)
    unfinished = [f"not finished, but measured: {path}" for path in folder.glob("*.partial")]
    print(
        "\n".join(["", shown.stdout + shown.stderr, summary(outcomes), *unfinished, f"results: {folder}"]), flush=True
    )
    return int(any(outcome.status != "passed" for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
