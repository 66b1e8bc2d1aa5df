"""The reference is differentiable twice: right, and never NaN."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from merc_kernels import reference
from tests.kernels import grid, loop
from tests.numerics import assert_equal_fp64

LABELS = torch.tensor([0, 1, 0, -100, 2, 1])


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("focal", "gamma", "normalize"), grid.halved(["similarity", "probability"], [0, 0.5, 1.0, 2.4], [True, False])
)
def test_focal_contrastive_gradcheck(focal, gamma, normalize):
    x, prototypes, refs = leaf(6, 4), leaf(3, 4), leaf(3, 4)
    if not normalize:
        x, prototypes, refs = ((v / 4).detach().requires_grad_() for v in (x, prototypes, refs))
    temperature = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)

    def loss(x, prototypes, refs, temperature):
        return reference.focal_contrastive_loss(
            x,
            LABELS,
            temperature=temperature,
            gamma=gamma,
            focal=focal,
            detach_focal=False,
            class_weights=torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64),
            prototypes=prototypes,
            prototype_anchors=True,
            ref_embeddings=refs,
            ref_labels=torch.tensor([0, 2, -100]),
            normalize=normalize,
        )

    inputs = (x, prototypes, refs, temperature)
    assert gradcheck(loss, inputs)
    assert gradgradcheck(loss, inputs)


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"ref_only": True}])
def test_focal_contrastive_gradgradcheck_of_groups(options):
    def loss(x, refs):
        return reference.focal_contrastive_loss(
            x,
            LABELS[:4],
            ref_embeddings=refs,
            ref_labels=torch.tensor([0, 1]),
            temperature=0.5,
            detach_focal=False,
            **options,
        )

    assert gradgradcheck(loss, (leaf(2, 4, 3), leaf(2, 3)))


@pytest.mark.parametrize("focal", ["similarity", "probability"])
def test_a_detached_factor_stays_detached_in_the_second_derivative(focal):
    x = leaf(6, 4)
    direction = torch.randn_like(x)
    seconds = []
    for loss in (reference.focal_contrastive_loss, loop.focal_contrastive):
        first = torch.autograd.grad(loss(x, LABELS, focal=focal, temperature=0.5), x, create_graph=True)[0]
        seconds.append(torch.autograd.grad((first * direction).sum(), x)[0])
    assert seconds[0].abs().max() > 1e-3
    assert_equal_fp64(*seconds)


@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_kd_divergence_gradcheck(direction, reduction):
    temperature = torch.linspace(0.5, 3, 6, dtype=torch.float64)

    def loss(student, teacher):
        return reference.kd_divergence(
            student,
            teacher,
            temperature=temperature,
            direction=direction,
            beta=0.3,
            labels=LABELS,
            ce_weight=0.5,
            row_weights=torch.linspace(0, 2, 6, dtype=torch.float64),
            teacher_grad=True,
            reduction=reduction,
        )

    inputs = (leaf(2, 6, 3), leaf(6, 3))
    assert gradcheck(loss, inputs)
    assert gradgradcheck(loss, inputs)


def test_js_of_equal_logits_has_the_right_second_derivative():
    # p = q is where a two-argument maximum would tie
    teacher = torch.randn(3, 4, dtype=torch.float64)

    def loss(student):
        return reference.kd_divergence(student, teacher, direction="js")

    student = teacher.clone().requires_grad_()
    first = torch.autograd.grad(loss(student), student, create_graph=True)[0]
    v = torch.randn_like(student)
    second = torch.autograd.grad((first * v).sum(), student)[0]
    h = 1e-4
    gradients = [torch.autograd.grad(loss(moved := student + sign * h * v), moved)[0] for sign in (1, -1)]
    numeric = (gradients[0] - gradients[1]) / (2 * h)
    assert second.abs().max() > 1e-2
    assert (second - numeric).abs().max() < 1e-7


NEVER_NAN = {
    "all classes distinct": torch.arange(5),
    "all ignored": torch.full((5,), -100),
    "one row kept": torch.tensor([0, -100, -100, -100, -100]),
    "one class": torch.zeros(5, dtype=torch.int64),
    "pairs": torch.tensor([0, 0, 1, 1, 2]),
    "one row": torch.tensor([0]),
    "no row": torch.zeros(0, dtype=torch.int64),
}


@pytest.mark.parametrize(
    ("kind", "focal", "rows"),
    grid.halved(list(NEVER_NAN), ["similarity", "probability"], ["random", "equal", "opposite", "zero"]),
)
def test_no_nan_at_any_edge(kind, focal, rows):
    labels = NEVER_NAN[kind]
    n = len(labels)
    x = torch.randn(n, 6)
    if rows != "random":
        x[1::2] = {"equal": 1, "opposite": -1, "zero": 0}[rows] * x[:1]
    x.requires_grad_()
    for dtype in (torch.float32, torch.float64):
        for temperature in (0.01, 1.0):
            for gamma in (0, 0.5, 1.0, 2.0):
                for refs in (None, 0, 3):
                    options = {"focal": focal, "gamma": gamma, "detach_focal": False, "temperature": temperature}
                    if refs is not None:
                        options["ref_embeddings"] = torch.randn(refs, 6, dtype=dtype)
                        options["ref_labels"] = torch.arange(refs)
                        options["ref_only"] = True
                    y = x.detach().to(dtype).requires_grad_()
                    loss = reference.focal_contrastive_loss(y, labels, **options)
                    first = torch.autograd.grad(loss, y, create_graph=True)[0]
                    second = torch.autograd.grad(first.square().sum(), y)[0]
                    assert loss.isfinite()
                    assert first.isfinite().all()
                    assert not second.isnan().any()


@pytest.mark.parametrize("labels", NEVER_NAN.values(), ids=NEVER_NAN)
def test_no_nan_on_the_way(labels):
    # anomaly mode looks at what every step of the backward pass returns, also at what is masked later
    x, refs = torch.randn(len(labels), 6, requires_grad=True), torch.randn(0, 6)
    s = torch.cat([x.detach(), torch.full((len(labels), 1), -torch.inf)], 1).requires_grad_()
    with torch.autograd.set_detect_anomaly(True):
        for focal in ("similarity", "probability"):
            for options in ({}, {"ref_embeddings": refs, "ref_labels": labels[:0], "ref_only": True}):
                loss = reference.focal_contrastive_loss(x, labels, focal=focal, detach_focal=False, **options)
                first = torch.autograd.grad(loss, x, create_graph=True)[0]
                torch.autograd.grad(first.square().sum(), x)
        for direction in ("forward", "reverse", "js"):
            loss = reference.kd_divergence(s, s.detach().roll(1, 0), direction=direction, labels=labels)
            first = torch.autograd.grad(loss, s, create_graph=True)[0]
            torch.autograd.grad(first.square().sum(), s)
