# ruff: noqa: N803 - compile-time parameters are upper case, as everywhere in Triton
# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
r"""What the focal contrastive loss does with pairs of rows, in Triton: tiles of scores that never leave the chip.

A positive pair adds g(s, L), with l = s - L, and its derivatives are those of csrc/focal.h::

    g(s, L) = -h l      h = base^gamma,  base = (1 - z.z') / 2  or  1 - e^l,  clamped to [floor, 1]
    dg/ds = -h - h' l   h' = -(gamma tau / 2) base^(gamma - 1)  or  -gamma e^l base^(gamma - 1), or 0 (detached, clamped)
    dg/dL = h (similarity) or -dg/ds (probability)              G_i = sum_P dg/dL

    W_ij = a_i ([j in P(i)] dg/ds(s_ij, L_i) + e^(s_ij - L_i) G_i)
    dZ = (W + W') Z / tau       dtau = -sum W_ij s_ij / tau, where W leaves out h' of similarity

Rows and columns are apart: the same packed rows in a batch, any two sets of them elsewhere. A program owns BLOCK_N
rows and one of ``splits`` runs of columns, tile by tile. Neither pass asks which columns are candidates beyond their
label: those that a row must not see are not handed in, and a row that is no anchor has a = G = 0.

With unit rows and tau >= 0.025 (BOUNDED) no score exceeds 1/tau, and e^(s - 1/tau) underflows for none: it needs no
running maximum, and one exponential serves both rows of a pair. Scores count in units of log 2.
"""

import triton
import triton.language as tl

from merc_kernels._triton.focal_contrastive_rows import LN2, LOG2E, LOWEST, double, merged, scalar

SUMS, TERMS, BOTH = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
ANY = tl.constexpr(3)  # POWER: gamma is 0, 1, 2 or any other
_PER_CALL = ["rows", "row_first", "row_total", "columns", "column_first", "column_total", "first_group"]
_PER_CALL += ["splits", "tiles", "temperature", "gamma", "ignore_index"]


@triton.jit
def _vectors(z_ptr, n, count, lane, width):
    # [BLOCK, BLOCK_D], 0 beyond the last row and feature
    return tl.load(z_ptr + n[:, None] * width + lane[None, :], mask=(n < count)[:, None] & (lane < width)[None, :], other=0)


@triton.jit
def _products(row_z_ptr, column_z_ptr, i, j, rows, columns, width, dtype: tl.constexpr, PRECISION: tl.constexpr,
              CHUNKS: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    # z.z' of rows too wide to hold, chunk by chunk: [BLOCK_N, BLOCK_M]
    product = tl.zeros([i.shape[0], j.shape[0]], dtype)
    for chunk in range(0, CHUNKS):
        lane = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
        row_z = _vectors(row_z_ptr, i, rows, lane, width)
        column_z = _vectors(column_z_ptr, j, columns, lane, width)
        product = tl.dot(row_z, tl.trans(column_z), product, input_precision=PRECISION, out_dtype=dtype)
    return product


@triton.jit
def _power(base, gamma, POWER: tl.constexpr):
    # base^gamma and gamma base^(gamma - 1), 0 where clamped
    floor: tl.constexpr = 1.1102230246251565e-16 if base.dtype == tl.float64 else 5.9604644775390625e-08
    low, high = base < floor, base > 1
    clamped = tl.where(low, floor, tl.where(high, 1.0, base))  # a NaN stays one
    if POWER == 0:
        h, slope = tl.full(base.shape, 1.0, base.dtype), tl.zeros_like(base)
    elif POWER == 1:
        h, slope = clamped, tl.full(base.shape, 1.0, base.dtype)
    elif POWER == 2:
        h, slope = clamped * clamped, 2 * clamped
    else:
        h = tl.exp2(gamma * tl.log2(clamped))
        slope = gamma * h / clamped
    return h, tl.where(low | high, 0.0, slope)


@triton.jit
def _minus_expm1(x):
    # 1 - e^x for x <= 0, without cancellation
    series = tl.full(x.shape, 1.0, x.dtype)
    TERMS: tl.constexpr = 16 if x.dtype == tl.float64 else 8
    for k in tl.static_range(TERMS, 1, -1):
        series = 1 + series * x * (1.0 / k)
    return tl.where(x > -0.35, -x * series, 1 - tl.exp2(x * LOG2E))


@triton.jit
def _probability(ell, gamma, DETACH: tl.constexpr, POWER: tl.constexpr):
    # h and dg/ds of l = s - L
    base = _minus_expm1(ell)
    h, slope = _power(base, gamma, POWER)
    by_s = -h
    if not DETACH:
        by_s -= (base - 1) * slope * ell
    return h, by_s


@triton.jit
def _place(rows, splits, BLOCK_N: tl.constexpr):
    # Row block, split and group of a program; neighbours read the same columns
    blocks = tl.cdiv(rows, BLOCK_N)
    rest = tl.program_id(0) // blocks
    return tl.program_id(0) % blocks * BLOCK_N, rest % splits, (rest // splits).to(tl.int64)


@triton.jit(do_not_specialize=_PER_CALL)
def pair_sums_kernel(
    partial_ptr,  # (splits, 5, G rows): m, sum 2^(s - m) over candidates; over positives |P|, sum dg/dL, value
    row_z_ptr,  # (G, row_total, D)
    row_label_ptr,
    column_z_ptr,  # (G, column_total, D)
    column_label_ptr,
    temperature_ptr,
    rows,
    row_first,
    row_total,
    columns,
    column_first,
    column_total,
    groups,
    splits,
    tiles,
    width,
    temperature: tl.int64,
    gamma: tl.int64,
    ignore_index: tl.int64,
    STEP: tl.constexpr,  # BOTH for similarity; for probability SUMS, and then TERMS, which needs L
    DETACH: tl.constexpr,
    POWER: tl.constexpr,
    BOUNDED: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sums over the candidates of BLOCK_N anchors in one run of columns."""
    dtype: tl.constexpr = partial_ptr.dtype.element_ty
    start, split, g = _place(rows, splits, BLOCK_N)
    i = start + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    row_base, column_base = g * row_total + row_first, g * column_total + column_first
    row_z_ptr += row_base * width
    column_z_ptr += column_base * width
    label = tl.load(row_label_ptr + row_base + i, mask=i < rows, other=ignore_index)
    lane = tl.arange(0, BLOCK_D)
    if CHUNKS == 1:
        row_z = _vectors(row_z_ptr, i, rows, lane, width)  # [BLOCK_N, BLOCK_D]
    to_score = 1 / scalar(temperature_ptr, temperature, dtype) * LOG2E
    power = double(gamma).to(dtype)
    all_rows = groups.to(tl.int64) * rows
    row = g * rows + i

    top = tl.full([BLOCK_N], LOWEST, dtype)
    if BOUNDED:
        top = tl.zeros([BLOCK_N], dtype) + to_score
    e_sum = tl.zeros([BLOCK_N], dtype)
    count = tl.zeros([BLOCK_N], dtype)
    slope_sum = tl.zeros([BLOCK_N], dtype)
    value = tl.zeros([BLOCK_N], dtype)
    level = tl.zeros([BLOCK_N], dtype)
    if STEP == TERMS:
        m, e = merged(partial_ptr, row, i < rows, all_rows, splits, dtype, BLOCK_N)
        level = m + tl.log2(tl.where(e > 0, e, 1.0))
    for tile in range(0, tiles):
        j = (split * tiles + tile) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
        column_label = tl.load(column_label_ptr + column_base + j, mask=j < columns, other=ignore_index)
        if CHUNKS == 1:
            column_z = _vectors(column_z_ptr, j, columns, lane, width)  # [BLOCK_M, BLOCK_D]
            cosine = tl.dot(row_z, tl.trans(column_z), input_precision=PRECISION, out_dtype=dtype)  # [BLOCK_N, BLOCK_M]
        else:
            cosine = _products(
                row_z_ptr, column_z_ptr, i, j, rows, columns, width, dtype, PRECISION, CHUNKS, BLOCK_D
            )
        score = cosine * to_score
        other = (i + row_first)[:, None] != (j + column_first)[None, :]
        if STEP != TERMS:
            bias = tl.where(column_label != ignore_index, 0.0, -float("inf")).to(dtype)
            if BOUNDED:
                e = tl.exp2(score + (bias - to_score)[None, :])
                e_sum += tl.sum(tl.where(other, e, 0.0), 1)
            else:
                seen = tl.where(other, score + bias[None, :], -float("inf"))
                higher = tl.maximum(top, tl.max(seen, 1))
                e_sum = e_sum * tl.exp2(top - higher) + tl.sum(tl.exp2(seen - higher[:, None]), 1)
                value += slope_sum * (top - higher)  # Q, from the new maximum
                top = higher
        if STEP != SUMS:
            positive = other & (label[:, None] == column_label[None, :])  # of a row that is not kept: never used
            count += tl.sum(tl.where(positive, 1.0, 0.0).to(dtype), 1)
            if STEP == BOTH:
                h, _ = _power(0.5 - 0.5 * cosine, power, POWER)
                h = tl.where(positive, h, 0.0)
                slope_sum += tl.sum(h, 1)
                value += tl.sum(h * (score - top[:, None]), 1)
            else:
                ell = (score - level[:, None]) * LN2
                h, by_s = _probability(ell, power, DETACH, POWER)
                slope_sum += tl.sum(tl.where(positive, -by_s, 0.0), 1)
                value += tl.sum(tl.where(positive, -h * ell, 0.0), 1)

    place = partial_ptr + split.to(tl.int64) * 5 * all_rows + row
    if STEP != TERMS:
        tl.store(place, top, mask=i < rows)
        tl.store(place + all_rows, e_sum, mask=i < rows)
    if STEP != SUMS:
        tl.store(place + 2 * all_rows, count, mask=i < rows)
        tl.store(place + 3 * all_rows, slope_sum, mask=i < rows)
        tl.store(place + 4 * all_rows, value, mask=i < rows)


@triton.jit
def _numbers(numbers_ptr, n, inside, total):
    # L, the soft part's factor, a; a row that is not there is no anchor
    level = tl.load(numbers_ptr + n, mask=inside, other=1e30)
    soft = tl.load(numbers_ptr + total + n, mask=inside, other=0.0)
    return level, soft, tl.load(numbers_ptr + 2 * total + n, mask=inside, other=0.0)


@triton.jit(do_not_specialize=_PER_CALL)
def pair_gradient_kernel(
    out_ptr,  # (splits, G, rows, D): tau dZ; with MATRIX (G, rows, columns): W + W'; None
    tau_ptr,  # (programs,): sums of -W s / tau, or None
    row_z_ptr,  # (G, row_total, D)
    row_label_ptr,
    row_numbers_ptr,  # (G, 3, row_total)
    column_z_ptr,
    column_label_ptr,
    column_numbers_ptr,
    temperature_ptr,
    scale_ptr,  # of W + W' in what is written, where 16 bits do not reach; or None
    rows,
    row_first,
    row_total,
    columns,
    column_first,
    column_total,
    first_group,
    groups,
    splits,
    tiles,
    width,
    temperature: tl.int64,
    gamma: tl.int64,
    ignore_index: tl.int64,
    SIMILARITY: tl.constexpr,
    DETACH: tl.constexpr,
    POWER: tl.constexpr,
    BOUNDED: tl.constexpr,
    MATRIX: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradient of BLOCK_N rows from one run of columns."""
    dtype: tl.constexpr = row_numbers_ptr.dtype.element_ty
    start, split, group = _place(rows, splits, BLOCK_N)
    g = group + first_group
    i = start + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    row_base, column_base = g * row_total + row_first, g * column_total + column_first
    row_z_ptr += row_base * width
    column_z_ptr += column_base * width
    row_numbers_ptr += g * 3 * row_total + row_first
    column_numbers_ptr += g * 3 * column_total + column_first
    label = tl.load(row_label_ptr + row_base + i, mask=i < rows, other=ignore_index)
    level, soft, a = _numbers(row_numbers_ptr, i, i < rows, row_total)
    lane = tl.arange(0, BLOCK_D)
    if CHUNKS == 1:
        row_z = _vectors(row_z_ptr, i, rows, lane, width)  # [BLOCK_N, BLOCK_D]
    tau = scalar(temperature_ptr, temperature, dtype)
    to_score = 1 / tau * LOG2E
    power = double(gamma).to(dtype)
    dz = tl.zeros([BLOCK_N, BLOCK_D], dtype)
    dtau = tl.zeros([BLOCK_N], dtype)
    for tile in range(0, tiles):
        j = (split * tiles + tile) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
        column_label = tl.load(column_label_ptr + column_base + j, mask=j < columns, other=ignore_index)
        column_level, column_soft, column_a = _numbers(column_numbers_ptr, j, j < columns, column_total)
        if CHUNKS == 1:
            column_z = _vectors(column_z_ptr, j, columns, lane, width)  # [BLOCK_M, BLOCK_D]
            cosine = tl.dot(row_z, tl.trans(column_z), input_precision=PRECISION, out_dtype=dtype)  # [BLOCK_N, BLOCK_M]
        else:
            cosine = _products(
                row_z_ptr, column_z_ptr, i, j, rows, columns, width, dtype, PRECISION, CHUNKS, BLOCK_D
            )
        score = cosine * to_score
        if BOUNDED:
            e = tl.exp2(score - to_score)
            soft_one, soft_other = soft[:, None] * e, column_soft[None, :] * e
        else:  # no candidate has s > L; what is no candidate must not overflow
            soft_one = soft[:, None] * tl.exp2(tl.minimum(score - level[:, None], 0.0))
            soft_other = column_soft[None, :] * tl.exp2(tl.minimum(score - column_level[None, :], 0.0))
        positive = label[:, None] == column_label[None, :]
        other = (i + row_first)[:, None] != (j + column_first)[None, :]
        if SIMILARITY:
            h, slope = _power(0.5 - 0.5 * cosine, power, POWER)
            one = -h * a[:, None]
            hard = -h * (a[:, None] + column_a[None, :])
            if not DETACH:
                pull = a[:, None] * (score - level[:, None]) + column_a[None, :] * (score - column_level[None, :])
                hard += slope * pull * (0.5 * tau * LN2)
        else:
            _, by_s = _probability(tl.minimum(score - level[:, None], 0.0) * LN2, power, DETACH, POWER)
            one = a[:, None] * by_s
            _, by_s = _probability(tl.minimum(score - column_level[None, :], 0.0) * LN2, power, DETACH, POWER)
            hard = one + column_a[None, :] * by_s
        if tau_ptr is not None:
            w = tl.where(other, soft_one + tl.where(positive, one, 0.0), 0.0)
            dtau += tl.sum(w * cosine, 1)
        if out_ptr is not None:
            m = tl.where(other, soft_one + soft_other + tl.where(positive, hard, 0.0), 0.0)
            if scale_ptr is not None:
                m *= tl.load(scale_ptr)
            if MATRIX:
                place = out_ptr + ((group * rows + i) * columns)[:, None] + j[None, :]
                tl.store(place, m, mask=(i < rows)[:, None] & (j < columns)[None, :])
            else:
                dz = tl.dot(m.to(column_z.dtype), column_z, dz, input_precision=PRECISION, out_dtype=dtype)

    if tau_ptr is not None:
        tl.store(tau_ptr + tl.program_id(0), tl.sum(dtau, 0) / -(tau * tau))
    if out_ptr is not None and not MATRIX:
        row = (split.to(tl.int64) * groups + group) * rows + i
        mask = (i < rows)[:, None] & (lane < width)[None, :]
        tl.store(out_ptr + (row * width)[:, None] + lane[None, :], dz, mask=mask)
