"""Every backend that is on, on small problems, and where one becomes faster than another (``merc info --check``).

python -m merc_kernels.check
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import get_args

import torch
from torch import Tensor

from merc_kernels import focal_contrastive_loss, kd_divergence
from merc_kernels._shared import backends, default, first_use
from merc_kernels.focal_contrastive import trial as contrastive_trial
from merc_kernels.focal_contrastive.options import FocalContrastiveOptions
from merc_kernels.kd_divergence import trial as divergence_trial
from merc_kernels.kd_divergence.options import Direction, KDDivergenceOptions

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CONTRASTIVE = (
    FocalContrastiveOptions(),
    FocalContrastiveOptions(temperature=0.01, gamma=1.5),
    FocalContrastiveOptions(focal="probability", detach_focal=False),
    FocalContrastiveOptions(normalize=False, gamma=0.0),
)
DIVERGENCE = tuple(
    KDDivergenceOptions(direction=direction, teacher_grad=teacher_grad)
    for direction in get_args(Direction)
    for teacher_grad in (False, True)
)
WIDTHS = {"focal_contrastive": (64, 256, 768), "kd_divergence": (7, 32000)}
ROWS = {"focal_contrastive": (256, 512, 1024, 2048, 4096), "kd_divergence": (64, 512, 4096)}
SECONDS = 0.2  # of timing a call


def problems(operator: str, device: str, dtype: torch.dtype) -> Iterator[tuple[backends.Call, str]]:
    """Small problems of an operator, with a word on each."""
    for width in WIDTHS[operator]:
        x, labels = torch.zeros(2, width, device=device, dtype=dtype), torch.zeros(2, device=device, dtype=torch.int64)
        if operator == "focal_contrastive":
            for chosen in CONTRASTIVE:
                call = contrastive_trial.call(focal_contrastive_loss, x, labels, None, None, None, None, None, chosen)
                yield call, ", ".join(map(str, call.path))
        else:
            for options in DIVERGENCE:
                call = divergence_trial.call(kd_divergence, x, x, None, None, None, options)
                yield call, ", ".join(map(str, call.path))


def devices_of(name: str) -> list[str]:
    """The kinds of device whose tensors a backend that is on takes here."""
    present = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [device for device in present if backends.takes(name, device)]


def values(name: str) -> Iterator[str]:
    """What is wrong with a backend; a line for each problem that it fails."""
    for device in devices_of(name):
        for operator in default.OPERATORS:
            for dtype in DTYPES:
                for call, text in problems(operator, device, dtype):
                    if trouble := first_use.trouble_of(name, call.loss, call.problem):
                        yield f"{operator} on {device}, {dtype}, {text}: {trouble}"


def milliseconds(call: Callable[[], Tensor], device: str) -> float:
    """Median time of a call with its backward pass."""

    def run() -> float:
        begin = time.perf_counter()
        torch.autograd.backward(call())
        if device == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - begin)

    run()
    end, samples = time.perf_counter() + SECONDS, [run()]
    while time.perf_counter() < end:
        samples.append(run())
    return statistics.median(samples)


def crossings(device: str, dtype: torch.dtype, names: list[str]) -> Iterator[str]:
    """Times of the backends over the rows, and whether the default is the fastest."""
    for operator, sizes in ROWS.items():
        width = WIDTHS[operator][operator == "focal_contrastive"]  # 256 features, 7 classes
        for rows in sizes:
            x = torch.randn(rows, width, device=device, dtype=dtype, requires_grad=True)
            times = {name: milliseconds(step(operator, name, x), device) for name in names}
            usual = backends.default_backend(operator, device=device, dtype=dtype, rows=rows, width=width).backend
            shown = ", ".join(f"{name} {value:.3g}" for name, value in times.items())
            fastest = min(times, key=times.__getitem__)
            said = "" if fastest == usual else f"; the fastest is {fastest}"
            yield f"{operator} {rows} x {width} {str(dtype)[6:]} on {device}, ms: {shown}; default {usual}{said}"


def step(operator: str, backend: str, x: Tensor) -> Callable[[], Tensor]:
    """A call of a loss of ``x``."""
    if operator == "focal_contrastive":
        labels = torch.arange(len(x), device=x.device) % 7
        return lambda: focal_contrastive_loss(x, labels, backend=backend)
    teacher = x.detach().flip(0)
    return lambda: kd_divergence(x, teacher, backend=backend)


def main() -> int:
    """Check and time everything; 0 where every backend that is on has right values."""
    wrong = 0
    on = [name for name, state in backends.backends().items() if state == "on" and name != "reference"]
    for name in on:
        print(f"backend {name}: checking", flush=True)
        for line in values(name):
            wrong += 1
            print(f"  wrong: {line}", flush=True)
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        names = [name for name in [*on, "reference"] if backends.takes(name, device)]
        for dtype in (torch.float32, torch.bfloat16):
            for line in crossings(device, dtype, names):
                print(line, flush=True)
    print(f"{wrong} wrong" if wrong else "every backend that is on has right values")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
