"""Peak memory of a call beyond its inputs and the gradient that it returns, measured in a process of its own.

On the CPU from the resident set, where glibc maps and unmaps every block of 64 KiB or more, so that nothing that was
freed earlier hides what a call takes, and where a limit makes an allocation fail that would exceed the budget. On a GPU
from the caching allocator; there the other process is for safety: it is the first that runs a provider on a size, and a
kernel that hangs, or breaks what its process can still do on the device, ends no measurement but its own.

    python -m benchmarks.memory DEVICE LIMIT_BYTES    serves requests, a pickle a line in hexadecimal
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from benchmarks.cell import Call, Cell, Problem

BLOCK = 1 << 16
EAGER_TO_UNMAP = {"MALLOC_MMAP_THRESHOLD_": str(BLOCK), "MALLOC_TRIM_THRESHOLD_": str(BLOCK)}


class OutOfMemoryError(Exception):
    """The call needs more than there is."""


class ProcessLostError(RuntimeError):
    """The call took the process that ran it along: it hangs, died, or can do nothing on its device any more."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an exception says."""
    known = isinstance(error, (OutOfMemoryError, MemoryError, torch.OutOfMemoryError))
    return known or "can't allocate memory" in str(error) or "out of memory" in str(error).lower()


class Weighed(NamedTuple):
    """What came of a provider's first calls.

    Attributes:
        extra_bytes: at the peak of one call.
        no_graph: why it cannot be captured as a CUDA graph and replayed, where that was wanted and failed.
    """

    extra_bytes: int
    no_graph: str = ""


class Worker:
    """The process that measures; started at the first request, and again after it died.

    Args:
        device: ``cpu`` or ``cuda``.
        limit: bytes that its data may take, on the CPU.
        seconds: after which it is killed, if it has not answered.
    """

    def __init__(self, device: str, limit: int, seconds: float) -> None:
        self._device, self._limit, self._seconds = device, limit, seconds
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None

    def weigh(self, subject: str, cell: Cell, provider: str) -> Weighed:
        """Run a provider for the first time on a size.

        Raises:
            OutOfMemoryError: it needs more than the limit, or the process died of it.
            ProcessLostError: the process is lost.
            RuntimeError: whatever else the call raised.
        """
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = self._started()
        pipe, answers = _pipes(self._process)
        started = time.monotonic()
        watchdog = threading.Timer(self._seconds, self._process.kill)
        watchdog.start()
        with contextlib.suppress(BrokenPipeError):  # no answer will come
            pipe.write(pickle.dumps((subject, cell, provider)).hex() + "\n")
            pipe.flush()
        answer = next(iter(answers), None)
        watchdog.cancel()
        late = time.monotonic() - started >= self._seconds
        if answer is None:
            said = self.close()
            if late:
                raise ProcessLostError(f"no answer in {self._seconds:.0f} s")
            if self._device == "cpu":
                raise OutOfMemoryError("the process that measured it was killed")
            raise ProcessLostError(f"the process that measured it died: {said}")
        kind, *said = json.loads(answer)
        if kind == "lost":
            self.close()
            raise ProcessLostError(*said)
        if kind == "memory":
            raise OutOfMemoryError(*said)
        if kind == "error":
            raise RuntimeError(*said)
        weighed = Weighed(*said)
        if weighed.no_graph:  # a capture that fails can leave its stream behind
            self.close()
        return weighed

    def _started(self) -> subprocess.Popen[str]:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  close() closes it
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.memory", self._device, str(self._limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | ({} if self._device == "cuda" else EAGER_TO_UNMAP),
            cwd=Path(__file__).parents[1],
        )

    def close(self) -> str:
        """End the process; the last line that it wrote to stderr."""
        lines: list[str] = []
        if self._process is not None:
            for pipe in _pipes(self._process):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold a process that was killed
                self._process.wait(timeout=20)
            self._process = None
        if self._errors is not None:
            with self._errors as errors:
                errors.seek(0)
                lines = errors.read().splitlines()
            self._errors = None
        return lines[-1][:300] if lines else "it said nothing"


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


def allocated_peak(call: Call) -> int:
    """Largest memory in tensors on the GPU during a call, beyond what was there before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del kept
    return peak - before


def _weighed(request: tuple[str, Cell, str], device: str) -> Weighed:
    name, cell, wanted = request
    subject: Any = import_module(f"benchmarks.{name}").SUBJECT
    provider = next(provider for provider in subject.providers(device) if provider.name == wanted)
    problem: Problem = subject.problem(cell, provider, device)
    with provider.settings():
        if device == "cuda":
            for each in cell.passes:
                if each != "graph":
                    problem.call(each)()
                    torch.cuda.synchronize()
            torch.cuda.empty_cache()
        elif wanted == "torch.compile":  # compiling is no part of a call
            problem.both()
        else:
            subject.problem(cell, provider, device, rows=64).both()  # threads and libraries are ready
        peak = (allocated_peak if device == "cuda" else resident_peak)(problem.both)
        no_graph = ""
        if "graph" in cell.passes:
            try:
                problem.call("graph")()
                torch.cuda.synchronize()
            except Exception as error:  # the other passes stand
                no_graph = _line(error)
    return Weighed(max(0, peak - problem.returned_bytes), no_graph)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main() -> None:
    """Answer until the pipe closes, or until the device does not work any more."""
    import resource

    device, limit = sys.argv[1], int(sys.argv[2])
    if device == "cpu":  # a GPU's addresses count as data
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    answers = os.fdopen(os.dup(1), "w", buffering=1)  # which no process that is started here inherits
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = ["weighed", *_weighed(pickle.loads(bytes.fromhex(line.strip())), device)]
        except Exception as error:  # the process goes on; who asked decides
            kind = "memory" if is_out_of_memory(error) else "error" if works(device) else "lost"
            answer = [kind, _line(error)]
        answers.write(json.dumps(answer) + "\n")
        if device == "cuda" and works(device):
            torch.cuda.empty_cache()


def works(device: str) -> bool:
    """Whether the device still does what it is told: after an illegal access a process's GPU does nothing."""
    try:
        if device == "cuda":
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    main()
