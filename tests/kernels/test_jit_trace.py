"""`torch.jit.trace`, which TensorBoard's add_graph calls: of modules with a loss, without a word of warning."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from merc_kernels import FocalContrastiveLoss, KDDivergence, backends

BACKENDS = [name for name in ("cpu", "torch", "reference") if backends()[name] == "on"]
ROWS = {"labels": torch.tensor([0, 1, -100, 3, 2, 0]), "row_weights": torch.linspace(0.5, 2, 6)}


class Model(nn.Module):
    """A layer under a loss, whose other tensors are named."""

    def __init__(self, loss: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.loss, self.names = loss, names
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, second: Tensor, *others: Tensor) -> Tensor:
        return self.loss(self.layer(x), second, **dict(zip(self.names, others, strict=True)))


def agree(loss: nn.Module, second: Callable[[int], Tensor], others: dict[str, Tensor]) -> None:
    """Trace's own check passes; value and gradient are those of the module, with other rows too."""
    model = Model(loss, tuple(others))
    for grad in (True, False):
        with torch.set_grad_enabled(grad), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # trace itself is on its way out
            warnings.filterwarnings("error", category=torch.jit.TracerWarning)
            traced = torch.jit.trace(model, (torch.randn(6, 4), second(6), *others.values()))
        for rows in (6, 3):
            tensors = (torch.randn(rows, 4), second(rows), *(x[:rows] for x in others.values()))
            values = [function(*tensors) for function in (model, traced)]
            gradients = [torch.autograd.grad(value.sum(), model.layer.weight)[0] for value in values]
            torch.testing.assert_close(values[1], values[0])
            torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_kd_divergence(backend, reduction):
    for direction, teacher_grad in (("forward", False), ("js", True)):
        options = {"direction": direction, "teacher_grad": teacher_grad, "reduction": reduction, "backend": backend}
        teacher = lambda rows: torch.randn(rows, 4)  # noqa: E731 - it is handed on
        agree(KDDivergence(**options), teacher, {})
        agree(KDDivergence(ce_weight=0.5, **options), teacher, ROWS)
        agree(KDDivergence(**options), teacher, ROWS | {"temperature": torch.linspace(1, 3, 6)})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_focal_contrastive(backend, reduction):
    labels = lambda rows: torch.arange(rows) % 3  # noqa: E731 - it is handed on
    options = {"backend": backend, "reduction": reduction}
    agree(FocalContrastiveLoss(**options), labels, {})
    refs = {"ref_embeddings": torch.randn(6, 4), "ref_labels": torch.arange(6) % 3}
    learned = nn.Parameter(torch.tensor(0.3))
    agree(FocalContrastiveLoss(class_weights=torch.ones(3), temperature=learned, **options), labels, refs)


def test_values_are_checked_while_tracing():
    model = Model(KDDivergence(), ("labels",))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        with pytest.raises(ValueError, match=r"labels: expected labels in \[0, 4\)"):
            torch.jit.trace(model, (torch.randn(2, 4), torch.randn(2, 4), torch.tensor([0, 9])))
