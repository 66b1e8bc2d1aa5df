# ruff: noqa: N803, N806 - compile-time parameters are upper case, as everywhere in Triton
# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
r"""The gradient of the focal contrastive loss by its unit rows, and by the temperature, in Triton.

::

    W_ij = a_i ([j in P(i)] dg/ds(s_ij, L_i) + e^(s_ij - L_i) G_i)        G_i = sum_P dg/dL
    dZ = (W + W') Z / tau       dtau = -sum W_ij s_ij / tau, where W leaves out h' of similarity

Letters: s score, L its logarithmic sum over the candidates, P the positives, g what a positive pair adds, h its focal
factor, a = w / |P| with the incoming gradient; N rows, M columns, G groups, D features.

A program owns its rows: both W_ij and W_ji are formed for them, from m, log2 E, G and a of either row. A row that is no
anchor has a = G = 0, one that is not kept z = 0: neither needs a mask. What falls to a row that is not kept is never
read.
"""

import triton
import triton.language as tl

from merc_kernels.focal_contrastive.triton.numbers import LN2, NEVER, factor_of, log2_per_tau, scalar
from merc_kernels.focal_contrastive.triton.tiles import (
    PER_CALL,
    apart,
    dot,
    extent,
    factor_options,
    half,
    labels,
    parts,
    place,
    probability,
    products,
    raised,
    vectors,
    whole,
)


@triton.jit
def _stats(scaled_ptr, n, count, total, AXIS: tl.constexpr):
    # m, log2 E, the factor of e^s, a, as a column or a row of the tile; a row that is not there is no anchor
    row_max = tl.load(scaled_ptr + n, mask=n < count, other=NEVER)
    log2_sum = tl.load(scaled_ptr + total + n, mask=n < count, other=0.0)
    soft = tl.load(scaled_ptr + 2 * total + n, mask=n < count, other=0.0)
    a = tl.load(scaled_ptr + 3 * total + n, mask=n < count, other=0.0)
    return (
        tl.expand_dims(row_max, AXIS),
        tl.expand_dims(log2_sum, AXIS),
        tl.expand_dims(soft, AXIS),
        tl.expand_dims(a, AXIS),
    )


@triton.jit
def _weights(
    cosine,
    alike,
    row,
    column,
    to_score,
    tau,
    of_factor,
    SIMILARITY: tl.constexpr,
    DETACH: tl.constexpr,
    POWER: tl.constexpr,
    BOUNDED: tl.constexpr,
):
    # W + W' of a tile's pairs, and W without h' of similarity; those of a row with itself too
    row_max, log2_sum, soft, a = row  # [BLOCK_N, 1]
    column_max, column_log2_sum, column_soft, column_a = column  # [1, PART]
    score = cosine * to_score
    ell = (score - row_max) - log2_sum
    column_ell = (score - column_max) - column_log2_sum
    if BOUNDED:
        e = tl.exp2(score)
        soft_w, soft_m = soft * e, (soft + column_soft) * e
    else:  # no candidate has s > L; what is no candidate must not overflow
        ell, column_ell = tl.where(ell > 0, 0.0, ell), tl.where(column_ell > 0, 0.0, column_ell)  # a NaN stays one
        p, column_p = tl.exp2(ell), tl.exp2(column_ell)
        soft_w = soft * p
        soft_m = soft_w + column_soft * column_p
    if SIMILARITY:
        h, slope = raised(0.5 - 0.5 * cosine, of_factor, POWER)
        hard_w, hard_m = -h * a, -h * (a + column_a)
        if not DETACH:
            hard_m += slope * (a * ell + column_a * column_ell) * (0.5 * tau * LN2)
    else:
        _, by_s = probability(ell, p, of_factor, DETACH, POWER)
        hard_w = a * by_s
        _, by_s = probability(column_ell, column_p, of_factor, DETACH, POWER)
        hard_m = hard_w + column_a * by_s
    return tl.where(alike, soft_m + hard_m, soft_m), tl.where(alike, soft_w + hard_w, soft_w)


@triton.jit(do_not_specialize=PER_CALL)
def pair_gradient_kernel(
    out_ptr,  # (splits, G, rows, D): tau dZ; with MATRIX (G, rows, columns of whole tiles): W + W'; or None
    tau_ptr,  # (programs,), or None
    row_z_ptr,  # (G, row_total, D)
    row_label_ptr,
    row_stats_ptr,  # (G, 4, row_total)
    column_z_ptr,
    column_label_ptr,
    column_stats_ptr,
    temperature_ptr,
    matrix_scale_ptr,  # of W + W' in what is written, where 16 bits do not reach; or None
    rows,
    row_first,
    row_total,
    columns,
    column_first,
    column_total,
    first_group,
    groups,
    splits,
    tiles,  # a split
    chunks,  # of BLOCK_D features
    width,
    floats,  # `float_options`
    SIMILARITY: tl.constexpr,
    DETACH: tl.constexpr,
    POWER: tl.constexpr,
    BOUNDED: tl.constexpr,
    MATRIX: tl.constexpr,
    PRECISION: tl.constexpr,
    WHOLE: tl.constexpr,  # one chunk, which stays on the chip
    SYMMETRIC: tl.constexpr,  # MATRIX of rows that are the columns: half of its tiles, each stored twice
    SORTED: tl.constexpr,  # by label, and BOUNDED, with no gradient of tau
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Gradient of BLOCK_N rows from every ``splits``-th tile of columns."""
    PART: tl.constexpr = BLOCK_M // PARTS
    dtype: tl.constexpr = row_stats_ptr.dtype.element_ty
    BLOCK: tl.constexpr = BLOCK_M if BLOCK_M > BLOCK_N else BLOCK_N
    start, split, group = place(tl.cdiv(rows, BLOCK) * BLOCK if SYMMETRIC else rows, splits, BLOCK_N)
    g = group + first_group
    i = start + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    row_base, column_base = g * row_total + row_first, g * column_total + column_first
    row_z_ptr += row_base * width
    column_z_ptr += column_base * width
    column_label_ptr += column_base
    column_stats_ptr += g * 4 * column_total + column_first
    label = labels(row_label_ptr + row_base, i, rows)[:, None]
    row = _stats(row_stats_ptr + g * 4 * row_total + row_first, i, rows, row_total, 1)
    lane = tl.arange(0, BLOCK_D)
    if WHOLE:
        row_z = vectors(row_z_ptr, start, rows, lane, width, BLOCK_N)  # [BLOCK_N, BLOCK_D]
    tau, to_score = scalar(temperature_ptr, floats.temperature, dtype), log2_per_tau(temperature_ptr, floats, dtype)
    of_factor = factor_options(floats, dtype)
    matrix_scale = tl.full([], 1.0, dtype)
    if matrix_scale_ptr is not None:
        matrix_scale = tl.load(matrix_scale_ptr)
    dz = tl.zeros([BLOCK_N, BLOCK_D], dtype)
    dtau = tl.zeros([BLOCK_N], dtype)
    if SORTED:
        low, high = extent(row_label_ptr + row_base, start, rows, BLOCK_N)
    for tile in range(0, tiles):
        first = (tile * splits + split) * BLOCK_M
        if SYMMETRIC:
            first, blocks_ahead = half(tile * splits + split, start, columns, BLOCK, BLOCK_M)
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
        ahead = start + row_first - first - column_first  # of the columns
        diagonal = (ahead < BLOCK_M) & (ahead > -BLOCK_N)  # it holds pairs of a row with itself
        cosines = parts(cosine, PARTS)
        if not SORTED:
            strangers: tl.constexpr = False  # a branch that is not compiled
        else:
            strangers = apart(column_label_ptr, first, columns, low, high, BLOCK_M)
        ms = ()
        for part in tl.static_range(0, PARTS):
            j = first + part * PART + tl.arange(0, PART)
            some = cosines[part]
            if strangers:  # no row is another's positive, or itself
                soft = row[2] + tl.load(column_stats_ptr + 2 * column_total + j)[None, :]
                m = (soft * tl.exp2(some * to_score) * matrix_scale).to(row_z_ptr.dtype.element_ty)
            else:
                alike = label == labels(column_label_ptr, j, columns)[None, :]
                column = _stats(column_stats_ptr, j, columns, column_total, 0)
                m, w = _weights(some, alike, row, column, to_score, tau, of_factor, SIMILARITY, DETACH, POWER, BOUNDED)
                other = (i + row_first)[:, None] != (j + column_first)[None, :]
                if tau_ptr is not None:
                    dtau += tl.sum(tl.where(other, w * some, 0.0), 1)
                if diagonal:
                    m = tl.where(other, m, 0.0)
                m = (m * matrix_scale).to(row_z_ptr.dtype.element_ty)
            if MATRIX and out_ptr is not None:
                m = factor_of(m, PRECISION)
                if SYMMETRIC:
                    stride = tl.cdiv(columns, BLOCK) * BLOCK
                    target = out_ptr + (i.to(tl.int64) * stride)[:, None] + j[None, :]
                    tl.store(target, m, mask=((i < rows) & (first < columns))[:, None])
                    if blocks_ahead > 0:
                        mirror = out_ptr + (j.to(tl.int64) * stride)[:, None] + i[None, :]
                        tl.store(mirror, tl.trans(m), mask=(j < columns)[:, None])
                else:
                    stride = splits * tiles * BLOCK_M  # Triton sees a multiple of it: 16 bytes at a time
                    target = out_ptr + ((group * rows + i) * stride)[:, None] + j[None, :]
                    tl.store(target, m, mask=(i < rows)[:, None])
            ms += (m,)  # type: ignore[assignment]
        if not MATRIX and out_ptr is not None:
            m = factor_of(whole(ms, PARTS), PRECISION)
            dz = dot(m, column_z, dz, PRECISION)

    if tau_ptr is not None:
        tl.store(tau_ptr + tl.program_id(0), tl.sum(dtau, 0) / -(tau * tau))
    if not MATRIX and out_ptr is not None:
        target = (split.to(tl.int64) * groups + group) * rows + i
        mask = (i < rows)[:, None] & (lane < width)[None, :]
        tl.store(out_ptr + (target * width)[:, None] + lane[None, :], dz, mask=mask)
