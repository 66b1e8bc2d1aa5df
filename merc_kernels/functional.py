"""The losses as functions: their contract, and the choice of the backend that computes them."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from merc_kernels import _checks, _library, reference
from merc_kernels._ops.focal_contrastive import focal_contrastive as fused_focal_contrastive
from merc_kernels._ops.kd_divergence import kd_divergence as fused_kd_divergence


def focal_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    gamma: float = 2.0,
    focal: Literal["similarity", "probability"] = "similarity",
    detach_focal: bool = True,
    class_weights: Tensor | None = None,
    prototypes: Tensor | None = None,
    prototype_anchors: bool = False,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_only: bool = False,
    normalize: bool = True,
    ignore_index: int = -100,
    backend: str | None = None,
    reduction: Literal["mean", "batchmean", "sum", "none"] = "mean",
) -> Tensor:
    r"""Focal supervised contrastive loss: each row is an anchor, and is drawn to the other rows of its label.

    .. math::
        \mathrm{loss}_i = \frac{w_{y_i}}{|P(i)|} \sum_{j \in P(i)} -h_{ij} (s_{ij} - L_i), \quad
        s_{ij} = z_i \cdot z_j / \tau, \quad L_i = \log \sum_{j \ne i} e^{s_{ij}}

    with P(i) the candidates that share i's label. ``gamma=0`` is the supervised contrastive loss L_out of
    Khosla et al. (2020, https://arxiv.org/abs/2004.11362). ``focal="probability"`` with
    ``detach_focal=False`` and ``reduction="batchmean"`` is the SWFC loss of MultiEMO (Shi and Huang, 2023,
    https://aclanthology.org/2023.acl-long.824), whose class weights are scaled to sum 1, not to mean 1.

    Args:
        embeddings: ``(N, D)``, or ``(G, N, D)`` for G independent batches in one call; float64, float32,
            bfloat16 or float16; computed in float32, or in float64 where any input is.
        labels: int64 ``(N,)``, shared by the groups, or ``(G, N)``. Any integer is a class, unless
            ``class_weights`` or ``prototypes`` fix the number of classes C: then labels lie in [0, C).
        temperature: tau > 0, it divides; a float, or a 0-dim tensor, which gets its gradient.
        gamma: >= 0, the exponent of the focal factor h.
        focal: ``"similarity"``: h = ((1 - z_i.z_j) / 2)^gamma, the base clamped to at most 1;
            ``"probability"``: h = (1 - exp(s_ij - L_i))^gamma. Either base is clamped to at least 2^-24
            (2^-53 in float64), with derivative 0 where clamped.
        detach_focal: keep gradients out of h.
        class_weights: ``(C,)``, weighs an anchor by its label; detached. See `class_balanced_weights`.
        prototypes: ``(C, D)``, shared by the groups, or ``(G, C, D)``: row c is one more candidate, of label c.
        prototype_anchors: prototypes are anchors too, with the same candidates (but never themselves).
        ref_embeddings: ``(M, D)``, shared by the groups, or ``(G, M, D)``: more candidates. They get a
            gradient where they require one.
        ref_labels: int64 ``(M,)``, shared by the groups, or ``(G, M)``.
        ref_only: the refs are the only candidates, as for two views or two modalities: no row is then
            excluded as the anchor itself.
        normalize: L2-normalise all vectors. A zero row stays zero and gets a zero gradient.
        ignore_index: rows, prototypes and refs of this label are neither anchor nor candidate, whatever they
            hold (a NaN too), and get a zero gradient.
        backend: a key of `backends` that is on, or None: that of `use_backend`, else the fastest.
        reduction: ``"mean"`` divides the sum over anchors by the number of anchors with a positive,
            ``"batchmean"`` by the number of kept rows (and prototypes, where they are anchors), both over all
            groups; ``"sum"``; ``"none"`` gives each row's loss, 0 where it does not count. Class weights never
            divide.

    Returns:
        A float32 scalar, or ``(N,)`` or ``(G, N)`` for ``reduction="none"``; float64 where any input is. An
        anchor without a positive adds 0 and a zero gradient; with nothing to count the result is 0, connected
        to the graph.

    Raises:
        ValueError: an option out of range, or shapes, dtypes or devices that do not match. Labels outside
            [0, C) and a temperature tensor that is not positive raise on the CPU; on a GPU only under
            ``MERC_CHECK=1``, as reading them would synchronise: there a label out of range counts as ignored.
    """
    name = _library.choose(backend, "focal_contrastive", _device(embeddings), _pairs(embeddings, ref_embeddings))
    run = reference.focal_contrastive_loss if name == "reference" else fused_focal_contrastive
    return run(
        embeddings,
        labels,
        temperature=temperature,
        gamma=gamma,
        focal=focal,
        detach_focal=detach_focal,
        class_weights=class_weights,
        prototypes=prototypes,
        prototype_anchors=prototype_anchors,
        ref_embeddings=ref_embeddings,
        ref_labels=ref_labels,
        ref_only=ref_only,
        normalize=normalize,
        ignore_index=ignore_index,
        backend=name,
        reduction=reduction,
    )


def kd_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float | Tensor = 2.0,
    direction: Literal["forward", "reverse", "js"] = "forward",
    beta: float = 0.5,
    labels: Tensor | None = None,
    ce_weight: float = 0.0,
    row_weights: Tensor | None = None,
    teacher_grad: bool = False,
    scale_by_t2: bool = True,
    ignore_index: int = -100,
    backend: str | None = None,
    reduction: Literal["batchmean", "sum", "none"] = "batchmean",
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
        temperature: T > 0; a float, or a ``(N,)`` tensor, which gives each row its own. No gradient to it.
        direction: ``"forward"`` KL(p | q), as above; ``"reverse"`` KL(q | p); ``"js"`` (1 - beta) KL(q | m) +
            beta KL(p | m) with m = beta p + (1 - beta) q.
        beta: in (0, 1), for ``"js"``.
        labels: int64 ``(N,)``, shared by the students, or ``(G, N)``; in [0, C), or ``ignore_index``.
        ce_weight: >= 0; adds this times the cross entropy of the student at T = 1 with ``labels``.
        row_weights: ``(N,)``, shared by the students, or ``(G, N)``; multiply a row's whole loss; detached.
        teacher_grad: let gradients reach the teacher.
        scale_by_t2: the factor T^2, with which gradients keep their size as T changes.
        ignore_index: rows of this label add 0 and get a zero gradient, whatever they hold (a NaN too).
        backend: a key of `backends` that is on, or None: that of `use_backend`, else the fastest.
        reduction: ``"batchmean"`` divides the sum by the number of kept rows, over all groups; ``"sum"``;
            ``"none"`` gives each row's loss. Row weights never divide.

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
    name = _library.choose(backend, "kd_divergence", _device(student_logits))
    name = "reference" if name == "torch" else name  # plain PyTorch is linear in the logits as it is
    run = reference.kd_divergence if name == "reference" else fused_kd_divergence
    return run(
        student_logits,
        teacher_logits,
        temperature=temperature,
        direction=direction,
        beta=beta,
        labels=labels,
        ce_weight=ce_weight,
        row_weights=row_weights,
        teacher_grad=teacher_grad,
        scale_by_t2=scale_by_t2,
        ignore_index=ignore_index,
        backend=name,
        reduction=reduction,
    )


def class_balanced_weights(class_counts: Sequence[float] | Tensor, alpha: float = 1.0) -> Tensor:
    r"""Class weights :math:`(N / n_c)^\alpha`, scaled to mean 1 over the classes present; 0 for an absent class.

    The weights of MultiEMO (Shi and Huang, 2023, https://aclanthology.org/2023.acl-long.824), but for the
    scale: there they sum to 1.

    Args:
        class_counts: n_c, the number of rows of each class: a sequence of numbers, a ``(C,)`` array, or a ``(C,)``
            tensor of integers or floats.
        alpha: >= 0; 0 weighs the classes present alike.

    Returns:
        ``(C,)`` float32 (float64 for a float64 tensor), on the tensor's device.

    Raises:
        ValueError: counts that are negative, not finite or all 0 (those of a tensor on a GPU are looked at
            only under ``MERC_CHECK=1``); an alpha that is negative.
    """
    _checks.number("alpha", alpha)
    if not isinstance(class_counts, Tensor) and hasattr(class_counts, "tolist"):  # an array
        class_counts = class_counts.tolist()
    _checks.class_counts(class_counts)
    if isinstance(class_counts, Tensor):
        double = class_counts.dtype == torch.float64
        counts = class_counts.detach().to(torch.float64 if double else torch.float32)
    else:
        counts = torch.tensor(list(class_counts), dtype=torch.float32)
    present = counts > 0
    exponent = (-alpha * torch.where(present, counts, 1).log()).masked_fill(~present, -torch.inf)
    return torch.where(present, exponent.softmax(0) * present.sum(), 0)  # N cancels, no power overflows


def _device(tensor: object) -> str:
    """The type of a tensor's device; what is no tensor is refused later."""
    return tensor.device.type if isinstance(tensor, Tensor) else "cpu"


def _pairs(embeddings: object, refs: object) -> int:
    """About how many elements the matrix of similarities has; 0 where a size is symbolic."""
    sizes = [x.shape[:-1] for x in (embeddings, refs) if isinstance(x, Tensor)]
    if not sizes or torch.compiler.is_compiling():
        return 0
    return math.prod(sizes[0]) * sum(math.prod(size[-1:]) for size in sizes)
