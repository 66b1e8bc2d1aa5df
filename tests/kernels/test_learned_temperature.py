"""A temperature of the divergence that is learned: its gradient on every backend, one for all rows or one a row."""

import os

import pytest
import torch
from torch import Tensor

from merc_kernels import KDDivergence, backends, kd_divergence
from tests.kernels import grid, loop
from tests.numerics import TOLERANCE, assert_accurate, assert_equal_fp64, error

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = [name for name in ("cpu", "torch", "reference") if backends()[name] == "on"]
ROWS, CLASSES = 5, 6
OPTIONS = {
    "direction": ["forward", "reverse", "js"],
    "beta": [0.2, 0.5],
    "temperature": ["one", "a row"],
    "labels": [None, "shared", "own"],
    "ce_weight": [0.0, 0.7],
    "row_weights": [False, True],
    "teacher_grad": [True, False],
    "scale_by_t2": [True, False],
    "grouped": [None, "shared teacher", "own teacher"],
    "reduction": ["batchmean", "sum", "none"],
    "dtype": [torch.float64, torch.float32, torch.bfloat16],
}


def valid(case: grid.Case) -> bool:
    if case["labels"] is None and case["ce_weight"]:
        return False
    return case["grouped"] is not None or case["labels"] != "own"


CASES = grid.cover(OPTIONS, valid)


def agree(case: grid.Case, backend: str) -> None:
    """Value and gradients of student, teacher and temperature are those of the loop."""
    lead, dtype = ((2,) if case["grouped"] else ()), case["dtype"]
    options = {name: case[name] for name in ("direction", "beta", "ce_weight", "teacher_grad", "scale_by_t2")}
    options["reduction"] = case["reduction"]
    if case["labels"]:
        options["labels"] = torch.randint(CLASSES, (*(lead if case["labels"] == "own" else ()), ROWS))
        options["labels"][..., 1] = -100
    if case["row_weights"]:
        options["row_weights"] = torch.rand(ROWS)
    leaves = [
        3 * torch.randn(*lead, ROWS, CLASSES),
        3 * torch.randn(*(lead if case["grouped"] == "own teacher" else ()), ROWS, CLASSES),
        torch.rand(() if case["temperature"] == "one" else ROWS) + 0.7,
    ]
    leaves[:2] = [x.to(dtype) for x in leaves[:2]]

    def run(loss, dtype: torch.dtype | None, **more) -> list[Tensor]:
        inputs = [x.to(dtype or x.dtype).requires_grad_() for x in leaves]
        given = {k: v.to(dtype or v.dtype) if k == "row_weights" else v for k, v in options.items()}
        value = loss(*inputs[:2], temperature=inputs[2], **given, **more)
        upstream = torch.linspace(-1.3, 1.7, value.numel(), dtype=value.dtype).reshape(value.shape)
        return [value.detach(), *torch.autograd.grad(value, inputs, upstream, materialize_grads=True)]

    truth = run(loop.kd_divergence, torch.float64)
    actual = run(kd_divergence, torch.float64 if dtype == torch.float64 else None, backend=backend)
    plain = run(loop.kd_divergence, torch.float32)
    for name, ours, single, exact in zip(
        ("value", "student", "teacher", "temperature"), actual, plain, truth, strict=True
    ):
        if dtype == torch.float64:
            assert_equal_fp64(ours, exact, name)
        else:
            assert_accurate(ours, single, exact, name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=map(grid.title, CASES))
def test_gradients_are_those_of_the_loop(case, backend):
    agree(case, backend)


class TestInterpreted:
    """Started by test_interpreted.py."""

    __test__ = INTERPRETED

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of lanes that are not used
    @pytest.mark.parametrize("case", CASES, ids=map(grid.title, CASES))
    def test_gradients_are_those_of_the_loop(self, case):
        agree(case, "triton")


@pytest.mark.parametrize("backend", BACKENDS[:-1])
@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
def test_hard_rows(direction, backend):
    """Classes that are masked, huge logits; and in ignored rows a NaN of the logits and of the temperature."""
    student, teacher = 3 * torch.randn(6, 5), 3 * torch.randn(6, 5)
    student[:, 2] = teacher[:, 2] = -torch.inf
    student[1], teacher[2] = student[1] + 1e4, teacher[2] - 1e4
    student[3], teacher[4] = torch.nan, torch.inf
    labels = torch.tensor([0, 1, 3, -100, -100, 4])
    temperature = torch.tensor([0.5, 1.0, 2.0, torch.nan, 0.0, 4.0])

    def run(dtype: torch.dtype, backend: str, rows: list[int]) -> list[Tensor]:
        leaves = [x.to(dtype)[rows].requires_grad_() for x in (student, teacher, temperature)]
        options = {"labels": labels[rows], "direction": direction, "teacher_grad": True, "backend": backend}
        value = kd_divergence(*leaves[:2], temperature=leaves[2], **options)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    kept = [0, 1, 2, 5]
    truth, plain = (run(dtype, "reference", kept) for dtype in (torch.float64, torch.float32))
    value, *gradients = run(torch.float32, backend, list(range(6)))
    assert_accurate(value, plain[0], truth[0], "value")
    for ours, single, exact in zip(gradients, plain[1:], truth[1:], strict=True):
        assert (ours[[3, 4]] == 0).all()
        assert_accurate(ours[kept], single, exact)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spoilt", [0, 1])
def test_a_nan_reaches_the_temperature(spoilt, backend):
    logits = [torch.randn(3, 4), torch.randn(3, 4)]
    logits[spoilt][1, 2] = torch.nan
    temperature = torch.ones(3, requires_grad=True)
    loss = kd_divergence(logits[0].requires_grad_(), logits[1], temperature=temperature, backend=backend)
    loss.backward()
    assert loss.isnan()
    assert temperature.grad.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("backend", BACKENDS[:-1])
def test_nothing_is_kept_where_no_gradient_is_wanted(backend):
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    learned, fixed = torch.tensor(1.5, requires_grad=True), torch.tensor(1.5)
    with torch.no_grad():
        value = kd_divergence(student, teacher, temperature=learned, backend=backend)
    assert not value.requires_grad
    assert torch.equal(value, kd_divergence(student, teacher, temperature=fixed, backend=backend))
    assert error(value, kd_divergence(student, teacher, temperature=1.5)) <= TOLERANCE[torch.float32] * value
    value = kd_divergence(student, teacher, temperature=learned, backend=backend)  # of the temperature alone
    assert torch.autograd.grad(value, learned)[0].isfinite()


@pytest.mark.parametrize("backend", BACKENDS)
def test_beside_tensors_made_in_inference_mode(backend):
    with torch.inference_mode():
        teacher, weights, labels = torch.randn(4, 6), torch.rand(4), torch.tensor([0, 1, -100, 2])
    temperature = torch.tensor(1.5, requires_grad=True)
    student = torch.randn(4, 6, requires_grad=True)
    options = {"labels": labels, "ce_weight": 0.3, "row_weights": weights, "backend": backend}
    kd_divergence(student, teacher, temperature=temperature, **options).backward()
    assert temperature.grad.isfinite()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, where it imports its compiler
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.full)])
@pytest.mark.parametrize("backend", BACKENDS[:-1])
def test_compiled(backend, compiler):
    student, teacher = torch.randn(7, 6, requires_grad=True), torch.randn(7, 6)
    temperature = torch.tensor(1.7, requires_grad=True)

    def loss(student, teacher, temperature):
        return kd_divergence(student, teacher, temperature=temperature, backend=backend)

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend=compiler)):
        value = function(student, teacher, temperature)
        results.append([value.detach(), *torch.autograd.grad(value, (student, temperature))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit's
@pytest.mark.parametrize("shape", [(), (7,)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_traced(backend, shape):
    def loss(student, teacher, temperature):
        return kd_divergence(student, teacher, temperature=temperature, backend=backend)

    def inputs() -> list[Tensor]:
        return [torch.randn(7, 6).requires_grad_(), torch.randn(7, 6), (torch.rand(shape) + 1).requires_grad_()]

    traced, others = torch.jit.trace(loss, inputs()), inputs()  # it checks itself
    for one, other in zip(*(torch.autograd.grad(f(*others), others[::2]) for f in (traced, loss)), strict=True):
        torch.testing.assert_close(one, other)


def test_a_module_learns_it():
    module = KDDivergence(temperature=torch.nn.Parameter(torch.tensor(3.0)))
    assert list(module.state_dict()) == ["temperature"]
    assert "temperature=Parameter" in repr(module)
    student, teacher = torch.randn(9, 6), torch.randn(9, 6)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    start = module(student, teacher)
    start.backward()
    optimizer.step()
    assert module(student, teacher) < start
    given = torch.full((9,), 2.0, requires_grad=True)
    module.zero_grad()
    module(student, teacher, temperature=given).backward()
    assert given.grad is not None
    assert module.temperature.grad is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_js_of_equal_logits_is_zero(dtype, backend):
    logits = 3 * torch.randn(9, 7, dtype=dtype)
    rounding = TOLERANCE[dtype] if backend == "cpu" else 0  # of beta and 1 - beta
    for beta in (0.1, 0.5):
        value = kd_divergence(logits, logits, temperature=10.0, direction="js", beta=beta, backend=backend)
        assert abs(value) <= rounding
