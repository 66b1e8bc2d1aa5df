"""Times and memory of calls that are compared: all in one run, interleaved."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Call = Callable[[], object]


def interleaved(calls: Mapping[str, Call], rounds: int, inner: int = 1) -> dict[str, dict[str, float]]:
    """Milliseconds of each call: median, 20 % and 80 % of ``rounds``, a round timing every call ``inner`` times."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(2):
            call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(inner):
                call()
            times[name].append((time.perf_counter() - start) / inner * 1e3)
    return {name: _quantiles(values) for name, values in times.items()}


def _quantiles(values: list[float]) -> dict[str, float]:
    if len(values) == 1:
        return {"median": values[0], "p20": values[0], "p80": values[0]}
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return {"median": statistics.median(values), "p20": fifths[0], "p80": fifths[3]}


def peak_extra_bytes(call: Call) -> int:
    """Largest resident memory during a call, beyond what was resident before it (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    kept = call()
    peak = _status("VmHWM")
    del kept
    return peak - before


def peak_in_a_fresh_process(module: str, *arguments: str) -> int:
    """What ``python -m module --peak arguments`` prints."""
    command = [sys.executable, "-m", module, "--peak", *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
