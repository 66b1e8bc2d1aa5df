# ruff: noqa: N803, RET505 - compile-time parameters are upper case, as everywhere in Triton; its branches need `else`
# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
r"""A tile of pairs of rows, in Triton: what both sweeps over pairs share.

A positive pair adds g(s, L), with l = s - L, and its derivatives are those of csrc/focal_contrastive/focal.h::

    g(s, L) = -h l      h = base^gamma,  base = (1 - z.z') / 2  or  1 - e^l,  clamped to [floor, 1]
    dg/ds = -h - h' l   h' = -(gamma tau / 2) base^(gamma - 1)  or  -gamma e^l base^(gamma - 1); 0: detached, clamped
    dg/dL = h (similarity) or -dg/ds (probability)

Letters: s score, L its logarithmic sum over the candidates, h the focal factor, z a row of length 1; N rows, M columns,
D features.

Rows and columns are apart: the same packed rows in a batch, any two sets of them elsewhere. A program owns BLOCK_N
rows and every ``splits``-th tile of BLOCK_M columns. Scores count in units of log 2, for 2^x is what the chip
has: s log2(e) here, and L likewise.

With unit rows and tau >= 0.025 (BOUNDED, similarity only) no score exceeds 1/tau, and e^s neither over- nor
underflows: it needs no running maximum, and one exponential serves both rows of a pair. Where a tile's numbers would
not fit the registers, its columns are dealt with in PARTS.
"""

import triton
import triton.language as tl

from merc_kernels._shared.triton.scalars import double
from merc_kernels.focal_contrastive.triton.numbers import LN2
from merc_kernels.focal_contrastive.triton.order import BUCKETS, NAME_BITS, key_of

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
PER_CALL = ["rows", "row_first", "row_total", "columns", "column_first", "column_total", "first_group"]
PER_CALL += ["groups", "splits", "tiles", "chunks"]


@triton.jit
def place(rows, splits, BLOCK_N: tl.constexpr):
    """First row, split and group of a program; neighbours read the same columns."""
    blocks = tl.cdiv(rows, BLOCK_N)
    rest = tl.program_id(0) // blocks
    return tl.program_id(0) % blocks * BLOCK_N, rest % splits, (rest // splits).to(tl.int64)


@triton.jit
def vectors(z_ptr, start, count, lane, width, BLOCK: tl.constexpr):
    """BLOCK rows from ``start``, [BLOCK, BLOCK_D]; 0 beyond the last row and feature."""
    n = tl.arange(0, BLOCK)
    mask = (n < count - start)[:, None] & (lane < width)[None, :]
    return tl.load(z_ptr + start.to(tl.int64) * width + n[:, None] * width + lane[None, :], mask=mask, other=0.0)


@triton.jit
def labels(label_ptr, n, count):
    """Labels of rows n, int32 for half the registers; -1 where no row is kept."""
    return tl.load(label_ptr + n, mask=n < count, other=-1).to(tl.int32)


@triton.jit
def extent(label_ptr, start, count, BLOCK: tl.constexpr):
    """The least and the greatest bucket of BLOCK sorted rows."""
    last = key_of(label_ptr + tl.minimum(start + BLOCK, count) - 1)
    first = key_of(label_ptr + tl.minimum(start, count - 1))
    return first >> NAME_BITS, tl.where(last < 0, BUCKETS, last >> NAME_BITS)


@triton.jit
def apart(label_ptr, first, count, low, high, BLOCK: tl.constexpr):
    """Whether BLOCK sorted columns are all there and kept, and none in a bucket of the rows, ``low`` to ``high``."""
    last = tl.minimum(first + BLOCK, count) - 1
    begin, end = key_of(label_ptr + tl.minimum(first, last)), key_of(label_ptr + last)
    return (first + BLOCK <= count) & (end >= 0) & ((end >> NAME_BITS < low) | (begin >> NAME_BITS > high))


@triton.jit
def half(tile, start, columns, BLOCK: tl.constexpr, BLOCK_M: tl.constexpr):
    """First column of a row block's tile in half of all pairs, and how many blocks it is ahead of the rows.

    A block meets itself and the half of the others that follows it, in a circle; of two that are opposite the lower one
    meets the other. Where there is nothing to meet, the column is ``columns``.
    """
    blocks, own, ahead = tl.cdiv(columns, BLOCK), start // BLOCK, tile // (BLOCK // BLOCK_M)
    block = own + ahead
    block -= tl.where(block < blocks, 0, blocks)
    nothing = (2 * ahead > blocks) | ((2 * ahead == blocks) & (own >= ahead))
    return tl.where(nothing, columns, block * BLOCK + tile % (BLOCK // BLOCK_M) * BLOCK_M), ahead


@triton.jit
def dot(x, y, total, PRECISION: tl.constexpr):
    """``total`` + x y, in its dtype."""
    if INTERPRETED:  # it would multiply the bits of bfloat16
        x, y = x.to(total.dtype), y.to(total.dtype)
    return tl.dot(x, y, total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
def products(
    row_z_ptr,
    column_z_ptr,
    start,
    first,
    rows,
    columns,
    chunks,
    width,
    dtype: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """z.z' of rows too wide to hold, chunk by chunk: [BLOCK_N, BLOCK_M]."""
    product = tl.zeros([BLOCK_N, BLOCK_M], dtype)
    for chunk in range(0, chunks):
        lane = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
        row_z = vectors(row_z_ptr, start, rows, lane, width, BLOCK_N)
        column_z = vectors(column_z_ptr, first, columns, lane, width, BLOCK_M)
        product = dot(row_z, tl.trans(column_z), product, PRECISION)
    return product


@triton.jit
def parts(x, PARTS: tl.constexpr):
    """The columns of a tile in 1, 2, 4 or 8 parts: elements that are dealt with in turn share registers."""
    if PARTS == 1:
        return (x,)
    else:
        left, right = tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1)))
        return parts(left, PARTS // 2) + parts(right, PARTS // 2)


@triton.jit
def whole(x, PARTS: tl.constexpr):
    """The tile of these `parts`."""
    if PARTS == 1:
        return x[0]
    else:
        left, right = whole(x[: PARTS // 2], PARTS // 2), whole(x[PARTS // 2 :], PARTS // 2)
        return tl.reshape(tl.permute(tl.join(left, right), (0, 2, 1)), (left.shape[0], 2 * left.shape[1]))


@triton.jit
def one_beside(x):
    """1 in the registers of x: a constant alone might lie elsewhere, and all that it meets be computed twice."""
    if INTERPRETED or x.dtype != tl.float32:
        return tl.full(x.shape, 1.0, x.dtype)
    else:
        return tl.inline_asm_elementwise("mov.b32 $0, 0x3f800000;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def factor_options(floats, dtype: tl.constexpr):
    """What `raised` takes of the float options."""
    return double(floats.gamma).to(dtype)


@triton.jit
def raised(base, gamma, POWER: tl.constexpr):
    """Factor h = base^gamma and gamma base^(gamma - 1), 0 where clamped; POWER: gamma is 0, 1, 2 or (3) any other."""
    floor: tl.constexpr = 1.1102230246251565e-16 if base.dtype == tl.float64 else 5.9604644775390625e-08
    clamped = tl.clamp(base, floor, 1.0, tl.PropagateNan.ALL)
    if POWER == 0:
        h, slope = one_beside(base), tl.zeros_like(base)
    elif POWER == 1:
        h, slope = clamped, tl.full(base.shape, 1.0, base.dtype)
    elif POWER == 2:
        h, slope = clamped * clamped, 2 * clamped
    else:
        h = tl.exp2(gamma * tl.log2(clamped))
        slope = gamma * h / clamped
    return h, tl.where((base < floor) | (base > 1), 0.0, slope)


@triton.jit
def probability(ell, p, of_factor, DETACH: tl.constexpr, POWER: tl.constexpr):
    """Factor h and dg/ds of l = s - L <= 0, with p = 2^l."""
    natural = ell * LN2
    series = tl.full(ell.shape, 1.0, ell.dtype)  # 1 - e^l without cancellation
    terms: tl.constexpr = 16 if ell.dtype == tl.float64 else 8
    for k in tl.static_range(terms, 1, -1):
        series = 1 + series * natural * (1.0 / k)
    h, slope = raised(tl.where(natural > -0.35, -natural * series, 1 - p), of_factor, POWER)
    by_s = -h
    if not DETACH:
        by_s += p * slope * natural
    return h, by_s
