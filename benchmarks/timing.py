"""Times of calls that are compared: all in one run, interleaved, so that a slower hour slows all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping

import torch

from benchmarks.cell import Call

SHORTEST = 3e-3  # seconds of one sample on the CPU: a shorter call is repeated within it
SWEEPS = 3
LONGEST = 0.02  # seconds of a call on a GPU from which on a clock is good enough, and the cache does not matter
MOST_ROUNDS, FEWEST_ROUNDS = 40, 3
Times = list[float]  # milliseconds


def quantiles(values: Times) -> dict[str, float | int]:
    """Median, 20 % and 80 %, and how many values they are of."""
    fifths = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else values * 4
    numbers = {"median_ms": statistics.median(values), "p20_ms": fifths[0], "p80_ms": fifths[3]}
    return {**numbers, "samples": len(values)}


def interleaved(calls: Mapping[str, Call], seconds: float, device: str) -> dict[str, Times | Exception]:
    """Milliseconds of each call, or what it raised; ``seconds`` is what one of them may take."""
    started: dict[str, float] = {}
    results: dict[str, Times | Exception] = {}
    for name, call in calls.items():
        try:
            call()
            started[name] = _clock(call, device)
        except Exception as error:  # whatever a peer raises is its result, and the others go on
            results[name] = error
    sampled = _on_a_gpu if device == "cuda" else _on_the_cpu
    return results | sampled({name: (calls[name], first) for name, first in started.items()}, seconds)


def _clock(call: Call, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _on_the_cpu(calls: Mapping[str, tuple[Call, float]], seconds: float) -> dict[str, Times | Exception]:
    inner = {name: max(1, math.ceil(SHORTEST / first)) for name, (_, first) in calls.items()}
    rounds = {name: rounds_of(first * inner[name], seconds) for name, (_, first) in calls.items()}
    total = max(rounds.values(), default=0)

    def sample(name: str, index: int) -> Times:
        if not takes_part(index, rounds[name], total):
            return []
        call, start = calls[name][0], time.perf_counter()
        for _ in range(inner[name]):
            call()
        return [(time.perf_counter() - start) / inner[name] * 1e3]

    return _swept(sample, calls, total)


def rounds_of(sample: float, seconds: float) -> int:
    """How often a sample of that many seconds is taken."""
    return min(MOST_ROUNDS, max(FEWEST_ROUNDS, int(seconds / sample)))


def takes_part(index: int, rounds: int, total: int) -> bool:
    """Whether a call with fewer rounds than the total has one now: they are spread evenly."""
    return (index + 1) * rounds // total > index * rounds // total


def _on_a_gpu(calls: Mapping[str, tuple[Call, float]], seconds: float) -> dict[str, Times | Exception]:
    """`triton.testing.do_bench` in sweeps over all calls: events, and the L2 cache flushed before each call.

    It makes eight calls at least, too many where they are long: of those each sweep takes one.
    """
    from triton.testing import do_bench  # type: ignore[import-untyped]

    def sample(name: str, index: int) -> Times:
        call, first = calls[name]
        if first >= LONGEST:
            return [_clock(call, "cuda") * 1e3]
        times: Times = do_bench(call, warmup=10, rep=max(1, int(seconds * 1e3 / SWEEPS)), return_mode="all")
        return times

    return _swept(sample, calls, SWEEPS)


def _swept(sample: Callable[[str, int], Times], names: Iterable[str], sweeps: int) -> dict[str, Times | Exception]:
    """The samples of each name, sweep by sweep; one that raises has no further part in it."""
    times: dict[str, Times] = {name: [] for name in names}
    errors: dict[str, Exception] = {}
    for index in range(sweeps):
        for name in [name for name in times if name not in errors]:
            try:
                times[name] += sample(name, index)
            except Exception as error:  # as above
                errors[name] = error
    return times | errors
