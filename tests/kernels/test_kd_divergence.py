"""Values and gradients in float64, against the loop (`torch.nn.functional.kl_div`) and the written gradients."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from merc_kernels import kd_divergence
from tests.kernels import grid, loop, spoiled
from tests.numerics import TOLERANCE, assert_equal_fp64

STUDENTS, ROWS, CLASSES = 3, 7, 5
OPTIONS = {
    "direction": ["forward", "reverse", "js"],
    "beta": [0.1, 0.5, 0.9],
    "temperature": [0.5, 1, 2.0, 4.0, "a row"],
    "labels": [None, "shared", "own"],
    "ce_weight": [0, 0.7],
    "row_weights": [None, "shared", "own"],
    "teacher_grad": [True, False],
    "scale_by_t2": [True, False],
    "grouped": [None, "shared teacher", "own teacher"],
    "ignore_index": [-100, 2],
    "reduction": ["batchmean", "sum", "none"],
}


def valid(case: grid.Case) -> bool:
    if case["ce_weight"] and case["labels"] is None:
        return False
    return case["grouped"] is not None or "own" not in (case["labels"], case["row_weights"])


def logits(*shape: int, scale: float = 2.0) -> Tensor:
    return (scale * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


def build(case: grid.Case) -> tuple[tuple[Tensor, Tensor], dict]:
    lead = (STUDENTS,) if case["grouped"] else ()
    names = ("direction", "beta", "ce_weight", "teacher_grad", "scale_by_t2", "ignore_index", "reduction")
    options = {name: case[name] for name in names}
    per_row = case["temperature"] == "a row"
    options["temperature"] = torch.linspace(0.5, 3, ROWS, dtype=torch.float64) if per_row else case["temperature"]
    if case["labels"]:
        labels = torch.randint(CLASSES, (*(lead if case["labels"] == "own" else ()), ROWS))
        labels[..., 1] = case["ignore_index"]
        options["labels"] = labels
    if case["row_weights"]:
        options["row_weights"] = torch.rand(*(lead if case["row_weights"] == "own" else ()), ROWS).double()
    teacher = logits(*(lead if case["grouped"] == "own teacher" else ()), ROWS, CLASSES)
    return (logits(*lead, ROWS, CLASSES), teacher), options


def value_and_gradients(loss, args, options) -> list[Tensor]:
    value = loss(*args, **options)
    upstream = torch.linspace(-1.3, 1.7, value.numel(), dtype=value.dtype).reshape(value.shape)
    return [value.detach(), *torch.autograd.grad(value, args, upstream, materialize_grads=True)]


def agree(case: grid.Case) -> None:
    args, options = build(case)
    truth = value_and_gradients(loop.kd_divergence, args, options)
    actual = value_and_gradients(kd_divergence, args, options)
    for name, one, other in zip(("value", "student", "teacher"), actual, truth, strict=True):
        assert_equal_fp64(one, other, name)


CASES = grid.cover(OPTIONS, valid)


@pytest.mark.parametrize("case", CASES, ids=map(grid.title, CASES))
def test_equals_the_loop(case):
    agree(case)


@pytest.mark.full
def test_equals_the_loop_on_a_large_sample():
    for case in grid.sample(OPTIONS, valid, 3000):
        agree(case)


@pytest.mark.parametrize("t", [0.7, 3.0])
@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
def test_gradient_is_the_written_one(direction, t):
    s, teacher, beta = logits(ROWS, CLASSES), logits(ROWS, CLASSES).detach(), 0.3
    loss = kd_divergence(s, teacher, temperature=t, direction=direction, beta=beta, reduction="sum")
    gradient = torch.autograd.grad(loss, s)[0]
    with torch.no_grad():
        p, q = F.softmax(teacher / t, -1), F.softmax(s / t, -1)
        m = beta * p + (1 - beta) * q
        if direction == "forward":
            written = q - p
        else:
            other = p if direction == "reverse" else m
            kl = (q * (q / other).log()).sum(-1, keepdim=True)
            written = (1 if direction == "reverse" else 1 - beta) * q * ((q / other).log() - kl)
    assert_equal_fp64(gradient, t**2 * written / t)


def test_reductions_agree():
    s, t = logits(2, 4, CLASSES), logits(4, CLASSES)
    options = {
        "labels": torch.tensor([[0, 1, 2, -100], [0, -100, -100, 4]]),
        "ce_weight": 0.5,
        "row_weights": torch.tensor([1.0, 0.0, 3.0, 0.25], dtype=torch.float64),
    }
    rows, total, batchmean = (kd_divergence(s, t, reduction=r, **options) for r in ("none", "sum", "batchmean"))
    assert rows.shape == (2, 4)
    assert (rows == 0).tolist() == [[False, True, False, True], [False, True, True, False]]
    assert_equal_fp64(rows.sum(), total)
    assert_equal_fp64(total / 5, batchmean)


def test_t_squared_keeps_the_size_of_gradients():
    s, t = logits(ROWS, CLASSES, scale=0.01), logits(ROWS, CLASSES, scale=0.01)
    sizes = [torch.autograd.grad(kd_divergence(s, t, temperature=x), s)[0].norm() for x in (1.0, 20.0)]
    assert sizes[0] / sizes[1] == pytest.approx(1, rel=0.05)


def test_js_is_symmetric():
    s, t = logits(ROWS, CLASSES), logits(ROWS, CLASSES)
    one = kd_divergence(s, t, direction="js", beta=0.2)
    assert_equal_fp64(one, kd_divergence(t, s, direction="js", beta=0.8))


@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
class TestExtremes:
    def test_equal_logits_give_zero(self, direction):
        s = logits(ROWS, CLASSES)
        loss = kd_divergence(s, s.detach() + 3, direction=direction)
        assert abs(loss.item()) < 1e-14
        assert torch.autograd.grad(loss, s)[0].abs().max() < 1e-14

    def test_one_class_gives_zero(self, direction):
        s, t = logits(ROWS, 1), logits(ROWS, 1)
        loss = kd_divergence(s, t, direction=direction, teacher_grad=True)
        assert loss.item() == 0
        assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, (s, t)))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_huge_logits(self, direction, dtype):
        offset = torch.tensor([1e4, 1e4, -1e4, -1e4, 1e4])
        s = (torch.randn(ROWS, CLASSES) + offset).to(dtype).requires_grad_()
        t = (torch.randn(ROWS, CLASSES) + offset.flip(0)).to(dtype).requires_grad_()
        t_near = (s + torch.randn(ROWS, CLASSES)).detach().requires_grad_()
        for teacher in (t, t_near):
            options = {"direction": direction, "teacher_grad": True, "reduction": "none"}
            for backend in (None, "reference"):
                loss = kd_divergence(s, teacher, **options, backend=backend)
                ds, dt = torch.autograd.grad(loss.sum(), (s, teacher), create_graph=True)
                assert all(x.isfinite().all() for x in (loss, ds, dt))
            again = torch.autograd.grad(ds.square().sum() + dt.square().sum(), (s, teacher))
            assert all(x.isfinite().all() for x in again)
        # the pair that is near: shifting both by a constant a row changes nothing
        loss = kd_divergence(s, t_near, direction=direction, reduction="none")
        centred = [x.detach().double() - x.detach().double().amax(-1, keepdim=True) for x in (s, t_near)]
        truth = kd_divergence(*centred, direction=direction, reduction="none")
        assert (loss - truth).abs().max() <= TOLERANCE[dtype] * truth.max()

    def test_a_class_masked_in_both_does_not_exist(self, direction):
        s, t = logits(ROWS, CLASSES), logits(ROWS, CLASSES)
        masked = [F.pad(x, (0, 2), value=-torch.inf).detach().requires_grad_() for x in (s, t)]
        options = {"direction": direction, "teacher_grad": True, "labels": torch.arange(ROWS) % 5, "ce_weight": 0.3}
        for backend in (None, "reference"):
            loss = kd_divergence(*masked, **options, backend=backend)
            whole = kd_divergence(s, t, **options, backend=backend)
            assert_equal_fp64(loss, whole)
            gradients = torch.autograd.grad(loss, masked, create_graph=True)
            for gradient, truth in zip(gradients, torch.autograd.grad(whole, (s, t)), strict=True):
                assert (gradient[:, CLASSES:] == 0).all()
                assert_equal_fp64(gradient[:, :CLASSES], truth)
        again = torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), masked)
        assert all(gradient.isfinite().all() for gradient in again)

    @pytest.mark.parametrize("backend", [None, "reference"])
    def test_a_spoilt_row_is_nan(self, direction, backend):
        for dtype, (reduction, labelled) in itertools.product(TOLERANCE, (("none", True), ("batchmean", False))):
            options = {"direction": direction, "reduction": reduction, "teacher_grad": True, "backend": backend}
            options |= {"labels": spoiled.LABELS, "ce_weight": 0.5} if labelled else {}
            spoiled.check(spoiled.through_autograd(**options), CLASSES, dtype, labelled)

    def test_a_class_masked_on_one_side(self, direction):
        for side, grads in itertools.product(("student", "teacher"), (False, True)):
            s, t = logits(ROWS, CLASSES).detach(), logits(ROWS, CLASSES).detach()
            (s if side == "student" else t)[:, 2] = -torch.inf
            s.requires_grad_()
            loss = kd_divergence(s, t, direction=direction, reduction="none")
            second = {"forward": "student", "reverse": "teacher"}.get(direction)
            assert (loss.isposinf() if side == second else loss.isfinite()).all()
            if grads and (side != second or direction == "forward"):
                gradient = torch.autograd.grad(loss.sum(), s)[0]
                assert gradient.isfinite().all()
                assert ((gradient[:, 2] == 0).all()) == (side == "student" and direction != "forward")


def test_forward_and_js_values_with_a_masked_teacher():
    s, t = logits(ROWS, CLASSES), logits(ROWS, CLASSES).detach()
    t[:, 2] = -torch.inf
    p, q = F.softmax(t / 2, -1), F.softmax(s / 2, -1)
    rest = [0, 1, 3, 4]
    forward = (p * (p.log() - q.log()))[:, rest].sum(-1)
    assert_equal_fp64(kd_divergence(s, t, scale_by_t2=False, reduction="none"), forward)
    m = (p + q) / 2
    js = (0.5 * q * (q / m).log()).sum(-1) + (0.5 * p * (p / m).log())[:, rest].sum(-1)
    assert_equal_fp64(kd_divergence(s, t, direction="js", scale_by_t2=False, reduction="none"), js)


def test_the_teacher_is_detached_unless_asked():
    s, t = logits(ROWS, CLASSES), logits(ROWS, CLASSES)
    assert torch.autograd.grad(kd_divergence(s, t), t, allow_unused=True) == (None,)
    assert torch.autograd.grad(kd_divergence(s, t, teacher_grad=True), t)[0].abs().max() > 0
    only_teacher = kd_divergence(s.detach(), t, teacher_grad=True)
    assert torch.autograd.grad(only_teacher, t)[0].abs().max() > 0


def test_weights_carry_no_gradient():
    s, t = logits(ROWS, CLASSES), logits(ROWS, CLASSES)
    weights = torch.ones(ROWS, dtype=torch.float64, requires_grad=True)
    loss = kd_divergence(s, t, row_weights=weights)
    assert_equal_fp64(loss, kd_divergence(s, t))
    assert torch.autograd.grad(loss, weights, allow_unused=True) == (None,)


def test_labels_without_cross_entropy_only_mark_rows():
    s, t = logits(ROWS, CLASSES), logits(ROWS, CLASSES)
    labels = torch.tensor([0, 1, -100, 3, 4, 0, -100])
    kept = labels != -100
    assert_equal_fp64(kd_divergence(s, t, labels=labels), kd_divergence(s[kept], t[kept]))


def test_same_bits_on_repeat():
    s, t = logits(257, 33).float().detach().requires_grad_(), logits(257, 33).float()
    runs = [kd_divergence(s, t, direction="js") for _ in range(3)]
    gradients = [torch.autograd.grad(loss, s)[0] for loss in runs]
    assert all(torch.equal(loss, runs[0]) for loss in runs)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
