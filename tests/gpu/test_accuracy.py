"""Every fused backend on CUDA tensors against the reference in float64, on hard inputs."""

import contextlib
import math

import pytest
import torch

from merc_kernels import focal_contrastive_loss, kd_divergence, reference
from tests.gpu.operators import FUSED, why_not
from tests.kernels import grid
from tests.kernels import test_cuda_focal_contrastive as contrastive
from tests.kernels import test_cuda_sources as divergence
from tests.kernels.focal_cases import RoundedProducts
from tests.numerics import assert_accurate, assert_equal_fp64, error

SOME = grid.sample(contrastive.OPTIONS, contrastive.valid, 200)[::5]
ORDERS = 8


def on_the_gpu(case, backend):
    """Loss and gradients of a case, brought back."""
    grad = contrastive.upstream(case).cuda()
    case = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in case.items()}
    leaves = {}
    for name in contrastive.WANTED:
        if isinstance(case.get(name), torch.Tensor):
            leaves[name] = case[name] = case[name].detach().requires_grad_()
    loss = focal_contrastive_loss(**case, backend=backend)
    gradients = torch.autograd.grad(loss, list(leaves.values()), grad, materialize_grads=True)
    return {"loss": loss.detach().cpu(), **{n: x.cpu() for n, x in zip(leaves, gradients, strict=True)}}


def plain_in_some_order(case, backend):
    """Eager PyTorch on the CPU, in the case's dtypes, with the features in another order; what is stored is rounded."""
    order = torch.randperm(case["embeddings"].shape[-1])
    case = {name: x[..., order] if name in contrastive.VECTORS and x is not None else x for name, x in case.items()}
    dtype = contrastive.stored(case)
    with RoundedProducts(dtype) if backend == "triton" and dtype.itemsize == 2 else contextlib.nullcontext():
        values = contrastive.plain(case, doubled=False)
    return {name: x[..., order.argsort()] if name in contrastive.VECTORS else x for name, x in values.items()}


def check_contrastive(case, backend):
    truth = contrastive.plain(case, doubled=True)
    plain = [plain_in_some_order(case, backend) for _ in range(ORDERS)]
    for name, value in on_the_gpu(case, backend).items():
        if value.dtype == torch.float64:
            assert_equal_fp64(value, truth[name], name)
        else:
            assert_accurate(value, [one[name] for one in plain], truth[name], name)


@pytest.fixture(params=FUSED)
def backend(request):
    if reason := why_not(request.param):
        pytest.skip(reason)
    return request.param


@pytest.mark.parametrize("number", range(len(SOME)), ids=lambda number: grid.title(SOME[number]))
def test_contrastive_options(number, backend):
    check_contrastive(contrastive.build(SOME[number]), backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 5), (37, 96), (257, 123), (300, 520), (1030, 64), (513, 1030)])
def test_contrastive_sizes(rows, width, dtype, backend):
    case = contrastive.plain_case(rows, width, dtype, focal=contrastive.FOCAL[rows % 2], temperature=torch.tensor(0.2))
    check_contrastive(case, backend)


@pytest.mark.parametrize("labels", ["one class", "all distinct", "all ignored"])
def test_contrastive_labels(labels, backend):
    of = {"one class": torch.zeros(257), "all distinct": torch.arange(257), "all ignored": torch.full((257,), -100)}
    case = contrastive.plain_case(257, 96) | {"labels": of[labels].long()}
    check_contrastive(case, backend)


def test_contrastive_rows_of_any_length(backend):
    """The gradient of a row is as much smaller as the row is longer."""
    scale = torch.tensor([1e-30, 1e30, 3e-20, 0.0, 1.0, 1e15]).repeat(30)[:, None]
    case = contrastive.plain_case(180, 24, temperature=torch.tensor(0.5))
    case["embeddings"] = case["embeddings"] * scale
    ours = on_the_gpu(case, backend)
    of = {name: contrastive.plain(case, doubled=name == "truth") for name in ("plain", "truth")}
    assert_accurate(ours["loss"], of["plain"]["loss"], of["truth"]["loss"])
    gradients = [x["embeddings"].double() * scale for x in (ours, of["plain"], of["truth"])]
    assert_accurate(gradients[0].float(), *gradients[1:])
    assert (ours["embeddings"][scale.squeeze(1) == 0] == 0).all()


def divergence_on_the_gpu(student, teacher, upstream, backend, **options):
    """Loss and gradients of both, brought back."""
    leaves = [x.cuda().requires_grad_() for x in (student, teacher)]
    options = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    loss = kd_divergence(*leaves, teacher_grad=True, backend=backend, **options)
    gradients = torch.autograd.grad(loss, leaves, upstream.cuda())
    return [loss.detach().cpu(), *(x.cpu() for x in gradients)]


def plain_divergence_in_some_order(student, teacher, upstream, labels, **options):
    """Eager PyTorch on the CPU, in the logits' own dtypes, with the classes in another order."""
    order = torch.randperm(student.shape[-1])
    place = order.argsort()
    labels = torch.where((labels >= 0) & (labels < len(order)), place[labels.clamp(0, len(order) - 1)], -100)
    pair = (student[..., order], teacher[..., order])
    loss, *gradients = divergence.plain(*pair, upstream, doubled=False, labels=labels, **options)
    return [loss, *(x[..., place] for x in gradients)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [1, 6, 7, 257, 1000, 32001])
@pytest.mark.parametrize("direction", divergence.DIRECTIONS)
def test_divergence(classes, dtype, direction, backend):
    rows = 37
    labels = torch.arange(rows) % classes
    labels[5], labels[6] = -100, classes + 3
    options = {"labels": labels, "direction": direction, "ce_weight": 0.4, "beta": 0.3}
    options |= {"row_weights": torch.linspace(0, 2, rows), "temperature": torch.linspace(1.5, 3, rows)}
    for reduction, groups in (("batchmean", ()), ("none", (2,))):
        pair = divergence.logits(*groups, rows, classes, dtype=dtype), divergence.logits(rows, classes, dtype=dtype)
        upstream = (
            torch.linspace(0.5, 1.5, math.prod(groups) * rows).view(*groups, rows).to(divergence.accumulate(*pair))
        )
        upstream = upstream if reduction == "none" else upstream.mean()
        options["reduction"] = reduction
        truth = divergence.plain(*pair, upstream, doubled=True, **options)
        plain = [plain_divergence_in_some_order(*pair, upstream, **options) for _ in range(ORDERS)]
        ours = divergence_on_the_gpu(*pair, upstream, backend, **options)
        for name, value, near, exact in zip(
            ("loss", "student", "teacher"), ours, zip(*plain, strict=True), truth, strict=True
        ):
            if dtype == torch.float64:
                assert_equal_fp64(value, exact, f"{reduction} {name}")
            else:
                assert_accurate(value, near, exact, f"{reduction} {name}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [7, 1000, 32000, 32001])
@pytest.mark.parametrize("direction", divergence.DIRECTIONS)
def test_divergence_of_a_student_alone(classes, dtype, direction, backend):
    """Whose gradient the forward pass may write: for a gradient of 1, and for another, which is a power of 2."""
    rows = 70
    pair = divergence.logits(rows, classes, dtype=dtype), divergence.logits(rows, classes, dtype=dtype)
    options = {"labels": torch.arange(rows) % classes, "direction": direction, "ce_weight": 0.4, "beta": 0.3}
    options["labels"][5] = -100
    student, teacher = pair[0].cuda().requires_grad_(), pair[1].cuda()
    for reduction, scale in (("batchmean", 1.0), ("sum", -4.0)):
        upstream, options["reduction"] = torch.tensor(scale, dtype=divergence.accumulate(*pair)), reduction
        truth = divergence.plain(*pair, upstream, doubled=True, **options)
        plain = [plain_divergence_in_some_order(*pair, upstream, **options) for _ in range(ORDERS)]
        loss = kd_divergence(student, teacher, **options | {"labels": options["labels"].cuda()}, backend=backend)
        gradients = [torch.autograd.grad(loss, student, upstream.cuda(), retain_graph=True)[0] for _ in range(2)]
        assert torch.equal(*gradients)
        for name, value, near, exact in zip(
            ("loss", "student"), (loss.detach(), gradients[0]), zip(*plain, strict=True), truth, strict=False
        ):
            if dtype == torch.float64:
                assert_equal_fp64(value.cpu(), exact, f"{reduction} {name}")
            else:
                assert_accurate(value.cpu(), near, exact, f"{reduction} {name}")


@pytest.mark.parametrize("direction", divergence.DIRECTIONS)
@pytest.mark.parametrize("classes", [7, 300, 9000])
def test_divergence_of_large_logits(classes, direction, backend):
    """Divergences of thousands: their gradients are right to a rounding of the divergence."""
    student, teacher = divergence.logits(37, classes), divergence.logits(37, classes)
    for pair in ((student * 3e3, teacher * 3e3), (student + 1e4, teacher - 1e4)):
        options = {"direction": direction, "reduction": "none"}
        truth = divergence.plain(*pair, torch.ones(37), doubled=True, **options)
        plain = divergence.plain(*pair, torch.ones(37), doubled=False, **options)
        ours = divergence_on_the_gpu(*pair, torch.ones(37), backend, **options)
        for value, near, exact in zip(ours, plain, truth, strict=True):
            assert error(value, exact) <= error(near, exact) + 1e-6 * max(1.0, float(truth[0].max()))


def test_divergence_beyond_two_to_the_31_elements(backend):
    """Offsets are 64 bits wide."""
    rows, classes = (1 << 31) // 128256 + 100, 128256
    if torch.cuda.mem_get_info()[0] < 5 * 2 * rows * classes:
        pytest.skip("needs 25 GB of GPU memory")
    if backend == "torch":
        pytest.skip("plain PyTorch, with several copies")
    student = torch.randn(rows, classes, device="cuda", dtype=torch.bfloat16).requires_grad_()
    teacher = student.detach().roll(1, 0)
    loss = kd_divergence(student, teacher, reduction="none", backend=backend)
    last = slice(rows - 3, rows)
    exact = reference.kd_divergence(student.detach()[last].double(), teacher[last].double(), reduction="none")
    assert math.isclose(float(loss.detach()[last].sum()), float(exact.sum()), rel_tol=1e-3)
    gradient = torch.autograd.grad(loss.sum(), student)[0][last]
    x = student.detach()[last].double().requires_grad_()
    wanted = torch.autograd.grad(reference.kd_divergence(x, teacher[last].double(), reduction="sum"), x)[0]
    assert float((gradient.double() - wanted).norm() / wanted.norm()) < 1e-2
