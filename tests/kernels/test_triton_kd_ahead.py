"""The student's gradient that the forward pass in Triton writes: values under the interpreter, on CPU tensors.

Triton reads TRITON_INTERPRET when it is imported: these tests run in processes that test_interpreted.py starts.
"""

import itertools
import os

import pytest
import torch
from torch import Tensor

from merc_kernels import kd_divergence
from merc_kernels._shared import first_use
from merc_kernels.kd_divergence import operator, trial
from merc_kernels.kd_divergence.options import GRADIENT, STATS, KDDivergenceOptions
from tests.kernels import grid, spoiled
from tests.kernels import test_triton_kd_divergence as divergence
from tests.numerics import TOLERANCE, error

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("values are those of the interpreter", allow_module_level=True)
launch = pytest.importorskip("merc_kernels.kd_divergence.triton.launch")
configuration = pytest.importorskip("merc_kernels.kd_divergence.triton.configuration")

# numpy warns of inf - inf in lanes whose result the kernels do not use
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DIRECTIONS = divergence.DIRECTIONS
WIDE = 4128  # several tiles, and rows aligned; of 5003 they are not
OPTIONS = divergence.OPTIONS | {
    "dtypes": [pair for pair in divergence.OPTIONS["dtypes"] if torch.float16 not in pair],
    "classes": [1, 5, 7, 64, 65, 257, 1000, WIDE, 5003],
    "wanted": [(True, False)],
    "reduction": ["sum", "batchmean"],
    "upstream": [1.0, 1.0, -4.0, -2.5],
}


def valid(case: grid.Case) -> bool:
    """In bfloat16 a gradient that is multiplied by no power of 2 is rounded twice: a test of its own."""
    return divergence.valid(case) and not (case["upstream"] == -2.5 and case["dtypes"][0] == torch.bfloat16)


CASES = grid.cover(OPTIONS, valid)


def run(student: Tensor, teacher: Tensor, options: dict, upstream: float = 1.0) -> list[Tensor]:
    """Loss and the student's gradient, as the operator calls the kernels."""
    o = divergence.DEFAULTS | options
    accumulate = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
    per_row = isinstance(o["temperature"], Tensor)
    names = ("direction", "beta", "ce_weight", "scale_by_t2", "ignore_index", "reduction")
    of_call = KDDivergenceOptions(temperature=1.0 if per_row else o["temperature"], **{name: o[name] for name in names})
    temperatures = o["temperature"].to(accumulate) if per_row else None
    weights = None if o["row_weights"] is None else o["row_weights"].to(accumulate)
    loss, _, gradient = launch.forward(student, teacher, temperatures, o["labels"], weights, of_call, GRADIENT)
    launch.scale(gradient, torch.tensor(upstream, dtype=accumulate), o["labels"], o["ignore_index"])
    return [loss, gradient]


def agree(case: grid.Case, rows: int) -> None:
    student, teacher, options = divergence.build(case, rows)
    upstream = case["upstream"]
    truth, plain = (
        divergence.truth_of(student, teacher, options, dtype, upstream)[:2] for dtype in (torch.float64, None)
    )
    actual = run(student, teacher, options, upstream)
    for name, *values in zip(("value", "student"), actual, plain, truth, strict=True):
        assert values[0].dtype == values[1].dtype
        divergence.accurate(*values, name=f"{name} of {case}")


def pair(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, classes, requires_grad=True), torch.randn(rows, classes)


@pytest.mark.usefixtures("_rounded", "_poisoned")
class TestValues:
    @pytest.mark.parametrize("case", CASES, ids=map(str, range(len(CASES))))
    def test_equals_the_reference(self, case):
        agree(case, 5 if case["classes"] < WIDE else 2)

    @pytest.mark.full
    def test_equals_the_reference_on_a_large_sample(self):
        for case in grid.sample(OPTIONS, valid, 2000):
            agree(case, 5)

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_maxima_that_move_from_tile_to_tile_and_lane_to_lane(self, direction):
        for dtype, height, classes in ((torch.float32, 40, 9000), (torch.float64, 400, 4512)):
            steps = torch.linspace(-height, height, classes)
            for one, other in ((steps, steps.flip(0)), (steps, steps / 100), (steps.flip(0), steps), (steps, steps)):
                student, teacher = ((torch.randn(1, classes) + x).to(dtype) for x in (one, other))
                options = {"direction": direction, "labels": torch.tensor([7]), "ce_weight": 0.5}
                truth = divergence.truth_of(student, teacher, options, torch.float64, 1.0)[:2]
                plain = divergence.truth_of(student, teacher, options, None, 1.0)[:2]
                for values in zip(run(student, teacher, options), plain, truth, strict=True):
                    divergence.accurate(*values)

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_huge_logits_lose_nothing(self, direction):
        student = torch.randn(4, WIDE) + torch.tensor([1e4, -1e4, 3e4, -3e4])[:, None]
        teacher = student + torch.randn(4, WIDE)
        centred = [x.double() - x.double().amax(-1, keepdim=True) for x in (student, teacher)]
        options = {"direction": direction, "temperature": 3.0, "labels": torch.arange(4), "ce_weight": 0.5}
        truth = divergence.truth_of(*centred, options, None, 1.0)[:2]
        for one, exact in zip(run(student, teacher, options), truth, strict=True):
            assert error(one, exact) <= 3 * TOLERANCE[torch.float32] * exact.abs().max()

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_lanes_that_hold_nothing(self, direction):
        student, teacher = torch.randn(2, 9008), torch.randn(2, 9008)
        first, second = (teacher, student) if direction == "forward" else (student, teacher)
        second[:, :4500] = -torch.inf
        first[:, :4500] = -1000.0  # probability 0 in float32, though not within a lane
        loss, gradient = run(student, teacher, {"direction": direction})
        plain, of_it, _ = divergence.truth_of(student, teacher, {"direction": direction}, None, 1.0)
        assert error(loss, plain) <= 10 * TOLERANCE[torch.float32] * plain.abs()
        assert error(gradient, of_it) <= 10 * TOLERANCE[torch.float32] * of_it.abs().max()

    @pytest.mark.parametrize(
        ("classes", "upstream"), grid.halved([7, 70, WIDE], [0.0, torch.inf, -torch.inf, torch.nan, 3.0])
    )
    def test_an_ignored_row_has_no_gradient_whatever_comes(self, classes, upstream):
        student, teacher = torch.randn(2, 4, classes), torch.randn(4, classes)
        student[1, 2], student[:, 3] = torch.nan, torch.nan
        labels = torch.tensor([[0, -100, 1, -100], [0, classes, 1, -100]])
        options = {"labels": labels, "ce_weight": 0.5, "ignore_index": -100}
        _, gradient = run(student, teacher, options, upstream)
        saved = divergence.run(launch, student, teacher, options, (True, False), torch.tensor(upstream))[1]
        assert (gradient[:, [1, 3]] == 0).all()
        assert gradient[1, 2].isnan().all()
        finite = saved.isfinite()
        assert torch.equal(gradient.isfinite(), finite)
        torch.testing.assert_close(gradient[finite], saved[finite])

    def test_in_bfloat16_a_product_is_one_more_rounding(self):
        student, teacher = torch.randn(5, 70).bfloat16(), torch.randn(5, 70)
        alone, multiplied = (run(student, teacher, {}, upstream)[1] for upstream in (1.0, -2.5))
        assert torch.equal(multiplied, -2.5 * alone)

    def test_what_is_written_is_what_the_backward_pass_gives(self):
        for direction, classes in itertools.product(DIRECTIONS, (7, WIDE)):
            student, teacher = torch.randn(3, classes), torch.randn(3, classes)
            options = {"direction": direction}
            saved = divergence.run(launch, student, teacher, options, (True, False), torch.tensor(1.0))
            for one, other in zip(run(student, teacher, options), saved, strict=False):
                assert torch.equal(one, other)

    def test_every_row_is_counted(self):
        student, teacher = torch.randn(3000, 3), torch.randn(3000, 3)
        labels = torch.randint(-1, 4, (3000,))
        for given in (labels, labels.expand(2, 3000)):
            students = student.expand(*given.shape[:-1], 3000, 3)
            truth = divergence.truth_of(students, teacher, {"labels": given}, torch.float64, 1.0)
            gradient = run(students, teacher, {"labels": given})[1]
            torch.testing.assert_close(gradient.double(), truth[1], atol=1e-8, rtol=1e-4)


class TestAutograd:
    """`merc_kernels.kd_divergence` of a student that wants a gradient."""

    def test_the_gradient_scales_with_the_one_that_comes_and_belongs_to_who_asked(self):
        for classes, labels in itertools.product((7, WIDE), (None, torch.tensor([0, -100, 2]))):
            student, teacher = pair(3, classes)
            loss = kd_divergence(student, teacher, labels=labels, reduction="sum", backend="triton")
            first = torch.autograd.grad(loss, student, retain_graph=True)[0]
            kept = first.clone()
            first.mul_(3)
            for scale in (1.0, 2.0, 1.0, 1.0):
                again = torch.autograd.grad(loss, student, torch.tensor(scale), retain_graph=True)[0]
                torch.testing.assert_close(again, scale * kept)
                again.zero_()

    def test_gradients_add_up(self):
        student, teacher = pair(3, 7)
        for _ in range(2):
            (2 * kd_divergence(student, teacher, backend="triton")).backward()
        twin = student.detach().clone().requires_grad_()
        (4 * kd_divergence(twin, teacher, backend="reference")).backward()
        torch.testing.assert_close(student.grad, twin.grad)

    def test_the_host_reads_nothing(self, monkeypatch):
        def read(*_):
            raise AssertionError("it synchronises")

        student, teacher = pair(3, 7)
        for name in ("item", "tolist", "__bool__", "__float__"):
            monkeypatch.setattr(Tensor, name, read)
        loss = kd_divergence(student, teacher, backend="triton")
        torch.autograd.grad(loss, student, torch.ones(()))

    def test_a_batch_of_gradients(self):
        student, teacher = pair(3, 7)
        loss = kd_divergence(student, teacher, backend="triton")
        many = torch.tensor([1.0, -2.0])
        batched = torch.autograd.grad(loss, student, many, is_grads_batched=True, retain_graph=True)[0]
        single = torch.autograd.grad(loss, student)[0]
        torch.testing.assert_close(batched, many[:, None, None] * single)

    def test_what_needs_more_than_the_students_gradient_saves_numbers(self, monkeypatch):
        kept = []
        forward = launch.forward
        monkeypatch.setattr(launch, "forward", lambda *given: kept.append(given[-1]) or forward(*given[:-1], STATS))
        monkeypatch.setattr(operator, "_PAYS", 4 * 16)
        student, teacher = pair(3, 16)
        kd_divergence(student, teacher, backend="triton")
        kd_divergence(student, teacher, reduction="none", backend="triton")
        kd_divergence(student.half(), teacher, backend="triton")
        for rows in (3, 4):  # where there are labels to count
            many = student[:1].expand(rows, 16), teacher[:1].expand(rows, 16)
            kd_divergence(*many, labels=torch.zeros(rows, dtype=torch.int64), backend="triton")
        kd_divergence(student, teacher.clone().requires_grad_(), teacher_grad=True, backend="triton")
        assert kept == [GRADIENT, STATS, STATS, STATS, GRADIENT, STATS]

    def test_a_first_use_tries_it(self, monkeypatch):
        kept, forward = [], launch.forward
        monkeypatch.setattr(launch, "forward", lambda *given: kept.append(given[-1]) or forward(*given))
        for teacher_grad, save in ((False, GRADIENT), (True, STATS)):
            options = KDDivergenceOptions(teacher_grad=teacher_grad)
            call = trial.call(kd_divergence, *pair(2, 7), None, None, None, options)
            assert first_use.trouble_of("triton", call.loss, call.problem) is None
            assert kept.pop() == save

    def test_a_spoilt_row_is_nan(self):
        for direction, (width, labelled) in itertools.product(DIRECTIONS, ((5, True), (70, False))):
            options = {"direction": direction, "reduction": "sum", "backend": "triton"}
            options |= {"labels": spoiled.LABELS, "ce_weight": 0.5} if labelled else {}
            spoiled.check(spoiled.through_autograd(teacher_grad=False, **options), width, torch.float32, labelled)


@pytest.mark.parametrize(
    ("rows", "classes", "itemsize", "programs"),
    [
        (8192, 128256, 2, 104),  # four fifths of the processors, so that L2 holds their rows
        (8192, 128256, 4, 104),
        (8192, 32000, 2, 256),  # two a processor, each 32 turns
        (3, 128256, 2, 3),
    ],
)
def test_the_rows_at_work_fit_l2(rows, classes, itemsize, programs):
    blocks = configuration.wide_blocks(classes, torch.float32, itemsize, plain=True, aligned=True)
    assert configuration.at_work(rows, 2 * itemsize * classes, blocks, configuration.Chip(132, 50 << 20)) == programs
