"""`torch.use_deterministic_algorithms`: it is satisfied, and what it fills with NaN reaches no result."""

import pytest
import torch

from merc_kernels import backends, focal_contrastive_loss, kd_divergence


@pytest.fixture
def _deterministic():
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def steps(backend):
    """Value and gradients of both losses, over several blocks of rows."""
    made = torch.Generator().manual_seed(0)
    x, y = (torch.randn(300, 40, generator=made, requires_grad=True) for _ in range(2))
    labels = torch.randint(5, (300,), generator=made)
    options = {"prototypes": y[:5], "prototype_anchors": True, "ref_embeddings": y[5:], "ref_labels": labels[5:]}
    losses = [
        focal_contrastive_loss(x, labels, backend=backend),
        focal_contrastive_loss(x, labels, focal="probability", detach_focal=False, **options, backend=backend),
        kd_divergence(x, y, labels=labels, ce_weight=0.3, teacher_grad=True, backend=backend),
    ]
    return [value for loss in losses for value in (loss, *torch.autograd.grad(loss, (x, y), allow_unused=True))]


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
def test_the_same_values_in_deterministic_mode(backend, request):
    if backends()[backend] != "on":
        pytest.skip(backends()[backend])
    plain = steps(backend)
    request.getfixturevalue("_deterministic")
    for ours, expected in zip(steps(backend), plain, strict=True):
        assert (ours is None) == (expected is None)
        assert ours is None or torch.equal(ours, expected)
