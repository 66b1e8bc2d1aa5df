"""The tensors of a call of the focal contrastive loss: what they must be."""

import torch
from torch import Tensor

from merc_kernels._shared import checks
from merc_kernels._shared.checks import BOOL, DTYPES, FLOAT, INT64, fail, shared, tensor
from merc_kernels.focal_contrastive.options import FocalContrastiveOptions


def check(
    embeddings: Tensor,
    labels: Tensor,
    prototypes: Tensor | None,
    ref_embeddings: Tensor | None,
    ref_labels: Tensor | None,
    class_weights: Tensor | None,
    temperature: Tensor | None,
    options: FocalContrastiveOptions,
) -> None:
    """The tensors fit together and the options, or a ValueError says which does not."""
    if (  # the commonest call, with nothing wrong: small batches feel every microsecond
        class_weights is None
        and prototypes is None
        and ref_embeddings is None
        and ref_labels is None
        and temperature is None
        and not (options.prototype_anchors or options.ref_only)
        and isinstance(embeddings, Tensor)
        and isinstance(labels, Tensor)
        and embeddings.dtype in DTYPES[FLOAT]
        and labels.dtype == torch.int64
        and embeddings.device == labels.device
        and len(size := embeddings.shape) == 2
        and size[:1] == labels.shape
        and size[1] > 0
    ):
        return
    tensor("embeddings", embeddings, FLOAT, None, ("N", "D"), ("G", "N", "D"))
    device, groups = embeddings.device, tuple(embeddings.shape[:-2])
    rows, width = embeddings.shape[-2:]
    if width == 0:
        fail("embeddings", "at least one feature (D > 0)", embeddings)
    sets = are_sets(labels)
    if sets:
        tensor("labels", labels, BOOL, device, *shared((rows, "C"), groups))
        if class_weights is not None:
            fail("class_weights", "None with multi-hot labels", class_weights)
    else:
        tensor("labels", labels, INT64, device, *shared((rows,), groups))
    of_sets: tuple[int, ...] = (labels.shape[-1],) if sets else ()  # what follows the rows
    if temperature is not None:
        tensor("temperature", temperature, FLOAT, device, ())
        if checks.readable(temperature):
            checks.temperatures("temperature", temperature)

    classes: int | None = None
    if prototypes is not None:
        tensor("prototypes", prototypes, FLOAT, device, *shared((*(of_sets or ("C",)), width), groups))
        classes = prototypes.shape[-2]
    elif options.prototype_anchors:
        fail("prototypes", "a tensor, as prototype_anchors=True", prototypes)
    if class_weights is not None:
        tensor("class_weights", class_weights, FLOAT, device, ("C" if classes is None else classes,))
        checks.weights("class_weights", class_weights)
        classes = class_weights.shape[0]
    if classes == 0:
        name, value = ("class_weights", class_weights) if prototypes is None else ("prototypes", prototypes)
        fail(name, "at least one class (C > 0)", value)

    if ref_embeddings is not None:
        tensor("ref_embeddings", ref_embeddings, FLOAT, device, *shared(("M", width), groups))
        kind = BOOL if sets else INT64
        tensor("ref_labels", ref_labels, kind, device, *shared((ref_embeddings.shape[-2], *of_sets), groups))
    elif ref_labels is not None:
        fail("ref_embeddings", "a tensor, as ref_labels is given", ref_embeddings)
    elif options.ref_only:
        fail("ref_embeddings", "a tensor, as ref_only=True", ref_embeddings)
    if options.ref_only and prototypes is not None:
        fail(
            "prototypes",
            "None with ref_only=True (append them to ref_embeddings, labels 0 to C-1)",
            prototypes,
        )

    if classes is not None and not sets:
        checks.labels_in_range("labels", labels, classes, options.ignore_index)
        if ref_labels is not None:
            checks.labels_in_range("ref_labels", ref_labels, classes, options.ignore_index)


def are_sets(labels: object) -> bool:
    """Whether these are sets of labels, a bool for each class."""
    return isinstance(labels, Tensor) and labels.dtype == torch.bool and labels.dim() > 1
