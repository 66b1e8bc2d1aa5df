"""The losses as modules: options in the constructor, tensors in ``forward``."""

from typing import Literal

from torch import Tensor, nn

from merc_kernels import _checks, _library
from merc_kernels.functional import focal_contrastive_loss, kd_divergence


class FocalContrastiveLoss(nn.Module):
    """Focal supervised contrastive loss; see `merc_kernels.focal_contrastive_loss`.

    Args:
        temperature: a float, or an ``nn.Parameter`` of no dimension, to be learned.
        gamma: exponent of the focal factor.
        focal: ``"similarity"`` or ``"probability"``.
        detach_focal: keep gradients out of the focal factor.
        class_weights: ``(C,)``, kept as a buffer.
        prototype_anchors: the prototypes given to ``forward`` are anchors too.
        ref_only: the refs given to ``forward`` are the only candidates.
        normalize: L2-normalise all vectors.
        ignore_index: rows and refs of this label do not take part.
        backend: a key of `merc_kernels.backends`, or None.
        reduction: ``"mean"``, ``"batchmean"``, ``"sum"`` or ``"none"``.

    Raises:
        ValueError: an option out of range.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        temperature: float | nn.Parameter = 0.1,
        gamma: float = 2.0,
        focal: Literal["similarity", "probability"] = "similarity",
        detach_focal: bool = True,
        class_weights: Tensor | None = None,
        prototype_anchors: bool = False,
        ref_only: bool = False,
        normalize: bool = True,
        ignore_index: int = -100,
        backend: str | None = None,
        reduction: Literal["mean", "batchmean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__()
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
        _library.check(backend)
        if isinstance(temperature, nn.Parameter):
            _checks.tensor("temperature", temperature, _checks.FLOAT, None, ())
        elif isinstance(temperature, Tensor):
            _checks.fail("temperature", "a number or an nn.Parameter", temperature)
        else:
            _checks.number("temperature", temperature, above=0)
        if class_weights is not None:
            _checks.tensor("class_weights", class_weights, _checks.FLOAT, None, ("C",))
        self.temperature = temperature
        self.gamma = gamma
        self.focal = focal
        self.detach_focal = detach_focal
        self.register_buffer("class_weights", class_weights)
        self.prototype_anchors = prototype_anchors
        self.ref_only = ref_only
        self.normalize = normalize
        self.ignore_index = ignore_index
        self.backend = backend
        self.reduction = reduction

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
        return focal_contrastive_loss(
            embeddings,
            labels,
            temperature=self.temperature,
            gamma=self.gamma,
            focal=self.focal,
            detach_focal=self.detach_focal,
            class_weights=self.class_weights,
            prototypes=prototypes,
            prototype_anchors=self.prototype_anchors,
            ref_embeddings=ref_embeddings,
            ref_labels=ref_labels,
            ref_only=self.ref_only,
            normalize=self.normalize,
            ignore_index=self.ignore_index,
            backend=self.backend,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """The options, as in the constructor."""
        learned = isinstance(self.temperature, nn.Parameter)
        weights = None if self.class_weights is None else tuple(self.class_weights.shape)
        return (
            f"temperature={'Parameter' if learned else self.temperature}, gamma={self.gamma}, "
            f"focal={self.focal!r}, detach_focal={self.detach_focal}, class_weights={weights}, "
            f"prototype_anchors={self.prototype_anchors}, ref_only={self.ref_only}, "
            f"normalize={self.normalize}, ignore_index={self.ignore_index}, backend={self.backend!r}, "
            f"reduction={self.reduction!r}"
        )


class KDDivergence(nn.Module):
    """Divergence of a student from its teacher; see `merc_kernels.kd_divergence`.

    Args:
        temperature: a float.
        direction: ``"forward"``, ``"reverse"`` or ``"js"``.
        beta: weight of the teacher in ``"js"``.
        ce_weight: weight of the cross entropy with the labels given to ``forward``.
        teacher_grad: let gradients reach the teacher.
        scale_by_t2: multiply the divergence by the squared temperature.
        ignore_index: rows of this label do not take part.
        backend: a key of `merc_kernels.backends`, or None.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        *,
        temperature: float = 2.0,
        direction: Literal["forward", "reverse", "js"] = "forward",
        beta: float = 0.5,
        ce_weight: float = 0.0,
        teacher_grad: bool = False,
        scale_by_t2: bool = True,
        ignore_index: int = -100,
        backend: str | None = None,
        reduction: Literal["batchmean", "sum", "none"] = "batchmean",
    ) -> None:
        super().__init__()
        _checks.number("temperature", temperature, above=0)
        _checks.kd_options(
            direction=direction,
            beta=beta,
            ce_weight=ce_weight,
            teacher_grad=teacher_grad,
            scale_by_t2=scale_by_t2,
            ignore_index=ignore_index,
            reduction=reduction,
        )
        _library.check(backend)
        self.temperature = temperature
        self.direction = direction
        self.beta = beta
        self.ce_weight = ce_weight
        self.teacher_grad = teacher_grad
        self.scale_by_t2 = scale_by_t2
        self.ignore_index = ignore_index
        self.backend = backend
        self.reduction = reduction

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        *,
        labels: Tensor | None = None,
        row_weights: Tensor | None = None,
        temperature: Tensor | None = None,
    ) -> Tensor:
        """The loss of ``student_logits`` ``(N, C)``; ``temperature`` ``(N,)`` stands in for the module's."""
        return kd_divergence(
            student_logits,
            teacher_logits,
            temperature=self.temperature if temperature is None else temperature,
            direction=self.direction,
            beta=self.beta,
            labels=labels,
            ce_weight=self.ce_weight,
            row_weights=row_weights,
            teacher_grad=self.teacher_grad,
            scale_by_t2=self.scale_by_t2,
            ignore_index=self.ignore_index,
            backend=self.backend,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """The options, as in the constructor."""
        return (
            f"temperature={self.temperature}, direction={self.direction!r}, beta={self.beta}, "
            f"ce_weight={self.ce_weight}, teacher_grad={self.teacher_grad}, scale_by_t2={self.scale_by_t2}, "
            f"ignore_index={self.ignore_index}, backend={self.backend!r}, reduction={self.reduction!r}"
        )
