# ruff: noqa: N803 - compile-time parameters are upper case, as everywhere in Triton
# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
r"""Rows of the focal contrastive loss into unit rows and back, in Triton.

    pack      z = x / |x|, rounded to what products take, 1 / |x|, and the label where rows keep their order
    unpack    dX = (dZ - (z.dZ) z) / |x|, summed over splits, and over the groups that share a row

Letters: x a row, z the same of length 1; D features, N rows of a source and T of all sources, G groups. SORTED rows lie
as order.py says, and go back to where they came from. Every output element has one program that writes it, and sums run
in a fixed order: no atomics, the same bits on every run.
"""

import triton
import triton.language as tl

from merc_kernels.focal_contrastive.triton.numbers import divided, factor_of, root, scalar
from merc_kernels.focal_contrastive.triton.order import is_kept, sorted_row


@triton.jit(do_not_specialize=["stride_lg", "rows", "first", "total", "classes", "ignore_index"])
def pack_kernel(
    z_ptr,  # (G, T, D)
    norms_ptr,  # (G, T)
    index_ptr,  # (G, T): for `rank_kernel` where any label is a class, else -1 where a row is not kept; SORTED: given
    x_ptr,  # (rows, D) or (G, rows, D)
    labels_ptr,  # (rows,) or (G, rows); None: row n has label n
    stride_xg,
    stride_xn,
    stride_lg,
    rows,
    first,
    total,
    width,
    classes: tl.int64,  # -1 where any label is a class
    ignore_index: tl.int64,
    NORMALIZE: tl.constexpr,
    SORTED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows n of a source become the packed rows first + n."""
    dtype: tl.constexpr = norms_ptr.dtype.element_ty
    blocks = tl.cdiv(rows, BLOCK_N)
    g = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    lane = tl.arange(0, BLOCK_D)
    inside = n < rows
    row = g * total + first + n
    origin = n
    if SORTED:
        key, origin = sorted_row(index_ptr + row, inside)
        kept = key >= 0
    else:
        label = n
        if labels_ptr is not None:
            label = tl.load(labels_ptr + g * stride_lg + n, mask=inside, other=0)
        kept = is_kept(label, inside, classes, ignore_index)
        tl.store(index_ptr + row, tl.where(kept, label, tl.where(classes < 0, ignore_index, -1)), mask=inside)
    mask = kept[:, None] & (lane < width)[None, :]
    x = tl.load(x_ptr + (g * stride_xg + origin * stride_xn)[:, None] + lane[None, :], mask=mask, other=0.0).to(dtype)
    norm = tl.where(kept, 1.0, 0.0).to(dtype)
    if NORMALIZE:
        size = tl.max(tl.abs(x), 1)  # squares of x / size neither over- nor underflow
        plain_sum = tl.sum(x, 1)
        nonzero = (size != 0) | (plain_sum != plain_sum)  # a maximum passes over a NaN
        x = divided(x, tl.where(nonzero, size, 1.0)[:, None])
        length = root(tl.where(nonzero, tl.sum(x * x, 1), 1.0))
        x = divided(x, length[:, None])
        norm = tl.where(nonzero, divided(norm, length * size), 0.0)
    z = factor_of(x.to(z_ptr.dtype.element_ty), PRECISION)
    tl.store(z_ptr + (row * width)[:, None] + lane[None, :], z, mask=inside[:, None] & (lane < width)[None, :])
    tl.store(norms_ptr + row, norm, mask=inside)


@triton.jit(
    do_not_specialize=[
        "rows",
        "row_first",
        "source_rows",
        "first",
        "total",
        "first_group",
        "groups",
        "splits",
    ]
)
def unpack_kernel(
    out_ptr,  # (source_rows, D) or (all groups, source_rows, D)
    dz_ptr,  # (splits, G, rows, D): tau dZ, times `scale`
    x_ptr,
    norms_ptr,  # (all groups, T)
    index_ptr,  # (all groups, T)
    temperature_ptr,
    matrix_scale_ptr,
    stride_xg,
    stride_xn,
    rows,  # of dz, a part of the source's
    row_first,
    source_rows,
    first,
    total,
    first_group,
    groups,
    splits,
    width,
    floats,
    SHARED: tl.constexpr,  # by the groups, whose gradients add up
    SORTED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradient of BLOCK_N rows of a source; exactly 0 for a row that was not kept, and for a zero row."""
    dtype: tl.constexpr = norms_ptr.dtype.element_ty
    blocks = tl.cdiv(rows, BLOCK_N)
    group = tl.program_id(0) // blocks
    n = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    lane = tl.arange(0, BLOCK_D)
    inside = (n < rows)[:, None] & (lane < width)[None, :]
    start = group.to(tl.int64) + first_group
    stop = groups if SHARED else group + 1
    origin = row_first + n
    if SORTED:
        _, origin = sorted_row(index_ptr + first + row_first + n, n < rows)
    x_ptr += (start * stride_xg + origin * stride_xn)[:, None] + lane[None, :]
    norms_ptr += first_group.to(tl.int64) * total + first + row_first
    total_grad = tl.zeros([BLOCK_N, BLOCK_D], dtype)
    while group < stop:
        norm = tl.load(norms_ptr + group.to(tl.int64) * total + n, mask=n < rows, other=0.0)[:, None]
        kept = inside & (norm != 0)
        dz = tl.zeros([BLOCK_N, BLOCK_D], dtype)
        split = splits * 0
        while split < splits:
            row = (split.to(tl.int64) * groups + group) * rows + n
            dz += tl.load(dz_ptr + (row * width)[:, None] + lane[None, :], mask=kept, other=0.0)
            split += 1
        if NORMALIZE:
            z = tl.load(x_ptr, mask=kept, other=0.0).to(dtype) * norm
            dz = (dz - tl.sum(z * dz, 1)[:, None] * z) * norm
        total_grad += tl.where(kept, dz, 0.0)
        group += 1
    factor = 1 / scalar(temperature_ptr, floats.temperature, dtype)
    if matrix_scale_ptr is not None:
        factor /= tl.load(matrix_scale_ptr)
    row = start * source_rows + origin
    tl.store(out_ptr + (row * width)[:, None] + lane[None, :], total_grad * factor, mask=inside)
