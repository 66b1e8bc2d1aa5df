"""The least time that the machine allows, from calls that are timed beside the providers.

focal_contrastive: one pass over the matrix of similarities is 2 N² D operations at the rate of a large `torch.mm` in
the same run. Forward the symmetric half is enough (0.5). Backward the matrix is computed once more, again the half, and
multiplied with the rows (1.5), so 2.0 in all; on a GPU, where writing both halves of a tile's product does not pay, the
matrix is computed in full (2.0), so 2.5. On a GPU the product is in the cell's type, in tf32 for float32.

kd_divergence: two logits are read and one gradient written, as `torch.add(student, teacher)` does; forward alone is two
thirds of it. Backward alone has no floor: where the gradient is made forward, nothing is left to do.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.cell import Cell, Floor

BACKWARD = {"cpu": 1.5, "cuda": 2.0}  # in passes
FORWARD = 0.5


def matrix_product(cell: Cell, device: str) -> Floor:
    """The floor of focal_contrastive."""
    side = 8192 if device == "cuda" else 2048
    dtype = cell.torch_dtype if device == "cuda" else torch.float32  # a CPU need not have 16-bit products
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    name = f"torch.mm of two {side}² matrices"

    def product() -> Tensor:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
        try:
            return torch.mm(left, right)
        finally:
            torch.set_float32_matmul_precision(before)

    both = FORWARD + BACKWARD[device]
    shares = {"forward": FORWARD, "backward": BACKWARD[device], "both": both, "graph": both}

    def one_pass(medians: Mapping[str, float]) -> float:
        return medians[name] * cell.sizes["rows"] ** 2 * cell.sizes["width"] / side**3

    return Floor(
        {name: product},
        lambda what, medians: shares[what] * one_pass(medians) if name in medians else None,
        one_pass,
    )


def two_reads_one_write(student: Tensor, teacher: Tensor) -> Floor:
    """The floor of kd_divergence."""
    student = student.detach()
    name = "torch.add(student, teacher)"
    shares = {"forward": 2 / 3, "both": 1.0, "graph": 1.0}
    return Floor(
        {name: lambda: torch.add(student, teacher)},
        lambda what, medians: medians[name] * shares[what] if name in medians and what in shares else None,
    )
