"""One command of a longer run: its lines are shown as they come, and it is ended when its time is up."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).parents[1]
running: list[subprocess.Popen[str]] = []


@dataclass
class Outcome:
    """What came of a command."""

    name: str
    status: str  # passed, failed, out of time, missing
    seconds: float
    last_line: str
    command: str


def run(
    name: str,
    command: list[str],
    seconds: float,
    log: TextIO | None = None,
    environment: Mapping[str, str] | None = None,
    group: int | None = 0,
) -> Outcome:
    """Run a command in the root of the repository, for ``seconds`` at most; the log takes its lines too.

    The environment is added to ours; ``group`` is 0 for a process group of its own, ended as a whole, or None for ours.
    """
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=group,
        )
    except OSError as error:
        return Outcome(name, "missing", 0.0, str(error), shlex.join(command))
    running.append(process)
    last = [""]

    def copy() -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                for where in (sys.stdout, log):
                    if where is not None:
                        where.write(f"[{name}] {line.rstrip()}\n")  # print writes the end of a line apart
                        where.flush()
                last[0] = line.strip() or last[0]

    reader = threading.Thread(target=copy, daemon=True)
    reader.start()
    try:
        status = "passed" if process.wait(timeout=max(0.0, seconds)) == 0 else "failed"
    except subprocess.TimeoutExpired:
        status = "out of time"
        end(process)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold a process that was killed
            process.wait(timeout=5)
    reader.join(timeout=5)
    running.remove(process)
    return Outcome(name, status, time.monotonic() - started, last[0], shlex.join(command))


def end(process: subprocess.Popen[str]) -> None:
    """Kill a process, and its group where it has one of its own."""
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
