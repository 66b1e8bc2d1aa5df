"""All that a GPU can tell, in one command that installs nothing and ends inside nine minutes (``make gpu``).

    python3 -m benchmarks.gpu [--results FOLDER] [--minutes 8.6]

Builds the kernels in place against the torch of this Python (TORCH_CUDA_ARCH_LIST and MAX_JOBS are honoured); runs the
GPU tests beside compute-sanitizer's memcheck and racecheck; then, alone, the benchmarks. A part that fails or runs out
of its time does not stop the next one. FOLDER gets the device's result file, gpu-run.json (the parts) and gpu-run.log
(all output).
"""

from __future__ import annotations

import argparse
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
CUDA_USUALLY = "/usr/local/cuda"
SANITIZER = ["--error-exitcode", "9", "--print-limit", "20", "--tool"]
CHECKED = ["-m", "tests.gpu.small_case"]


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
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that each tensor has bounds of its own
    sanitizer = (
        shutil.which("compute-sanitizer") or f"{os.environ.get('CUDA_HOME', CUDA_USUALLY)}/bin/compute-sanitizer"
    )
    benchmarks = [python, "-m", "benchmarks", "--device", "cuda", "--results", str(folder)]
    return [
        [Part("build", [python, "setup.py", "build_ext", "--inplace"], 200, 240, {"MERC_FORCE_CUDA": "1"})],
        [Part("backends", [python, "-c", "import merc_kernels as m; print(m.backends())"], 60, 210)],
        [
            Part("tests", [python, "-m", "tests.gpu"], 120, 150),
            Part("memcheck", [sanitizer, *SANITIZER, "memcheck", python, *CHECKED], 120, 150, alone),
            Part("racecheck", [sanitizer, *SANITIZER, "racecheck", python, *CHECKED], 120, 150),
        ],
        [Part("benchmarks", benchmarks, 400, 5)],
    ]


def lacking() -> str | None:
    """What this machine or this Python lacks for any part, in one line."""
    modules = ("torch", "setuptools", "pybind11", "pytest", "pytest_benchmark", "numpy")
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        return f"{sys.executable} has no {', '.join(absent)}: name another with make gpu PYTHON=, or install it there"
    if int(version("setuptools").split(".")[0]) < 77:
        return f"{sys.executable} has setuptools {version('setuptools')}: pyproject.toml needs 77 or newer"
    import torch

    return None if torch.cuda.is_available() else f"torch {torch.__version__} of {sys.executable} finds no CUDA device"


def run(part: Part, left: float, log: IO[str]) -> Outcome:
    """Run a part; its output goes to the screen and to the log."""
    limit = min(part.seconds, left - part.reserve)
    command = list(part.command)
    if part.name == "benchmarks":
        command += ["--minutes", f"{(limit - 20) / 60:.2f}"]
    shown = " ".join(command)
    log.write(f"\n=== {part.name}: {shown}\n")
    print(f"\n=== {part.name} (at most {limit:.0f} s): {shown}", flush=True)
    if limit <= 0:
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
            start_new_session=True,
        )
    except OSError as error:
        return Outcome(part.name, "missing", 0.0, str(error), shown)
    last, status = _follow(part.name, process, started + limit, log)
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
                print(f"[{name}] {text}", end="", flush=True)
                last[0] = text.strip() or last[0]

    reader = threading.Thread(target=copy, daemon=True)
    reader.start()
    status = ""
    try:
        process.wait(timeout=max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        status = "out of time"
        os.killpg(process.pid, signal.SIGKILL)  # the group that this process itself started
        process.wait()
    reader.join(timeout=5)
    return last[0], status


def summary(outcomes: list[Outcome]) -> str:
    """A line a part."""
    return "\n".join(f"{o.status:12} {o.name:11} {o.seconds:6.1f} s  {o.last_line[:120]}" for o in outcomes)


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
                outcomes += pool.map(run, stage, itertools.repeat(left), itertools.repeat(log))
            log.flush()
            (folder / "gpu-run.json").write_text(json.dumps({"parts": [asdict(o) for o in outcomes]}, indent=1) + "\n")
    report = [sys.executable, "-m", "benchmarks.report", "--results", str(folder)]
    shown = subprocess.run(report, cwd=ROOT, capture_output=True, text=True, check=False)
    print(f"\n{shown.stdout}{shown.stderr}\n{summary(outcomes)}\nresults: {folder}", flush=True)
    return int(any(outcome.status != "passed" for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
