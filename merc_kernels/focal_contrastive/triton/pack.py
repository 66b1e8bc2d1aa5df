# ruff: noqa: N803 - compile-time parameters are upper case, as everywhere in Triton
# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
r"""What the focal contrastive loss does a row at a time, in Triton: linear work around the pairs of rows.

    pack      z = x / |x|, rounded to what products take, 1 / |x|, the label
    rank      labels of 64 bits as numbers of 32, which is what the pairs compare; -1 where a row is not kept. A scan
              takes T / RANK_BLOCK steps where all labels differ: of many rows `enter` and `look_up` make a hash table
    finish    from the partial sums of `pair_sums_kernel`:  L = m + log2 E,  H = sum h,  Q = sum h (s - m):
              value = H log2 E - Q (similarity), or summed as it is (probability);  a = w / |P|,  loss = a value
    scaled    what a pair needs of either row, with the incoming gradient u in a: m, log2 E, a G, a
    unpack    dX = (dZ - (z.dZ) z) / |x|, summed over splits, and over the groups that share a row

Letters: x a row, z the same of length 1; D features, N rows of a source and T of all sources, G groups; m the largest
score of a row, E = sum 2^(s - m), P its positives, h the focal factor, w a class weight.

Scores count in units of log 2 (s = z.z' log2(e) / tau), for 2^x is what the chip has. L stays in two parts, so that
s - L keeps its digits where one candidate holds nearly all of p. Every output element has one program that writes it,
and sums run in a fixed order: no atomics but in the table of labels, the same bits on every run.
"""

import triton
import triton.language as tl

from merc_kernels._shared.triton.scalars import double

LN2, LOG2E = tl.constexpr(0.6931471805599453), tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e38)  # where a maximum starts: differences stay finite
NEVER = tl.constexpr(1e30)  # m of a row that is no anchor: 2^(s - m) = 0, and 0 m is no NaN


@triton.jit
def scalar(pointer, bits, dtype: tl.constexpr):
    """The number on the device, where there is one."""
    value = double(bits).to(dtype)
    if pointer is not None:
        value = tl.load(pointer).to(dtype)
    return value


@triton.jit
def divided(x, y):
    """The quotient, rounded to the nearest; in float32 the plain operator may be two roundings off."""
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)


@triton.jit
def root(x):
    """The square root, rounded to the nearest."""
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def factor_of(x, PRECISION: tl.constexpr):
    """What a product is given of x: a tensor core cuts float32 to the 10 bits of tf32, so it is rounded before."""
    if x.dtype == tl.float32 and PRECISION == "tf32":
        bits = x.to(tl.int32, bitcast=True)
        x = tl.where(x == x, ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True), x)  # a NaN might carry over
    return x


@triton.jit
def log2_per_tau(pointer, bits, dtype: tl.constexpr):
    """log2(e) / tau, rounded once: an error in it is one of every score."""
    tau = double(bits)
    if pointer is not None:
        tau = tl.load(pointer).to(tl.float64)
    return (1 / tau * LOG2E).to(dtype)


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


@triton.jit(do_not_specialize=["anchors", "total", "groups", "splits"])
def finish_kernel(
    stats_ptr,  # (G, T, 4): m, G, a, log2 E
    loss_ptr,  # (G, anchors), or with PARTIAL (2, programs): sums of losses, counts of rows
    partial_ptr,  # (splits, 5, G anchors)
    index_ptr,  # (G, T)
    weights_ptr,  # (C,) or None
    anchors,
    total,
    groups,
    splits,
    SIMILARITY: tl.constexpr,
    BOUNDED: tl.constexpr,
    PARTIAL: tl.constexpr,
    KEPT: tl.constexpr,  # count the kept anchors, not those with a positive
    BLOCK: tl.constexpr,
):
    """Statistics and losses of BLOCK rows."""
    dtype: tl.constexpr = stats_ptr.dtype.element_ty
    blocks = tl.cdiv(total, BLOCK)
    g = (tl.program_id(0) // blocks).to(tl.int64)
    n = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    is_anchor = n < anchors
    label = tl.load(index_ptr + g * total + n, mask=is_anchor, other=-1)
    kept = label >= 0
    row = g * anchors + n
    all_rows = groups.to(tl.int64) * anchors
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
    place = stats_ptr + (g * total + n) * 4
    tl.store(place, tl.where(counts, top, NEVER), mask=n < total)
    tl.store(place + 1, tl.where(counts, slope, 0.0), mask=n < total)
    tl.store(place + 2, a, mask=n < total)
    tl.store(place + 3, log2_sum, mask=n < total)
    if PARTIAL:
        counted = kept if KEPT else counts
        tl.store(loss_ptr + tl.program_id(0), tl.sum(loss, 0))
        tl.store(loss_ptr + tl.num_programs(0) + tl.program_id(0), tl.sum(counted.to(tl.int32), 0).to(dtype))
    else:
        tl.store(loss_ptr + row, loss, mask=is_anchor)


@triton.jit(do_not_specialize=["stride_ug", "stride_un", "total"])
def scaled_stats_kernel(
    scaled_ptr,  # (G, 4, T): m; log2 E; a G, with BOUNDED times e^-L; a
    stats_ptr,  # (G, T, 4)
    grad_ptr,  # a scalar (strides 0), or (G, N)
    divisor_ptr,
    stride_ug,
    stride_un,
    total,
    BOUNDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What the gradient's pairs read of BLOCK rows."""
    blocks = tl.cdiv(total, BLOCK)
    g = (tl.program_id(0) // blocks).to(tl.int64)
    n = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = n < total
    place = stats_ptr + (g * total + n) * 4
    row_max = tl.load(place, mask=inside, other=NEVER)
    log2_sum = tl.load(place + 3, mask=inside, other=0.0)
    a = tl.load(place + 2, mask=inside, other=0.0)
    counts = a != 0  # what a row that does not count is sent, a NaN too, reaches nothing
    a = tl.where(counts, a * tl.load(grad_ptr + g * stride_ug + n * stride_un, mask=counts, other=0.0), 0.0)
    a /= tl.load(divisor_ptr)
    soft = a * tl.load(place + 1, mask=inside, other=0.0)
    if BOUNDED:
        soft *= tl.exp2(-row_max) * tl.exp2(-log2_sum)
    target = scaled_ptr + g * 4 * total + n
    tl.store(target, row_max, mask=inside)
    tl.store(target + total, log2_sum, mask=inside)
    tl.store(target + 2 * total, soft, mask=inside)
    tl.store(target + 3 * total, a, mask=inside)


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
        "temperature",
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
    temperature: tl.int64,
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
    factor = 1 / scalar(temperature_ptr, temperature, dtype)
    if matrix_scale_ptr is not None:
        factor /= tl.load(matrix_scale_ptr)
    row = start * source_rows + row_first + n
    tl.store(out_ptr + (row * width)[:, None] + lane[None, :], total_grad * factor, mask=inside)
