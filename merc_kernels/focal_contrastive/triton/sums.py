# ruff: noqa: N803, N806 - compile-time parameters are upper case, as everywhere in Triton
# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
r"""Sums over the candidates of each anchor, in Triton.

::

    m = max s, or 0 with BOUNDED    E = sum 2^(s - m)    |P|
    similarity:   H = sum_P h       Q = sum_P h (s - m)
    probability:  G = sum_P dg/dL   sum_P g

Letters: s score, m its maximum over the candidates, P the positives, h the focal factor of a pair, g what a positive
pair adds, L = m + log2 E; N rows, M columns, G groups, D features.

Similarity takes one sweep, for neither H nor Q depends on L. Probability takes two, as h does. Which columns are
candidates is a matter of their label alone: a row that an anchor must not see is not handed in. With BOUNDED, which
needs no maximum, each lane sums over the tiles by itself, and lanes are added up once; m is not kept then.
"""

import triton
import triton.language as tl

from merc_kernels.focal_contrastive.triton.numbers import LN2, LOWEST, log2_per_tau
from merc_kernels.focal_contrastive.triton.stats import merged
from merc_kernels.focal_contrastive.triton.tiles import (
    PER_CALL,
    apart,
    dot,
    extent,
    factor_options,
    half,
    labels,
    one_beside,
    parts,
    place,
    probability,
    products,
    raised,
    vectors,
)

LSE, TERMS, BOTH = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _added_bounded(sums, cosine, alike, other, bias, to_score, of_factor, POWER: tl.constexpr):
    # As `_added`, for each lane by itself: [BLOCK_N, PART], added up across lanes once the tiles are done
    top, e_sum, count, slope_sum, value = sums
    score = cosine * to_score + bias[None, :]
    e_sum = tl.where(other, e_sum + tl.exp2(score), e_sum)
    h, _ = raised(0.5 - 0.5 * cosine, of_factor, POWER)
    positive = other & alike  # of a row that is not kept: never used
    count = tl.where(positive, count + one_beside(cosine), count)
    slope_sum = tl.where(positive, slope_sum + h, slope_sum)
    return top, e_sum, count, slope_sum, tl.where(positive, value + h * score, value)


@triton.jit
def _added_to_both(sums, column_ptr, all_rows, mask, cosine, alike, bias, to_score, of_factor, POWER: tl.constexpr):
    # As `_added_bounded`, with a bias of each pair; what the pairs add to their columns is stored
    top, e_sum, count, slope_sum, value = sums
    score = cosine * to_score + bias
    e = tl.exp2(score)
    h, _ = raised(0.5 - 0.5 * cosine, of_factor, POWER)
    one = tl.where(alike, one_beside(cosine), 0.0)
    h = tl.where(alike, h, 0.0)
    term = tl.where(alike, h * score, 0.0)
    for k in tl.static_range(0, 4):
        tl.store(column_ptr + k * all_rows, tl.sum((e, one, h, term)[k], 0), mask=mask)
    return top, e_sum + e, count + one, slope_sum + h, value + term


@triton.jit
def _added(
    sums,
    cosine,
    alike,
    other,
    bias,
    row_max,
    log2_sum,
    to_score,
    of_factor,
    STEP: tl.constexpr,
    DETACH: tl.constexpr,
    POWER: tl.constexpr,
):
    # The sums, with the pairs of a part of a tile
    top, e_sum, count, slope_sum, value = sums
    score = cosine * to_score
    if STEP != TERMS:
        seen = tl.where(other, score + bias[None, :], -float("inf"))
        higher = tl.maximum(top, tl.max(seen, 1))
        e_sum = e_sum * tl.exp2(top - higher) + tl.sum(tl.exp2(seen - higher[:, None]), 1)
        value += slope_sum * (top - higher)  # Q, from the new maximum
        top = higher
    if STEP != LSE:
        positive = other & alike  # of a row that is not kept: never used
        count += tl.sum(tl.where(positive, 1.0, 0.0).to(top.dtype), 1)
        if STEP == BOTH:
            h, _ = raised(0.5 - 0.5 * cosine, of_factor, POWER)
            h = tl.where(positive, h, 0.0)
            slope_sum += tl.sum(h, 1)
            value += tl.sum(tl.where(positive, h * (score - top[:, None]), 0.0), 1)
        else:
            ell = (score - row_max[:, None]) - log2_sum[:, None]
            h, by_s = probability(ell, tl.exp2(ell), of_factor, DETACH, POWER)
            slope_sum += tl.sum(tl.where(positive, -by_s, 0.0), 1)
            value += tl.sum(tl.where(positive, -h * ell * LN2, 0.0), 1)
    return top, e_sum, count, slope_sum, value


@triton.jit(do_not_specialize=PER_CALL)
def pair_sums_kernel(
    partial_ptr,  # (splits, 5, G rows), with BOUNDED 4; SYMMETRIC: behind them of columns, by how far they are ahead
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
    tiles,  # a split
    chunks,  # of BLOCK_D features
    width,
    floats,  # `float_options`
    STEP: tl.constexpr,  # BOTH for similarity; for probability LSE, and then TERMS
    DETACH: tl.constexpr,
    POWER: tl.constexpr,
    BOUNDED: tl.constexpr,
    PRECISION: tl.constexpr,
    WHOLE: tl.constexpr,  # one chunk, which stays on the chip
    SORTED: tl.constexpr,  # by label, and BOUNDED
    SYMMETRIC: tl.constexpr,  # BOUNDED and not SORTED, of rows that are the columns: half of the pairs serves both rows
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Sums of BLOCK_N anchors over every ``splits``-th tile of columns."""
    PART: tl.constexpr = BLOCK_M // PARTS
    PLANES: tl.constexpr = 4 if BOUNDED else 5
    dtype: tl.constexpr = partial_ptr.dtype.element_ty
    start, split, g = place(rows, splits, BLOCK_N)
    i = start + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    row_base, column_base = g * row_total + row_first, g * column_total + column_first
    row_z_ptr += row_base * width
    column_z_ptr += column_base * width
    column_label_ptr += column_base
    label = labels(row_label_ptr + row_base, i, rows)[:, None]
    lane = tl.arange(0, BLOCK_D)
    if WHOLE:
        row_z = vectors(row_z_ptr, start, rows, lane, width, BLOCK_N)  # [BLOCK_N, BLOCK_D]
    to_score = log2_per_tau(temperature_ptr, floats, dtype)
    of_factor = factor_options(floats, dtype)
    all_rows = groups.to(tl.int64) * rows
    row = g * rows + i

    zero = tl.zeros([BLOCK_N], dtype)
    row_max, log2_sum = zero, zero
    sums = (zero + LOWEST, zero, zero, zero, zero)
    if BOUNDED:
        lanes = tl.zeros([BLOCK_N, PART], dtype)
        sums = (zero, lanes, lanes, lanes, lanes)
    if STEP == TERMS:
        row_max, e = merged(partial_ptr, row, i < rows, all_rows, splits, dtype, BLOCK_N)
        log2_sum = tl.log2(tl.where(e == 0, 1.0, e))
    if SORTED:
        low, high = extent(row_label_ptr + row_base, start, rows, BLOCK_N)
    for tile in range(0, tiles):
        first = (tile * splits + split) * BLOCK_M
        if SYMMETRIC:
            first, ahead = half(tile * splits + split, start, columns, BLOCK_N, BLOCK_M)
            of_columns = partial_ptr + (splits + ahead - 1).to(tl.int64) * 4 * all_rows
        if WHOLE:
            column_z = vectors(column_z_ptr, first, columns, lane, width, BLOCK_M)  # [BLOCK_M, BLOCK_D]
            cosine = dot(row_z, tl.trans(column_z), tl.zeros([BLOCK_N, BLOCK_M], dtype), PRECISION)
        else:
            cosine = products(
                row_z_ptr,
                column_z_ptr,
                start,
                first,
                rows,
                columns,
                chunks,
                width,
                dtype,
                PRECISION,
                BLOCK_N,
                BLOCK_M,
                BLOCK_D,
            )  # [BLOCK_N, BLOCK_M]
        if not SORTED:
            strangers: tl.constexpr = False  # a branch that is not compiled
        else:
            strangers = apart(column_label_ptr, first, columns, low, high, BLOCK_M)
        cosines = parts(cosine, PARTS)
        if strangers:  # no row is another's positive, or itself
            top, e_sum, count, slope_sum, value = sums
            for part in tl.static_range(0, PARTS):
                e_sum += tl.exp2(cosines[part] * to_score)
            sums = (top, e_sum, count, slope_sum, value)
        else:
            for part in tl.static_range(0, PARTS):
                j = first + part * PART + tl.arange(0, PART)
                column_label = labels(column_label_ptr, j, columns)
                alike = label == column_label[None, :]
                other = (i + row_first)[:, None] != (j + column_first)[None, :]
                bias = tl.where(column_label >= 0, 0.0, -float("inf")).to(dtype)
                some = cosines[part]
                if SYMMETRIC:
                    alike &= other
                    bias = tl.where(other & (label >= 0), bias[None, :], -float("inf"))
                    seen = (j < columns) & (ahead > 0)
                    sums = _added_to_both(
                        sums, of_columns + j, all_rows, seen, some, alike, bias, to_score, of_factor, POWER
                    )
                elif BOUNDED:
                    sums = _added_bounded(sums, some, alike, other, bias, to_score, of_factor, POWER)
                else:
                    sums = _added(
                        sums,
                        some,
                        alike,
                        other,
                        bias,
                        row_max,
                        log2_sum,
                        to_score,
                        of_factor,
                        STEP,
                        DETACH,
                        POWER,
                    )

    target = partial_ptr + split.to(tl.int64) * PLANES * all_rows + row
    for k in tl.static_range(5 - PLANES, 5):
        if (k < 2 and STEP != TERMS) or (k >= 2 and STEP != LSE):
            of_rows = tl.sum(sums[k], 1) if BOUNDED else sums[k]
            tl.store(target + (k + PLANES - 5) * all_rows, of_rows, mask=i < rows)
