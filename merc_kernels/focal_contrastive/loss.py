"""The focal contrastive loss as a function and as a module: its contract, and the way to the backend."""

from typing import Any

from torch import Tensor, nn

from merc_kernels._shared import backends, checks, torch_private
from merc_kernels._shared.module import LossModule
from merc_kernels._shared.options import described, remembered
from merc_kernels._shared.ordinary import ordinary
from merc_kernels.focal_contrastive import inputs, multi_hot, operator, reference, trial
from merc_kernels.focal_contrastive.options import Focal, FocalContrastiveOptions, Reduction

_options = remembered(FocalContrastiveOptions)


@described(FocalContrastiveOptions)
def focal_contrastive_loss(  # noqa: D417 - the options are described where they are defined
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = FocalContrastiveOptions.temperature,
    gamma: float = FocalContrastiveOptions.gamma,
    focal: Focal = FocalContrastiveOptions.focal,
    detach_focal: bool = FocalContrastiveOptions.detach_focal,
    class_weights: Tensor | None = None,
    prototypes: Tensor | None = None,
    prototype_anchors: bool = FocalContrastiveOptions.prototype_anchors,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_only: bool = FocalContrastiveOptions.ref_only,
    normalize: bool = FocalContrastiveOptions.normalize,
    overlap_threshold: float = FocalContrastiveOptions.overlap_threshold,
    ignore_index: int = FocalContrastiveOptions.ignore_index,
    backend: str | None = None,
    reduction: Reduction = FocalContrastiveOptions.reduction,
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
            ``class_weights`` or ``prototypes`` fix the number of classes C: then labels lie in [0, C). Or bool
            ``(N, C)`` or ``(G, N, C)``: a set of labels for each row, multi-hot. These go without ``class_weights``, on
            the backends ``torch`` (their default) and ``reference``; a row without a label is a negative of all.
        class_weights: ``(C,)``, weighs an anchor by its label; detached. See `class_balanced_weights`.
        prototypes: ``(C, D)``, shared by the groups, or ``(G, C, D)``: row c is one more candidate, of label c.
        ref_embeddings: ``(M, D)``, shared by the groups, or ``(G, M, D)``: more candidates. They get a
            gradient where they require one.
        ref_labels: int64 ``(M,)``, shared by the groups, or ``(G, M)``; bool with one more dimension, as the labels.
        **options: those of `FocalContrastiveOptions`, by keyword.
        backend: a key of `backends` that is on, or None: that of `use_backend`, else the fastest.

    Returns:
        A float32 scalar, or ``(N,)`` or ``(G, N)`` for ``reduction="none"``; float64 where any input is. An
        anchor without a positive adds 0 and a zero gradient; with nothing to count the result is 0, connected
        to the graph.

    Raises:
        ValueError: an option out of range, or shapes, dtypes or devices that do not match. Labels outside
            [0, C) and a temperature tensor that is not positive raise on the CPU; on a GPU only under
            ``MERC_CHECK=1``, as reading them would synchronise: there a label out of range counts as ignored.
    """
    tensor, number = (temperature, 1.0) if isinstance(temperature, Tensor) else (None, temperature)
    options = _options(
        number,
        gamma,
        focal,
        detach_focal,
        prototype_anchors,
        ref_only,
        normalize,
        overlap_threshold,
        ignore_index,
        reduction,
    )
    tensors = (embeddings, labels, prototypes, ref_embeddings, ref_labels, class_weights)
    return loss_of(*tensors, tensor, options, backend)


@described(FocalContrastiveOptions)
class FocalContrastiveLoss(LossModule):
    """Focal supervised contrastive loss; see `merc_kernels.focal_contrastive_loss`.

    The temperature may be an ``nn.Parameter`` of no dimension, to be learned.

    Args:
        **options: those of `FocalContrastiveOptions`, by keyword.
        class_weights: ``(C,)``, kept as a buffer.
        backend: a key of `merc_kernels.backends`, or None.

    Raises:
        ValueError: an option out of range.
    """

    options: FocalContrastiveOptions
    class_weights: Tensor | None

    def __init__(
        self,
        *,
        temperature: float | nn.Parameter = FocalContrastiveOptions.temperature,
        gamma: float = FocalContrastiveOptions.gamma,
        focal: Focal = FocalContrastiveOptions.focal,
        detach_focal: bool = FocalContrastiveOptions.detach_focal,
        class_weights: Tensor | None = None,
        prototype_anchors: bool = FocalContrastiveOptions.prototype_anchors,
        ref_only: bool = FocalContrastiveOptions.ref_only,
        normalize: bool = FocalContrastiveOptions.normalize,
        overlap_threshold: float = FocalContrastiveOptions.overlap_threshold,
        ignore_index: int = FocalContrastiveOptions.ignore_index,
        backend: str | None = None,
        reduction: Reduction = FocalContrastiveOptions.reduction,
    ) -> None:
        super().__init__(
            FocalContrastiveOptions,
            backend,
            temperature=temperature,
            gamma=gamma,
            focal=focal,
            detach_focal=detach_focal,
            prototype_anchors=prototype_anchors,
            ref_only=ref_only,
            normalize=normalize,
            overlap_threshold=overlap_threshold,
            ignore_index=ignore_index,
            reduction=reduction,
        )
        if class_weights is not None:
            checks.tensor("class_weights", class_weights, checks.FLOAT, None, ("C",))
        self.register_buffer("class_weights", class_weights)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        prototypes: Tensor | None = None,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of ``embeddings`` ``(N, D)`` with ``labels`` ``(N,)``; all shapes of the function go."""
        tensors = (embeddings, labels, prototypes, ref_embeddings, ref_labels, self.class_weights)
        return loss_of(*tensors, self.learned_temperature, self.options, self.backend)


def loss_of(
    embeddings: Tensor,
    labels: Tensor,
    prototypes: Tensor | None,
    ref_embeddings: Tensor | None,
    ref_labels: Tensor | None,
    class_weights: Tensor | None,
    temperature: Tensor | None,
    options: FocalContrastiveOptions,
    backend: str | None,
) -> Tensor:
    """The loss on the backend that is chosen; of the temperatures the tensor counts, where it is there."""
    embeddings, labels, prototypes, ref_embeddings, ref_labels, class_weights, temperature = checks.untyped(
        embeddings, labels, prototypes, ref_embeddings, ref_labels, class_weights, temperature
    )
    tensors = (embeddings, labels, prototypes, ref_embeddings, ref_labels, class_weights, temperature)

    name = torch_private.untraced(_checked, backend, *tensors, options)
    if name == "reference" or inputs.are_sets(labels):
        e, y, prototypes, refs, names, weights, temperature = ordinary(*tensors)
        plain = multi_hot.focal_contrastive_loss if name != "reference" else reference.focal_contrastive_loss
        return plain(e, y, prototypes, refs, names, weights, temperature, options)
    return operator.focal_contrastive(*tensors, options, name)


def _checked(backend: str | None, *call: Any) -> str:
    """The backend of a call, its tensors and options, with nothing wrong."""
    inputs.check(*call)
    embeddings, labels = call[:2]
    if inputs.are_sets(labels):
        return backends.choose(backend, "multi-hot labels", embeddings, None, ("torch", "reference"))
    return backends.choose(backend, "focal_contrastive", embeddings, lambda: trial.call(focal_contrastive_loss, *call))
