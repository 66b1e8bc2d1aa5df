# ruff: noqa: N803 - compile-time parameters are upper case, as everywhere in Triton
# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
"""The backward pass of the divergence in Triton, from the numbers that the forward pass saved; formulas: forward.py."""

import triton
import triton.language as tl

from merc_kernels._shared.triton.scalars import double
from merc_kernels.kd_divergence.triton.rows import (
    LN2,
    PER_VALUE,
    SAVED,
    labelled,
    log_ratios,
    logarithms,
    logits,
    of_student,
    place,
    slope,
    temperature_and_weight,
)


@triton.jit(do_not_specialize=[*PER_VALUE, "stride_grad"])
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
    column = (program % TILES * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]  # [1, BLOCK_C]
    first, n, inside = place(program // TILES, groups // REPEATS, rows, BLOCK_N)  # [BLOCK_N]
    inside_tile = inside[:, None] & (column < classes)
    share = double(floats.beta).to(dtype)
    divisor = tl.load(divisor_ptr)
    sum_t = tl.zeros([BLOCK_N, BLOCK_C], dtype)
    for repeat in range(0, REPEATS):
        g = first + repeat
        kept, label = labelled(labels_ptr, g, n, inside, classes, stride_lg, ignore_index)
        t, weight = temperature_and_weight(temperature_ptr, weights_ptr, g, n, kept, stride_wg, floats, dtype)
        scale = 1.0 / t
        factor = tl.load(grad_ptr + (g * rows + n) * stride_grad, mask=kept, other=0.0) * weight / divisor
        c = factor * (t if SCALE_BY_T2 else scale)  # [BLOCK_N]
        numbers = saved_ptr + (g * rows + n) * SAVED
        max_s = tl.load(numbers, mask=kept, other=0.0)
        max_t = tl.load(numbers + 1, mask=kept, other=0.0)
        log_z_s = tl.load(numbers + 2, mask=kept, other=0.0)
        log_z_t = tl.load(numbers + 3, mask=kept, other=0.0)
        mask = kept[:, None] & (column < classes)
        s = logits(student_ptr + g * stride_sg + n * stride_sn, column, mask, dtype, "")  # [BLOCK_N, BLOCK_C]
        y = logits(teacher_ptr + g * stride_tg + n * stride_tn, column, mask, dtype, "")
        from_s, from_t = s - max_s[:, None], y - max_t[:, None]
        log_q, log_p = logarithms(from_s, log_z_s, scale), logarithms(from_t, log_z_t, scale)

        if student_grad_ptr is not None:
            mean_s = tl.load(numbers + 4, mask=kept, other=0.0)
            log_z_raw = tl.load(numbers + 6, mask=kept, other=0.0)
            ce = factor * double(floats.ce_weight).to(dtype)
            hit = column == label[:, None]
            of_s = of_student(from_s, from_t, log_q, log_p, mean_s, log_z_raw, c, ce, hit, scale, share, DIRECTION, CE)
            target = student_grad_ptr + ((g * rows + n) * classes)[:, None] + column
            tl.store(target, of_s, mask=inside_tile)

        if teacher_grad_ptr is not None:
            p = tl.exp2(log_p)
            if DIRECTION == "reverse":
                of_t = c[:, None] * (p - tl.exp2(log_q))
            else:
                mean_t = tl.load(numbers + 5, mask=kept, other=0.0)
                if DIRECTION == "forward":
                    of_t = c[:, None] * slope(p, (from_t - from_s) * scale[:, None], mean_t[:, None])
                else:
                    _, over_t = log_ratios(log_q, log_p, share)
                    of_t = (c * share)[:, None] * slope(p, over_t * LN2, mean_t[:, None])
            sum_t += of_t

    if teacher_grad_ptr is not None:
        target = teacher_grad_ptr + ((first * rows + n) * classes)[:, None] + column
        tl.store(target, sum_t, mask=inside_tile)
