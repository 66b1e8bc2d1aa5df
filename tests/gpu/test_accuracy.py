"""Every fused backend on CUDA tensors against the reference in float64, on hard inputs."""

import itertools
import math

import pytest
import torch

from merc_kernels import focal_contrastive_loss, kd_divergence, reference
from tests.gpu.operators import FUSED, why_not
from tests.kernels import grid
from tests.kernels import test_cuda_focal_contrastive as contrastive
from tests.numerics import assert_accurate, assert_equal_fp64

SOME = contrastive.CASES[::5]


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


def check_contrastive(case, backend):
    truth, plain = contrastive.plain(case, doubled=True), contrastive.plain(case, doubled=False)
    for name, value in on_the_gpu(case, backend).items():
        if value.dtype == torch.float64:
            assert_equal_fp64(value, truth[name], name)
        else:
            assert_accurate(value, plain[name], truth[name], name)


@pytest.fixture(params=FUSED)
def backend(request):
    return request.param


@pytest.fixture
def contrastive_backend(backend):
    if reason := why_not("focal_contrastive", backend):
        pytest.skip(reason)
    return backend


@pytest.fixture
def kd_backend(backend):
    if reason := why_not("kd_divergence", backend):
        pytest.skip(reason)
    return backend


@pytest.mark.parametrize("number", range(len(SOME)), ids=lambda number: grid.title(SOME[number]))
def test_contrastive_options(number, contrastive_backend):
    check_contrastive(contrastive.build(SOME[number]), contrastive_backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 5), (37, 96), (257, 123), (300, 520), (1030, 64), (513, 1030)])
def test_contrastive_sizes(rows, width, dtype, contrastive_backend):
    case = contrastive.plain_case(rows, width, dtype, focal=contrastive.FOCAL[rows % 2], temperature=torch.tensor(0.2))
    check_contrastive(case, contrastive_backend)


@pytest.mark.parametrize("labels", ["one class", "all distinct", "all ignored"])
def test_contrastive_labels(labels, contrastive_backend):
    of = {"one class": torch.zeros(257), "all distinct": torch.arange(257), "all ignored": torch.full((257,), -100)}
    case = contrastive.plain_case(257, 96) | {"labels": of[labels].long()}
    check_contrastive(case, contrastive_backend)


def test_contrastive_rows_of_any_length(contrastive_backend):
    scale = torch.tensor([1e-30, 1e30, 3e-20, 0.0, 1.0, 1e15]).repeat(30)[:, None]
    case = contrastive.plain_case(180, 24, temperature=torch.tensor(0.5))
    check_contrastive(case | {"embeddings": case["embeddings"] * scale}, contrastive_backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [1, 6, 7, 257, 1000, 32001])
@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
def test_divergence(classes, dtype, direction, kd_backend):
    contents = ("plain", "huge", "far off") if dtype != torch.float16 else ("plain",)
    for content, reduction in itertools.product(contents, ("batchmean", "none")):
        student, teacher = (3 * torch.randn(37, classes, dtype=torch.float64) for _ in range(2))
        if content == "huge":
            student, teacher = student * 100, teacher * 100
        elif content == "far off":
            student, teacher = student + 1e4, teacher - 1e4
        student, teacher = student.to(dtype), teacher.to(dtype)
        labels = torch.arange(37) % classes
        labels[5] = -100
        options = {"direction": direction, "reduction": reduction, "temperature": 2.0}
        options |= {"row_weights": torch.linspace(0, 2, 37)}

        def run(loss, as_dtype, device, student=student, teacher=teacher, labels=labels, options=options):
            x = student.to(device, as_dtype).requires_grad_()
            weights = options["row_weights"].to(device)
            given = options | {"row_weights": weights, "labels": labels.to(device)}
            value = loss(x, teacher.to(device, as_dtype), **given)
            upstream = torch.linspace(0.5, 1.5, value.numel(), device=device, dtype=value.dtype).view(value.shape)
            return value.detach().cpu(), torch.autograd.grad(value, x, upstream)[0].cpu()

        truth = run(reference.kd_divergence, torch.float64, "cpu")
        plain = run(reference.kd_divergence, dtype if dtype == torch.float64 else torch.float32, "cpu")

        def ours(*args, **options):
            return kd_divergence(*args, backend=kd_backend, **options)

        for name, actual, near, exact in zip(
            ("value", "gradient"), run(ours, dtype, "cuda"), plain, truth, strict=True
        ):
            assert_accurate(actual, near, exact, f"{content} {reduction} {name}")


def test_divergence_beyond_two_to_the_31_elements(kd_backend):
    """Offsets are 64 bits wide."""
    rows, classes = (1 << 31) // 128256 + 100, 128256
    if torch.cuda.mem_get_info()[0] < 5 * 2 * rows * classes:
        pytest.skip("needs 25 GB of GPU memory")
    if kd_backend == "torch":
        pytest.skip("plain PyTorch, with several copies")
    student = torch.randn(rows, classes, device="cuda", dtype=torch.bfloat16).requires_grad_()
    teacher = student.detach().roll(1, 0)
    loss = kd_divergence(student, teacher, reduction="none", backend=kd_backend)
    last = slice(rows - 3, rows)
    exact = reference.kd_divergence(student.detach()[last].double(), teacher[last].double(), reduction="none")
    assert math.isclose(float(loss.detach()[last].sum()), float(exact.sum()), rel_tol=1e-3)
    gradient = torch.autograd.grad(loss.sum(), student)[0][last]
    x = student.detach()[last].double().requires_grad_()
    wanted = torch.autograd.grad(reference.kd_divergence(x, teacher[last].double(), reduction="sum"), x)[0]
    assert float((gradient.double() - wanted).norm() / wanted.norm()) < 1e-2
