"""Peak memory of a call beyond its inputs and the gradient that it returns.

On a GPU from the caching allocator. On the CPU from the resident set, in a process of its own where glibc maps and
unmaps every block of 64 KiB or more, so that nothing that was freed earlier hides what a call takes; and where a limit
makes an allocation fail that would exceed the budget.

    python -m benchmarks.memory LIMIT_BYTES    serves requests, a pickle a line in hexadecimal
"""

from __future__ import annotations

import ctypes
import os
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import torch

from benchmarks.cell import Call, Cell, Problem

BLOCK = 1 << 16


class OutOfMemoryError(Exception):
    """The call needs more than there is."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an exception says."""
    known = isinstance(error, (OutOfMemoryError, MemoryError, torch.OutOfMemoryError))
    return known or "can't allocate memory" in str(error) or "out of memory" in str(error).lower()


def on_a_gpu(problem: Problem) -> int:
    """Peak extra bytes of one call of ``both``, after one that is not looked at."""
    with problem.provider.settings():
        problem.both()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept = problem.both()
        torch.cuda.synchronize()
    del kept
    return max(0, torch.cuda.max_memory_allocated() - before - problem.returned_bytes)


class Worker:
    """The process that measures on the CPU; started at the first request, and again after it died.

    Args:
        limit: bytes that its data may take.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._process: subprocess.Popen[str] | None = None

    def peak(self, subject: str, cell: Cell, provider: str) -> int:
        """Peak extra bytes of one call.

        Raises:
            OutOfMemoryError: it needs more than the limit, or the process was killed.
            RuntimeError: whatever else the call raised.
        """
        if self._process is None or self._process.poll() is not None:
            self.close()
            command = [sys.executable, "-m", "benchmarks.memory", str(self._limit)]
            environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(BLOCK), "MALLOC_TRIM_THRESHOLD_": str(BLOCK)}
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
                cwd=Path(__file__).parents[1],
            )
        pipe, answers = _pipes(self._process)
        pipe.write(pickle.dumps((subject, cell, provider)).hex() + "\n")
        pipe.flush()
        answer = next((line for line in answers if line.startswith("answer ")), None)
        if answer is None:
            self._process.wait()
            raise OutOfMemoryError("the process that measured it was killed")
        kind, _, text = answer.removeprefix("answer ").strip().partition(" ")
        if kind == "memory":
            raise OutOfMemoryError(text)
        if kind == "error":
            raise RuntimeError(text)
        return int(text)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            for pipe in _pipes(self._process):
                pipe.close()
            self._process.wait(timeout=60)
            self._process = None


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def available() -> int:
    """Bytes that Linux says can be had, or 4 GiB where it does not say."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    line = next((line for line in lines if line.startswith("MemAvailable")), "MemAvailable: 4194304 kB")
    return int(line.split()[1]) * 1024


def resident_peak(call: Call) -> int:
    """Largest resident memory during a call, beyond what was resident before it (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    kept = call()
    peak = _status("VmHWM")
    del kept
    return peak - before


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _answer(request: tuple[str, Cell, str]) -> int:
    name, cell, wanted = request
    subject: Any = import_module(f"benchmarks.{name}").SUBJECT
    provider = next(provider for provider in subject.providers("cpu") if provider.name == wanted)
    problem: Problem = subject.problem(cell, provider, "cpu")
    if wanted == "torch.compile":  # compiling is no part of a call
        problem.both()
    else:
        subject.problem(cell, provider, "cpu", rows=64).both()  # threads and libraries are ready
    return max(0, resident_peak(problem.both) - problem.returned_bytes)


def main() -> None:
    """Answer until the pipe closes."""
    import resource

    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    for line in sys.stdin:
        try:
            print(f"answer bytes {_answer(pickle.loads(bytes.fromhex(line.strip())))}", flush=True)
        except Exception as error:  # the process goes on; who asked decides
            kind = "memory" if is_out_of_memory(error) else "error"
            text = " ".join(str(error).split())[:300]
            print(f"answer {kind} {type(error).__name__}: {text}", flush=True)


if __name__ == "__main__":
    main()
