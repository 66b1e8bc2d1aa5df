"""distributed: what a rank computes, keeps and receives in a step of `merc_kernels.distributed`, forward and backward.

Gloo processes of one thread each on this machine. Seconds are those that a rank's processor worked, not those that
passed: more ranks than cores take turns. The curve to 1024 ranks is predicted, from bytes and operations alone.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks import results_file
from merc_kernels import distributed

ROWS, WIDTH, CLASSES = 16384, 256, 7
STATS, LABEL = 12, 8  # bytes of a row that are gathered beside its embedding, of float32 and 16 bits
PREDICTED = {"rows_of_a_rank": 1024, "width": 768, "bytes_of_a_number": 2, "flops": 4e14, "gigabits": 400}


def main() -> None:
    """Measure, predict, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="of all ranks together")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--results", type=Path, default=results_file.RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured = [_measured(ranks, options.rows, options.repeats) for ranks in (1, 2, 4)]
    memory = [_measured(4, rows, 1) for rows in (options.rows // 4, options.rows // 2, options.rows)]
    result = {
        "subject": "distributed",
        "protocol": f"{options.repeats} steps after one to warm up, float32, D = {WIDTH}, {CLASSES} classes, focal ="
        " similarity, detached, max_rows given; the largest of the ranks; gloo, a thread each, on one machine of"
        f" {os.cpu_count()} cores; seconds of the processor. Memory: the peak of the resident set in a step beyond that"
        " before it.",
        "measured": measured,
        "memory": [{k: row[k] for k in ("ranks", "rows", "peak_extra_bytes", "peak_by_embeddings")} for row in memory],
        "predicted": {"of": PREDICTED, "rows": [predicted(2**k) for k in range(11)]},
        "environment": results_file.environment(),
    }
    path = options.results / f"{results_file.slug(results_file.cpu_name())}-distributed.json"
    results_file.write(path, result)
    for row in measured:
        print(row)
    print(path)


def tables(folder: Path = results_file.RESULTS) -> str:
    """What docs/several-machines.md shows of the result file."""
    (path,) = folder.glob("*-distributed.json")
    result = json.loads(path.read_text())
    first = result["measured"][0]
    lines = [
        f"[{path.name}](../benchmarks/results/{path.name}), by `{result['environment']['command']}`:"
        f" {first['rows']} rows of {WIDTH} numbers in all, a step forward and backward. {result['protocol']}",
        "",
        "| ranks | CPU seconds of a rank (20–80 %) | of one rank's | received a rank | peak memory a rank |",
        "|---|---|---|---|---|",
    ]
    for row in result["measured"]:
        spread = f"{row['cpu_seconds']:.3f} ({row['p20']:.3f}–{row['p80']:.3f})"
        share = row["cpu_seconds"] / first["cpu_seconds"]
        cells = (row["ranks"], spread, f"{share:.2f}", _mebibytes(row["received_bytes"]))
        lines.append(_line(*cells, _mebibytes(row["peak_extra_bytes"])))
    lines += ["", "Memory of a rank grows with the rows, not with their square:", ""]
    lines += ["| ranks | rows | peak memory a rank | beside N·D·4 bytes |", "|---|---|---|---|"]
    for row in result["memory"]:
        memory = _mebibytes(row["peak_extra_bytes"])
        lines.append(_line(row["ranks"], row["rows"], memory, row["peak_by_embeddings"]))
    of = result["predicted"]["of"]
    lines += [
        "",
        f"**Predicted**, not measured: {of['rows_of_a_rank']} rows of {of['width']} bfloat16 numbers on every rank,"
        f" {of['gigabits']} Gb/s into each, {of['flops'] / 1e12:g} Tflop/s of matrix products, nothing overlapped. A"
        " reduce-scatter of float32 gradients would add its bytes to those received.",
        "",
        "| ranks | rows in all | received a rank | on the wire | operations | a reduce-scatter would add |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["predicted"]["rows"]:
        wire, work = (f"{row[name] * 1e3:.2f} ms" for name in ("wire_seconds", "compute_seconds"))
        received, spared = (_mebibytes(row[name]) for name in ("received_bytes", "reduce_scatter_bytes_saved"))
        lines.append(_line(row["ranks"], row["rows"], received, wire, work, spared))
    return "\n".join(lines)


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _mebibytes(count: float) -> str:
    return f"{count / 2**20:.1f} MiB"


def predicted(ranks: int) -> dict[str, float | int]:
    """A step of one rank: bytes that it receives, their seconds on the wire, and those of its operations."""
    rows, width, size = (PREDICTED[name] for name in ("rows_of_a_rank", "width", "bytes_of_a_number"))
    received = (ranks - 1) * rows * (width * size + LABEL + STATS)
    flops = 3 * 2 * rows * rows * ranks * width  # scores, scores again, their product with the rows
    return {
        "ranks": ranks,
        "rows": int(rows * ranks),
        "received_bytes": int(received),
        "wire_seconds": received * 8 / (PREDICTED["gigabits"] * 1e9),
        "compute_seconds": flops / PREDICTED["flops"],
        "one_process_seconds": flops * ranks / PREDICTED["flops"],
        "reduce_scatter_bytes_saved": int((ranks - 1) * rows * width * 4),
    }


def _measured(ranks: int, rows: int, repeats: int) -> dict[str, Any]:
    """Of all ranks the one that works, or keeps, most."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (ranks, rows, repeats, folder), nprocs=ranks)  # type: ignore[no-untyped-call]
        told = [torch.load(Path(folder, f"rank-{rank}"), weights_only=True) for rank in range(ranks)]
    most = max(told, key=lambda one: statistics.median(one["seconds"]))
    fifths = statistics.quantiles(most["seconds"], n=5, method="inclusive") if repeats > 1 else most["seconds"] * 4
    peak = max(one["peak"] for one in told)
    return {
        "ranks": ranks,
        "rows": rows,
        "cpu_seconds": round(statistics.median(most["seconds"]), 4),
        "p20": round(fifths[0], 4),
        "p80": round(fifths[3], 4),
        "received_bytes": (ranks - 1) * (rows // ranks) * (4 * WIDTH + LABEL + STATS),
        "peak_extra_bytes": peak,
        "peak_by_embeddings": round(peak / (rows * WIDTH * 4), 2),
    }


def _rank(rank: int, ranks: int, rows: int, repeats: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    at = Path(folder, "store").as_uri()
    dist.init_process_group("gloo", init_method=at, rank=rank, world_size=ranks)
    generator = torch.Generator().manual_seed(rank)
    own = rows // ranks
    x = torch.randn(own, WIDTH, generator=generator, requires_grad=True)
    y = torch.randint(CLASSES, (own,), generator=generator)
    before, seconds = _resident("VmRSS"), []
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for _ in range(1 + repeats):
        dist.barrier()
        started = time.process_time()
        distributed.focal_contrastive_loss(x, y, max_rows=own).backward()  # type: ignore[no-untyped-call]
        seconds.append(time.process_time() - started)
        x.grad = None
    torch.save({"seconds": seconds[1:], "peak": _resident("VmHWM") - before}, Path(folder, f"rank-{rank}"))
    dist.destroy_process_group()


def _resident(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
