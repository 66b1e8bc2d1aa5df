"""The cells that the fused kernels are built for, with a time for each kernel (``make gpu``).

    python -m benchmarks.goals BACKEND --results FOLDER [--device cuda] [--predicted FILE] [--minutes M]
    python -m benchmarks.goals BACKEND --once focal_contrastive|kd_divergence       one call, for a profiler

BACKEND is ``merc`` (the default), ``cuda``, ``triton`` or ``eager`` (plain PyTorch). goals.json gets, after each cell,
error, median time, the time of each kernel, and where there are any the floor, from the rates in FOLDER/ceilings.json,
and what `benchmarks.predict` predicted for this backend on an H100.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks import focal_contrastive, kd_divergence
from benchmarks.cell import Call, Cell, Provider, Subject
from benchmarks.focal_contrastive import BACKWARD, FORWARD
from benchmarks.harness import relative_error
from benchmarks.process import ROOT
from benchmarks.results_file import merge, prepare
from benchmarks.timing import clock, interleaved, quantiles

PREDICTED = ROOT / "benchmarks/results/predicted-h100.json"
SUBJECTS: dict[str, Subject] = {s.name: s for s in (focal_contrastive.SUBJECT, kd_divergence.SUBJECT)}
SECONDS = 0.2  # of timing a cell
EAGER_ROWS = 16384  # most for plain PyTorch, whose memory grows with their square
PROFILED = 3  # calls


def focal(rows: int, width: int, dtype: str) -> Cell:
    """A cell of the contrastive loss."""
    return Cell("focal_contrastive", {"rows": rows, "width": width}, dtype, "focal", seconds=SECONDS)


def divergence(rows: int, classes: int, dtype: str) -> Cell:
    """A cell of the divergence."""
    return Cell("kd_divergence", {"rows": rows, "classes": classes}, dtype, seconds=SECONDS)


# What tells most comes first: a run may be cut off.
GOALS = (
    focal(16384, 256, "bfloat16"),
    divergence(8192, 32000, "bfloat16"),
    focal(1024, 256, "float32"),
    divergence(4096, 7, "float32"),
    focal(65536, 256, "bfloat16"),
    focal(16384, 768, "bfloat16"),
    focal(4096, 256, "float32"),
    divergence(8192, 128256, "bfloat16"),
    focal(4096, 256, "bfloat16"),
    focal(16384, 256, "float32"),
    focal(16384, 128, "bfloat16"),
    focal(65536, 768, "bfloat16"),
    divergence(512, 6, "float32"),
)
SMALL = (focal(64, 16, "float32"), divergence(64, 7, "float32"))  # a rehearsal


def provider(subject: Subject, name: str, device: str) -> Provider:
    """Of that name, or why it is not there."""
    wanted = name if name in ("merc", "eager") else f"merc:{name}"
    return next(one for one in subject.providers(device) if one.name == wanted)


def kernels(call: Call, device: str) -> dict[str, float]:
    """Microseconds of each kernel of a call, the longest first; on a CPU of each operator."""
    from torch.profiler import ProfilerActivity, profile

    kind = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind], acc_events=True) as seen:
        for _ in range(PROFILED):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
    total: Counter[str] = Counter()
    for event in seen.key_averages():
        spent = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        total[event.key[:160]] += spent / PROFILED
    return {name: round(spent, 2) for name, spent in total.most_common(12) if spent > 0}


def floor_ms(cell: Cell, ceilings: dict[str, float], device: str) -> float | None:
    """The least that the measured rates allow."""
    if cell.subject == "kd_divergence":
        moved = 3 * cell.sizes["rows"] * cell.sizes["classes"] * cell.torch_dtype.itemsize
        rate = ceilings.get("copy_bytes_per_s")
        return None if rate is None else 1e3 * moved / rate
    flop = (FORWARD + BACKWARD[device]) * 2 * cell.sizes["rows"] ** 2 * cell.sizes["width"]
    rate = ceilings.get("mm_tf32_flop_per_s" if cell.dtype == "float32" else "mm_bf16_flop_per_s")
    return None if rate is None else 1e3 * flop / rate


def measured(cell: Cell, name: str, device: str) -> dict[str, Any]:
    """The numbers of a cell."""
    subject = SUBJECTS[cell.subject]
    of_it = provider(subject, name, device)
    if of_it.loss is None:
        return {"status": "absent", "reason": of_it.absent}
    if name == "eager" and cell.subject == "focal_contrastive" and cell.sizes["rows"] > EAGER_ROWS:
        return {"status": "skipped", "reason": f"more than {EAGER_ROWS} rows"}
    problem = subject.problem(cell, of_it, device)
    begin = time.perf_counter()
    result = problem.result()
    first = time.perf_counter() - begin
    truth = subject.truth(cell, device)
    if truth[2] < cell.sizes["rows"]:
        result = subject.problem(cell, of_it, device, rows=truth[2]).result()
    error = relative_error(result, truth)
    status = "ok" if error <= subject.limit[cell.dtype] else "wrong"
    call = problem.call("both")
    times = interleaved({name: call}, cell.seconds, device)[name]
    if isinstance(times, Exception):
        raise times
    row = {"status": status, "error": error, "first_call_s": round(first, 3), **quantiles(times)}
    row["host_ms"] = 1e3 * clock(call, device, 5)  # calls in a row: where it is the larger, launches bound it
    return row | {"kernels_us": kernels(call, device)}


def main() -> int:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backend")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--predicted", type=Path, default=PREDICTED)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--small", action="store_true", help="two small cells, to rehearse")
    parser.add_argument("--once", choices=tuple(SUBJECTS))
    options = parser.parse_args()
    if options.once:
        cell = next(cell for cell in GOALS if cell.subject == options.once)
        subject = SUBJECTS[options.once]
        problem = subject.problem(cell, provider(subject, options.backend, options.device), options.device)
        for _ in range(2):
            problem.result()
        return 0
    if options.results is None:
        parser.error("--results: expected a folder")
    prepare(options.results)
    path = options.results / "ceilings.json"
    ceilings = json.loads(path.read_text())["ceilings"] if path.exists() else {}
    predicted = predictions(options.predicted, options.backend)
    finish = time.monotonic() + 60 * options.minutes
    rows: dict[str, dict[str, Any]] = {}
    for cell in SMALL if options.small else GOALS:
        if time.monotonic() > finish:
            break
        try:
            row = measured(cell, options.backend, options.device)
        except Exception as error:  # the others go on
            row = {"status": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        rows[cell.title] = row | beside(cell, row, ceilings, predicted, options.device)
        merge(options.results / "goals.json", options.backend, rows)
        print(cell.title, rows[cell.title], flush=True)
        if options.device == "cuda":
            torch.cuda.empty_cache()
    counted = sum(row["status"] == "ok" for row in rows.values())
    print(f"{counted} of {len(rows)} cells measured and right")
    return int(counted == 0 or any(row["status"] in ("failed", "wrong") for row in rows.values()))


def predictions(path: Path, backend: str) -> dict[str, float]:
    """Title → predicted milliseconds, where the file is of this backend."""
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("backend") != backend:
        return {}
    return {title: cell["predicted_ms"] for title, cell in found["cells"].items()}


def beside(
    cell: Cell, row: dict[str, Any], ceilings: dict[str, float], predicted: dict[str, float], device: str
) -> dict[str, float]:
    """Floor and prediction, and the ratio of what was measured to them."""
    least, expected = floor_ms(cell, ceilings, device), predicted.get(cell.title)
    found: dict[str, float] = {}
    for name, value in (("floor", least), ("predicted", expected)):
        if value is not None:
            found[f"{name}_ms"] = value
            if "median_ms" in row:
                found[f"over_{name}"] = row["median_ms"] / value
    return found


def table(goals: dict[str, Any]) -> str:
    """A line for each cell: each backend's milliseconds, the floor, and measured over predicted."""
    titles = dict.fromkeys(title for rows in goals.values() for title in rows)
    lines = [
        f"{'ms, forward and backward':52} " + " ".join(f"{name:>10}" for name in goals) + "      floor  over prediction"
    ]
    for title in titles:
        cells = [rows.get(title, {}) for rows in goals.values()]
        shown = [f"{row['median_ms']:10.3f}" if "median_ms" in row else f"{row.get('status', ''):>10}" for row in cells]
        least = next((f"{row['floor_ms']:10.3f}" for row in cells if "floor_ms" in row), " " * 10)
        ratios = [
            f"{name} {row['over_predicted']:.2f}"
            for name, row in zip(goals, cells, strict=True)
            if "over_predicted" in row
        ]
        lines.append(f"{title:52} {' '.join(shown)} {least}  {', '.join(ratios)}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
