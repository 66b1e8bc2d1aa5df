"""Peak memory of a call beyond its inputs and the gradient that it returns, measured in a process of its own.

On the CPU from the resident set, where glibc maps and unmaps every block of 64 KiB or more, so that nothing that was
freed earlier hides what a call takes, and where a limit makes an allocation fail that would exceed the budget. On a GPU
from the caching allocator; there the other process is for safety: it is the first that runs a provider on a size, and a
kernel that hangs, or breaks what its process can still do on the device, ends no measurement but its own.
"""

import contextlib
import ctypes
import multiprocessing
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.cell import Call, Cell, Problem

BLOCK = 1 << 16
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


class ProcessLostError(RuntimeError):
    """The call took the process that ran it along: it hangs, died, or can do nothing on its device any more."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an exception says."""
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or "can't allocate memory" in str(error) or "out of memory" in str(error).lower()


class Weighed(NamedTuple):
    """What came of a provider's first calls."""

    extra_bytes: int  # at the peak of one call
    no_graph: str = ""  # why it cannot be captured as a CUDA graph and replayed, where that was wanted and failed


class Worker:
    """The process that measures; started at the first request, and again after it died.

    Args:
        device: ``cpu`` or ``cuda``.
        limit: bytes that its data may take, on the CPU.
        seconds: after which it is killed, if it has not answered.
    """

    def __init__(self, device: str, limit: int, seconds: float) -> None:
        self._device, self._limit, self._seconds = device, limit, seconds
        self._context = multiprocessing.get_context("spawn")
        self._process: multiprocessing.process.BaseProcess | None = None

    def weigh(self, subject: str, cell: Cell, provider: str) -> Weighed:
        """Run a provider for the first time on a size.

        Raises:
            MemoryError: it needs more than the limit, or the process died of it.
            ProcessLostError: the process is lost.
            RuntimeError: whatever else the call raised.
        """
        if self._process is None or not self._process.is_alive():
            self.close()
            self._pipe, there = self._context.Pipe()
            arguments = (there, self._device, self._limit)
            self._process = self._context.Process(target=serve, args=arguments, daemon=True)
            self._process.start()
            there.close()
        try:
            self._pipe.send((subject, cell, provider))
            if not self._pipe.poll(self._seconds):
                self.close()
                raise ProcessLostError(f"no answer in {self._seconds:.0f} s")
            answer: Weighed | Exception = self._pipe.recv()
        except (EOFError, ConnectionError):
            code = self.close()
            if self._device == "cpu":
                raise MemoryError("the process that measured it was killed") from None
            raise ProcessLostError(f"the process that measured it died, exit code {code}") from None
        if isinstance(answer, ProcessLostError) or (isinstance(answer, Weighed) and answer.no_graph):
            self.close()  # a capture that fails can leave its stream behind
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> int | None:
        """End the process; its exit code, or minus the signal that it died of."""
        if self._process is None:
            return None
        self._pipe.close()
        self._process.join(0.5)  # it may be about to end by itself, and its code says of what
        self._process.kill()
        self._process.join(20)  # a driver may hold a process that was killed
        code, self._process = self._process.exitcode, None
        return code


def serve(pipe: Connection, device: str, limit: int) -> None:
    """Answer until the pipe closes: `Weighed`, or the exception."""
    import resource

    if device == "cpu":  # a GPU's addresses count as data
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            ctypes.CDLL(None).mallopt(option, BLOCK)
    with contextlib.suppress(EOFError):
        while True:
            request = pipe.recv()
            try:
                answer: Weighed | Exception = _weighed(request, device)
            except Exception as error:  # the process goes on; who asked decides
                kind = RuntimeError if works(device) else ProcessLostError
                answer = MemoryError(_line(error)) if is_out_of_memory(error) else kind(_line(error))
            pipe.send(answer)
            if device == "cuda" and works(device):
                torch.cuda.empty_cache()


def _weighed(request: tuple[str, Cell, str], device: str) -> Weighed:
    name, cell, wanted = request
    subject: Any = import_module(f"benchmarks.{name}").SUBJECT
    provider = next(provider for provider in subject.providers(device) if provider.name == wanted)
    problem: Problem = subject.problem(cell, provider, device)
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
    peak = (allocated_peak if device == "cuda" else resident_peak)(problem.call("both"))
    no_graph = ""
    if "graph" in cell.passes:
        try:
            problem.call("graph")()
            torch.cuda.synchronize()
        except Exception as error:  # the other passes stand
            no_graph = _line(error)
    return Weighed(max(0, peak), no_graph)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def works(device: str) -> bool:
    """Whether the device still does what it is told: after an illegal access a process's GPU does nothing."""
    try:
        if device == "cuda":
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def available() -> int:
    """Bytes that Linux says can be had, or 4 GiB where it does not say."""
    path = Path("/proc/meminfo")
    return _field(path, "MemAvailable") if path.exists() else 4 << 30


def resident_peak(call: Call) -> int:
    """Largest resident memory during a call, beyond what was resident before it and what it returns (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    status = Path("/proc/self/status")
    before = _field(status, "VmRSS")
    kept = call()
    peak = _field(status, "VmHWM")
    return peak - before - int(kept.nbytes)


def _field(path: Path, name: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def allocated_peak(call: Call) -> int:
    """Largest memory in tensors on the GPU during a call, beyond what was there before it and what it returns."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    return peak - before - int(kept.nbytes)
