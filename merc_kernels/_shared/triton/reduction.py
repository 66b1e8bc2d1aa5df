# ruff: noqa: N803 - compile-time parameters are upper case, as everywhere in Triton
# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
"""The sum of what the programs of a launch left, in one fixed order."""

import triton
import triton.language as tl

REDUCE_BLOCK, REDUCE_WARPS = 4096, 8


@triton.jit(do_not_specialize=["partials", "counted"])
def reduce_kernel(
    loss_ptr, divisor_ptr, partial_ptr, partials, counted: tl.int64, COUNTS: tl.constexpr, BLOCK: tl.constexpr
):
    """Sum of the partial sums over max(counted, 1); COUNTS adds up ``counted`` from the partial counts."""
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    count = tl.zeros([BLOCK], tl.float64)
    start = partials * 0
    while start < partials:  # the interpreter takes no range of a run-time length with numpy 2.4
        mask = start + lane < partials
        total += tl.load(partial_ptr + start + lane, mask=mask, other=0.0).to(tl.float64)
        if COUNTS:
            count += tl.load(partial_ptr + partials + start + lane, mask=mask, other=0.0).to(tl.float64)
        start += BLOCK
    divisor = tl.sum(count, 0) if COUNTS else counted.to(tl.float64)
    divisor = tl.maximum(divisor, 1.0)
    tl.store(divisor_ptr, divisor.to(divisor_ptr.dtype.element_ty))
    tl.store(loss_ptr, (tl.sum(total, 0) / divisor).to(loss_ptr.dtype.element_ty))
