"""The CUDA kernels on the CPU under ThreadSanitizer, whole and with one barrier left out after the other.

    python -m tests.kernels.barriers LIBRARY [BARRIER ...]      numbers in the order they are met, or all

Started by test_barriers.py with libtsan in LD_PRELOAD, and told to end a process at its first race. Each run is a
process of its own, and prints ``FILE:LINE`` of what was left out (``none``), and whether a race was found.
"""

import ctypes
import os
import sys
from pathlib import Path

import torch

from tests.kernels import test_cuda_focal_contrastive as contrastive
from tests.kernels import test_cuda_sources as divergence

RACE = 66  # what ThreadSanitizer exits with


def cases(operators) -> None:
    """Every kernel on several blocks: a block alone, rows that are shared by threads, sums over blocks."""
    made = torch.Generator().manual_seed(0)
    for rows, width in ((150, 7), (5, 70), (3, 9000)):
        pair = [torch.randn(rows, width, generator=made) for _ in range(2)]
        labels = torch.arange(rows) % width
        for save in (1, 2):
            divergence.fused(operators, *pair, torch.ones(()), save, labels=labels, ce_weight=0.5)
        divergence.fused(operators, torch.stack([pair[0]] * 2), pair[1], torch.ones(()), 1)
    for focal, dtype, width in (("similarity", torch.float32, 40), ("probability", torch.bfloat16, 300)):
        case = contrastive.plain_case(70, width, dtype, focal=focal, temperature=torch.tensor(0.2))
        contrastive.fused(operators, case)


def main() -> None:
    """All runs."""
    library = ctypes.CDLL(sys.argv[1])
    library.merc_barrier_file.restype = ctypes.c_char_p
    torch.ops.load_library(sys.argv[1])
    torch.set_num_threads(1)

    def run(place: int) -> tuple[int, list[str]]:
        """Exit code without that barrier, and the barriers that were met; -1: none is left out."""
        readable, writable = os.pipe()
        child = os.fork()  # before there are fibers, which ThreadSanitizer would take for lost threads
        if child == 0:
            library.merc_skip_barrier(place)
            cases(torch.ops.merc_on_host)
            for i in range(library.merc_barriers()):
                name = Path(library.merc_barrier_file(i).decode()).name
                os.write(writable, f"{name}:{library.merc_barrier_line(i)}\n".encode())
            os._exit(0)
        os.close(writable)
        with os.fdopen(readable) as lines:
            met = lines.read().split()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), met

    code, met = run(-1)
    wanted = [int(word) for word in sys.argv[2:]] or range(len(met))
    results = [("none", code), *((met[place], run(place)[0]) for place in wanted if place < len(met))]
    sys.stdout.writelines(f"{name} {'race' if code == RACE else code}\n" for name, code in results)


if __name__ == "__main__":
    main()
