"""The divergence of a student from its teacher as a function and as a module, and the way to the backend."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from merc_kernels._shared import backends, checks, torch_private
from merc_kernels._shared.module import LossModule
from merc_kernels._shared.options import described, remembered
from merc_kernels._shared.ordinary import ordinary
from merc_kernels.kd_divergence import inputs, learned_temperature, operator, reference, trial
from merc_kernels.kd_divergence.options import Direction, KDDivergenceOptions, Reduction

_options = remembered(KDDivergenceOptions)


@described(KDDivergenceOptions)
def kd_divergence(  # noqa: D417 - the options are described where they are defined
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float | Tensor = KDDivergenceOptions.temperature,
    direction: Direction = KDDivergenceOptions.direction,
    beta: float = KDDivergenceOptions.beta,
    labels: Tensor | None = None,
    ce_weight: float = KDDivergenceOptions.ce_weight,
    row_weights: Tensor | None = None,
    teacher_grad: bool = KDDivergenceOptions.teacher_grad,
    scale_by_t2: bool = KDDivergenceOptions.scale_by_t2,
    ignore_index: int = KDDivergenceOptions.ignore_index,
    backend: str | None = None,
    reduction: Reduction = KDDivergenceOptions.reduction,
) -> Tensor:
    r"""Temperature-scaled divergence of a student from its teacher.

    .. math::
        T^2 \sum_c p_c (\log p_c - \log q_c), \quad
        p = \mathrm{softmax}(t / T), \quad q = \mathrm{softmax}(s / T)

    The distillation loss of Hinton et al. (2015, https://arxiv.org/abs/1503.02531); the reverse and the
    generalised Jensen-Shannon form are those of Agarwal et al. (2024, https://arxiv.org/abs/2306.13649).

    Args:
        student_logits: s, ``(N, C)``, or ``(G, N, C)`` for G students in one call; float64, float32, bfloat16
            or float16; computed in float32, or in float64 where any input is.
        teacher_logits: t, of the same shape, or ``(N, C)``, shared by the students; detached unless
            ``teacher_grad``.
        labels: int64 ``(N,)``, shared by the students, or ``(G, N)``; in [0, C), or ``ignore_index``.
        row_weights: ``(N,)``, shared by the students, or ``(G, N)``; multiply a row's whole loss; detached.
        **options: those of `KDDivergenceOptions`, by keyword.
        backend: a key of `backends` that is on, or None: that of `use_backend`, else the fastest.

    A class that is -inf in both logits adds 0, and a zero gradient. One that is -inf in the second argument of
    KL alone makes the row +inf; in the first alone it adds 0. A row that counts and holds a NaN, +inf or nothing
    but -inf in either has a NaN loss and gradient.

    Returns:
        A float32 scalar, or ``(N,)`` or ``(G, N)`` for ``reduction="none"``; float64 where any input is. With
        nothing to count the result is 0, connected to the graph.

    Raises:
        ValueError: an option out of range, or shapes, dtypes or devices that do not match. Labels outside
            [0, C) and a temperature tensor that is not positive raise on the CPU; on a GPU only under
            ``MERC_CHECK=1``, as reading them would synchronise: there a label out of range counts as ignored.
    """
    tensor, number = (temperature, 1.0) if isinstance(temperature, Tensor) else (None, temperature)
    options = _options(
        number,
        direction,
        beta,
        ce_weight,
        teacher_grad,
        scale_by_t2,
        ignore_index,
        reduction,
    )
    return _divergence(student_logits, teacher_logits, tensor, labels, row_weights, options, backend)


@described(KDDivergenceOptions)
class KDDivergence(LossModule):
    """Divergence of a student from its teacher; see `merc_kernels.kd_divergence`.

    The temperature may be an ``nn.Parameter`` of no dimension, to be learned.

    Args:
        **options: those of `KDDivergenceOptions`, by keyword.
        backend: a key of `merc_kernels.backends`, or None.

    Raises:
        ValueError: an option out of range.
    """

    options: KDDivergenceOptions

    def __init__(
        self,
        *,
        temperature: float | nn.Parameter = KDDivergenceOptions.temperature,
        direction: Direction = KDDivergenceOptions.direction,
        beta: float = KDDivergenceOptions.beta,
        ce_weight: float = KDDivergenceOptions.ce_weight,
        teacher_grad: bool = KDDivergenceOptions.teacher_grad,
        scale_by_t2: bool = KDDivergenceOptions.scale_by_t2,
        ignore_index: int = KDDivergenceOptions.ignore_index,
        backend: str | None = None,
        reduction: Reduction = KDDivergenceOptions.reduction,
    ) -> None:
        super().__init__(
            KDDivergenceOptions,
            backend,
            temperature=temperature,
            direction=direction,
            beta=beta,
            ce_weight=ce_weight,
            teacher_grad=teacher_grad,
            scale_by_t2=scale_by_t2,
            ignore_index=ignore_index,
            reduction=reduction,
        )

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        *,
        labels: Tensor | None = None,
        row_weights: Tensor | None = None,
        temperature: Tensor | None = None,
    ) -> Tensor:
        """The loss of ``student_logits`` ``(N, C)``; ``temperature`` ``(N,)`` or ``()`` stands in for the module's."""
        temperature = self.learned_temperature if temperature is None else temperature
        tensors = (student_logits, teacher_logits, temperature, labels, row_weights)
        return _divergence(*tensors, self.options, self.backend)


def _divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | None,
    labels: Tensor | None,
    row_weights: Tensor | None,
    options: KDDivergenceOptions,
    backend: str | None,
) -> Tensor:
    """The divergence on the backend that is chosen; of the temperatures the tensor counts, where it is there."""
    student_logits, teacher_logits, temperature, labels, row_weights = checks.untyped(
        student_logits, teacher_logits, temperature, labels, row_weights
    )
    tensors = (student_logits, teacher_logits, temperature, labels, row_weights)

    name = torch_private.untraced(_checked, backend, *tensors, options)
    if name in ("reference", "torch"):  # plain PyTorch is linear in the logits as it is
        student, teacher, temperature, labels, row_weights = ordinary(*tensors)
        return reference.kd_divergence(student, teacher, temperature, labels, row_weights, options)
    traced = torch_private.tracing_state() is not None  # its check runs without gradients, and wants the same graph
    if temperature is not None and temperature.requires_grad and (traced or torch.is_grad_enabled()):
        fused = functools.partial(operator.kd_divergence, backend=name)
        student, teacher, temperature, labels, row_weights = ordinary(*tensors)
        return learned_temperature.kd_divergence(fused, student, teacher, temperature, labels, row_weights, options)
    return operator.kd_divergence(*tensors, options, name)


def _checked(backend: str | None, *call: Any) -> str:
    """The backend of a call, its tensors and options, with nothing wrong."""
    inputs.check(*call)
    return backends.choose(backend, "kd_divergence", call[0], lambda: trial.call(kd_divergence, *call))
