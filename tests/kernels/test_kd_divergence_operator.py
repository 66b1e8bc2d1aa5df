"""The fused operator ``merc::kd_divergence`` as built here: its backend ``cpu``."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from merc_kernels import backends, kd_divergence, reference
from merc_kernels._shared.backends import extension
from tests.kernels import grid, spoiled
from tests.numerics import TOLERANCE, assert_accurate, error

pytestmark = pytest.mark.skipif(backends()["cpu"] != "on", reason=backends()["cpu"])

DIRECTIONS = ("forward", "reverse", "js")
WIDTHS = (1, 2, 5, 7, 31, 64, 65, 257, 1000, 1024, 1025, 5003)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def logits(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 3.0) -> Tensor:
    return (torch.randn(shape, dtype=torch.float64) * scale).to(dtype).requires_grad_()


def in_float64(options: dict) -> dict:
    return {key: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for key, x in options.items()}


def check(student: Tensor, teacher: Tensor, **options) -> None:
    """Value and gradients against the reference in float64, held to plain PyTorch in the same dtype."""
    inputs = (student, teacher) if options.get("teacher_grad") else (student,)

    def run(loss, doubled: bool) -> list[Tensor]:
        leaves = [x.detach().double() if doubled else x.detach() for x in (student, teacher)]
        for leaf, x in zip(leaves, (student, teacher), strict=True):
            leaf.requires_grad_(x.requires_grad)
        value = loss(*leaves, **(in_float64(options) if doubled else options))
        weight = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)
        return [value, *torch.autograd.grad(value, leaves[: len(inputs)], weight)]

    truth = run(reference.kd_divergence, doubled=True)
    plain = run(reference.kd_divergence, doubled=False)
    fused = run(lambda *args, **kw: kd_divergence(*args, **kw, backend="cpu"), doubled=False)
    for ours, eager, exact in zip(fused, plain, truth, strict=True):
        assert ours.dtype == eager.dtype
        assert_accurate(ours, eager, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_and_dtype(width, dtype):
    for direction, reduction in itertools.product(DIRECTIONS, ("batchmean", "none")):
        check(logits(37, width, dtype=dtype), logits(37, width, dtype=dtype), direction=direction, reduction=reduction)


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
@pytest.mark.parametrize("width", [7, 300])
def test_every_instruction_set(isa, width):
    usual = extension().isa()
    if not extension().set_isa(isa):
        pytest.skip(f"this machine cannot run {isa}")
    try:
        for dtype, direction in itertools.product((torch.float32, torch.bfloat16, torch.float64), DIRECTIONS):
            labels = torch.randint(0, width, (70,))
            options = {"labels": labels, "ce_weight": 0.4, "teacher_grad": True, "direction": direction, "beta": 0.3}
            check(logits(70, width, dtype=dtype), logits(70, width, dtype=dtype), **options)
    finally:
        extension().set_isa(usual)


def options_of(groups: int, rows: int, width: int) -> dict[str, dict]:
    labels = torch.randint(0, width, (rows,))
    labels[::3] = -100
    return {
        "plain": {},
        "temperature": {"temperature": 0.7},
        "row temperature": {"temperature": torch.rand(rows) + 0.5},
        "weights": {"row_weights": torch.randn(groups, rows)},
        "shared weights": {"row_weights": torch.rand(rows), "scale_by_t2": False},
        "ignored": {"labels": labels},
        "cross entropy": {"labels": labels, "ce_weight": 0.7, "temperature": 3.0},
        "cross entropy a group": {
            "labels": labels.repeat(groups, 1),
            "ce_weight": 2.0,
            "row_weights": torch.rand(rows),
        },
        "teacher": {"teacher_grad": True},
        "all": {
            "temperature": torch.rand(rows) + 0.5,
            "row_weights": torch.rand(groups, rows),
            "labels": labels,
            "ce_weight": 0.3,
            "teacher_grad": True,
            "beta": 0.8,
        },
    }


@pytest.mark.parametrize("case", options_of(1, 3, 5))
@pytest.mark.parametrize("width", [6, 130])
@pytest.mark.parametrize("shared", [True, False])
def test_every_option_with_groups(case, width, shared):
    options = options_of(3, 11, width)[case]
    teacher_shape = (11, width) if shared else (3, 11, width)
    for direction, reduction in itertools.product(DIRECTIONS, ("batchmean", "sum", "none")):
        check(logits(3, 11, width), logits(*teacher_shape), direction=direction, reduction=reduction, **options)


def test_student_and_teacher_may_differ_in_dtype():
    for student, teacher in itertools.permutations(DTYPES, 2):
        loss = kd_divergence(logits(9, 70, dtype=student), logits(9, 70, dtype=teacher), backend="cpu")
        assert loss.dtype == (torch.float64 if torch.float64 in (student, teacher) else torch.float32)
    check(logits(9, 70, dtype=torch.bfloat16), logits(9, 70), teacher_grad=True)


@pytest.mark.parametrize("width", [6, 130])
def test_strided_logits_and_gradients(width):
    wide = torch.randn(2, 2 * 11, 3 * width)
    students = {
        "columns": wide[0, ::2, ::3],
        "rows": wide[0, ::2, :width],
        "transposed": torch.randn(width, 11).T,
        "expanded": torch.randn(1, width).expand(11, width),
        "groups": wide[:, :11, 1 : width + 1],
    }
    for student, direction in itertools.product(students.values(), DIRECTIONS):
        loss = kd_divergence(student, student.roll(1, -1).clone() * 2, direction=direction, backend="cpu")
        same = kd_divergence(student.contiguous(), student.roll(1, -1).contiguous() * 2, direction=direction)
        assert torch.equal(loss, same)
    s, t = logits(11, width), logits(11, width)
    loss = kd_divergence(s, t, reduction="none", backend="cpu")
    expanded = torch.autograd.grad(loss, s, torch.tensor(0.3).expand(11), retain_graph=True)[0]
    torch.testing.assert_close(expanded, torch.autograd.grad(loss, s, torch.full((11,), 0.3))[0])


@pytest.mark.parametrize("width", [6, 1500])
def test_extreme_logits(width):
    for offset, direction in itertools.product((1e4, -1e4), DIRECTIONS):
        student = (torch.randn(9, width) + offset).requires_grad_()
        teacher = (student.detach() + torch.randn(9, width)).requires_grad_()
        check(student, teacher, direction=direction, teacher_grad=True)


@pytest.mark.parametrize("width", [6, 1500])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_teacher_of_one_hot_certainty(width, dtype):
    """Divergences of thousands: their gradients are right to a rounding of the divergence."""
    hot = torch.full((9, width), -1e4, dtype=dtype).index_fill_(1, torch.tensor([width // 2]), 1e4).requires_grad_()
    student = logits(9, width, dtype=dtype)
    for direction in DIRECTIONS:
        runs = []
        for leaves in ((student, hot), [x.detach().double().requires_grad_() for x in (student, hot)]):
            backend = None if leaves[0] is student else "reference"
            loss = kd_divergence(*leaves, direction=direction, teacher_grad=True, backend=backend)
            runs.append([loss, *torch.autograd.grad(loss, leaves)])
        for ours, exact in zip(*runs, strict=True):
            assert error(ours, exact) <= TOLERANCE[dtype] * max(1.0, runs[1][0].item())


@pytest.mark.parametrize("width", [6, 1500])
def test_masked_classes(width):
    both = torch.zeros(width)
    both[1::2] = -torch.inf
    for direction in DIRECTIONS:
        s, t = logits(5, width), logits(5, width)
        masked = kd_divergence(s + both, t + both, direction=direction, backend="cpu")
        rest = kd_divergence(s[:, ::2], t[:, ::2], direction=direction, backend="cpu")
        torch.testing.assert_close(masked, rest)
        gradient = torch.autograd.grad(masked, s)[0]
        assert (gradient[:, 1::2] == 0).all()
        assert gradient.isfinite().all()
    one_sided = kd_divergence(logits(5, width) + both, logits(5, width), backend="cpu", reduction="none")
    assert one_sided.isposinf().all()


@pytest.mark.parametrize("width", [6, 1500])
def test_ignored_rows_may_hold_nan(width):
    labels = torch.tensor([0, -100, 1, -100, 2])
    clean, soiled = logits(5, width), logits(5, width)
    for direction, save in itertools.product(DIRECTIONS, (1, 2)):
        student = clean.detach().clone()
        student[1], student[3] = torch.nan, torch.inf
        student.requires_grad_()
        loss = kd_divergence(student, soiled, labels=labels, ce_weight=0.5, direction=direction, teacher_grad=save == 1)
        gradient = torch.autograd.grad(loss, student)[0]
        assert loss.isfinite()
        assert gradient.isfinite().all()
        assert (gradient[[1, 3]] == 0).all()


@pytest.mark.parametrize(("width", "isa"), grid.halved([2, 7, 300], ["plain", "avx2", "avx512"]))
def test_a_spoilt_row_is_nan(isa, width):
    usual = extension().isa()
    if not extension().set_isa(isa):
        pytest.skip(f"this machine cannot run {isa}")
    try:
        for dtype, direction, teacher_grad in itertools.product(DTYPES, DIRECTIONS, (True, False)):
            for reduction, labelled in (("none", True), ("batchmean", False)):
                options = {"direction": direction, "reduction": reduction, "teacher_grad": teacher_grad}
                options |= {"labels": spoiled.LABELS, "ce_weight": 0.5 * (width > 2)} if labelled else {}
                spoiled.check(spoiled.through_autograd(backend="cpu", **options), width, dtype, labelled)
    finally:
        extension().set_isa(usual)


def test_a_spoilt_row_of_one_group_is_nan():
    teacher = torch.randn(4, 6)
    for backend, direction in itertools.product(("cpu", "reference"), DIRECTIONS):
        students = torch.randn(3, 4, 6)
        students[1, 2, 3] = torch.nan
        leaves = [students.requires_grad_(), teacher.clone().requires_grad_()]
        loss = kd_divergence(*leaves, direction=direction, teacher_grad=True, reduction="none", backend=backend)
        gradients = torch.autograd.grad(loss.sum(), leaves)
        spoilt = torch.zeros(3, 4, dtype=torch.bool).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(True))
        assert torch.equal(loss.isnan(), spoilt)
        assert torch.equal(gradients[0].isnan(), spoilt[..., None].expand(3, 4, 6))
        assert torch.equal(gradients[1].isnan(), spoilt.any(0)[:, None].expand(4, 6))


def test_loss_scaling_lifts_float16_gradients():
    student, teacher = logits(64, 8000, dtype=torch.float16), logits(64, 8000, dtype=torch.float16)
    exact = student.detach().double().requires_grad_()
    truth = torch.autograd.grad(reference.kd_divergence(exact, teacher.double()), exact)[0] * 65536
    ours = torch.autograd.grad(kd_divergence(student, teacher, backend="cpu") * 65536, student)[0]
    assert (ours.double() - truth).norm() / truth.norm() < 1e-3


def test_a_later_maximum_outweighs_an_infinite_block():
    student, teacher = torch.zeros(2, 3000), torch.zeros(2, 3000)
    student[:, :1024], teacher[:, :1024] = -torch.inf, -300.0
    student.requires_grad_()
    loss = kd_divergence(student, teacher, temperature=1.0, backend="cpu")
    assert abs(loss.item()) < 1e-6
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_everything_ignored_and_nothing_there():
    for shape in ((4, 6), (4, 200), (0, 6), (2, 0, 200), (0, 3, 6)):
        student = logits(*shape)
        labels = torch.full(shape[:-1], -100)
        loss = kd_divergence(student, logits(*shape), labels=labels, ce_weight=1.0, backend="cpu")
        assert loss.item() == 0
        assert (torch.autograd.grad(loss, student)[0] == 0).all()


@pytest.mark.parametrize("width", [7, 3000])
def test_the_same_bits_on_every_run_with_any_number_of_threads(width):
    student, teacher = logits(3, 401, width), logits(401, width)
    threads = torch.get_num_threads()
    for direction, teacher_grad in itertools.product(DIRECTIONS, (False, True)):
        runs = []
        try:
            for count in (1, 1, 2, 3):
                torch.set_num_threads(count)
                loss = kd_divergence(student, teacher, direction=direction, teacher_grad=teacher_grad, backend="cpu")
                inputs = (student, teacher) if teacher_grad else (student,)
                runs.append([loss, *torch.autograd.grad(loss, inputs)])
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(x, y) for run in runs[1:] for x, y in zip(runs[0], run, strict=True))


def test_every_element_is_written():
    student, teacher = logits(3, 50, 300), logits(50, 300)
    for _ in range(20):
        poison = [torch.full((n,), torch.nan) for n in (1, 150, 1050, 45000, 15000)]
        del poison
        loss = kd_divergence(student, teacher, teacher_grad=True, backend="cpu")
        assert all(x.isfinite().all() for x in (loss, *torch.autograd.grad(loss, (student, teacher))))


def test_offsets_beyond_two_to_the_31(tmp_path: Path):
    far = 2**31 + 64
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(2 * (far + 100))
    storage = torch.from_file(str(path), shared=True, size=far + 100, dtype=torch.bfloat16)
    student = storage.as_strided((2, 100), (far, 1))
    student.copy_(torch.randn(2, 100))
    teacher = torch.randn(2, 100)
    assert kd_divergence(student, teacher, backend="cpu") == kd_divergence(student.clone(), teacher, backend="cpu")


def test_the_gradient_scales_with_the_one_that_comes():
    student, teacher = logits(20, 90), logits(20, 90)
    loss = kd_divergence(student, teacher, backend="cpu")
    once = torch.autograd.grad(loss, student, retain_graph=True)[0]
    again = torch.autograd.grad(loss, student, retain_graph=True)[0]
    assert torch.equal(once, again)
    torch.testing.assert_close(torch.autograd.grad(loss * -2.5, student)[0], -2.5 * once)


@pytest.mark.parametrize("width", [7, 90])
def test_a_gradient_belongs_to_who_asked_for_it(width):
    labels, weights = torch.randint(0, width, (20,)), torch.rand(20)
    student, teacher = logits(20, width), logits(20, width)
    loss = kd_divergence(student, teacher, labels=labels, ce_weight=0.5, row_weights=weights, backend="cpu")
    first = torch.autograd.grad(loss, student, retain_graph=True)[0]
    kept = first.clone()
    first.mul_(3)
    for scale in (1.0, 2.0, 1.0, 1.0):
        again = torch.autograd.grad(loss, student, torch.tensor(scale), retain_graph=True)[0]
        torch.testing.assert_close(again, scale * kept)
        again.zero_()


def test_modes_and_traces_see_the_operator():
    student, teacher = logits(5, 7), logits(5, 7)
    seen = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **kwargs or {})

    with Spy():
        spied = kd_divergence(student, teacher, backend="cpu")
    assert "merc.kd_divergence.default" in seen
    assert torch.equal(spied, kd_divergence(student, teacher, backend="cpu"))


def test_no_memory_is_lost():
    student, teacher, labels = logits(1000, 250), logits(1000, 250), torch.zeros(1000, dtype=torch.int64)
    counts = []
    for _ in range(3):
        loss = kd_divergence(student, teacher, labels=labels, backend="cpu")
        gradient = torch.autograd.grad(loss, student)[0]
        counts.append([x._use_count() for x in (student, teacher, labels, loss, gradient)])
        del loss, gradient
    assert counts[0] == counts[2]
    assert counts[0][3:] == [1, 1]


@pytest.mark.parametrize("teacher_grad", [False, True])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_second_derivatives_are_refused(teacher_grad, scale):
    student, teacher = logits(5, 7), logits(5, 7)
    loss = scale * kd_divergence(student, teacher, teacher_grad=teacher_grad, backend="cpu")
    gradient = torch.autograd.grad(loss, student, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="first derivatives only; for second ones use backend='reference'"):
        torch.autograd.grad(gradient.square().sum(), student)
    with pytest.raises(RuntimeError, match="save=0 keeps nothing"):
        operator_call(student, teacher, save=0)[0].backward()


def operator_call(student: Tensor, teacher: Tensor, save: int = 1, reduction: int = 3, **changes):
    return torch.ops.merc.kd_divergence(*operator_arguments(student, teacher, save, reduction, **changes))


def operator_arguments(student, teacher, save=1, reduction=3, direction=0, labels=None, weights=None, rows=None):
    ce_weight = 0.0 if labels is None else 0.5
    return student, teacher, rows, labels, weights, 2.0, direction, 0.4, ce_weight, True, -100, reduction, save


@pytest.mark.parametrize("case", range(6))
def test_opcheck(case):
    rows, width = (5, 7) if case % 2 else (3, 70)
    teacher = logits(rows, width)
    student = logits(2, rows, width) if case % 3 else logits(rows, width)
    labels, weights = torch.randint(0, width, (rows,)), torch.rand(rows)
    arguments = [
        operator_arguments(student, teacher),
        operator_arguments(student, teacher.detach(), save=2, direction=1, labels=labels),
        operator_arguments(student, teacher, reduction=0, direction=2, weights=weights, rows=torch.rand(rows) + 0.5),
        operator_arguments(student.detach(), teacher, labels=labels, weights=weights),
        operator_arguments(student.detach(), teacher.detach(), save=0, reduction=1),
        operator_arguments(student, teacher.detach(), save=2, reduction=1, direction=2),
    ][case]
    torch.library.opcheck(torch.ops.merc.kd_divergence.default, arguments)
    if arguments[-1] == 1:
        loss, divisor, saved = torch.ops.merc.kd_divergence(
            *(x.detach() if isinstance(x, Tensor) else x for x in arguments)
        )
        tensors = [x.detach() if isinstance(x, Tensor) else x for x in arguments[:-2]]
        backward = (torch.ones_like(loss), divisor, saved, *tensors, True, True)
        torch.library.opcheck(torch.ops.merc.kd_divergence_backward.default, backward)


def test_gradcheck():
    student, teacher = (logits(4, 5, dtype=torch.float64) for _ in range(2))
    wide, other = logits(3, 70, dtype=torch.float64, scale=1.0), logits(3, 70, dtype=torch.float64).detach()
    for direction, reduction in itertools.product(DIRECTIONS, ("batchmean", "none")):
        options = {"direction": direction, "reduction": reduction, "backend": "cpu"}
        for teacher_grad in (False, True):
            torch.autograd.gradcheck(
                lambda s, t: kd_divergence(s, t, **options, teacher_grad=teacher_grad),  # noqa: B023 - called at once
                (student, teacher.detach().requires_grad_(teacher_grad)),
            )
        torch.autograd.gradcheck(lambda s: kd_divergence(s, other, **options), (wide,))  # noqa: B023


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_compiled_as_eager(direction):
    def loss(s, t):
        return kd_divergence(s, t, direction=direction, teacher_grad=True) * 2

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (5, 9):
        student, teacher = logits(rows, 70), logits(rows, 70)
        eager, traced = loss(student, teacher), compiled(student, teacher)
        torch.testing.assert_close(traced, eager, rtol=0, atol=0)
        pairs = zip(*(torch.autograd.grad(x, (student, teacher)) for x in (eager, traced)), strict=True)
        assert all(torch.equal(x, y) for x, y in pairs)


def test_autocast_leaves_the_loss_in_float32():
    student, teacher = logits(5, 70), logits(5, 70)
    with torch.autocast("cpu", torch.bfloat16):
        loss = kd_divergence(student, teacher, backend="cpu")
    assert loss.dtype == torch.float32
    assert torch.equal(loss, kd_divergence(student, teacher, backend="cpu"))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, on the first jvp
def test_forward_mode_and_function_transforms_run_on_the_reference():
    student, teacher, direction = (torch.randn(4, 70) for _ in range(3))
    truth = torch.autograd.functional.jvp(lambda s: reference.kd_divergence(s, teacher), student, direction)[1]
    tangent = torch.func.jvp(lambda s: kd_divergence(s, teacher), (student,), (direction,))[1]
    torch.testing.assert_close(tangent, truth)
    gradient = torch.func.grad(lambda s: kd_divergence(s, teacher))(student)
    torch.testing.assert_close((gradient * direction).sum(), truth)
    with pytest.raises(ValueError, match="does not run under torch"):
        torch.func.jvp(lambda s: kd_divergence(s, teacher, backend="cpu"), (student,), (direction,))


def test_vmap_gives_each_its_own():
    students, teachers = torch.randn(3, 4, 70), torch.randn(3, 4, 70)
    mapped = torch.func.vmap(lambda s, t: kd_divergence(s, t))(students, teachers)
    each = torch.stack([kd_divergence(s, t) for s, t in zip(students, teachers, strict=True)])
    torch.testing.assert_close(mapped, each)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": torch.randn(5, 8)}, r"teacher: expected shape \(5, 7\) or \(1, 5, 7\), got \(5, 8\)"),
        ({"teacher": torch.zeros(5, 7, dtype=torch.int64)}, "teacher: expected float64, float32, bfloat16 or float16"),
        ({"labels": torch.zeros(5)}, "labels: expected Long, got Float"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, r"labels: expected shape \(5\)"),
        ({"weights": torch.zeros(5, dtype=torch.float64)}, "row_weights: expected Float, got Double"),
        ({"direction": 3}, "direction: expected 0, 1 or 2, got 3"),
        ({"reduction": 2}, "reduction: expected 0, 1 or 3, got 2"),
        ({"reduction": 0, "save": 2}, "save: expected 0, 1, or 2 with a reduction to a scalar"),
    ],
)
def test_the_operator_checks_what_it_reads(change, message):
    with pytest.raises(RuntimeError, match=message):
        operator_call(**{"student": torch.randn(5, 7), "teacher": torch.randn(5, 7), **change})


def test_exp_and_log_are_as_exact_as_they_say():
    # a row's loss for one class of probability p is -log p: the sums of exponentials show their errors
    x = torch.linspace(-80, 0, 4001)
    student = torch.stack((x, torch.zeros_like(x)), dim=1)
    teacher = torch.tensor([[0.0, -math.inf]]).expand(4001, 2)
    loss = kd_divergence(student, teacher, temperature=1.0, reduction="none", backend="cpu")
    exact = torch.nn.functional.softplus(-x.double())
    assert ((loss - exact) / exact).abs().max() < 4e-7
