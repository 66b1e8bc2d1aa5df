"""The operators ``merc::focal_contrastive`` (C++: cpu, cuda), ``_torch`` and ``_triton``, with autograd.

The forward pass keeps the unit rows and four numbers of each, from which the backward pass recomputes the matrix tile
by tile. Where one scalar is wanted of a small batch on the CPU, both passes run at once and nothing is recomputed:
``merc::focal_contrastive_with_gradients``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from merc_kernels._shared import backends, checks, torch_private
from merc_kernels._shared.operator import Description, Operator, accumulate, with_gradients
from merc_kernels._shared.options import REDUCTIONS
from merc_kernels._shared.ordinary import ordinary
from merc_kernels.focal_contrastive.options import FocalContrastiveOptions

_SMALL = 1 << 22  # pairs of rows of a batch that both passes serve at once: 16 MB of cosines
_SHORT_ROWS = {"compiled": ("cuda",), "torch": (), "triton": ("cuda", "cpu")}  # where unit rows of 16 bits stay so


def _fake(tensors: Sequence[Any], numbers: Sequence[Any], backend: str) -> list[Tensor]:
    embeddings, _, prototypes, refs, *_ = tensors
    dtype = accumulate(embeddings)
    vectors = [x for x in (embeddings, prototypes, refs) if x is not None]
    shape = (embeddings.shape[0] if embeddings.dim() == 3 else 1, sum(x.shape[-2] for x in vectors))
    same = all(x.dtype == embeddings.dtype for x in vectors)
    short = same and embeddings.device.type in _SHORT_ROWS[backend]
    none = REDUCTIONS[numbers[-1]] == "none"
    return [
        embeddings.new_empty(embeddings.shape[:-1] if none else (), dtype=dtype),
        embeddings.new_empty((*shape, embeddings.shape[-1]), dtype=embeddings.dtype if short else dtype),
        embeddings.new_empty(shape, dtype=dtype),
        embeddings.new_empty((*shape, 4), dtype=dtype),
        embeddings.new_empty(shape, dtype=torch.int64),
    ]


DESCRIPTION = Description(
    name="focal_contrastive",
    tensors=(
        "Tensor embeddings",
        "Tensor labels",
        "Tensor? prototypes",
        "Tensor? refs",
        "Tensor? ref_labels",
        "Tensor? class_weights",
        "Tensor? temperature_tensor",
    ),
    options=FocalContrastiveOptions,
    kept=("z", "norms", "stats", "index"),
    differentiable=(0, 2, 3, 6),
    needed=(0, 2, 3, 6),
    fake=_fake,
    backward_numbers=("bool all_anchors",),
    python={
        "torch": "merc_kernels.focal_contrastive.chunked",
        "triton": "merc_kernels.focal_contrastive.triton.launch",
    },
)
_operator = Operator(DESCRIPTION)


def _fake_with_gradients(*arguments: Any) -> tuple[Tensor, ...]:
    embeddings, inputs = arguments[0], [arguments[i] for i in DESCRIPTION.differentiable]
    dtype = accumulate(embeddings)
    return embeddings.new_empty((), dtype=dtype), *(
        embeddings.new_empty(x.shape if x is not None and want else 0, dtype=dtype)
        for x, want in zip(inputs, arguments[-4:], strict=True)
    )


if backends.extension() is not None:
    _NAME = "focal_contrastive_with_gradients"
    torch.library.register_fake(f"merc::{_NAME}", _fake_with_gradients)
    _both = torch_private.below_autograd(getattr(torch.ops.merc, _NAME).default)

    def _with_gradients(
        tensors: Sequence[Any], numbers: Sequence[Any], needs: Sequence[bool]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        wanted = [needs[i] for i in DESCRIPTION.differentiable]
        loss, *made = _both(*tensors, *numbers, *wanted)
        x, prototypes, refs, temperature = [x if want else None for x, want in zip(made, wanted, strict=True)]
        return loss, (x, None, prototypes, refs, None, None, temperature)

    _of_small_batches = with_gradients(_with_gradients)


def focal_contrastive(
    embeddings: Tensor,
    labels: Tensor,
    prototypes: Tensor | None,
    refs: Tensor | None,
    ref_labels: Tensor | None,
    class_weights: Tensor | None,
    temperature: Tensor | None,
    options: FocalContrastiveOptions,
    backend: str,
) -> Tensor:
    """`merc_kernels.focal_contrastive_loss` on a fused backend, of tensors that were checked."""
    tensors = typed(embeddings, labels, prototypes, refs, ref_labels, class_weights, temperature)
    plain = checks.eager(*tensors)
    floating = (embeddings, prototypes, refs, class_weights, temperature)
    wanted = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in floating)
    if wanted:
        tensors = ordinary(*tensors)
    if (
        plain
        and backend == "cpu"
        and wanted
        and options.reduction != "none"
        and _is_small(embeddings, prototypes, refs)
    ):
        return _of_small_batches(*tensors, options.numbers)
    return _operator(backend, plain, tensors, options.numbers)


def typed(
    embeddings: Tensor,
    labels: Tensor,
    prototypes: Tensor | None,
    refs: Tensor | None,
    ref_labels: Tensor | None,
    class_weights: Tensor | None,
    temperature: Tensor | None,
) -> tuple[Any, ...]:
    """The tensors in the types that the operators take: as in the reference float64 where any input is."""
    if any(
        x is not None and x.dtype == torch.float64 for x in (embeddings, prototypes, refs, class_weights, temperature)
    ):
        embeddings = embeddings.double()
        prototypes = None if prototypes is None else prototypes.double()
        refs = None if refs is None else refs.double()
    dtype = accumulate(embeddings)
    weights = None if class_weights is None else class_weights.detach().to(dtype)
    temperature = None if temperature is None else temperature.to(dtype)
    return embeddings, labels, prototypes, refs, ref_labels, weights, temperature


def passes(backend: str) -> tuple[Any, Any]:
    """The operators of the forward and the backward pass of a backend."""
    name = _operator.backend_of(backend)
    return _operator.traced[name], _operator.backward[name]


def _is_small(embeddings: Tensor, *others: Tensor | None) -> bool:
    rows = embeddings.shape[-2] + sum(x.shape[-2] for x in others if x is not None)
    groups = embeddings.shape[0] if embeddings.dim() == 3 else 1
    return groups * rows * rows <= _SMALL
