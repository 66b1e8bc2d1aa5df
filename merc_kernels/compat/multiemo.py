"""The loss of MultiEMO."""

import torch
from torch import Tensor, nn

from merc_kernels._shared import checks
from merc_kernels.compat.labels import NO_CLASS, integers
from merc_kernels.focal_contrastive import class_balanced_weights, focal_contrastive_loss

_CLASSES = {"IEMOCAP": 6, "MELD": 7}


class SampleWeightedFocalContrastiveLoss(nn.Module):
    """Sample-weighted focal contrastive loss (SWFC) of MultiEMO (https://aclanthology.org/2023.acl-long.824).

    Args:
        temp_param: the temperature.
        focus_param: the exponent of the focal factor.
        sample_weight_param: the exponent of the class weights (N / n_c)^alpha, which sum to 1.
        dataset: ``"IEMOCAP"`` or ``"MELD"``: 6 or 7 classes.
        class_counts: n_c of the training set.
        device: of the class weights.
        backend: a key of `merc_kernels.backends`, or None.

    Raises:
        ValueError: another dataset, or counts or options out of range.
    """

    class_weights: Tensor

    def __init__(
        self,
        temp_param: float,
        focus_param: float,
        sample_weight_param: float,
        dataset: str,
        class_counts: Tensor,
        device: torch.device | str,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        checks.choice("dataset", dataset, tuple(_CLASSES))
        checks.temperature("temp_param", temp_param)
        checks.number("focus_param", focus_param)
        counts = torch.as_tensor(class_counts).double()
        if counts.shape != (_CLASSES[dataset],):
            checks.fail("class_counts", f"{_CLASSES[dataset]} counts, as dataset={dataset!r}", class_counts)
        self.temp_param = temp_param
        self.focus_param = focus_param
        self.sample_weight_param = sample_weight_param
        self.dataset = dataset
        self.device = device
        self.backend = backend
        weights = class_balanced_weights(counts, sample_weight_param)
        # As there, no part of a state_dict; and in float32, whatever the features are.
        self.register_buffer("class_weights", (weights / weights.sum()).float().to(device), persistent=False)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """The loss of ``features`` ``(N, D)`` with ``labels`` ``(N,)``, divided by N."""
        return focal_contrastive_loss(
            features,
            integers("labels", labels, features.device),
            temperature=self.temp_param,
            gamma=self.focus_param,
            focal="probability",
            detach_focal=False,
            class_weights=self.class_weights,
            ignore_index=NO_CLASS,
            backend=self.backend,
            reduction="batchmean",
        )
