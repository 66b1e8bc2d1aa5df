"""The operators ``merc::focal_contrastive`` (C++: cpu, cuda), ``_torch`` and ``_triton``, with autograd.

All have the schema of csrc/library.cpp. The forward pass keeps the unit rows and four numbers of each, from which the
backward pass recomputes the matrix tile by tile. Where one scalar is wanted of a small batch on the CPU, both passes
run at once and nothing is recomputed: ``merc::focal_contrastive_with_gradients``.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from merc_kernels import _checks, _library
from merc_kernels._ops.direct import below_autograd, direct
from merc_kernels._ops.once import differentiable_once, refuse
from merc_kernels._ordinary import ordinary
from merc_kernels._torch import focal_contrastive as chunked

_FOCALS = {"similarity": 0, "probability": 1}
_REDUCTIONS = {"none": 0, "sum": 1, "mean": 2, "batchmean": 3}
_OPTIONS = (
    "Tensor? temperature_tensor, float temperature, float gamma, int focal, bool detach_focal, "
    "bool prototype_anchors, bool ref_only, bool normalize, int ignore_index, "
)
_FORWARD = (
    "(Tensor embeddings, Tensor labels, Tensor? prototypes, Tensor? refs, Tensor? ref_labels, Tensor? class_weights, "
    f"{_OPTIONS}int reduction) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor grad, Tensor divisor, Tensor z, Tensor norms, Tensor stats, Tensor index, Tensor embeddings, "
    f"Tensor? prototypes, Tensor? refs, {_OPTIONS}bool embeddings_grad, bool prototypes_grad, bool refs_grad, "
    "bool temperature_grad) -> (Tensor, Tensor, Tensor, Tensor)"
)
_DIFFERENTIABLE = (0, 2, 3, 6)  # embeddings, prototypes, refs, temperature_tensor
_ARGUMENTS = 16  # of the forward operator
_SMALL = 1 << 22  # pairs of rows of a batch that both passes serve at once: 16 MB of cosines


class _Operator(NamedTuple):
    forward: Any
    backward: Any


def _fake(
    embeddings: Tensor,
    labels: Tensor,
    prototypes: Tensor | None,
    refs: Tensor | None,
    ref_labels: Tensor | None,
    class_weights: Tensor | None,
    temperature_tensor: Tensor | None,
    temperature: float,
    gamma: float,
    focal: int,
    detach_focal: bool,
    prototype_anchors: bool,
    ref_only: bool,
    normalize: bool,
    ignore_index: int,
    reduction: int,
    *,
    short_rows: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = _accumulate(embeddings)
    vectors = [x for x in (embeddings, prototypes, refs) if x is not None]
    shape = (embeddings.shape[0] if embeddings.dim() == 3 else 1, sum(x.shape[-2] for x in vectors))
    same = all(x.dtype == embeddings.dtype for x in vectors)
    loss = embeddings.shape[:-1] if reduction == _REDUCTIONS["none"] else ()
    return (
        embeddings.new_empty(loss, dtype=dtype),
        embeddings.new_empty((), dtype=dtype),
        embeddings.new_empty((*shape, embeddings.shape[-1]), dtype=embeddings.dtype if same and short_rows else dtype),
        embeddings.new_empty(shape, dtype=dtype),
        embeddings.new_empty((*shape, 4), dtype=dtype),
        embeddings.new_empty(shape, dtype=torch.int64),
    )


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    embeddings = arguments[6]
    dtype = _accumulate(embeddings)
    *wanted, temperature_grad = arguments[-4:]
    gradients = [
        embeddings.new_empty(0, dtype=dtype) if x is None else x.new_empty(x.shape if grad else 0)
        for x, grad in zip(arguments[6:9], wanted, strict=True)
    ]
    return *gradients, embeddings.new_empty(() if temperature_grad else 0, dtype=dtype)


def _fake_with_gradients(embeddings: Tensor, *others: Any) -> tuple[Tensor, ...]:
    dtype = _accumulate(embeddings)
    inputs = (embeddings, *(others[i - 1] for i in _DIFFERENTIABLE[1:]))
    return embeddings.new_empty((), dtype=dtype), *(
        embeddings.new_empty(x.shape if x is not None and wanted else 0, dtype=dtype)
        for x, wanted in zip(inputs, others[-4:], strict=True)
    )


def _accumulate(embeddings: Tensor) -> torch.dtype:
    return torch.float64 if embeddings.dtype == torch.float64 else torch.float32


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.options = inputs[7:-1]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:], *(inputs[i] for i in _DIFFERENTIABLE))


def _gradients(operator: _Operator, ctx: Any, grad: Tensor | None, wanted: tuple[bool, ...]) -> list[Tensor | None]:
    """Of embeddings, prototypes, refs and temperature."""
    if grad is None:
        return [None] * 4
    *numbers, embeddings, prototypes, refs, temperature = ctx.saved_tensors
    inputs = (embeddings, prototypes, refs, temperature)
    gradients = operator.backward(grad.contiguous(), *numbers, *inputs, *ctx.options, *wanted)
    present = [x for x in inputs if x is not None]
    again = torch.is_grad_enabled()
    return [
        (differentiable_once(x, grad, *present) if again else x) if want else None
        for x, want in zip(gradients, wanted, strict=True)
    ]


def _refuse_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """A second derivative needs nothing saved: it raises."""


def _register(name: str, short_rows: tuple[str, ...]) -> _Operator:
    """Fake and autograd of the operators ``merc::name`` and ``merc::name_backward``.

    ``short_rows``: the devices where unit rows of 16-bit vectors are kept in 16 bits, for their matrix units.
    """
    operator = _Operator(getattr(torch.ops.merc, name).default, getattr(torch.ops.merc, f"{name}_backward").default)

    def fake(embeddings: Tensor, *others: Any) -> tuple[Tensor, ...]:
        return _fake(embeddings, *others, short_rows=embeddings.device.type in short_rows)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _keep(ctx, inputs, output)
        ctx.mark_non_differentiable(*output[1:])

    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        wanted = tuple(ctx.needs_input_grad[i] for i in _DIFFERENTIABLE)
        gradients: list[Tensor | None] = [None] * _ARGUMENTS
        for i, gradient in zip(_DIFFERENTIABLE, _gradients(operator, ctx, grad, wanted), strict=True):
            gradients[i] = gradient
        return tuple(gradients)

    torch.library.register_fake(f"merc::{name}", fake)
    torch.library.register_fake(f"merc::{name}_backward", _fake_backward)
    torch.library.register_autograd(f"merc::{name}", backward, setup_context=setup_context)
    torch.library.register_autograd(f"merc::{name}_backward", refuse, setup_context=_refuse_setup)
    return operator


def _function(operator: _Operator) -> Any:
    """An autograd.Function over ``operator``: the same, at a third of the overhead that registered autograd has."""
    forward_operator = below_autograd(operator.forward)

    class FocalContrastive(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            embeddings: Tensor,
            prototypes: Tensor | None,
            refs: Tensor | None,
            temperature: Tensor | None,
            others: tuple[Any, ...],
        ) -> Tensor:
            labels, ref_labels, class_weights, *options = others
            inputs = (embeddings, labels, prototypes, refs, ref_labels, class_weights, temperature, *options)
            output = forward_operator(*inputs)
            _keep(ctx, inputs, output)
            loss: Tensor = output[0]
            return loss

        @staticmethod
        def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
            return *_gradients(operator, ctx, grad, ctx.needs_input_grad[:4]), None

    return FocalContrastive.apply


def _function_of_small_batches() -> Any:
    """The same over ``merc::focal_contrastive_with_gradients``: the gradients are there before they are asked for."""
    name = "focal_contrastive_with_gradients"
    both = direct(name, getattr(torch.ops.merc, name).default, tensors=7)

    class FocalContrastiveWithGradients(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            embeddings: Tensor,
            prototypes: Tensor | None,
            refs: Tensor | None,
            temperature: Tensor | None,
            others: tuple[Any, ...],
        ) -> Tensor:
            labels, ref_labels, class_weights, *options = others
            tensors = (embeddings, labels, prototypes, refs, ref_labels, class_weights, temperature)
            ctx.options = (*options, *ctx.needs_input_grad[:4])
            loss: Tensor
            loss, *ctx.gradients = both(*tensors, *ctx.options)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*tensors)
            return loss

        @staticmethod
        def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
            tensors = ctx.saved_tensors
            if grad is None:
                return (None,) * 5
            gradients, ctx.gradients = ctx.gradients or both(*tensors, *ctx.options)[1:], None
            if not (_checks.eager(grad) and grad.item() == 1):  # as they are, they are their owner's
                ctx.gradients, gradients = gradients, [x * grad for x in gradients]
            inputs = [tensors[i] for i in _DIFFERENTIABLE]
            present = [x for x in inputs if x is not None]
            again = torch.is_grad_enabled()
            result: list[Tensor | None] = [None] * 5
            for i, (x, gradient) in enumerate(zip(inputs, gradients, strict=True)):
                if ctx.needs_input_grad[i]:
                    gradient = gradient.to(x.dtype)
                    result[i] = differentiable_once(gradient, grad, *present) if again else gradient
            return tuple(result)

    return FocalContrastiveWithGradients.apply


_calls: dict[str, tuple[Any, Any]] = {}  # backend -> in eager mode, in a trace
_libraries: list[Any] = []  # a Library that is collected takes its operators along

if _library.build() is not None:
    _operator = _register("focal_contrastive", short_rows=("cuda",))
    _calls["cpu"] = _calls["cuda"] = (_function(_operator), _operator.forward)
    torch.library.register_fake("merc::focal_contrastive_with_gradients", _fake_with_gradients)
    _of_small_batches = _function_of_small_batches()


def _define(backend: str, kernels: Any, short_rows: tuple[str, ...]) -> None:
    """The operators of a backend in Python."""
    name = f"focal_contrastive_{backend}"
    library: Any = torch.library.Library("merc", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(name + _FORWARD)
    library.define(f"{name}_backward{_BACKWARD}")
    library.impl(name, kernels.focal_contrastive, "CompositeExplicitAutograd")
    library.impl(f"{name}_backward", kernels.focal_contrastive_backward, "CompositeExplicitAutograd")
    _libraries.append(library)
    operator = _register(name, short_rows)
    _calls[backend] = (_function(operator), operator.forward)


_define("torch", chunked, short_rows=())


def _call(backend: str) -> tuple[Any, Any]:
    if backend == "triton" and "triton" not in _calls:
        from merc_kernels._triton import focal_contrastive as kernels

        _define("triton", kernels, short_rows=("cuda", "cpu"))  # the interpreter computes what a GPU would
    return _calls[backend]


@_checks.remembered
def _options(
    gamma: float,
    focal: str,
    detach_focal: bool,
    prototype_anchors: bool,
    ref_only: bool,
    normalize: bool,
    ignore_index: int,
    reduction: str,
) -> tuple[float, int, bool, bool, bool, bool, int, int]:
    """The options, checked, as the operators take them."""
    _checks.focal_contrastive_options(
        gamma=gamma,
        focal=focal,
        detach_focal=detach_focal,
        prototype_anchors=prototype_anchors,
        ref_only=ref_only,
        normalize=normalize,
        ignore_index=ignore_index,
        reduction=reduction,
    )
    flags = (detach_focal, prototype_anchors, ref_only, normalize)
    return float(gamma), _FOCALS[focal], *flags, ignore_index, _REDUCTIONS[reduction]


def focal_contrastive(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor,
    gamma: float,
    focal: str,
    detach_focal: bool,
    class_weights: Tensor | None,
    prototypes: Tensor | None,
    prototype_anchors: bool,
    ref_embeddings: Tensor | None,
    ref_labels: Tensor | None,
    ref_only: bool,
    normalize: bool,
    ignore_index: int,
    backend: str,
    reduction: str,
) -> Tensor:
    """`merc_kernels.focal_contrastive_loss` on a fused backend."""
    options = _options(gamma, focal, detach_focal, prototype_anchors, ref_only, normalize, ignore_index, reduction)
    _checks.focal_contrastive_tensors(
        embeddings,
        labels,
        temperature=temperature,
        class_weights=class_weights,
        prototypes=prototypes,
        prototype_anchors=prototype_anchors,
        ref_embeddings=ref_embeddings,
        ref_labels=ref_labels,
        ref_only=ref_only,
        ignore_index=ignore_index,
    )
    temperature_tensor = None
    if isinstance(temperature, Tensor):
        temperature_tensor, temperature = temperature, 1.0
    floating = [x for x in (embeddings, prototypes, ref_embeddings, class_weights, temperature_tensor) if x is not None]
    if any(x.dtype == torch.float64 for x in floating):  # as the reference: float64 where any input is
        embeddings = embeddings.double()
        prototypes = None if prototypes is None else prototypes.double()
        ref_embeddings = None if ref_embeddings is None else ref_embeddings.double()
    dtype = _accumulate(embeddings)
    weights = None if class_weights is None else class_weights.detach().to(dtype)
    temperature_tensor = None if temperature_tensor is None else temperature_tensor.to(dtype)
    wanted = _wants_gradients(*floating)
    tensors: Any = (embeddings, labels, prototypes, ref_embeddings, ref_labels, weights, temperature_tensor)
    if wanted:
        tensors = ordinary(*tensors)
    in_eager_mode, in_a_trace = _call(backend)
    loss: Tensor
    if _checks.eager(*floating):
        embeddings, labels, prototypes, ref_embeddings, ref_labels, weights, temperature_tensor = tensors
        vectors: tuple[Any, ...] = (embeddings, prototypes, ref_embeddings)
        if backend == "cpu" and reduction != "none" and _is_small(*vectors) and wanted:
            in_eager_mode = _of_small_batches
        others = (labels, ref_labels, weights, float(temperature), *options)
        loss = in_eager_mode(*vectors, temperature_tensor, others)
    else:
        loss = in_a_trace(*tensors, float(temperature), *options)[0]
    return loss


def _is_small(embeddings: Tensor, *others: Tensor | None) -> bool:
    rows = embeddings.shape[-2] + sum(x.shape[-2] for x in others if x is not None)
    groups = embeddings.shape[0] if embeddings.dim() == 3 else 1
    return groups * rows * rows <= _SMALL


def _wants_gradients(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
