# ruff: noqa: N803 - compile-time parameters are upper case, as everywhere in Triton
# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
r"""Rows of the focal contrastive loss into unit rows and back, in Triton.

    pack      z = x / |x|, rounded to what products take, 1 / |x|, the label
    rank      labels of 64 bits as numbers of 32, which is what the pairs compare; -1 where a row is not kept. A scan
              takes T / RANK_BLOCK steps where all labels differ: of many rows `enter` and `look_up` make a hash table
    unpack    dX = (dZ - (z.dZ) z) / |x|, summed over splits, and over the groups that share a row

Letters: x a row, z the same of length 1; D features, N rows of a source and T of all sources, G groups. Every output
element has one program that writes it, and sums run in a fixed order: no atomics
but in the table of labels, the same bits on every run.
"""

import triton
import triton.language as tl

from merc_kernels.focal_contrastive.triton.numbers import divided, factor_of, root, scalar


@triton.jit(do_not_specialize=["stride_lg", "rows", "first", "total", "classes", "ignore_index"])
def pack_kernel(
    z_ptr,  # (G, T, D)
    norms_ptr,  # (G, T)
    index_ptr,  # (G, T): for `rank_kernel` where any label is a class, else -1 where a row is not kept
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
    label = n
    if labels_ptr is not None:
        label = tl.load(labels_ptr + g * stride_lg + n, mask=inside, other=0)
    kept = inside & (label != ignore_index) & ((classes < 0) | ((label >= 0) & (label < classes)))
    mask = kept[:, None] & (lane < width)[None, :]
    x = tl.load(x_ptr + (g * stride_xg + n * stride_xn)[:, None] + lane[None, :], mask=mask, other=0.0).to(dtype)
    norm = tl.where(kept, 1.0, 0.0).to(dtype)
    if NORMALIZE:
        size = tl.max(tl.abs(x), 1)  # squares of x / size neither over- nor underflow
        plain_sum = tl.sum(x, 1)
        nonzero = (size != 0) | (plain_sum != plain_sum)  # a maximum passes over a NaN
        x = divided(x, tl.where(nonzero, size, 1.0)[:, None])
        length = root(tl.where(nonzero, tl.sum(x * x, 1), 1.0))
        x = divided(x, length[:, None])
        norm = tl.where(nonzero, divided(norm, length * size), 0.0)
    row = g * total + first + n
    z = factor_of(x.to(z_ptr.dtype.element_ty), PRECISION)
    tl.store(z_ptr + (row * width)[:, None] + lane[None, :], z, mask=inside[:, None] & (lane < width)[None, :])
    tl.store(norms_ptr + row, norm, mask=inside)
    tl.store(index_ptr + row, tl.where(kept, label, tl.where(classes < 0, ignore_index, -1)), mask=inside)


@triton.jit(do_not_specialize=["total", "ignore_index"])
def rank_kernel(
    index_ptr,  # (G, T)
    labels_ptr,  # (G, T), ignore_index where a row is not kept
    total,
    ignore_index: tl.int64,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """The place where a label stands first, a number of 32 bits; -1 where a row is not kept."""
    blocks = tl.cdiv(total, BLOCK_N)
    g = (tl.program_id(0) // blocks).to(tl.int64)
    labels_ptr += g * total
    i = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    label = tl.load(labels_ptr + i, mask=i < total, other=ignore_index)
    first = tl.where(label == ignore_index, -1, total)  # as soon as it is less than total, it is found
    start = total * 0
    while tl.max(first, 0) == total:
        j = start + tl.arange(0, BLOCK_M)
        column = tl.load(labels_ptr + j, mask=j < total, other=ignore_index)
        here = tl.where(label[:, None] == column[None, :], j[None, :], total)
        first = tl.minimum(first, tl.min(here, 1))
        start += BLOCK_M
    tl.store(index_ptr + g * total + i, first, mask=i < total)


@triton.jit(do_not_specialize=["total", "slots", "ignore_index"])
def enter_kernel(
    table_ptr,  # (G, slots + 1) of `total`: afterwards the first row of each label that a slot belongs to
    index_ptr,  # (G, T): the slot of each row's label, -1 where a row is not kept
    labels_ptr,  # (G, T), ignore_index where a row is not kept
    total,
    slots,  # a power of 2, at least twice the rows; the one behind them belongs to nobody
    ignore_index: tl.int64,
    BLOCK_N: tl.constexpr,
):
    """Each label of a block takes the next free slot from where its hash points, or finds it taken by an equal one."""
    blocks = tl.cdiv(total, BLOCK_N)
    g = (tl.program_id(0) // blocks).to(tl.int64)
    labels_ptr += g * total
    table_ptr += g * (slots + 1)
    lane = tl.arange(0, BLOCK_N)
    i = tl.program_id(0) % blocks * BLOCK_N + lane  # [BLOCK_N]
    label = tl.load(labels_ptr + i, mask=i < total, other=ignore_index)
    kept = label != ignore_index
    # The first of equal rows in the block enters for all: few labels would crowd on few slots.
    leader = tl.min(tl.where(label[:, None] == label[None, :], lane[None, :], BLOCK_N), 1)
    waiting = kept & (leader == lane)
    mixed = label * -7046029254386353131  # 2^64 over the golden ratio
    place = ((mixed >> 32) ^ mixed).to(tl.int32) & (slots - 1)
    slot = tl.full([BLOCK_N], -1, tl.int32)
    while tl.max(waiting.to(tl.int32), 0) > 0:
        at = table_ptr + tl.where(waiting, place, slots)
        owner = tl.atomic_cas(at, tl.where(waiting, total, -1), i)
        taken = waiting & (owner != total)
        same = tl.load(labels_ptr + owner, mask=taken, other=ignore_index) == label
        found = waiting & ((owner == total) | same)
        slot = tl.where(found, place, slot)
        waiting = waiting & (found == 0)
        place = (place + 1) & (slots - 1)
    tl.atomic_min(table_ptr + slot, i, mask=slot >= 0)
    slot = tl.max(tl.where(leader[:, None] == lane[None, :], slot[None, :], -1), 1)
    tl.store(index_ptr + g * total + i, tl.where(kept, slot, -1), mask=i < total)


@triton.jit(do_not_specialize=["total", "slots"])
def look_up_kernel(index_ptr, table_ptr, total, slots, BLOCK: tl.constexpr):
    """A slot becomes the first row of its label, as `rank_kernel` says it: the same on every run."""
    blocks = tl.cdiv(total, BLOCK)
    g = (tl.program_id(0) // blocks).to(tl.int64)
    n = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(index_ptr + g * total + n, mask=n < total, other=-1)
    first = tl.load(table_ptr + g * (slots + 1) + slot, mask=slot >= 0, other=-1)
    tl.store(index_ptr + g * total + n, first, mask=n < total)


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
    x_ptr += (start * stride_xg + (row_first + n) * stride_xn)[:, None] + lane[None, :]
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
    row = start * source_rows + row_first + n
    tl.store(out_ptr + (row * width)[:, None] + lane[None, :], total_grad * factor, mask=inside)
