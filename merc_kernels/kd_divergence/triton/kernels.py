# ruff: noqa: N803 - compile-time parameters are upper case, as everywhere in Triton
# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
r"""Divergence of a student from its teacher, in Triton: the kernels, which read logits of any width tile by tile.

With q = softmax(s / T), p = softmax(t / T), m = beta p + (1 - beta) q, w a row's weight, y its label::

    loss = w (T^2 D + ce_weight CE)     CE = -log softmax(s)_y     dCE/ds = softmax(s) - [c = y]

    D        value                              T dD/ds                                 T dD/dt
    forward  KL(p|q)                            q - p                                   p (log p - log q - KL)
    reverse  KL(q|p)                            q (log q - log p - KL)                  p - q
    js       (1 - beta) KL(q|m) + beta KL(p|m)  (1 - beta) q (log q - log m - KL(q|m))  beta p (log p - log m - KL(p|m))

One sweep carries the running maxima M of the logits, Z = sum e^{(x - M) / T} and, with x the first argument of KL and
y the second, A = sum e^{(x - M_x) / T} [(x - M_x) - (y - M_y)]: KL = A / (T Z_x) + log Z_y - log Z_x. When a maximum
moves, A grows by Z_x times the shift of the bracket. Everything is centred before it is divided by T, so logits of
±1e4 lose nothing. Seven numbers a row are saved: M_s, M_t, log Z_s, log Z_t, two means, log sum e^{s - M_s} for CE. The
means are KL(q|m) and KL(p|m) of js, and twice A / (T Z_x) else: in log x - log y - KL the log Z then need not cancel.
A class of probability 0 adds 0, whatever the other side is, but in a row whose divergence is NaN: its means are too.

Letters: N rows a group, G groups, C classes. Every output element has one program that writes it, and sums run in a
fixed order: no atomics, the same bits on every run.
"""

import triton
import triton.language as tl

from merc_kernels._shared.triton.scalars import double
from merc_kernels.kd_divergence.triton.rows import (
    labelled,
    log_ratios,
    logits,
    moved,
    place,
    slope,
    temperature_and_weight,
    times,
)

LOWEST = tl.constexpr(-3.4028234663852886e38)  # where a maximum starts: finite, for inf - inf is NaN
SAVED = tl.constexpr(7)  # numbers a row

_PER_VALUE = ["rows", "ignore_index", "stride_lg", "stride_wg"]


@triton.jit(do_not_specialize=_PER_VALUE)
def forward_kernel(
    loss_ptr,  # (G N,), or with PARTIAL (2, programs): sums of losses, counts of kept rows
    saved_ptr,  # (G N, 7) or None
    student_ptr,
    teacher_ptr,
    temperature_ptr,  # (N,) or None
    labels_ptr,  # (N,) or (G, N), or None
    weights_ptr,  # (N,) or (G, N), or None
    stride_sg,
    stride_sn,
    stride_tg,
    stride_tn,
    stride_lg,
    stride_wg,
    rows,
    groups,
    classes,
    floats,  # `float_options`
    ignore_index: tl.int64,
    DIRECTION: tl.constexpr,
    CE: tl.constexpr,
    SCALE_BY_T2: tl.constexpr,
    PARTIAL: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Losses of BLOCK_N rows, or their sum, and the numbers of the backward pass."""
    dtype: tl.constexpr = loss_ptr.dtype.element_ty
    g, n, inside = place(tl.program_id(0), groups, rows, BLOCK_N)  # [BLOCK_N]
    kept, label = labelled(labels_ptr, g, n, inside, classes, stride_lg, ignore_index)
    t, weight = temperature_and_weight(temperature_ptr, weights_ptr, g, n, kept, stride_wg, floats, dtype)
    scale = 1.0 / t
    student_row = student_ptr + g * stride_sg + n * stride_sn
    teacher_row = teacher_ptr + g * stride_tg + n * stride_tn
    lane = tl.arange(0, BLOCK_C)

    max_s = tl.full([BLOCK_N], LOWEST, dtype)
    max_t = tl.full([BLOCK_N], LOWEST, dtype)
    z_s = tl.zeros([BLOCK_N], dtype)
    z_t = tl.zeros([BLOCK_N], dtype)
    z_raw = tl.zeros([BLOCK_N], dtype)
    bracket = tl.zeros([BLOCK_N], dtype)
    for tile in range(0, TILES):
        column = tile * BLOCK_C + lane
        mask = kept[:, None] & (column < classes)[None, :]
        s = logits(student_row, column, mask, dtype)  # [BLOCK_N, BLOCK_C]
        y = logits(teacher_row, column, mask, dtype)
        top_s = tl.maximum(max_s, tl.max(s, 1))
        top_t = tl.maximum(max_t, tl.max(y, 1))
        shift_s, shift_t = max_s - top_s, max_t - top_t
        shrink_s, shrink_t = tl.exp(shift_s * scale), tl.exp(shift_t * scale)
        from_s, from_t = s - top_s[:, None], y - top_t[:, None]
        e_s, e_t = tl.exp(from_s * scale[:, None]), tl.exp(from_t * scale[:, None])
        z_s *= shrink_s
        z_t *= shrink_t
        if DIRECTION == "forward":
            bracket = moved(bracket, z_t, shrink_t, shift_t - shift_s)
            bracket += tl.sum(times(e_t, from_t - from_s), 1)
        elif DIRECTION == "reverse":
            bracket = moved(bracket, z_s, shrink_s, shift_s - shift_t)
            bracket += tl.sum(times(e_s, from_s - from_t), 1)
        z_s += tl.sum(e_s, 1)
        z_t += tl.sum(e_t, 1)
        if CE:
            z_raw = z_raw * tl.exp(shift_s) + tl.sum(tl.exp(from_s), 1)
        max_s, max_t = top_s, top_t
    log_z_s, log_z_t = tl.log(z_s), tl.log(z_t)
    nothing = (log_z_s - log_z_s) + (log_z_t - log_z_t)  # NaN where a side is NaN, or -inf throughout

    if DIRECTION == "js":
        share = double(floats.beta).to(dtype)
        mean_s = tl.zeros([BLOCK_N], dtype)
        mean_t = tl.zeros([BLOCK_N], dtype)
        for done in range(0, TILES):  # back through what the cache still holds
            column = (TILES - 1 - done) * BLOCK_C + lane
            mask = kept[:, None] & (column < classes)[None, :]
            s = logits(student_row, column, mask, dtype)
            y = logits(teacher_row, column, mask, dtype)
            log_q = (s - max_s[:, None]) * scale[:, None] - log_z_s[:, None]
            log_p = (y - max_t[:, None]) * scale[:, None] - log_z_t[:, None]
            over_m_s, over_m_t = log_ratios(log_q, log_p, share)
            mean_s += tl.sum(times(tl.exp(log_q), over_m_s), 1)
            mean_t += tl.sum(times(tl.exp(log_p), over_m_t), 1)
        value = (1 - share) * mean_s + share * mean_t
    elif DIRECTION == "forward":
        mean = bracket / z_t * scale + nothing
        value = mean + (log_z_s - log_z_t)
        mean_s, mean_t = mean, mean
    else:
        mean = bracket / z_s * scale + nothing
        value = mean + (log_z_t - log_z_s)
        mean_s, mean_t = mean, mean

    if SCALE_BY_T2:
        value *= t * t
    log_z_raw = tl.zeros([BLOCK_N], dtype)
    if CE:
        log_z_raw = tl.log(z_raw)
        target = tl.load(student_row + label, mask=kept, other=0.0).to(dtype)
        value += double(floats.ce_weight).to(dtype) * (log_z_raw - (target - max_s))
    value = tl.where(kept, value * weight, 0.0)
    if PARTIAL:
        tl.store(loss_ptr + tl.program_id(0), tl.sum(value, 0))
        if labels_ptr is not None:
            tl.store(loss_ptr + tl.num_programs(0) + tl.program_id(0), tl.sum(kept.to(tl.int32), 0).to(dtype))
    else:
        tl.store(loss_ptr + g * rows + n, value, mask=inside)
    if saved_ptr is not None:
        numbers = saved_ptr + (g * rows + n) * SAVED
        tl.store(numbers, max_s, mask=inside)
        tl.store(numbers + 1, max_t, mask=inside)
        tl.store(numbers + 2, log_z_s, mask=inside)
        tl.store(numbers + 3, log_z_t, mask=inside)
        tl.store(numbers + 4, mean_s, mask=inside)
        tl.store(numbers + 5, mean_t, mask=inside)
        tl.store(numbers + 6, log_z_raw, mask=inside)


@triton.jit(do_not_specialize=[*_PER_VALUE, "stride_grad"])
def backward_kernel(
    grad_ptr,  # a scalar (stride 0), or (G N,)
    divisor_ptr,
    saved_ptr,
    student_grad_ptr,  # (G, N, C) or None
    teacher_grad_ptr,  # as the teacher, or None
    student_ptr,
    teacher_ptr,
    temperature_ptr,
    labels_ptr,
    weights_ptr,
    stride_grad,
    stride_sg,
    stride_sn,
    stride_tg,
    stride_tn,
    stride_lg,
    stride_wg,
    rows,
    groups,
    classes,
    floats,  # `float_options`
    ignore_index: tl.int64,
    DIRECTION: tl.constexpr,
    CE: tl.constexpr,
    SCALE_BY_T2: tl.constexpr,
    REPEATS: tl.constexpr,  # G where a program sums the groups' gradients of a shared teacher, or 1
    TILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradients of one tile: BLOCK_C columns of BLOCK_N rows, last tile first, as the forward pass read it last."""
    dtype: tl.constexpr = saved_ptr.dtype.element_ty
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    column = program % TILES * BLOCK_C + tl.arange(0, BLOCK_C)  # [BLOCK_C]
    first, n, inside = place(program // TILES, groups // REPEATS, rows, BLOCK_N)  # [BLOCK_N]
    share = double(floats.beta).to(dtype)
    divisor = tl.load(divisor_ptr)
    sum_t = tl.zeros([BLOCK_N, BLOCK_C], dtype)
    for repeat in range(0, REPEATS):
        g = first + repeat
        kept, label = labelled(labels_ptr, g, n, inside, classes, stride_lg, ignore_index)
        t, weight = temperature_and_weight(temperature_ptr, weights_ptr, g, n, kept, stride_wg, floats, dtype)
        scale = 1.0 / t
        factor = tl.load(grad_ptr + (g * rows + n) * stride_grad, mask=kept, other=0.0) * weight / divisor
        c = (factor * (t if SCALE_BY_T2 else scale))[:, None]  # [BLOCK_N, 1]
        numbers = saved_ptr + (g * rows + n) * SAVED
        max_s = tl.load(numbers, mask=kept, other=0.0)[:, None]
        max_t = tl.load(numbers + 1, mask=kept, other=0.0)[:, None]
        log_z_s = tl.load(numbers + 2, mask=kept, other=0.0)[:, None]
        log_z_t = tl.load(numbers + 3, mask=kept, other=0.0)[:, None]
        mask = kept[:, None] & (column < classes)[None, :]
        s = logits(student_ptr + g * stride_sg + n * stride_sn, column, mask, dtype)  # [BLOCK_N, BLOCK_C]
        y = logits(teacher_ptr + g * stride_tg + n * stride_tn, column, mask, dtype)
        from_s, from_t = s - max_s, y - max_t
        log_q = from_s * scale[:, None] - log_z_s
        log_p = from_t * scale[:, None] - log_z_t
        over_s = (from_s - from_t) * scale[:, None]
        over_t = -over_s
        if DIRECTION == "js":
            over_s, over_t = log_ratios(log_q, log_p, share)

        if student_grad_ptr is not None:
            q = tl.exp(log_q)
            if DIRECTION == "forward":
                of_s = c * (q - tl.exp(log_p))
            else:
                mean_s = tl.load(numbers + 4, mask=kept, other=0.0)[:, None]
                of_s = c * slope(q, over_s, mean_s)
            if DIRECTION == "js":
                of_s *= 1 - share
            if CE:
                log_z_raw = tl.load(numbers + 6, mask=kept, other=0.0)[:, None]
                hit = tl.where(column[None, :] == label[:, None], 1.0, 0.0)
                of_s += factor[:, None] * double(floats.ce_weight).to(dtype) * (tl.exp(from_s - log_z_raw) - hit)
            target = student_grad_ptr + ((g * rows + n) * classes)[:, None] + column[None, :]
            of_s = tl.where(kept[:, None], of_s, 0.0)
            tl.store(target, of_s, mask=inside[:, None] & (column < classes)[None, :])

        if teacher_grad_ptr is not None:
            p = tl.exp(log_p)
            if DIRECTION == "reverse":
                of_t = c * (p - tl.exp(log_q))
            else:
                mean_t = tl.load(numbers + 5, mask=kept, other=0.0)[:, None]
                of_t = c * slope(p, over_t, mean_t)
            if DIRECTION == "js":
                of_t *= share
            sum_t += tl.where(kept[:, None], of_t, 0.0)

    if teacher_grad_ptr is not None:
        target = teacher_grad_ptr + ((first * rows + n) * classes)[:, None] + column[None, :]
        tl.store(target, sum_t, mask=inside[:, None] & (column < classes)[None, :])
