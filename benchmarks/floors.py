"""The least time that the machine allows, from a call that is timed beside the providers.

focal_contrastive: one pass over the matrix of similarities is 2 N² D operations at the rate of a large `torch.mm` in
the same run. Forward the symmetric half is enough (0.5). Backward the matrix is computed once more, again the half, and
multiplied with the rows (1.5), so 2.0 in all; on a GPU, where writing both halves of a tile's product does not pay, the
matrix is computed in full (2.0), so 2.5. On a GPU the product is in the cell's type, in tf32 for float32.

kd_divergence: two logits are read and one gradient written, as `torch.add(student, teacher)` does; forward alone is two
thirds of it. Backward alone has no floor: where the gradient is made forward, nothing is left to do.
"""

import torch
from torch import Tensor

from benchmarks.cell import Cell, Floor, precision

BACKWARD = {"cpu": 1.5, "cuda": 2.0}  # in passes over the matrix
FORWARD = 0.5


def matrix_product(cell: Cell, device: str) -> Floor:
    """The floor of focal_contrastive."""
    side = 8192 if device == "cuda" else 2048
    dtype = cell.torch_dtype if device == "cuda" else torch.float32  # a CPU need not have 16-bit products
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def product() -> Tensor:
        with precision("high" if device == "cuda" else "highest"):
            return torch.mm(left, right)

    one_pass = cell.sizes["rows"] ** 2 * cell.sizes["width"] / side**3
    both = FORWARD + BACKWARD[device]
    passes = {"forward": FORWARD, "backward": BACKWARD[device], "both": both, "graph": both}
    return Floor(product, {name: share * one_pass for name, share in passes.items()})


def two_reads_one_write(student: Tensor, teacher: Tensor) -> Floor:
    """The floor of kd_divergence."""
    student = student.detach()
    return Floor(lambda: torch.add(student, teacher), {"forward": 2 / 3, "both": 1.0, "graph": 1.0})
