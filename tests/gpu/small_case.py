"""Each kernel of an operator on small odd sizes: what compute-sanitizer watches in ``make gpu``.

python -m tests.gpu.small_case focal_contrastive|kd_divergence
"""

from __future__ import annotations

import sys

import torch

from tests.gpu.operators import call, inputs, step, why_not


def main() -> int:
    """Run; 1 where no kernel ran, or a result is not finite."""
    operator = sys.argv[1]
    torch.manual_seed(0)
    ran, bad = 0, 0
    for backend in ("cuda", "triton"):  # those with kernels of their own
        if reason := why_not(backend):
            print(f"{backend}: {reason}")
            continue
        for rows, width, dtype in ((37, 7, torch.float32), (131, 65, torch.float32), (70, 1030, torch.bfloat16)):
            value, gradient = (x.cpu() for x in step(call(operator, backend), *inputs(operator, rows, width, dtype)))
            bad += not (value.isfinite().all() and gradient.isfinite().all())
            ran += 1
    print(f"{operator}: {ran} cases ran, {bad} not finite")
    return int(bad > 0 or ran == 0)


if __name__ == "__main__":
    sys.exit(main())
