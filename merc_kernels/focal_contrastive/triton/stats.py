# ruff: noqa: N803 - compile-time parameters are upper case, as everywhere in Triton
# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
r"""The numbers of a row of the focal contrastive loss, in Triton: linear work between the sweeps over pairs.

    finish    from the partial sums of `pair_sums_kernel`:  L = m + log2 E,  H = sum h,  Q = sum h (s - m):
              value = H log2 E - Q (similarity), or summed as it is (probability);  a = w / |P|,  loss = a value
    scaled    what a pair needs of either row, with the incoming gradient u in a: m, log2 E, a G, a

Letters: m the largest score s of a row, E = sum 2^(s - m), P its positives, h the focal factor, w a class weight;
T rows of all sources, G groups. Of SORTED rows (order.py) the statistics and losses lie as the rows came.
Scores count in units of log 2 (s = z.z' log2(e) / tau), for 2^x is what the chip has.
L stays in two parts, so that s - L keeps its digits where one candidate holds nearly all of p. Sums run in a fixed
order: no atomics, the same bits on every run.
"""

import triton
import triton.language as tl

from merc_kernels.focal_contrastive.triton.numbers import LN2, LOWEST, NEVER
from merc_kernels.focal_contrastive.triton.order import sorted_row


@triton.jit
def merged(partial_ptr, row, inside, all_rows, splits, dtype: tl.constexpr, BLOCK: tl.constexpr):
    """The maximum m over the splits, and E = sum 2^(s - m)."""
    top = tl.full([BLOCK], LOWEST, dtype)
    total = tl.zeros([BLOCK], dtype)
    split = splits * 0
    while split < splits:  # the interpreter takes no range of a run-time length with numpy 2.4
        place = partial_ptr + split.to(tl.int64) * 5 * all_rows + row
        part = tl.load(place, mask=inside, other=LOWEST)
        higher = tl.maximum(top, part)
        total *= tl.exp2(top - higher)
        total += tl.load(place + all_rows, mask=inside, other=0.0) * tl.exp2(part - higher)
        top = higher
        split += 1
    return top, total


@triton.jit
def _added(place, inside, block, blocks, all_rows, splits, slots, dtype: tl.constexpr, SLOTS: tl.constexpr):
    # E, |P|, H and Q of BOUNDED rows, over all who kept a part of them
    e = tl.zeros(inside.shape, dtype)
    count = tl.zeros(inside.shape, dtype)
    slope = tl.zeros(inside.shape, dtype)
    value = tl.zeros(inside.shape, dtype)
    start = slots * 0
    while start < slots:
        slot = start + tl.arange(0, SLOTS)
        behind = tl.where(slot < splits, 0, slot - splits + 1)  # how many blocks those whose columns the rows were
        met = (2 * behind < blocks)[:, None] | (block[None, :] >= behind[:, None])  # half of all: by the lower ones
        mask = (slot < slots)[:, None] & inside[None, :] & met
        part = place[None, :] + (slot.to(tl.int64) * 4 * all_rows)[:, None]
        e += tl.sum(tl.load(part, mask=mask, other=0.0), 0)
        count += tl.sum(tl.load(part + all_rows, mask=mask, other=0.0), 0)
        slope += tl.sum(tl.load(part + 2 * all_rows, mask=mask, other=0.0), 0)
        value += tl.sum(tl.load(part + 3 * all_rows, mask=mask, other=0.0), 0)
        start += SLOTS
    return e, count, slope, value


@triton.jit(do_not_specialize=["anchors", "total", "groups", "splits", "slots", "block"])
def finish_kernel(
    stats_ptr,  # (G, T, 4): m, G, a, log2 E
    loss_ptr,  # (G, anchors), or with PARTIAL (2, programs): sums of losses, counts of rows
    partial_ptr,  # of `pair_sums_kernel`
    index_ptr,  # (G, T)
    labels_ptr,  # of SORTED rows, as they came
    weights_ptr,  # (C,) or None
    anchors,
    total,
    groups,
    splits,
    slots,  # splits, and where a half of the pairs was met as many as sums of columns
    block,  # rows of a block of it
    SIMILARITY: tl.constexpr,
    BOUNDED: tl.constexpr,
    PARTIAL: tl.constexpr,
    KEPT: tl.constexpr,  # count the kept anchors, not those with a positive
    SORTED: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Statistics and losses of BLOCK rows."""
    dtype: tl.constexpr = stats_ptr.dtype.element_ty
    blocks = tl.cdiv(total, BLOCK)
    g = (tl.program_id(0) // blocks).to(tl.int64)
    n = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    is_anchor = n < anchors
    label, origin = sorted_row(index_ptr + g * total + n, is_anchor)
    kept = label >= 0
    if SORTED:
        if weights_ptr is not None:
            label = tl.load(labels_ptr + origin, mask=kept, other=0)
    else:
        origin = n
    row = g * anchors + n
    all_rows = groups.to(tl.int64) * anchors
    if BOUNDED:
        top = tl.zeros([BLOCK], dtype)
        blocks = (n // block, tl.cdiv(anchors, block))
        e, count, slope, value = _added(partial_ptr + row, kept, *blocks, all_rows, splits, slots, dtype, SLOTS)
    else:
        top, e = merged(partial_ptr, row, kept, all_rows, splits, dtype, BLOCK)
        count = tl.zeros([BLOCK], dtype)
        slope = tl.zeros([BLOCK], dtype)  # sum of dg/dL
        value = tl.zeros([BLOCK], dtype)
        split = splits * 0
        while split < splits:
            place = partial_ptr + split.to(tl.int64) * 5 * all_rows + row
            part = tl.load(place + 3 * all_rows, mask=kept, other=0.0)
            count += tl.load(place + 2 * all_rows, mask=kept, other=0.0)
            slope += part
            value += tl.load(place + 4 * all_rows, mask=kept, other=0.0)
            if SIMILARITY:  # Q from this split's maximum to that of all
                value += part * (tl.load(place, mask=kept, other=LOWEST) - top)
            split += 1
    counts = count > 0
    e = tl.where(counts, e, 1.0)
    log2_sum = tl.log2(e)
    if SIMILARITY:
        value = (slope * log2_sum - value) * LN2
    if BOUNDED:  # m was 0: it takes the whole part of log2 E
        top = tl.floor(log2_sum)
        log2_sum = tl.log2(e * tl.exp2(-top))
    weight = tl.where(counts, 1.0, 0.0).to(dtype)
    if weights_ptr is not None:
        weight = tl.load(weights_ptr + label, mask=counts, other=0.0)
    a = weight / tl.where(counts, count, 1.0)
    loss = tl.where(counts, a * value, 0.0)
    place = stats_ptr + (g * total + origin) * 4
    tl.store(place, tl.where(counts, top, NEVER), mask=n < total)
    tl.store(place + 1, tl.where(counts, slope, 0.0), mask=n < total)
    tl.store(place + 2, a, mask=n < total)
    tl.store(place + 3, log2_sum, mask=n < total)
    if PARTIAL:
        counted = kept if KEPT else counts
        tl.store(loss_ptr + tl.program_id(0), tl.sum(loss, 0))
        tl.store(loss_ptr + tl.num_programs(0) + tl.program_id(0), tl.sum(counted.to(tl.int32), 0).to(dtype))
    else:
        tl.store(loss_ptr + g * anchors + origin, loss, mask=is_anchor)


@triton.jit(do_not_specialize=["stride_ug", "stride_un", "total"])
def scaled_stats_kernel(
    scaled_ptr,  # (G, 4, T): m; log2 E; a G, with BOUNDED times e^-L; a
    stats_ptr,  # (G, T, 4)
    index_ptr,  # (G, T)
    grad_ptr,  # a scalar (strides 0), or (G, N)
    divisor_ptr,
    stride_ug,
    stride_un,
    total,
    BOUNDED: tl.constexpr,
    SORTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What the gradient's pairs read of BLOCK rows."""
    blocks = tl.cdiv(total, BLOCK)
    g = (tl.program_id(0) // blocks).to(tl.int64)
    n = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = n < total
    origin = n
    if SORTED:
        _, origin = sorted_row(index_ptr + n, inside)
    place = stats_ptr + (g * total + origin) * 4
    row_max = tl.load(place, mask=inside, other=NEVER)
    log2_sum = tl.load(place + 3, mask=inside, other=0.0)
    a = tl.load(place + 2, mask=inside, other=0.0)
    counts = a != 0  # what a row that does not count is sent, a NaN too, reaches nothing
    a = tl.where(counts, a * tl.load(grad_ptr + g * stride_ug + origin * stride_un, mask=counts, other=0.0), 0.0)
    a /= tl.load(divisor_ptr)
    soft = a * tl.load(place + 1, mask=inside, other=0.0)
    if BOUNDED:
        soft *= tl.exp2(-row_max) * tl.exp2(-log2_sum)
    target = scaled_ptr + g * 4 * total + n
    tl.store(target, row_max, mask=inside)
    tl.store(target + total, log2_sum, mask=inside)
    tl.store(target + 2 * total, soft, mask=inside)
    tl.store(target + 3 * total, a, mask=inside)
