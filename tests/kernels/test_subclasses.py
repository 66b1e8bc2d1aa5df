"""Tensors of a subclass that only names them, as fastai's: they count as the plain tensors that they are."""

import functools

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from merc_kernels import (
    FocalContrastiveLoss,
    KDDivergence,
    backends,
    class_balanced_weights,
    focal_contrastive_loss,
    kd_divergence,
)
from merc_kernels._shared import checks
from tests.kernels import inference

BACKENDS = [name for name in ("cpu", "torch", "reference") if backends()[name] == "on"]


class Inputs(Tensor):
    """What a data loader gives."""


class Targets(Tensor):
    """A sibling."""


def named(arguments: dict) -> dict:
    """The tensors, each of another subclass than the one before."""
    twins = {}
    for index, (name, x) in enumerate(arguments.items()):
        kind = Inputs if index % 2 else Targets
        twins[name] = x.as_subclass(kind) if isinstance(x, Tensor) else x
    return twins


def agree(loss, arguments: dict) -> None:
    """Value and gradient are those of plain tensors, bit for bit."""
    leaf = next(x for x in arguments.values() if isinstance(x, Tensor) and x.requires_grad)
    results = []
    for given in (arguments, named(arguments)):
        value = loss(**given)
        assert type(value) is Tensor
        results.append((value, torch.autograd.grad(value.sum(), leaf)[0]))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["batchmean", "sum", "none"])
def test_siblings_count_as_plain_tensors(backend, reduction):
    options = {"backend": backend, "reduction": reduction}
    agree(functools.partial(kd_divergence, **options), inference.kd_arguments())
    agree(functools.partial(focal_contrastive_loss, **options), inference.focal_arguments())
    kd = inference.kd_arguments()
    agree(KDDivergence(ce_weight=kd.pop("ce_weight"), **options), kd)
    focal = inference.focal_arguments()
    weights = focal.pop("class_weights").as_subclass(Targets)
    focal.pop("temperature")
    agree(FocalContrastiveLoss(class_weights=weights, **options), focal)


@pytest.mark.parametrize("backend", BACKENDS)
def test_their_values_are_checked(backend):
    x, labels = torch.randn(3, 4).as_subclass(Inputs), torch.tensor([0, 1, 9]).as_subclass(Targets)
    with pytest.raises(ValueError, match="labels: expected labels in"):
        kd_divergence(x, x, labels=labels, backend=backend)
    with pytest.raises(ValueError, match="labels: expected labels in"):
        focal_contrastive_loss(x, labels, prototypes=x, backend=backend)
    with pytest.raises(ValueError, match="temperature: expected a finite number > 0"):
        kd_divergence(x, x, temperature=torch.tensor([1.0, -1.0, 1.0]).as_subclass(Targets), backend=backend)
    with pytest.raises(ValueError, match="class_counts: expected finite numbers >= 0"):
        class_balanced_weights(torch.tensor([3, -1]).as_subclass(Inputs))


def test_tensors_that_decide_what_operators_do_are_left_alone():
    with FakeTensorMode():
        x = torch.randn(3, 4)
    (same,) = checks.untyped(x)
    assert same is x
    assert type(same) is FakeTensor
