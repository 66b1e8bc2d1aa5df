# ruff: noqa: N803 - compile-time parameters are upper case, as everywhere in Triton
# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
"""What stands before and after a forward pass that writes the gradient: the rows' count, and the loss's own gradient.

The host reads neither: reading would synchronise, and no CUDA graph could be captured.
"""

import triton
import triton.language as tl

from merc_kernels.kd_divergence.triton.rows import labelled, place

COUNTS, COUNT_BLOCK = 64, 1024  # partial counts, one a program, and labels a program looks at together
MOST_PROGRAMS = 1056  # of scale_kernel, few for the call in which each returns at once: 8 a processor of an H100


@triton.jit(do_not_specialize=["count", "ignore_index"])
def count_kernel(
    kept_counts_ptr,  # (COUNTS,) int64
    labels_ptr,
    count,  # of labels
    groups,  # that share them
    classes,
    ignore_index: tl.int64,
    COUNTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """How many rows count, in COUNTS parts."""
    found = tl.zeros([BLOCK], tl.int64)
    start = tl.program_id(0) * BLOCK
    while start < count:
        n = start.to(tl.int64) + tl.arange(0, BLOCK)
        kept, _ = labelled(labels_ptr, 0, n, n < count, classes, 0, ignore_index)
        found += kept.to(tl.int64)
        start += COUNTS * BLOCK
    tl.store(kept_counts_ptr + tl.program_id(0), tl.sum(found, 0) * groups)


@triton.jit(do_not_specialize=["rows", "ignore_index", "stride_lg", "tiles"])
def scale_kernel(
    grad_ptr,  # a scalar
    student_grad_ptr,  # (G, N, C)
    labels_ptr,  # (N,) or (G, N), or None
    stride_lg,
    rows,
    groups,
    classes,
    ignore_index: tl.int64,
    tiles,
    TILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradient times that of the loss, in its place; rows that do not count stay 0, whatever that is."""
    upstream = tl.load(grad_ptr)
    if upstream != 1:
        tile = tl.program_id(0)
        while tile < tiles:
            column = (tile % TILES * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
            g, n, inside = place(tile // TILES, groups, rows, BLOCK_N)
            kept, _ = labelled(labels_ptr, g, n, inside, classes, stride_lg, ignore_index)
            mask = kept[:, None] & (column < classes)
            target = student_grad_ptr + ((g * rows + n) * classes)[:, None] + column
            tl.store(target, tl.load(target, mask=mask, other=0.0).to(upstream.dtype) * upstream, mask=mask)
            tile += tl.num_programs(0)
