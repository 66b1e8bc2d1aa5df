"""A linear model of an utterance and of what is said around it, which has a say beside the network.

Logistic regression on few statistics of a dialogue errs otherwise than attention does, so their mean is better than
either. It is fitted once, on the training utterances, before the network is trained.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from merc_model.config import IGNORE_INDEX, Config
from merc_model.data.batch import Batch
from merc_model.surroundings import mean_around

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

_REACH = 8  # utterances over which the weight in a mean falls to 1/e
_STEPS = 100


class LinearEvidence(nn.Module):
    """Log-probabilities of logistic regression on the features of an utterance and on `surroundings`.

    Args:
        dims: modality → width of its features.
        num_classes: C.
        config: linear_penalty is read.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, dims: dict[str, int], num_classes: int, config: Config) -> None:
        super().__init__()
        self.penalty = config.linear_penalty
        self.register_buffer("weight", torch.zeros(num_classes, 3 * sum(dims.values())))
        self.register_buffer("bias", torch.zeros(num_classes))

    @torch.no_grad()
    def fit(self, inputs: Tensor, labels: Tensor) -> None:
        """Learn from ``inputs`` (U, 3·D), the `around` of some batches, and ``labels`` (U,); one class is too few."""
        known = labels != IGNORE_INDEX
        if len(np.unique(labels[known].cpu().numpy())) < 2:
            return
        model = fitted(inputs[known].cpu().numpy(), labels[known].cpu().numpy(), self.penalty)
        weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
        if len(weight) == 1:  # of two classes scikit-learn keeps the odds of the second
            weight, bias = torch.cat((-weight, weight)) / 2, torch.cat((-bias, bias)) / 2
        classes = torch.from_numpy(model.classes_)
        self.bias.fill_(float(bias.min()))  # a class that never came is no likelier than the rarest
        self.weight[classes], self.bias[classes] = weight.to(self.weight), bias.to(self.bias)

    def forward(self, features: dict[str, Tensor], batch: Batch) -> Tensor:
        """``(B, L, C)``."""
        logits = around(features, batch) @ self.weight.T + self.bias
        return logits.log_softmax(dim=-1)


def fitted(inputs: NDArray[np.float32], labels: NDArray[np.int64], penalty: float) -> LogisticRegression:
    """Logistic regression, as close as `_STEPS` come; ``penalty`` is scikit-learn's C, its inverse."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(1):  # the same bits on any number of cores
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=penalty, max_iter=_STEPS).fit(inputs, labels)


def around(features: dict[str, Tensor], batch: Batch) -> Tensor:
    """``(B, L, 3·D)``: the features (B, L, D) of all modalities, and their means among the utterances around.

    The means are over the other utterances of the same speaker, and over those of the other speakers; near ones weigh
    more, and where there is none the mean is 0.
    """
    rows = torch.cat(list(features.values()), dim=-1)
    means = [mean_around(rows, batch, _REACH, same_speaker=same) for same in (True, False)]
    return torch.cat((rows, *means), dim=-1)
