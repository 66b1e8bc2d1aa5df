"""Functions run by several gloo processes, each check after the other, and what went wrong in any of them."""

import os
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

Check = Callable[[int, int], None]  # of rank and ranks; called on all of them


def run(checks: Sequence[Check], ranks: int) -> None:
    """Every check passes on every rank; one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (ranks, checks, folder), ranks)
        failed = Path(folder, "failed")
        assert not failed.exists(), failed.read_text()


def spawn(function: Callable[..., None], arguments: Sequence[object], ranks: int) -> None:
    """``function(rank, *arguments)`` in a process for each rank."""
    torch.multiprocessing.spawn(_leave, (function, arguments), nprocs=ranks)


def _leave(rank: int, function: Callable[..., None], arguments: Sequence[object]) -> None:
    function(rank, *arguments)
    # A model in DDP keeps gloo's threads after destroy_process_group; one that frees a tensor while Python ends aborts.
    os._exit(0)


def _rank(rank: int, ranks: int, checks: Sequence[Check], folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    at, patience = Path(folder, "store").as_uri(), timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=at, rank=rank, world_size=ranks, timeout=patience)
    failures = []
    for check in checks:
        torch.manual_seed(0)
        try:
            check(rank, ranks)
            said = ""
        except Exception:
            said = f"{check.__name__} on rank {rank} of {ranks}\n{traceback.format_exc()}"
        everywhere: list[str] = [""] * ranks
        dist.all_gather_object(everywhere, said)  # a rank that failed leads the others no further
        failures += filter(None, everywhere)
    if rank == 0 and failures:
        Path(folder, "failed").write_text("\n".join(failures))
    dist.destroy_process_group()
