"""The operators ``merc::kd_divergence`` (C++: cpu, cuda) and ``merc::kd_divergence_triton``, with autograd.

Both have the schema of csrc/library.cpp. The forward pass saves seven numbers a row, from which the backward pass
recomputes; or, where one scalar is wanted of a student on the CPU, the student's gradient itself: each logit is then
read once, and what the teacher is made of need not be kept.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from merc_kernels import _checks, _library
from merc_kernels._ops.direct import below_autograd, direct
from merc_kernels._ops.once import differentiable_once, refuse
from merc_kernels._ordinary import ordinary

_DIRECTIONS = {"forward": 0, "reverse": 1, "js": 2}
_REDUCTIONS = {"none": 0, "sum": 1, "batchmean": 2}
_NOTHING, _NUMBERS, _GRADIENT = range(3)
_OPTIONS = (
    "Tensor? row_temperature, Tensor? labels, Tensor? row_weights, float temperature, int direction, float beta, "
    "float ce_weight, bool scale_by_t2, int ignore_index, "
)
_FORWARD = f"(Tensor student, Tensor teacher, {_OPTIONS}int reduction, int save) -> (Tensor, Tensor, Tensor)"
_BACKWARD = (
    f"(Tensor grad, Tensor divisor, Tensor saved, Tensor student, Tensor teacher, {_OPTIONS}"
    "bool student_grad, bool teacher_grad) -> (Tensor, Tensor)"
)
_NOT_LOGITS = 11  # arguments of the forward operator


class _Operator(NamedTuple):
    forward: Any
    backward: Any


def _fake(
    student: Tensor,
    teacher: Tensor,
    row_temperature: Tensor | None,
    labels: Tensor | None,
    row_weights: Tensor | None,
    temperature: float,
    direction: int,
    beta: float,
    ce_weight: float,
    scale_by_t2: bool,
    ignore_index: int,
    reduction: int,
    save: int,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _accumulate(student, teacher)
    rows = student.shape[:-1]
    loss = student.new_empty(rows if reduction == _REDUCTIONS["none"] else (), dtype=dtype)
    divisor = student.new_empty((), dtype=dtype)
    if save == _GRADIENT:
        return loss, divisor, student.new_empty(student.shape)
    return loss, divisor, student.new_empty((math.prod(rows), 7) if save == _NUMBERS else (0,), dtype=dtype)


def _fake_backward(
    grad: Tensor, divisor: Tensor, saved: Tensor, student: Tensor, teacher: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    student_grad, teacher_grad = options[-2:]
    return student.new_empty(student.shape if student_grad else 0), teacher.new_empty(
        teacher.shape if teacher_grad else 0
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _keep(ctx, inputs, output)
    ctx.mark_non_differentiable(*output[1:])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.options = inputs[5:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:], *inputs[: 1 if inputs[-1] == _GRADIENT else 5])


def _gradients(operator: _Operator, ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The student's and the teacher's gradient."""
    if grad is None:
        return None, None
    save = ctx.options[-1]
    if save == _NOTHING:
        raise RuntimeError("merc::kd_divergence: save=0 keeps nothing for a backward pass; call it with save=1")
    if save == _GRADIENT:
        _, saved, student = ctx.saved_tensors
        gradient = (saved * grad).to(saved.dtype)
        return differentiable_once(gradient, student) if torch.is_grad_enabled() else gradient, None
    wanted = ctx.needs_input_grad[:2]
    gradients = operator.backward(grad.contiguous(), *ctx.saved_tensors, *ctx.options[:-2], *wanted)
    return gradients[0] if wanted[0] else None, gradients[1] if wanted[1] else None


def _refuse_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """A second derivative needs nothing saved: it raises."""


def _register(name: str) -> _Operator:
    """Fake and autograd of the operators ``merc::name`` and ``merc::name_backward``."""
    operator = _Operator(getattr(torch.ops.merc, name).default, getattr(torch.ops.merc, f"{name}_backward").default)
    torch.library.register_fake(f"merc::{name}", _fake)
    torch.library.register_fake(f"merc::{name}_backward", _fake_backward)

    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        return *_gradients(operator, ctx, grad), *(None,) * _NOT_LOGITS

    torch.library.register_autograd(f"merc::{name}", backward, setup_context=_setup_context)
    torch.library.register_autograd(f"merc::{name}_backward", refuse, setup_context=_refuse_setup)
    return operator


def _function(operator: _Operator, forward: Any) -> Any:
    """An autograd.Function over ``operator``: the same, at a third of the overhead that registered autograd has."""

    class KDDivergence(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, student: Tensor, teacher: Tensor, others: tuple[Any, ...]) -> Tensor:
            inputs = (student, teacher, *others)
            output = forward(*inputs)
            if others[-1] == _GRADIENT:
                ctx.gradient, ctx.options = output[2], others[3:]
                ctx.set_materialize_grads(False)
                ctx.save_for_backward(*inputs[:5])
            else:
                _keep(ctx, inputs, output)
            loss: Tensor = output[0]
            return loss

        @staticmethod
        def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
            if grad is None or ctx.options[-1] != _GRADIENT:
                return *_gradients(operator, ctx, grad), None
            gradient = ctx.gradient
            if gradient is None:
                gradient = forward(*ctx.saved_tensors, *ctx.options)[2]
            if _checks.eager(grad) and grad.item() == 1:
                ctx.gradient = None  # handed out as it is: its owner may write to it
            else:
                ctx.gradient, gradient = gradient, (gradient * grad).to(gradient.dtype)
            if torch.is_grad_enabled():
                gradient = differentiable_once(gradient, ctx.saved_tensors[0])
            return gradient, None, None

    return KDDivergence.apply


_calls: dict[str, tuple[Any, Any]] = {}  # operator name -> in eager mode, in a trace

if _library.build() is not None:
    _operator = _register("kd_divergence")
    _calls["kd_divergence"] = (_function(_operator, direct("kd_divergence", _operator.forward, 5)), _operator.forward)


def _call(backend: str) -> tuple[Any, Any]:
    if backend == "triton" and "kd_divergence_triton" not in _calls:
        from merc_kernels._triton import kd_divergence as kernels

        library: Any = torch.library.Library("merc", "FRAGMENT")  # type: ignore[no-untyped-call]
        library.define("kd_divergence_triton" + _FORWARD)
        library.define("kd_divergence_triton_backward" + _BACKWARD)
        library.impl("kd_divergence_triton", kernels.kd_divergence, "CompositeExplicitAutograd")
        library.impl("kd_divergence_triton_backward", kernels.kd_divergence_backward, "CompositeExplicitAutograd")
        operator = _register("kd_divergence_triton")
        _calls["kd_divergence_triton"] = (_function(operator, below_autograd(operator.forward)), operator.forward)
        _libraries.append(library)
    return _calls["kd_divergence_triton" if backend == "triton" else "kd_divergence"]


_libraries: list[Any] = []  # a Library that is collected takes its operators along


def _accumulate(student: Tensor, teacher: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32


@_checks.remembered
def _options(
    direction: str,
    beta: float,
    ce_weight: float,
    teacher_grad: bool,
    scale_by_t2: bool,
    ignore_index: int,
    reduction: str,
) -> tuple[int, float, float, bool, int, int]:
    """The options, checked, as the operator takes them."""
    _checks.kd_options(
        direction=direction,
        beta=beta,
        ce_weight=ce_weight,
        teacher_grad=teacher_grad,
        scale_by_t2=scale_by_t2,
        ignore_index=ignore_index,
        reduction=reduction,
    )
    return _DIRECTIONS[direction], float(beta), float(ce_weight), scale_by_t2, ignore_index, _REDUCTIONS[reduction]


def kd_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float | Tensor,
    direction: str,
    beta: float,
    labels: Tensor | None,
    ce_weight: float,
    row_weights: Tensor | None,
    teacher_grad: bool,
    scale_by_t2: bool,
    ignore_index: int,
    backend: str,
    reduction: str,
) -> Tensor:
    """`merc_kernels.kd_divergence` on a fused backend."""
    eager = _checks.eager(student_logits, teacher_logits)
    options = _options(direction, beta, ce_weight, teacher_grad, scale_by_t2, ignore_index, reduction)
    _checks.kd_tensors(
        student_logits,
        teacher_logits,
        temperature=temperature,
        labels=labels,
        ce_weight=ce_weight,
        row_weights=row_weights,
        ignore_index=ignore_index,
    )
    teacher = teacher_logits.detach() if teacher_logits.requires_grad and not teacher_grad else teacher_logits
    row_temperature = None
    if isinstance(temperature, Tensor):
        row_temperature, temperature = temperature.detach(), 1.0
    if row_temperature is not None or row_weights is not None:
        numbers = [x for x in (row_temperature, row_weights) if x is not None]
        if any(x.dtype == torch.float64 for x in numbers):
            student_logits = student_logits.double()  # as the reference: float64 where any input is
        dtype = _accumulate(student_logits, teacher)
        row_temperature = None if row_temperature is None else row_temperature.to(dtype)
        row_weights = None if row_weights is None else row_weights.detach().to(dtype)
    save = _NUMBERS
    if not torch.is_grad_enabled() or (
        eager and backend == "cpu" and not teacher.requires_grad and not student_logits.requires_grad
    ):
        save = _NOTHING
    elif (
        backend == "cpu"
        and reduction != "none"
        and not teacher.requires_grad
        and (eager or (torch.compiler.is_compiling() and student_logits.requires_grad))
    ):
        # in float16 a gradient for a gradient of 1 would underflow before loss scaling could lift it
        save = _NUMBERS if student_logits.dtype == torch.float16 else _GRADIENT
    if save != _NOTHING and (eager or save != _GRADIENT) and (student_logits.requires_grad or teacher.requires_grad):
        student_logits, teacher, row_temperature, labels, row_weights = ordinary(
            student_logits, teacher, row_temperature, labels, row_weights
        )
    others = (
        row_temperature,
        labels,
        row_weights,
        float(temperature),
        *options,
        save,
    )
    in_eager_mode, in_a_trace = _call(backend)
    loss: Tensor = (
        in_eager_mode(student_logits, teacher, others) if eager else in_a_trace(student_logits, teacher, *others)[0]
    )
    return loss
