"""Times of calls that are compared: all in one run, interleaved, so that a slower hour slows all of them."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from operator import itemgetter

import torch

from benchmarks.cell import Call

SHORTEST = 3e-3  # seconds of one sample on the CPU: a shorter call is repeated within it
SWEEPS = 3  # samples on a GPU, each of many calls
LONGEST = 0.02  # seconds of a call on a GPU from which on a clock is good enough, and the cache does not matter
MOST_ROUNDS, FEWEST_ROUNDS = 40, 3
Times = list[float]  # milliseconds
Timer = Callable[[], float]  # seconds


def quantiles(values: Times) -> dict[str, float | int]:
    """Median, 20 % and 80 %, and how many values they are of."""
    fifths = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else values * 4
    numbers = {"median_ms": statistics.median(values), "p20_ms": fifths[0], "p80_ms": fifths[3]}
    return {**numbers, "samples": len(values)}


def interleaved(
    calls: Mapping[str, Call], seconds: float, device: str, timer: Timer = time.perf_counter
) -> dict[str, Times | Exception]:
    """Milliseconds of each call, or what it raised; ``seconds`` is what one of them may take.

    A call with fewer samples than others has them spread evenly over the run. Of one thread on the CPU,
    ``time.process_time`` as the timer leaves out what other processes take.
    """
    times: dict[str, Times] = {}
    errors: dict[str, Exception] = {}
    plan: list[tuple[float, str, Callable[[], Times]]] = []
    for name, call in calls.items():
        try:
            call()
            first = clock(call, device, 1, timer)
            sample, rounds = (
                _on_a_gpu(call, first, seconds) if device == "cuda" else _on_the_cpu(call, first, seconds, timer)
            )
            times[name] = []
            plan += [((index + 0.5) / rounds, name, sample) for index in range(rounds)]
        except Exception as error:  # whatever a peer raises is its result, and the others go on
            errors[name] = error
    for _, name, sample in sorted(plan, key=itemgetter(0)):
        if name not in errors:
            try:
                times[name] += sample()
            except Exception as error:  # as above
                errors[name] = error
    return times | errors


def clock(call: Call, device: str, repeat: int = 1, timer: Timer = time.perf_counter) -> float:
    """Seconds of a call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = timer()
    for _ in range(repeat):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (timer() - start) / repeat


def rounds_of(sample: float, seconds: float) -> int:
    """How often a sample of that many seconds is taken."""
    return min(MOST_ROUNDS, max(FEWEST_ROUNDS, int(seconds / sample)))


def _on_the_cpu(call: Call, first: float, seconds: float, timer: Timer) -> tuple[Callable[[], Times], int]:
    repeat = max(1, math.ceil(SHORTEST / first))
    return lambda: [clock(call, "cpu", repeat, timer) * 1e3], rounds_of(first * repeat, seconds)


def _on_a_gpu(call: Call, first: float, seconds: float) -> tuple[Callable[[], Times], int]:
    """`triton.testing.do_bench`: events, and the L2 cache flushed before each call.

    It makes eight calls at least, too many where they are long: of those a sample takes one.
    """
    if first >= LONGEST:
        return lambda: [clock(call, "cuda") * 1e3], SWEEPS
    from triton.testing import do_bench  # type: ignore[import-untyped]

    share = max(1, int(seconds * 1e3 / SWEEPS))
    return lambda: list(do_bench(call, warmup=10, rep=share, return_mode="all")), SWEEPS
