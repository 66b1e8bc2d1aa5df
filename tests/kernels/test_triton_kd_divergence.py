"""The Triton kernels of the divergence: values under the interpreter, on CPU tensors.

Triton reads TRITON_INTERPRET when it is imported: these tests run in processes that test_interpreted.py starts.
"""

import functools
import itertools
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from merc_kernels import KDDivergence, kd_divergence, reference
from merc_kernels.kd_divergence.options import KDDivergenceOptions
from tests.kernels import grid, inference, spoiled
from tests.numerics import TOLERANCE, assert_accurate, assert_equal_fp64, error

triton = pytest.importorskip("triton", reason="triton is not installed")
pytest.importorskip("numpy", reason="the interpreter of triton needs numpy")

# numpy warns of inf - inf in lanes whose result the kernels do not use
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DIRECTIONS = ["forward", "reverse", "js"]
REDUCTIONS = ["none", "sum", "batchmean"]
DEFAULTS = {
    "temperature": 2.0,
    "direction": "forward",
    "beta": 0.5,
    "ce_weight": 0.0,
    "scale_by_t2": True,
    "ignore_index": -100,
    "reduction": "batchmean",
    "labels": None,
    "row_weights": None,
}
OPTIONS = {
    "direction": DIRECTIONS,
    "dtypes": [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float64),
    ],
    "classes": [1, 5, 7, 64, 65, 257, 1000, 5003],
    "beta": [0.1, 0.5],
    "temperature": [1.0, 2.0, "a row"],
    "labels": [None, "shared", "own"],
    "ce_weight": [0.0, 0.7],
    "row_weights": [None, "shared", "own"],
    "wanted": [(True, False), (False, True), (True, True)],
    "scale_by_t2": [True, False],
    "grouped": [None, "shared teacher", "own teacher"],
    "ignore_index": [-100, 2],
    "layout": ["dense", "wide rows", "transposed"],
    "content": ["plain", "plain", "masked", "huge", "NaN where ignored"],
    "reduction": REDUCTIONS,
}


@pytest.fixture
def kernels(_rounded, _poisoned):
    from merc_kernels.kd_divergence.triton import launch

    return launch


def run(kernels, student, teacher, options: dict[str, Any], wanted=(True, True), upstream=None) -> list[Tensor]:
    """Value, student's and teacher's gradient (empty where not wanted)."""
    o = DEFAULTS | options
    accumulate = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
    per_row = isinstance(o["temperature"], Tensor)
    row_temperature = o["temperature"].to(accumulate) if per_row else None
    weights = None if o["row_weights"] is None else o["row_weights"].to(accumulate)
    tensors = (student, teacher, row_temperature, o["labels"], weights)
    t = 1.0 if per_row else float(o["temperature"])
    names = ("direction", "beta", "ce_weight", "scale_by_t2", "ignore_index", "reduction")
    of_call = KDDivergenceOptions(temperature=t, **{name: o[name] for name in names})
    loss, divisor, saved = kernels.forward(*tensors, of_call, 1)
    assert loss.dtype == divisor.dtype == saved.dtype == accumulate
    assert saved.shape == (student.shape[:-1].numel(), 7)
    grad = upstream_of(loss) if upstream is None else upstream
    return [loss, *kernels.backward(grad, divisor, saved, *tensors, of_call, wanted)]


def upstream_of(loss: Tensor) -> Tensor:
    return torch.linspace(-1.3, 1.7, loss.numel(), dtype=loss.dtype).reshape(loss.shape)


def truth_of(student, teacher, options, dtype=None, upstream=None) -> list[Tensor]:
    student, teacher = (x.detach().to(dtype or x.dtype).requires_grad_() for x in (student, teacher))
    if dtype is not None:
        options = {k: v.to(dtype) if isinstance(v, Tensor) and k != "labels" else v for k, v in options.items()}
    if options.get("labels") is not None:  # the reference refuses labels that are out of range; a kernel cannot
        labels, ignored = options["labels"], options.get("ignore_index", -100)
        good = (labels >= 0) & (labels < student.shape[-1])
        options = options | {"labels": torch.where(good, labels, ignored)}
    loss = reference.kd_divergence(student, teacher, teacher_grad=True, **options)
    grad = upstream_of(loss) if upstream is None else torch.full_like(loss, upstream)
    return [loss.detach(), *torch.autograd.grad(loss, (student, teacher), grad)]


def accurate(actual: Tensor, plain: Tensor, truth: Tensor, name: str = "") -> None:
    if actual.dtype == torch.float64:
        assert_equal_fp64(actual, truth, name)
    else:
        assert_accurate(actual, plain, truth, name)


def valid(case: grid.Case) -> bool:
    if case["labels"] is None and (case["ce_weight"] or case["content"] == "NaN where ignored"):
        return False
    if case["content"] == "masked" and case["classes"] < 5:
        return False
    return case["grouped"] is not None or "own" not in (case["labels"], case["row_weights"])


def laid_out(logits: Tensor, layout: str) -> Tensor:
    if layout == "wide rows":
        wide = torch.full((*logits.shape[:-1], logits.shape[-1] + 3), torch.nan, dtype=logits.dtype)
        wide[..., : logits.shape[-1]] = logits
        return wide[..., : logits.shape[-1]]
    return logits.mT.contiguous().mT if layout == "transposed" else logits


def build(case: grid.Case, rows: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    lead, classes = ((2,) if case["grouped"] else ()), case["classes"]
    student = 2 * torch.randn(*lead, rows, classes)
    teacher = 2 * torch.randn(*(lead if case["grouped"] == "own teacher" else ()), rows, classes)
    options = {name: case[name] for name in ("direction", "beta", "ce_weight", "scale_by_t2", "ignore_index")}
    options["reduction"] = case["reduction"]
    per_row = case["temperature"] == "a row"
    options["temperature"] = torch.linspace(0.8, 3, rows) if per_row else case["temperature"]
    if case["row_weights"]:
        options["row_weights"] = torch.rand(*(lead if case["row_weights"] == "own" else ()), rows)
    if case["content"] == "masked":  # one class of neither; and, where the value stays finite, one of one side only
        student[..., 1] = teacher[..., 1] = -torch.inf
        if case["direction"] != "forward":
            student[..., 3] = -torch.inf
        if case["direction"] != "reverse":
            teacher[..., 4] = -torch.inf
        if case["direction"] == "js":
            options["ce_weight"] = 0.0
    if case["content"] == "huge":
        shift = 1e4 * torch.randint(2, (rows, 1)).mul(2).sub(1)
        student, teacher = student + shift, teacher - shift
    if case["labels"]:
        labels = torch.randint(classes, (*(lead if case["labels"] == "own" else ()), rows))
        if case["content"] == "masked":
            labels = torch.where((labels == 1) | (labels == 3), 0, labels)
        labels[..., 1] = case["ignore_index"]
        labels[..., -1] = classes + 3
        if case["content"] == "NaN where ignored":
            dropped = (labels == case["ignore_index"]) | (labels >= classes)
            student = student.masked_fill(dropped[..., None], torch.nan)
            if teacher.dim() == student.dim() or labels.dim() == 1:
                teacher = teacher.masked_fill(dropped[..., None], torch.nan)
        options["labels"] = labels
    one, other = case["dtypes"]
    return laid_out(student.to(one), case["layout"]), laid_out(teacher.to(other), case["layout"]), options


CASES = grid.cover(OPTIONS, valid)


def agree(kernels, case: grid.Case, rows: int) -> None:
    student, teacher, options = build(case, rows)
    truth = truth_of(student, teacher, options, torch.float64)
    plain = truth_of(student, teacher, options)
    actual = run(kernels, student, teacher, options, case["wanted"])
    assert [x.numel() > 0 for x in actual[1:]] == list(case["wanted"])
    wanted = (True, *case["wanted"])
    for name, yes, *values in zip(("value", "student", "teacher"), wanted, actual, plain, truth, strict=True):
        if yes:
            assert values[0].dtype == values[1].dtype
            accurate(*values, name=f"{name} of {case}")


class TestValues:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("case", CASES, ids=map(str, range(len(CASES))))
    def test_equals_the_reference(self, kernels, case):
        agree(kernels, case, 5 if case["classes"] < 5000 else 2)

    @pytest.mark.full
    def test_equals_the_reference_on_a_large_sample(self, kernels):
        for case in grid.sample(OPTIONS, valid, 3000):
            agree(kernels, case, 5)

    def test_divisor_and_saved(self, kernels):
        student, teacher, labels = torch.randn(2, 3, 5), torch.randn(3, 5), torch.tensor([[0, -100, 9], [1, 2, -100]])

        def divisor(labels, reduction, save=0):
            options = KDDivergenceOptions(temperature=1.0, reduction=reduction)
            out = kernels.forward(student, teacher, None, labels, None, options, save)
            return out[1].item(), out[2].shape

        assert [divisor(labels, reduction)[0] for reduction in REDUCTIONS] == [1, 1, 3]
        assert [divisor(None, reduction)[0] for reduction in REDUCTIONS] == [1, 1, 6]
        assert divisor(labels, "batchmean") == (3, (0,))
        for save, reduction in ((3, "batchmean"), (2, "none")):
            with pytest.raises(ValueError, match=f"save: expected 0, 1, or 2 with .* a scalar, got {save}"):
                divisor(labels, reduction, save)

    def test_what_does_not_fit_is_refused(self, kernels):
        rest = (KDDivergenceOptions(ce_weight=0.7), 0)
        with pytest.raises(ValueError, match="labels: expected a tensor"):
            kernels.forward(torch.randn(3, 5), torch.randn(3, 5), None, None, None, *rest)
        with pytest.raises(ValueError, match="student: expected at least one class"):
            kernels.forward(torch.randn(3, 0), torch.randn(3, 0), None, None, None, *rest)


@pytest.mark.parametrize("direction", DIRECTIONS)
class TestShapes:
    __test__ = INTERPRETED

    def test_rows_of_many_programs(self, kernels, direction):
        student, teacher = torch.randn(2, 300, 5), torch.randn(300, 5)
        options = {"direction": direction, "labels": torch.arange(300) % 6, "ce_weight": 0.3}
        truth = truth_of(student, teacher, options, torch.float64)
        plain = truth_of(student, teacher, options)
        for one, two, three in zip(run(kernels, student, teacher, options), plain, truth, strict=True):
            accurate(one, two, three)

    def test_no_rows(self, kernels, direction):
        for reduction in REDUCTIONS:
            options = {"direction": direction, "reduction": reduction}
            loss, ds, dt = run(kernels, torch.randn(2, 0, 5), torch.randn(0, 5), options)
            assert loss.sum() == 0
            assert (ds.shape, dt.shape) == ((2, 0, 5), (0, 5))

    def test_one_class_gives_zero(self, kernels, direction):
        options = {"direction": direction, "beta": 0.3}
        assert all((x == 0).all() for x in run(kernels, torch.randn(7, 1), torch.randn(7, 1), options))

    def test_a_gradient_that_is_not_contiguous(self, kernels, direction):
        student, teacher = torch.randn(2, 6, 9), torch.randn(6, 9)
        options = {"direction": direction, "reduction": "none"}
        upstream = torch.randn(6, 2).mT
        dense = run(kernels, student, teacher, options, upstream=upstream.contiguous())
        strided = run(kernels, student, teacher, options, upstream=upstream)
        assert all(torch.equal(one, other) for one, other in zip(dense, strided, strict=True))

    def test_offsets_beyond_32_bits(self, kernels, direction, monkeypatch):
        # rows 2^30 elements apart: the third starts at 2^31. The pages between them are never touched, for the
        # interpreter's copy of each storage back to where it came from (itself) is left out.
        monkeypatch.setattr(triton.runtime.interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
        far = torch.empty(2**31 + 16, dtype=torch.float16).as_strided((3, 9), (2**30, 1))
        far.copy_(torch.randn(3, 9))
        near = torch.randn(3, 9).half()
        options = {"direction": direction, "labels": torch.tensor([0, 4, 8]), "ce_weight": 0.5}
        for student, teacher in ((far, near), (near, far)):
            there = run(kernels, student, teacher, options)
            here = run(kernels, student.clone(memory_format=torch.contiguous_format), teacher.contiguous(), options)
            assert all(torch.equal(one, other) for one, other in zip(there, here, strict=True))
        groups, shared = far.as_strided((3, 1, 9), (2**30, 9, 1)), near[:1]
        there, here = (run(kernels, x, shared, {"direction": direction}) for x in (groups, groups.clone().contiguous()))
        assert all(torch.equal(one, other) for one, other in zip(there, here, strict=True))


@pytest.mark.parametrize("direction", DIRECTIONS)
class TestExtremes:
    __test__ = INTERPRETED

    def test_huge_logits_lose_nothing(self, kernels, direction):
        student = torch.randn(4, 5003) + torch.tensor([1e4, -1e4, 3e4, -3e4])[:, None]
        teacher = student + torch.randn(4, 5003)
        centred = [x.double() - x.double().amax(-1, keepdim=True) for x in (student, teacher)]
        options = {"direction": direction, "temperature": 3.0, "labels": torch.arange(4), "ce_weight": 0.5}
        for one, truth in zip(run(kernels, student, teacher, options), truth_of(*centred, options), strict=True):
            assert error(one, truth) <= 3 * TOLERANCE[torch.float32] * truth.abs().max()

    @pytest.mark.parametrize(("dtype", "height"), [(torch.float64, 400), (torch.float32, 40)])
    def test_maxima_that_move_from_tile_to_tile(self, kernels, direction, dtype, height):
        steps = torch.linspace(-height, height, 4500 if dtype == torch.float64 else 9000)
        for one, other in ((steps, steps.flip(0)), (steps, steps / 100), (steps.flip(0), steps), (steps, steps)):
            student, teacher = ((torch.randn(1, len(x)) + x).to(dtype) for x in (one, other))
            options = {"direction": direction, "labels": torch.tensor([7]), "ce_weight": 0.5}
            truth, plain = truth_of(student, teacher, options, torch.float64), truth_of(student, teacher, options)
            for values in zip(run(kernels, student, teacher, options), plain, truth, strict=True):
                accurate(*values)

    def test_a_masked_first_tile_of_no_weight(self, kernels, direction):
        student, teacher = torch.randn(2, 9000), torch.randn(2, 9000)
        first, second = (teacher, student) if direction == "forward" else (student, teacher)
        second[:, :4500] = -torch.inf
        first[:, :4500] = -1000.0  # probability 0 in float32, though not within the first tile
        options = {"direction": direction, "reduction": "none"}
        value, *gradients = run(kernels, student, teacher, options)
        plain, *_ = truth_of(student, teacher, options)
        assert value.isfinite().all()
        assert error(value, plain) <= 10 * TOLERANCE[torch.float32] * plain.abs().max()
        assert all(x.isfinite().all() for x in gradients)

    @pytest.mark.parametrize("classes", [5, 5003])
    def test_a_class_masked_on_the_second_side_only(self, kernels, direction, classes):
        student, teacher = torch.randn(3, classes), torch.randn(3, classes)
        (student if direction == "forward" else teacher)[1, 2] = -torch.inf
        value, *_ = run(kernels, student, teacher, {"direction": direction, "reduction": "none"})
        assert value[1].isposinf() if direction != "js" else value[1].isfinite()
        assert value[[0, 2]].isfinite().all()

    @pytest.mark.parametrize("classes", [5, 5003])
    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_all_rows_ignored(self, kernels, direction, reduction, classes):
        nothing = torch.full((4, classes), torch.nan)
        options = {"direction": direction, "reduction": reduction, "labels": torch.tensor([-100, -100, -7, classes])}
        assert all((x == 0).all() for x in run(kernels, nothing, nothing, options))

    def test_a_teacher_of_one_hot_certainty(self, kernels, direction):
        for classes in (6, 5003):
            hot = torch.full((3, classes), -1e4).index_fill_(1, torch.tensor([classes // 2]), 1e4)
            student, options = torch.randn(3, classes), {"direction": direction}
            truth = truth_of(student, hot, options, torch.float64)
            for one, exact in zip(run(kernels, student, hot, options), truth, strict=True):
                assert error(one, exact) <= TOLERANCE[torch.float32] * max(1.0, truth[0].item())

    def test_a_nan_is_not_lost(self, kernels, direction):
        student, teacher = torch.randn(3, 70), torch.randn(3, 70)
        student[1, 69] = torch.nan
        value, ds, _ = run(kernels, student, teacher, {"direction": direction, "reduction": "none"})
        assert value.isnan().tolist() == ds.isnan().any(-1).tolist() == [False, True, False]

    @pytest.mark.parametrize(
        ("width", "labelled"),
        [(5, False), (70, True), *(pytest.param(*case, marks=pytest.mark.full) for case in ((5, True), (70, False)))],
    )
    def test_a_spoilt_row_is_nan(self, kernels, direction, width, labelled):
        options = {"direction": direction, "reduction": "none"}
        options |= {"labels": spoiled.LABELS, "ce_weight": 0.5} if labelled else {}
        upstream = torch.ones(spoiled.ROWS)
        spoiled.check(lambda *pair: run(kernels, *pair, options, upstream=upstream), width, torch.float32, labelled)

    def test_same_bits_on_repeat(self, kernels, direction):
        student, teacher = torch.randn(2, 9, 1000).bfloat16(), torch.randn(9, 1000)
        runs = [run(kernels, student, teacher, {"direction": direction}) for _ in range(2)]
        assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


class TestOperator:
    """The registered operator, as `merc_kernels.kd_divergence` calls it."""

    __test__ = INTERPRETED

    def test_equals_the_reference(self):
        student, teacher = torch.randn(2, 5, 70, requires_grad=True), torch.randn(5, 70, requires_grad=True)
        labels = torch.arange(5)
        options = {"labels": labels, "ce_weight": 0.3, "row_weights": torch.rand(5), "temperature": 1 + torch.rand(5)}
        for direction, teacher_grad in itertools.product(DIRECTIONS, (False, True)):
            inputs = (student, teacher) if teacher_grad else (student,)
            runs = []
            for backend in ("triton", "reference"):
                given = {"direction": direction, "teacher_grad": teacher_grad, "backend": backend}
                loss = kd_divergence(student, teacher, **options, **given)
                runs.append([loss, *torch.autograd.grad(loss, inputs)])
            for one, other in zip(*runs, strict=True):
                torch.testing.assert_close(one, other)

    def test_autocast_leaves_the_loss_in_float32(self):
        student, teacher = torch.randn(5, 7), torch.randn(5, 7)
        with torch.autocast("cpu", torch.bfloat16):
            assert kd_divergence(student.bfloat16(), teacher, backend="triton").dtype == torch.float32

    def test_gradcheck(self):
        student, teacher = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
        for direction in DIRECTIONS:
            options = {"direction": direction, "teacher_grad": True, "backend": "triton"}
            torch.autograd.gradcheck(lambda s, t: kd_divergence(s, t, **options), (student, teacher))  # noqa: B023

    def test_opcheck(self):
        student, teacher = torch.randn(2, 3, 7, requires_grad=True), torch.randn(3, 7, requires_grad=True)
        labels, weights = torch.arange(3), torch.rand(3)
        rest = (2.0, 0, 0.4, 0.5, True, -100)
        operator = torch.ops.merc.kd_divergence_triton.default
        torch.library.opcheck(operator, (student, teacher, weights, labels, weights, *rest, 3, 1))
        torch.library.opcheck(operator, (student.detach(), teacher.detach(), None, labels, None, *rest, 0, 0))
        tensors = (student.detach(), teacher.detach(), weights, labels, None)
        loss, divisor, saved = operator(*tensors, *rest, 3, 1)
        backward = (torch.ones_like(loss), divisor, saved, *tensors, *rest, True, True)
        torch.library.opcheck(torch.ops.merc.kd_divergence_triton_backward.default, backward)

    def test_compiles_and_exports_to_one_dynamic_graph(self):
        def loss(s, t):
            return kd_divergence(s, t, direction="js", backend="triton")

        compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
        for rows in (5, 9):
            student, teacher = torch.randn(rows, 70, requires_grad=True), torch.randn(rows, 70)
            values = [f(student, teacher) for f in (loss, compiled)]
            assert torch.equal(*values)
            assert torch.equal(*(torch.autograd.grad(value, student)[0] for value in values))
        rows = torch.export.Dim("rows", min=2)
        module, shapes = KDDivergence(backend="triton"), ({0: rows}, {0: rows})
        program = torch.export.export(module, (torch.randn(5, 7), torch.randn(5, 7)), dynamic_shapes=shapes)
        pair = torch.randn(9, 7), torch.randn(9, 7)
        assert torch.equal(program.module()(*pair), module(*pair))

    def test_inference_tensors_count_as_any_other(self):
        for direction, reduction in itertools.product(DIRECTIONS, ("batchmean", "none")):
            loss = functools.partial(kd_divergence, direction=direction, reduction=reduction, backend="triton")
            inference.check(loss, inference.kd_arguments())
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        *_, unusual = inference.made_in_inference_mode(arguments := inference.kd_arguments())
        truth = inference.value_and_gradient(loss, arguments)
        for value, exact in zip(inference.value_and_gradient(compiled, unusual), truth, strict=True):
            assert torch.equal(value, exact)

    def test_second_derivatives_are_refused(self):
        student = torch.randn(4, 5, requires_grad=True)
        loss = kd_divergence(student, torch.randn(4, 5), backend="triton")
        gradient = torch.autograd.grad(loss, student, create_graph=True)[0]
        with pytest.raises(RuntimeError, match="first derivatives only"):
            gradient.sum().backward()
