# ruff: noqa: N803 - compile-time parameters are upper case, as everywhere in Triton
# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
r"""Divergence of a student from its teacher, in Triton: the forward pass, which reads logits of any width tile by tile.

With q = softmax(s / T), p = softmax(t / T), m = beta p + (1 - beta) q, w a row's weight, y its label::

    loss = w (T^2 D + ce_weight CE)     CE = -log softmax(s)_y     dCE/ds = softmax(s) - [c = y]

    D        value                              T dD/ds                                 T dD/dt
    forward  KL(p|q)                            q - p                                   p (log p - log q - KL)
    reverse  KL(q|p)                            q (log q - log p - KL)                  p - q
    js       (1 - beta) KL(q|m) + beta KL(p|m)  (1 - beta) q (log q - log m - KL(q|m))  beta p (log p - log m - KL(p|m))

One sweep carries the running maxima M of the logits, Z = sum e^{(x - M) / T} and, with x the first argument of KL and
y the second, A = sum e^{(x - M_x) / T} [(x - M_x) - (y - M_y)]: KL = A / (T Z_x) + log Z_y - log Z_x. When a maximum
moves, A grows by Z_x times the shift of the bracket. Everything is centred before it is divided by T, so logits of
±1e4 lose nothing. Of rows of several tiles each thread keeps maxima and sums of its own, joined once at the end.

Where the student alone wants a gradient of a scalar, the forward pass writes it, for a gradient of the loss of 1: a
last sweep goes back over what L2 still holds, so that memory is read once; of rows too wide to fit there for all
processors, fewer are at work. Else seven numbers a row are saved: M_s, M_t, log2 Z_s, log2 Z_t, two means,
log2 sum e^{s - M_s} for CE. The means are KL(q|m) and KL(p|m) of js, and twice A / (T Z_x) else: in log x - log y - KL
the log Z then need not cancel. A class of probability 0 adds 0, whatever the other side is, but in a row whose
divergence is NaN: its means are too.

Letters: N rows a group, G groups, C classes. Tiles are [R, V]: R rows, or of a wide row R lanes of V classes each.
Every output element has one program that writes it, and sums run in a fixed order: no atomics, the same bits on every
run.
"""

import triton
import triton.language as tl

from merc_kernels._shared.triton.scalars import double
from merc_kernels.kd_divergence.triton.rows import (
    LN2,
    PER_VALUE,
    SAVED,
    joined,
    labelled,
    log_ratios,
    logarithms,
    logits,
    of_student,
    place,
    swept,
    temperature_and_weight,
    times,
)

LOWEST = tl.constexpr(-3.4028234663852886e38)  # where a maximum starts: finite, for inf - inf is NaN


@triton.jit(do_not_specialize=[*PER_VALUE, "blocks", "counted"])
def forward_kernel(
    loss_ptr,  # (G N,), or with PARTIAL (2, blocks): sums of losses, counts of kept rows
    saved_ptr,  # (G N, 7) or None
    student_grad_ptr,  # (G, N, C) or None
    kept_counts_ptr,  # (COUNTS,) of kept rows, or None: then the gradient is divided by `counted`
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
    blocks,
    counted: tl.int64,
    DIRECTION: tl.constexpr,
    CE: tl.constexpr,
    SCALE_BY_T2: tl.constexpr,
    PARTIAL: tl.constexpr,
    COUNTS: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LANES: tl.constexpr,  # of a wide row, each with sums of its own; 1 where a tile holds whole rows
    VECTORS: tl.constexpr,  # whether the classes of a lane lie side by side
):
    """Losses of BLOCK_N rows, or their sum, and the numbers of the backward pass, or the student's gradient."""
    dtype: tl.constexpr = loss_ptr.dtype.element_ty
    height: tl.constexpr = BLOCK_N * LANES  # R
    width: tl.constexpr = BLOCK_C // LANES  # V
    lane, part = tl.arange(0, LANES)[:, None], tl.arange(0, width)[None, :]
    columns = lane * width + part if VECTORS else part * LANES + lane  # [LANES, V]
    share = double(floats.beta).to(dtype)
    ce_weight = double(floats.ce_weight).to(dtype)
    block = tl.program_id(0)
    while block < blocks:
        g, n, inside = place(block, groups, rows, BLOCK_N)  # [BLOCK_N]
        kept, label = labelled(labels_ptr, g, n, inside, classes, stride_lg, ignore_index)
        t, weight = temperature_and_weight(temperature_ptr, weights_ptr, g, n, kept, stride_wg, floats, dtype)
        scale = 1.0 / t
        student_row = student_ptr + g * stride_sg + n * stride_sn
        teacher_row = teacher_ptr + g * stride_tg + n * stride_tn

        max_s = tl.full([height], LOWEST, dtype)
        max_t = tl.full([height], LOWEST, dtype)
        z_s = tl.zeros([height], dtype)
        z_t = tl.zeros([height], dtype)
        z_raw = tl.zeros([height], dtype)
        bracket = tl.zeros([height], dtype)
        s = tl.zeros([height, width], dtype)  # of one tile alone they stay for what follows
        y = tl.zeros([height, width], dtype)
        for tile in range(0, TILES):
            column = tile * BLOCK_C + columns
            mask = kept[:, None] & (column < classes)
            s = logits(student_row, column, mask, dtype, "")
            y = logits(teacher_row, column, mask, dtype, "")
            max_s, max_t, z_s, z_t, z_raw, bracket = swept(
                s, y, max_s, max_t, z_s, z_t, z_raw, bracket, scale, DIRECTION, CE
            )
        if LANES > 1:
            max_s, max_t, z_s, z_t, z_raw, bracket = joined(
                max_s, max_t, z_s, z_t, z_raw, bracket, scale, DIRECTION, CE
            )
        log_z_s, log_z_t = tl.log2(z_s), tl.log2(z_t)
        nothing = (log_z_s - log_z_s) + (log_z_t - log_z_t)  # NaN where a side is NaN, or -inf throughout

        if DIRECTION == "js":
            means_s = tl.zeros([height], dtype)
            means_t = tl.zeros([height], dtype)
            sum_q = tl.zeros([height], dtype)  # 1 but for the rounding of log Z, which a mean so divided is free of
            sum_p = tl.zeros([height], dtype)
            for done in range(0, TILES):  # back through what the cache still holds
                column = (TILES - 1 - done) * BLOCK_C + columns
                mask = kept[:, None] & (column < classes)
                if TILES > 1:
                    s = logits(student_row, column, mask, dtype, "")
                    y = logits(teacher_row, column, mask, dtype, "")
                log_q = logarithms(s - max_s[:, None], log_z_s, scale)
                log_p = logarithms(y - max_t[:, None], log_z_t, scale)
                over_s, over_t = log_ratios(log_q, log_p, share)
                q, p = tl.exp2(log_q), tl.exp2(log_p)
                means_s += tl.sum(times(q, over_s), 1)
                means_t += tl.sum(times(p, over_t), 1)
                sum_q += tl.sum(q, 1)
                sum_p += tl.sum(p, 1)
            if LANES > 1:
                means_s, sum_q = tl.sum(means_s, 0, keep_dims=True), tl.sum(sum_q, 0, keep_dims=True)
                means_t, sum_p = tl.sum(means_t, 0, keep_dims=True), tl.sum(sum_p, 0, keep_dims=True)
            mean_s, mean_t = means_s / sum_q * LN2, means_t / sum_p * LN2
            value = (1 - share) * mean_s + share * mean_t
        elif DIRECTION == "forward":
            mean_s = bracket / z_t * scale + nothing
            mean_t = mean_s
            value = mean_s + (log_z_s - log_z_t) * LN2
        else:
            mean_s = bracket / z_s * scale + nothing
            mean_t = mean_s
            value = mean_s + (log_z_t - log_z_s) * LN2

        if SCALE_BY_T2:
            value *= t * t
        log_z_raw = tl.zeros([BLOCK_N], dtype)
        if CE:
            log_z_raw = tl.log2(z_raw)
            target = tl.load(student_row + label, mask=kept, other=0.0).to(dtype)
            value += ce_weight * (log_z_raw * LN2 - (target - max_s))
        value = tl.where(kept, value * weight, 0.0)
        if PARTIAL:
            tl.store(loss_ptr + block, tl.sum(value, 0))
            if labels_ptr is not None:
                tl.store(loss_ptr + blocks + block, tl.sum(kept.to(tl.int32), 0).to(dtype))
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

        if student_grad_ptr is not None:
            divisor = counted.to(dtype)
            if kept_counts_ptr is not None:
                count = tl.sum(tl.load(kept_counts_ptr + tl.arange(0, COUNTS)), 0)
                divisor = tl.maximum(count, 1).to(dtype)
            factor = tl.where(kept, weight, 0.0) / divisor
            c = factor * (t if SCALE_BY_T2 else scale)
            log_z_s = tl.where(kept, log_z_s, 0.0)  # of other rows nothing was loaded: q = p = 0
            log_z_t = tl.where(kept, log_z_t, 0.0)
            mean_s = tl.where(kept, mean_s, 0.0)
            log_z_raw = tl.where(kept, log_z_raw, 0.0)
            target_row = student_grad_ptr + (g * rows + n) * classes
            once: tl.constexpr = "evict_first" if TILES > 1 else ""  # what no one reads again leaves room in L2
            for done in range(0, TILES):  # from where the last sweep ended
                column = (done if DIRECTION == "js" else TILES - 1 - done) * BLOCK_C + columns
                mask = kept[:, None] & (column < classes)
                if TILES > 1:
                    s = logits(student_row, column, mask, dtype, once)
                    y = logits(teacher_row, column, mask, dtype, once)
                from_s, from_t = s - max_s[:, None], y - max_t[:, None]
                log_q, log_p = logarithms(from_s, log_z_s, scale), logarithms(from_t, log_z_t, scale)
                hit = column == label[:, None]
                gradient = of_student(
                    from_s,
                    from_t,
                    log_q,
                    log_p,
                    mean_s,
                    log_z_raw,
                    c,
                    factor * ce_weight,
                    hit,
                    scale,
                    share,
                    DIRECTION,
                    CE,
                )
                inside_tile = inside[:, None] & (column < classes)
                tl.store(target_row[:, None] + column, gradient, mask=inside_tile, eviction_policy=once)
        block += tl.num_programs(0)
