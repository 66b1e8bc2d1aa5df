"""Odd sizes, empty inputs, ignored and zero rows, strides."""

import functools

import pytest
import torch
import torch.nn.functional as F

from merc_kernels import FocalContrastiveLoss, KDDivergence, backends, focal_contrastive_loss, kd_divergence
from tests.kernels import inference, loop
from tests.numerics import assert_equal_fp64


@pytest.mark.parametrize("width", [1, 5, 96, 123])
@pytest.mark.parametrize("rows", [0, 1, 2, 37])
def test_focal_contrastive_sizes(rows, width):
    x = torch.randn(rows, width, dtype=torch.float64, requires_grad=True)
    y = torch.arange(rows) // 2
    options = {"gamma": 2.4, "temperature": 0.3}
    loss, truth = focal_contrastive_loss(x, y, **options), loop.focal_contrastive(x, y, **options)
    assert_equal_fp64(loss, truth)
    gradient = torch.autograd.grad(loss, x)[0]
    if rows < 2:
        assert (gradient == 0).all()
    else:
        assert_equal_fp64(gradient, torch.autograd.grad(truth, x)[0])


def test_focal_contrastive_of_many_rows():
    x = torch.randn(257, 96, dtype=torch.float64, requires_grad=True)
    y = torch.randint(6, (257,))
    z = F.normalize(x, dim=-1)
    positive = (y[:, None] == y) & ~torch.eye(257, dtype=torch.bool)
    log_p = (z @ z.T / 0.07).fill_diagonal_(-torch.inf).log_softmax(-1).masked_fill(~positive, 0)
    h = ((1 - z @ z.T) / 2).clamp(2**-53).detach() ** 2
    truth = (-(h * log_p).sum(-1) / positive.sum(-1)).mean()
    loss = focal_contrastive_loss(x, y, temperature=0.07)
    assert_equal_fp64(loss, truth)
    assert_equal_fp64(*(torch.autograd.grad(value, x)[0] for value in (loss, truth)))


@pytest.mark.parametrize("classes", [1, 2, 37, 257])
@pytest.mark.parametrize("rows", [0, 1, 37])
def test_kd_divergence_sizes(rows, classes):
    s, t = (torch.randn(rows, classes, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for direction in ("forward", "reverse", "js"):
        loss = kd_divergence(s, t, direction=direction, reduction="none")
        assert_equal_fp64(loss, loop.kd_divergence(s, t, direction=direction, reduction="none"))


EMPTY = {
    "no row": (0, torch.zeros(0, dtype=torch.int64)),
    "one row": (1, torch.zeros(1, dtype=torch.int64)),
    "all distinct": (37, torch.arange(37)),
    "all ignored": (5, torch.full((5,), -100)),
    "no group": ((0, 5), torch.zeros(0, 5, dtype=torch.int64)),
    "groups of no row": ((3, 0), torch.zeros(0, dtype=torch.int64)),
}


@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum", "none"])
@pytest.mark.parametrize(("shape", "labels"), EMPTY.values(), ids=EMPTY)
def test_nothing_to_count_is_zero_with_a_graph(shape, labels, reduction):
    lead = shape if isinstance(shape, tuple) else (shape,)
    x = torch.randn(*lead, 5, requires_grad=True)
    refs = torch.randn(0, 5, requires_grad=True)
    for options in ({}, {"ref_embeddings": refs, "ref_labels": labels.new_zeros(0), "ref_only": True}):
        loss = focal_contrastive_loss(x, labels, reduction=reduction, **options)
        assert loss.shape == (lead if reduction == "none" else ())
        assert (loss == 0).all()
        assert (torch.autograd.grad(loss.sum(), x)[0] == 0).all()


@pytest.mark.parametrize("reduction", ["batchmean", "sum", "none"])
@pytest.mark.parametrize(("shape", "labels"), EMPTY.values(), ids=EMPTY)
def test_no_row_to_distil_is_zero_with_a_graph(shape, labels, reduction):
    lead = shape if isinstance(shape, tuple) else (shape,)
    s, t = torch.randn(*lead, 40, requires_grad=True), torch.randn(*lead, 40)
    ignored = torch.full_like(labels, -100)
    for temperature in (2.0, torch.full(lead[-1:], 2.0)):
        loss = kd_divergence(s, t, labels=ignored, ce_weight=1.0, temperature=temperature, reduction=reduction)
        assert loss.shape == (lead if reduction == "none" else ())
        assert (loss == 0).all()
        assert (torch.autograd.grad(loss.sum(), s)[0] == 0).all()


def test_one_row_to_count_divides_by_one():
    x, ref = torch.randn(1, 5), torch.randn(2, 5)
    options = {"ref_embeddings": ref, "ref_labels": torch.arange(2)}
    for reduction in ("mean", "batchmean"):
        loss = focal_contrastive_loss(x, torch.tensor([0]), reduction=reduction, **options)
        assert loss == focal_contrastive_loss(x, torch.tensor([0]), reduction="sum", **options) > 0
    assert kd_divergence(x, ref[:1]) == kd_divergence(x, ref[:1], reduction="sum") > 0


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("normalize", [True, False])
def test_ignored_rows_reach_nothing(garbage, normalize):
    y, ref_y = torch.tensor([0, 0, -100, 1, 1]), torch.tensor([1, -100])
    clean = [torch.randn(5, 4), torch.randn(2, 4)]
    dirty = [x.clone() for x in clean]
    dirty[0][2], dirty[1][1] = garbage, garbage
    results = []
    for x, refs in (clean, dirty):
        x, refs = x.requires_grad_(), refs.requires_grad_()
        loss = focal_contrastive_loss(x, y, ref_embeddings=refs, ref_labels=ref_y, normalize=normalize)
        results.append([loss, *torch.autograd.grad(loss, (x, refs))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert (results[1][1][2] == 0).all()
    assert (results[1][2][1] == 0).all()


@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
def test_ignored_rows_teach_nothing(direction):
    y = torch.tensor([0, -100, 2])
    s, t = torch.randn(3, 4), torch.randn(3, 4)
    weights, temperature = torch.ones(3), torch.full((3,), 2.0)
    results = []
    for garbage in (None, torch.nan):
        inputs = [x.clone() for x in (s, t, weights, temperature)]
        if garbage is not None:
            for x in inputs:
                x[1] = garbage
        student, teacher = inputs[0].requires_grad_(), inputs[1].requires_grad_()
        options = {"row_weights": inputs[2], "temperature": inputs[3], "direction": direction}
        loss = kd_divergence(student, teacher, labels=y, ce_weight=1.0, teacher_grad=True, **options)
        results.append([loss, *torch.autograd.grad(loss, (student, teacher))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert (results[1][1][1] == 0).all()


def test_zero_rows_stay_zero():
    x = torch.randn(6, 5, dtype=torch.float64)
    x[2] = 0
    x.requires_grad_()
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    loss = focal_contrastive_loss(x, y, temperature=0.2, reduction="none")
    z = torch.cat([F.normalize(x[:2], dim=-1), x[2:3].detach(), F.normalize(x[3:], dim=-1)])
    unit = focal_contrastive_loss(z, y, temperature=0.2, normalize=False, reduction="none")
    assert_equal_fp64(loss, unit)
    gradient = torch.autograd.grad(loss.sum(), x)[0]
    assert (gradient[2] == 0).all()
    assert (gradient[[0, 1, 3, 4, 5]].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_tiny_and_huge_rows(scale):
    x, y = torch.randn(6, 5), torch.arange(6) % 2
    scaled = (x * scale).requires_grad_()
    x.requires_grad_()
    plain, loss = focal_contrastive_loss(x, y), focal_contrastive_loss(scaled, y)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    gradient = torch.autograd.grad(loss, scaled)[0].double() * scale
    assert torch.allclose(gradient, torch.autograd.grad(plain, x)[0].double(), rtol=1e-4, atol=1e-6)


def strided(*shape: int) -> torch.Tensor:
    """Every other row and feature of a transposed, larger tensor."""
    big = torch.randn(*shape[:-2], shape[-1] * 2, shape[-2] * 3, dtype=torch.float64)
    return big.mT[..., ::3, ::2]


def test_strides_do_not_matter():
    x, refs, prototypes = strided(2, 7, 5), strided(2, 4, 5), strided(3, 5)
    y, ref_y = torch.randint(3, (7, 2)).T, torch.randint(3, (8, 2)).T[:, ::2]
    upstream = torch.randn(7, 2, dtype=torch.float64).T
    results = []
    for change in (torch.Tensor.clone, torch.Tensor.contiguous):
        leaves = [change(v).detach().requires_grad_() for v in (x, refs, prototypes)]
        loss = focal_contrastive_loss(
            leaves[0], y, ref_embeddings=leaves[1], ref_labels=ref_y, prototypes=leaves[2], reduction="none"
        )
        results.append([loss, *torch.autograd.grad(loss, leaves, upstream)])
    for one, other in zip(*results, strict=True):
        assert_equal_fp64(one, other)
    expanded = torch.autograd.grad(
        focal_contrastive_loss(leaves[0], y, reduction="none"), leaves[0], torch.ones((), dtype=x.dtype).expand(2, 7)
    )[0]
    summed = torch.autograd.grad(focal_contrastive_loss(leaves[0], y, reduction="sum"), leaves[0])[0]
    assert_equal_fp64(expanded, summed)


@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
def test_strided_logits(direction):
    s, t = strided(2, 7, 5), strided(2, 7, 5)
    upstream = torch.randn(7, 2, dtype=torch.float64).T
    results = []
    for change in (torch.Tensor.clone, torch.Tensor.contiguous):
        leaves = [change(v).detach().requires_grad_() for v in (s, t)]
        loss = kd_divergence(*leaves, direction=direction, teacher_grad=True, reduction="none")
        results.append([loss, *torch.autograd.grad(loss, leaves, upstream)])
    for one, other in zip(*results, strict=True):
        assert_equal_fp64(one, other)


def test_inputs_are_left_as_they_are():
    x, y, prototypes = torch.randn(5, 4), torch.tensor([0, 0, 1, -100, 1]), torch.randn(2, 4)
    s, t = torch.randn(5, 2), torch.randn(5, 2)
    before = [v.clone() for v in (x, y, prototypes, s, t)]
    focal_contrastive_loss(x, y, prototypes=prototypes)
    kd_divergence(s, t, labels=y)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, y, prototypes, s, t), strict=True))


BACKENDS = [name for name in ("cpu", "torch", "reference") if backends()[name] == "on"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_tensors_count_as_any_other(backend):
    for reduction in ("batchmean", "sum", "none"):
        for direction in ("forward", "reverse", "js"):
            loss = functools.partial(kd_divergence, direction=direction, reduction=reduction, backend=backend)
            inference.check(loss, inference.kd_arguments())
        for focal in ("similarity", "probability"):
            loss = functools.partial(focal_contrastive_loss, focal=focal, reduction=reduction, backend=backend)
            inference.check(loss, inference.focal_arguments())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_student_or_embeddings_may_be_inference_tensors(backend):
    kd, focal = inference.kd_arguments(), inference.focal_arguments()
    kd["student_logits"], kd["teacher_logits"] = kd["teacher_logits"], kd["student_logits"]
    inference.check(functools.partial(kd_divergence, teacher_grad=True, backend=backend), kd)
    for learned in ("prototypes", "ref_embeddings", "temperature"):
        arguments = {name: x.detach().requires_grad_(name == learned) for name, x in focal.items()}
        inference.check(functools.partial(focal_contrastive_loss, backend=backend), arguments)


def test_modules_take_inference_tensors():
    kd, focal = inference.kd_arguments(), inference.focal_arguments()
    inference.check(KDDivergence(ce_weight=kd.pop("ce_weight")), kd)
    focal.pop("temperature")
    with torch.inference_mode():
        weights = focal.pop("class_weights").clone()
    inference.check(FocalContrastiveLoss(class_weights=weights, temperature=0.3), focal)


@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_what_is_written_after_the_forward_pass(reduction):
    """Into an inference tensor: nothing comes of it. Into another: it is noticed, where it would be read."""
    kd, focal = inference.kd_arguments(), inference.focal_arguments()
    for loss, arguments, name in (
        (kd_divergence, kd, "teacher_logits"),
        (focal_contrastive_loss, focal, "ref_embeddings"),
    ):
        leaf = next(iter(arguments.values()))
        truth = torch.autograd.grad(loss(**arguments, reduction=reduction).sum(), leaf)[0]
        with torch.inference_mode():
            twin = arguments[name].clone()
        value = loss(**arguments | {name: twin}, reduction=reduction).sum()
        with torch.inference_mode():
            twin.fill_(7)
        assert torch.equal(torch.autograd.grad(value, leaf)[0], truth)
        if reduction == "none":
            value = loss(**arguments, reduction=reduction).sum()
            arguments[name].fill_(7)
            with pytest.raises(RuntimeError, match="inplace operation"):
                torch.autograd.grad(value, leaf)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_batch_of_gradients(dtype):
    x = torch.randn(6, 4, dtype=dtype, requires_grad=True)
    many = torch.tensor([1.0, -2.0])
    for loss in (focal_contrastive_loss(x, torch.arange(6) % 2), kd_divergence(x, torch.randn(6, 4))):
        batch = torch.autograd.grad(loss, x, many, is_grads_batched=True, retain_graph=True)[0]
        assert torch.equal(batch, many.to(dtype)[:, None, None] * torch.autograd.grad(loss, x)[0])
