# ruff: noqa: N803 - compile-time parameters are upper case, as everywhere in Triton
# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
"""What both passes of the divergence in Triton do with a tile of rows: its place, its tensors, its logarithms."""

import triton
import triton.language as tl

from merc_kernels._shared.triton.scalars import double


@triton.jit
def logits(row_ptrs, column, mask, dtype: tl.constexpr):
    """[BLOCK_N, BLOCK_C]; what is masked has probability 0."""
    return tl.load(row_ptrs[:, None] + column[None, :], mask=mask, other=-float("inf")).to(dtype)


@triton.jit
def times(probability, log_ratio):
    """The product, where 0 inf = 0; a NaN stays one."""
    return tl.where(probability == 0, 0.0, probability * log_ratio)


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
    """Logarithms of q / m and p / m, from u = e^{-|log p - log q|}: nothing overflows, and q = p gives exactly 0."""
    d = log_p - log_q
    u = tl.exp(-tl.abs(d))
    high = tl.log(1 - tl.where(d > 0, 1 - beta, beta) * (1 - u))  # log m over the larger of log q, log p
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
