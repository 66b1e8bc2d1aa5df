"""The loss as MultiEMO's equations have it, row by row: what such a project holds before."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SampleWeightedFocalContrastiveLoss(nn.Module):
    """Shi and Huang 2023, section 3.4."""

    def __init__(self, temperature, gamma, alpha, dataset, class_counts, device) -> None:
        super().__init__()
        self.temperature, self.gamma = temperature, gamma
        weights = (class_counts.sum() / class_counts) ** alpha
        self.weights = (weights / weights.sum()).to(device)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """The mean over the rows."""
        z, rows = F.normalize(features, dim=-1), torch.arange(len(features))
        total = features.new_zeros(())
        for i in rows:
            p = (z[rows != i] @ z[i] / self.temperature).softmax(0)[labels[rows != i] == labels[i]]
            if len(p):
                total = total - self.weights[labels[i]] * ((1 - p) ** self.gamma * p.log()).mean()
        return total / len(features)
