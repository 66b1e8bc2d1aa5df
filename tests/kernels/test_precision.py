"""Results in float32 and 16 bits, by the accuracy rule: no worse than plain PyTorch in that dtype, plus rounding."""

import pytest
import torch

from merc_kernels import focal_contrastive_loss, kd_divergence
from tests.kernels import loop
from tests.numerics import assert_accurate

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def results(loss, inputs: dict[str, torch.Tensor], dtype: torch.dtype | None, **options) -> list[torch.Tensor]:
    """Value and gradients, with the floating inputs in ``dtype`` (None: as they are)."""
    leaves = {k: v.detach().to(dtype or v.dtype).requires_grad_() for k, v in inputs.items()}
    value = loss(**leaves, **options)
    return [value.detach(), *torch.autograd.grad(value, list(leaves.values()))]


@pytest.mark.parametrize("temperature", [0.05, 0.3])
@pytest.mark.parametrize("gamma", [0, 1.0, 2.4])
@pytest.mark.parametrize("focal", ["similarity", "probability"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_focal_contrastive(dtype, focal, gamma, temperature):
    inputs = {"embeddings": torch.randn(13, 96), "prototypes": torch.randn(3, 96)}
    inputs = {name: x.to(dtype) for name, x in inputs.items()}
    options = {"labels": torch.arange(13) % 3, "focal": focal, "gamma": gamma, "temperature": temperature}
    options["detach_focal"] = False
    actual = results(focal_contrastive_loss, inputs, None, **options)
    plain = results(loop.focal_contrastive, inputs, torch.float32, **options)
    truth = results(loop.focal_contrastive, inputs, torch.float64, **options)
    assert actual[0].dtype == torch.float32
    assert [gradient.dtype for gradient in actual[1:]] == [dtype] * 2
    for name, one, in_dtype, exact in zip(("value", *inputs), actual, plain, truth, strict=True):
        assert_accurate(one, in_dtype, exact, name)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_kd_divergence(dtype, direction, temperature):
    inputs = {"student_logits": 3 * torch.randn(37, 96), "teacher_logits": 3 * torch.randn(37, 96)}
    inputs = {name: x.to(dtype) for name, x in inputs.items()}
    options = {"direction": direction, "temperature": temperature, "teacher_grad": True}
    options |= {"labels": torch.arange(37), "ce_weight": 0.5}
    actual = results(kd_divergence, inputs, None, **options)
    plain = results(loop.kd_divergence, inputs, torch.float32, **options)
    truth = results(loop.kd_divergence, inputs, torch.float64, **options)
    assert actual[0].dtype == torch.float32
    assert [gradient.dtype for gradient in actual[1:]] == [dtype] * 2
    for name, one, in_dtype, exact in zip(("value", *inputs), actual, plain, truth, strict=True):
        assert_accurate(one, in_dtype, exact, name)


def test_dtypes_may_differ():
    x, y = torch.randn(6, 5, requires_grad=True), torch.arange(6) % 2
    prototypes = torch.randn(2, 5, requires_grad=True)
    half = x.detach().bfloat16().requires_grad_()
    loss = focal_contrastive_loss(half, y, prototypes=prototypes)
    gradients = torch.autograd.grad(loss, (half, prototypes))
    assert (loss.dtype, *(g.dtype for g in gradients)) == (torch.float32, torch.bfloat16, torch.float32)
    assert loss == focal_contrastive_loss(half.float(), y, prototypes=prototypes)
    assert focal_contrastive_loss(half, y, prototypes=prototypes.double()).dtype == torch.float64
    assert focal_contrastive_loss(x, y, ref_embeddings=x.double(), ref_labels=y).dtype == torch.float64
    assert focal_contrastive_loss(x, y, class_weights=torch.ones(2).double()).dtype == torch.float64
    assert focal_contrastive_loss(x, y, temperature=torch.tensor(0.1).half()).dtype == torch.float32
    assert kd_divergence(half, half.float()).dtype == torch.float32
    assert kd_divergence(half, half.double()).dtype == torch.float64
    assert kd_divergence(half, half, row_weights=torch.ones(6).half()).dtype == torch.float32
    assert kd_divergence(half, half, reduction="none").dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype):
    x, y = torch.randn(9, 32, requires_grad=True), torch.arange(9) % 3
    s, t = torch.randn(9, 7, requires_grad=True), torch.randn(9, 7)
    plain = [focal_contrastive_loss(x, y), kd_divergence(s, t)]
    with torch.autocast("cpu", dtype=dtype):
        under = [focal_contrastive_loss(x, y), kd_divergence(s, t)]
        layer = torch.nn.Linear(32, 8)
        loss = focal_contrastive_loss(layer(x), y)
    assert all(torch.equal(a, b) and b.dtype == torch.float32 for a, b in zip(plain, under, strict=True))
    for a, b, leaf in zip(plain, under, (x, s), strict=True):
        assert torch.equal(torch.autograd.grad(a, leaf)[0], torch.autograd.grad(b, leaf)[0])
    loss.backward()
    assert loss.dtype == torch.float32
    assert layer.weight.grad.isfinite().all()


def test_small_weights_do_not_underflow_in_half():
    # a gradient of 1 / (N |P|) would be zero in float16; the sums are made in float32
    x, y = torch.randn(300, 8).half().requires_grad_(), torch.zeros(300, dtype=torch.int64)
    gradient = torch.autograd.grad(focal_contrastive_loss(x, y), x)[0]
    assert (gradient != 0).float().mean() > 0.9
