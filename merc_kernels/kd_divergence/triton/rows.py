# ruff: noqa: N803 - compile-time parameters are upper case, as everywhere in Triton
# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
"""What both passes of the divergence in Triton do with a tile of rows: its place, its tensors, its logarithms."""

import triton
import triton.language as tl

from merc_kernels._shared.triton.scalars import double

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
SAVED = tl.constexpr(7)  # numbers a row
PER_VALUE = ["rows", "ignore_index", "stride_lg", "stride_wg"]


@triton.jit
def logits(row_ptrs, column, mask, dtype: tl.constexpr, EVICT: tl.constexpr):
    """[R, V], of row_ptrs [R] or [1] and columns [R, V] or [1, V]; what is masked has probability 0."""
    return tl.load(row_ptrs[:, None] + column, mask=mask, other=-float("inf"), eviction_policy=EVICT).to(dtype)


@triton.jit
def times(probability, log_ratio):
    """The product, where 0 inf = 0; a NaN stays one."""
    return probability * tl.where(probability == 0, 0.0, log_ratio)


@triton.jit
def slope(probability, log_ratio, mean):
    """The gradient of the first argument of KL; where the row's divergence is NaN, for every class."""
    absent = (probability == 0) & (mean == mean)
    return tl.where(absent, 0.0, probability * (log_ratio - mean))


@triton.jit
def moved(bracket, z, shrink, shift):
    """A after its maxima moved: z is Z_x already shrunk, shift that of the bracket's difference."""
    return tl.where(z == 0, 0.0, shrink * bracket + z * shift)


@triton.jit
def log_ratios(log_q, log_p, beta):
    """log2 of q / m and p / m, from u = 2^{-|log2 p - log2 q|}: nothing overflows, and q = p gives exactly 0."""
    d = log_p - log_q
    u = tl.exp2(-tl.abs(d))
    high = tl.log2(1 - tl.where(d > 0, 1 - beta, beta) * (1 - u))  # log m over the larger of log q, log p
    return -high - tl.maximum(d, 0.0), -high - tl.maximum(-d, 0.0)


@triton.jit
def place(index, groups, rows, BLOCK_N: tl.constexpr):
    """Group and rows (int64, [BLOCK_N]), and which are there; the groups of a row may share a teacher: neighbours."""
    n = (index // groups).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    return tl.zeros_like(n) + index % groups, n, n < rows


@triton.jit
def labelled(labels_ptr, g, n, inside, classes, stride_lg, ignore_index):
    """Which rows count, and their labels (0 where they do not)."""
    label = tl.zeros_like(n)
    kept = inside
    if labels_ptr is not None:
        label = tl.load(labels_ptr + g * stride_lg + n, mask=inside, other=-1)
        kept = inside & (label != ignore_index) & (label >= 0) & (label < classes)
        label = tl.where(kept, label, 0)
    return kept, label


@triton.jit
def temperature_and_weight(temperature_ptr, weights_ptr, g, n, kept, stride_wg, floats, dtype: tl.constexpr):
    """Of each row."""
    t = tl.zeros_like(n).to(dtype) + double(floats.temperature).to(dtype)
    if temperature_ptr is not None:
        t = tl.load(temperature_ptr + n, mask=kept, other=1.0)
    weight = tl.zeros_like(t) + 1.0
    if weights_ptr is not None:
        weight = tl.load(weights_ptr + g * stride_wg + n, mask=kept, other=0.0)
    return t, weight


@triton.jit
def raised(top_s, top_t, max_s, max_t, z_s, z_t, z_raw, bracket, scale, DIRECTION: tl.constexpr, CE: tl.constexpr):
    """The sums, [R], once their maxima are the tops."""
    shift_s, shift_t = max_s - top_s, max_t - top_t
    shrink_s, shrink_t = tl.exp2(shift_s * (scale * LOG2E)), tl.exp2(shift_t * (scale * LOG2E))
    z_s *= shrink_s
    z_t *= shrink_t
    if DIRECTION == "forward":
        bracket = moved(bracket, z_t, shrink_t, shift_t - shift_s)
    elif DIRECTION == "reverse":
        bracket = moved(bracket, z_s, shrink_s, shift_s - shift_t)
    if CE:
        z_raw *= tl.exp2(shift_s * LOG2E)
    return z_s, z_t, z_raw, bracket


@triton.jit
def swept(s, y, max_s, max_t, z_s, z_t, z_raw, bracket, scale, DIRECTION: tl.constexpr, CE: tl.constexpr):
    """Maxima and sums, [R], with those of another tile, [R, V]."""
    top_s, top_t = tl.maximum(max_s, tl.max(s, 1)), tl.maximum(max_t, tl.max(y, 1))
    z_s, z_t, z_raw, bracket = raised(top_s, top_t, max_s, max_t, z_s, z_t, z_raw, bracket, scale, DIRECTION, CE)
    from_s, from_t = s - top_s[:, None], y - top_t[:, None]
    e_s, e_t = tl.exp2(from_s * (scale * LOG2E)[:, None]), tl.exp2(from_t * (scale * LOG2E)[:, None])
    if DIRECTION == "forward":
        bracket += tl.sum(times(e_t, from_t - from_s), 1)
    elif DIRECTION == "reverse":
        bracket += tl.sum(times(e_s, from_s - from_t), 1)
    z_s += tl.sum(e_s, 1)
    z_t += tl.sum(e_t, 1)
    if CE:
        z_raw += tl.sum(tl.exp2(from_s * LOG2E), 1)
    return top_s, top_t, z_s, z_t, z_raw, bracket


@triton.jit
def joined(max_s, max_t, z_s, z_t, z_raw, bracket, scale, DIRECTION: tl.constexpr, CE: tl.constexpr):
    """Maxima and sums of a row, [1], from those of its lanes."""
    top_s, top_t = tl.max(max_s, 0, keep_dims=True), tl.max(max_t, 0, keep_dims=True)
    z_s, z_t, z_raw, bracket = raised(top_s, top_t, max_s, max_t, z_s, z_t, z_raw, bracket, scale, DIRECTION, CE)
    z_s, z_t = tl.sum(z_s, 0, keep_dims=True), tl.sum(z_t, 0, keep_dims=True)
    return top_s, top_t, z_s, z_t, tl.sum(z_raw, 0, keep_dims=True), tl.sum(bracket, 0, keep_dims=True)


@triton.jit
def logarithms(from_max, log_z, scale):
    """log2 of a softmax, [R, V], from the distances to the maxima; the same for both sides where these are alike."""
    return from_max * (scale * LOG2E)[:, None] - log_z[:, None]


@triton.jit
def of_student(
    from_s, from_t, log_q, log_p, mean_s, log_z_raw, c, ce, hit, scale, share, DIRECTION: tl.constexpr, CE: tl.constexpr
):
    """The student's gradient, [R, V]: c times that of the divergence without its 1 / T, and ce times that of CE."""
    q = tl.exp2(log_q)
    if DIRECTION == "forward":
        gradient = c[:, None] * (q - tl.exp2(log_p))
    elif DIRECTION == "reverse":
        gradient = c[:, None] * slope(q, (from_s - from_t) * scale[:, None], mean_s[:, None])
    else:
        over_s, _ = log_ratios(log_q, log_p, share)
        gradient = (c * (1 - share))[:, None] * slope(q, over_s * LN2, mean_s[:, None])
    if CE:
        softmax = tl.exp2(from_s * LOG2E - log_z_raw[:, None])
        gradient += ce[:, None] * (softmax - tl.where(hit, 1.0, 0.0))
    return gradient
