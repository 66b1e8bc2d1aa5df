"""The fused operator ``merc::focal_contrastive``: its backends ``cpu`` and ``torch``."""

import functools
import itertools
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from merc_kernels import FocalContrastiveLoss, backends, focal_contrastive_loss, reference
from merc_kernels._shared.backends import extension
from merc_kernels.focal_contrastive import operator
from tests.kernels import focal_cases, grid
from tests.numerics import error

needs_cpu = pytest.mark.skipif(backends()["cpu"] != "on", reason=backends()["cpu"])
BACKENDS = [pytest.param("cpu", marks=needs_cpu), "torch"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def fused(backend: str):
    return functools.partial(focal_contrastive_loss, backend=backend)


def rows(n: int, width: int = 24, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, width, dtype=dtype, requires_grad=True)


CASES = grid.cover({**focal_cases.OPTIONS, "size": focal_cases.SIZES}, focal_cases.valid)


@each_backend
@pytest.mark.parametrize("case", CASES, ids=map(grid.title, CASES))
def test_equals_the_reference(case, backend):
    focal_cases.check(focal_cases.build(case), fused(backend))


@needs_cpu
@pytest.mark.parametrize("case", CASES, ids=map(grid.title, CASES))
def test_both_passes_at_once_give_the_same_bits(case, monkeypatch):
    options = focal_cases.build(case)
    at_once = focal_cases.value_and_gradients(fused("cpu"), options, 2.0)
    monkeypatch.setattr(operator, "_SMALL", 0)
    apart = focal_cases.value_and_gradients(fused("cpu"), options, 2.0)
    assert all(torch.equal(at_once[name], value) for name, value in apart.items())


@needs_cpu
def test_a_gradient_that_was_there_belongs_to_who_asks():
    x, y = rows(40), torch.arange(40) % 3
    loss = focal_contrastive_loss(x, y, backend="cpu")
    truth = 2 * torch.autograd.grad(loss, x, torch.tensor(0.5), retain_graph=True)[0]
    for scale in (1.0, 0.25, 1.0):
        gradient = torch.autograd.grad(loss, x, torch.tensor(scale), retain_graph=True)[0]
        torch.testing.assert_close(gradient, scale * truth)
        gradient.zero_()
    torch.autograd.grad(loss, x)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, x)


@pytest.mark.full
@each_backend
def test_equals_the_reference_on_the_whole_grid(backend):
    options = {**focal_cases.OPTIONS, "size": [(37, 24)]}
    for case in (dict(zip(options, value, strict=True)) for value in itertools.product(*options.values())):
        if focal_cases.valid(case):
            focal_cases.check(focal_cases.build(case), fused(backend))


@each_backend
@pytest.mark.parametrize("focal", ["similarity", "probability"])
@pytest.mark.parametrize("size", [(768, 256), (769, 40), pytest.param((2049, 256), marks=pytest.mark.full)], ids=str)
def test_many_blocks(size, focal, backend):
    case = {"size": size, "dtype": torch.float32, "focal": focal, "gamma": 2.0, "detach_focal": False}
    case |= {"normalize": True, "reduction": "mean"}
    for use, temperature in (("prototype anchors", 0.07), ("refs with gradient", "learnable"), ("ref only", 0.01)):
        focal_cases.check(focal_cases.build({**case, "use": use, "temperature": temperature}), fused(backend))


@pytest.fixture(params=["plain", "avx2", "avx512", "amx"])
def isa(request):
    usual = extension().isa()
    if not extension().set_isa(request.param):
        pytest.skip(f"this machine cannot run {request.param}")
    yield request.param
    extension().set_isa(usual)


@needs_cpu
def test_every_instruction_set(isa):
    wide = {**CASES[0], "size": (70, 401), "temperature": 0.07, "use": "refs with gradient"}
    wide = [{**wide, "dtype": dtype} for dtype in (torch.float32, torch.bfloat16)]
    for case in (*CASES[:60], *wide):  # features in several parts and a rest
        focal_cases.check(focal_cases.build(case), fused("cpu"))


@needs_cpu
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_bfloat16_rows_lose_nothing_on_the_way(isa, scale):
    x, y = (torch.randn(203, 70) * scale).bfloat16(), torch.arange(203) % 5
    x[7] = 0
    tensors = (x, y, None, None, None, None, None)
    options = (0.1, 2.0, 0, False, False, False, True, -100, 2)  # before bfloat16 rounds the gradient
    loss, gradient, *_ = torch.ops.merc.focal_contrastive_with_gradients(*tensors, *options, True, False, False, False)
    exact = x.double().requires_grad_()
    truth = reference.focal_contrastive_loss(exact, y, temperature=0.1, gamma=2.0, detach_focal=False)
    truth.backward()
    assert abs(loss.item() - truth.item()) < 1e-6 * truth.item()
    assert (gradient - exact.grad).norm() < 2e-5 * exact.grad.norm()


LABELS = {
    "one class": torch.zeros(9, dtype=torch.int64),
    "all distinct": torch.arange(9),
    "all ignored": torch.full((9,), -100),
    "one row kept": torch.tensor([-100] * 4 + [3] + [-100] * 4),
    "pairs": torch.arange(9) // 2,
    "huge and negative": torch.tensor([2**62, -7, 2**62, -7, 0, 0, -(2**63), 5, 2**31]),
}


@each_backend
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_label_edges(labels, backend):
    for focal, detach_focal, temperature in itertools.product(
        ("similarity", "probability"), (True, False), (0.05, 0.3)
    ):
        options = {"embeddings": rows(9), "labels": labels, "focal": focal, "detach_focal": detach_focal}
        focal_cases.check({**options, "temperature": temperature, "gamma": 2.0}, fused(backend))


@each_backend
@pytest.mark.parametrize("kind", ["equal", "opposite", "zero", "tiny", "large", "long"])
def test_row_edges(kind, backend):
    x = torch.randn(12, 8, dtype=torch.float64 if kind == "long" else torch.float32)
    x[1::2] = {"equal": 1, "opposite": -1, "zero": 0, "tiny": 1e-30, "large": 1e30, "long": 300}[kind] * x[:1]
    labels = torch.arange(12) % 3
    for focal, gamma, normalize in itertools.product(("similarity", "probability"), (0.0, 2.0), (True, False)):
        if normalize or kind == "long":
            options = {"embeddings": x.clone().requires_grad_(), "labels": labels, "focal": focal, "gamma": gamma}
            focal_cases.check({**options, "normalize": normalize}, fused(backend))


@each_backend
def test_a_zero_row_gets_a_zero_gradient(backend):
    x = torch.randn(6, 8).index_fill(0, torch.tensor([2]), 0).requires_grad_()
    focal_contrastive_loss(x, torch.arange(6) % 2, backend=backend).backward()
    assert (x.grad[2] == 0).all()
    assert (x.grad[3] != 0).any()


@each_backend
def test_ignored_rows_may_hold_anything(backend):
    x, refs, prototypes = torch.randn(9, 8), torch.randn(4, 8), torch.randn(3, 8)
    y, ref_labels = torch.arange(9) % 3, torch.tensor([0, 1, -100, 2])
    y[4], x[4], refs[2] = -100, torch.nan, torch.inf
    leaves = [v.requires_grad_() for v in (x, refs, prototypes)]
    options = {"ref_embeddings": refs, "ref_labels": ref_labels, "prototypes": prototypes}
    loss = focal_contrastive_loss(x, y, backend=backend, **options)
    gradients = torch.autograd.grad(loss, leaves)
    assert all(value.isfinite().all() for value in (loss, *gradients))
    assert (gradients[0][4] == 0).all()
    assert (gradients[1][2] == 0).all()


@each_backend
def test_a_nan_that_counts_is_not_lost(backend):
    x = rows(40)
    with torch.no_grad():
        x[3, 5] = torch.nan
    assert focal_contrastive_loss(x, torch.arange(40) % 3, backend=backend).isnan()
    with torch.no_grad():
        x[3] = torch.nan
    assert focal_contrastive_loss(x, torch.arange(40) % 3, backend=backend).isnan()


@each_backend
@pytest.mark.parametrize("use", focal_cases.SPOILT_USES)
def test_a_spoilt_row_is_nan_to_all_that_depends_on_it(use, backend, monkeypatch):
    for small in (operator._SMALL, 0):
        monkeypatch.setattr(operator, "_SMALL", small)
        focal_cases.check_spoilt(fused(backend), use)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_spoilt_row_reaches_no_anchor_that_does_not_meet_it(normalize):
    """What the reference itself says: an ignored row, one without a positive, and one that has other candidates."""
    x, refs = rows(5), rows(4)
    with torch.no_grad():
        x[1] = torch.nan
    y, ref_y = torch.tensor([0, 0, -100, 7, 1]), torch.tensor([0, 1, 2, -100])
    options = {"ref_embeddings": refs, "ref_labels": ref_y, "normalize": normalize, "reduction": "none"}
    for focal in ("similarity", "probability"):
        within = focal_contrastive_loss(x, y, focal=focal, backend="reference", **options)
        assert within.isnan().tolist() == [True, True, False, False, True]
        assert (within[2:4] == 0).all()
        across = focal_contrastive_loss(x, y, focal=focal, backend="reference", ref_only=True, **options)
        assert across.isnan().tolist() == [False, True, False, False, False]
        gradient = torch.autograd.grad(across.sum(), x)[0]
        assert gradient.isnan().all(-1).tolist() == [False, True, False, False, False]
        assert gradient[[0, 2, 3, 4]].isfinite().all()


@each_backend
def test_nothing_there(backend):
    for shape in ((0, 4), (0, 3, 4), (2, 0, 4)):
        x = torch.randn(shape, requires_grad=True)
        empty = torch.zeros(shape[:-1], dtype=torch.int64)
        for reduction in ("mean", "batchmean", "sum", "none"):
            loss = focal_contrastive_loss(x, empty, backend=backend, reduction=reduction)
            assert (loss == 0).all()
            assert torch.autograd.grad(loss.sum(), x)[0].shape == shape
    x, refs = rows(5), torch.zeros(0, 24, requires_grad=True)
    nothing = {"ref_embeddings": refs, "ref_labels": torch.zeros(0, dtype=torch.int64), "ref_only": True}
    loss = focal_contrastive_loss(x, torch.zeros(5, dtype=torch.int64), backend=backend, **nothing)
    assert loss == 0
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, (x, refs)))


@each_backend
def test_strides_and_expanded_gradients(backend):
    wide, y = torch.randn(2, 44, 72), torch.arange(22) % 4
    for x in (wide[0, ::2, ::3], wide[0].T[:22, :], torch.randn(1, 24).expand(22, 24), wide[:, 22:, 1:25]):
        loss = focal_contrastive_loss(x, y, backend=backend)
        assert torch.equal(loss, focal_contrastive_loss(x.contiguous(), y, backend=backend))
    x = rows(22)
    loss = focal_contrastive_loss(x, y, reduction="none", backend=backend)
    expanded = torch.autograd.grad(loss, x, torch.tensor(0.3).expand(22), retain_graph=True)[0]
    assert torch.equal(expanded, torch.autograd.grad(loss, x, torch.full((22,), 0.3))[0])


@each_backend
def test_only_what_is_wanted(backend):
    x, prototypes, refs, tau = rows(30), rows(3), rows(8), torch.tensor(0.2, requires_grad=True)
    y, ref_labels = torch.arange(30) % 3, torch.arange(8) % 3
    leaves = {"embeddings": x, "prototypes": prototypes, "ref_embeddings": refs, "temperature": tau}
    whole = focal_contrastive_loss(labels=y, ref_labels=ref_labels, backend=backend, **leaves)
    truth = dict(zip(leaves, torch.autograd.grad(whole, list(leaves.values())), strict=True))
    for wanted in itertools.product((True, False), repeat=4):
        if any(wanted):
            part = {
                name: leaf if want else leaf.detach() for (name, leaf), want in zip(leaves.items(), wanted, strict=True)
            }
            loss = focal_contrastive_loss(labels=y, ref_labels=ref_labels, backend=backend, **part)
            names = [name for name, want in zip(leaves, wanted, strict=True) if want]
            for name, gradient in zip(names, torch.autograd.grad(loss, [leaves[n] for n in names]), strict=True):
                torch.testing.assert_close(gradient, truth[name], rtol=1e-5, atol=1e-8)


@each_backend
def test_the_same_bits_on_every_run_with_any_number_of_threads(backend):
    x, prototypes, tau = rows(700, 40), rows(6, 40), torch.tensor(0.2, requires_grad=True)
    y = torch.randint(6, (700,))
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 1, 2, 2, 3) if backend == "cpu" else (2, 2):  # torch's own sums depend on the threads
            torch.set_num_threads(count)
            loss = focal_contrastive_loss(x, y, prototypes=prototypes, temperature=tau, backend=backend)
            runs.append([loss.detach(), *torch.autograd.grad(loss, (x, prototypes, tau))])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@each_backend
def test_every_element_is_written(backend):
    x, y = rows(150, 33), torch.randint(-1, 4, (150,))
    for _ in range(20):
        poison = [torch.full((n,), torch.nan) for n in (1, 150, 600, 4950, 150 * 150)]
        del poison
        loss = focal_contrastive_loss(x, y, ignore_index=-1, backend=backend)
        assert all(value.isfinite().all() for value in (loss, torch.autograd.grad(loss, x)[0]))


def test_the_gradient_scales_with_the_one_that_comes():
    x, y = rows(30), torch.arange(30) % 3
    loss = focal_contrastive_loss(x, y, backend="torch")
    once = torch.autograd.grad(loss, x, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(loss * -2.5, x)[0], -2.5 * once)


@each_backend
def test_loss_scaling_lifts_float16_gradients(backend):
    x, y = rows(600, 16, torch.float16), torch.randint(3, (600,))
    exact = x.detach().double().requires_grad_()
    truth = torch.autograd.grad(reference.focal_contrastive_loss(exact, y) * 65536, exact)[0]
    ours = torch.autograd.grad(focal_contrastive_loss(x, y, backend=backend) * 65536, x)[0]
    assert (ours.double() - truth).norm() / truth.norm() < 1e-3


@each_backend
def test_a_weight_too_large_for_one_exponential(backend):
    # all candidates of the last row lie opposite: e^(-L) and a weight of 1e8 leave the range of float32 together
    x = torch.zeros(8, 4)
    x[:7, 0], x[7, 0] = 1, -1
    x += 1e-3 * torch.randn(8, 4)
    options = {"labels": torch.tensor([0, 0, 0, 1, 1, 1, 2, 2]), "class_weights": torch.tensor([1.0, 1.0, 1e8])}
    options |= {"embeddings": x.requires_grad_(), "temperature": 0.026}
    ours = focal_cases.value_and_gradients(fused(backend), options, 1.0)["embeddings"]
    plain, truth = (
        focal_cases.value_and_gradients(reference.focal_contrastive_loss, options, 1.0, dtype)["embeddings"]
        for dtype in (torch.float32, torch.float64)
    )
    assert error(ours, truth) < 4 * error(plain, truth)  # a difference of numbers of 1e8 for all of them


@each_backend
def test_second_derivatives_are_refused(backend):
    x, tau = rows(6), torch.tensor(0.2, requires_grad=True)
    for scale, leaf in itertools.product((1.0, 3.0), (x, tau)):
        loss = scale * focal_contrastive_loss(x, torch.arange(6) % 2, temperature=tau, backend=backend)
        gradient = torch.autograd.grad(loss, x, create_graph=True)[0]
        with pytest.raises(RuntimeError, match="first derivatives only; for second ones use backend='reference'"):
            torch.autograd.grad(gradient.square().sum(), leaf)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("backend", "rows", "pairs_at_a_time", "most"),  # MiB; a matrix of all pairs alone has 1526, of 6000 rows 137
    [
        ("cpu", 20000, 1 << 22, 100),
        ("torch", 6000, 1 << 18, 60),
        pytest.param("torch", 20000, 1 << 22, 700, marks=pytest.mark.full),
    ],
)
def test_memory_grows_with_the_rows_alone(backend, rows, pairs_at_a_time, most):
    script = """
import sys
from pathlib import Path

import torch

from merc_kernels import focal_contrastive_loss
from merc_kernels.focal_contrastive import chunked

backend, rows, chunked._CHUNK = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
x, y = torch.randn(rows, 4, requires_grad=True), torch.randint(6, (rows,))
focal_contrastive_loss(x[:300], y[:300], backend=backend).backward()
Path("/proc/self/clear_refs").write_text("5")
status = lambda name: int(next(l for l in open("/proc/self/status") if l.startswith(name)).split()[1])
before = status("VmRSS")
focal_contrastive_loss(x, y, backend=backend).backward()
print((status("VmHWM") - before) // 1024)
"""
    if backends()[backend] != "on":
        pytest.skip(f"{backend} is off")
    command = [sys.executable, "-c", script, backend, str(rows), str(pairs_at_a_time)]
    assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) < most


@each_backend
@pytest.mark.parametrize("case", range(5))
def test_opcheck(case, backend):
    x, prototypes, refs, tau = rows(7), rows(3), rows(4), torch.tensor(0.2, requires_grad=True)
    y, ref_labels, weights = torch.arange(7) % 3, torch.arange(4) % 3, torch.rand(3)
    options = (0.1, 2.0, 0, True, False, False, True, -100)

    def short(v: Tensor) -> Tensor:
        return v.detach().bfloat16().requires_grad_()

    def group(v: Tensor) -> Tensor:
        return v.detach()[None].requires_grad_()

    arguments = [
        (x, y, None, None, None, None, None, *options, 2),
        (x, y, prototypes, refs, ref_labels, weights, tau, 1.0, 1.5, 1, False, True, False, True, -100, 3),
        (x, y, None, refs, ref_labels, None, tau, 1.0, 2.0, 0, False, False, True, False, -100, 0),
        (short(x[None]), y, short(prototypes), None, None, None, None, *options, 1),
        (group(x), y, group(prototypes), group(refs), ref_labels, None, None, *options, 2),
    ][case]
    name = "focal_contrastive" + ("" if backend == "cpu" else f"_{backend}")
    torch.library.opcheck(getattr(torch.ops.merc, name).default, arguments)
    plain = [v.detach() if isinstance(v, Tensor) else v for v in arguments]
    loss, *numbers = getattr(torch.ops.merc, name)(*plain)
    inputs = (plain[0], *plain[2:4], *plain[6:-1])
    wanted = (True, plain[2] is not None, plain[3] is not None, plain[6] is not None)
    if backend == "cpu" and plain[-1] != 0:
        torch.library.opcheck(torch.ops.merc.focal_contrastive_with_gradients.default, (*plain, *wanted))
    backward = (torch.ones_like(loss), *numbers, *inputs, *wanted, False)
    torch.library.opcheck(getattr(torch.ops.merc, f"{name}_backward").default, backward)


@each_backend
def test_gradcheck(backend):
    x, prototypes, refs = (rows(n, 4, torch.float64) for n in (6, 3, 3))
    tau = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    options = {"labels": torch.tensor([0, 1, 0, -100, 2, 1]), "ref_labels": torch.tensor([0, 2, -100])}
    for focal, gamma, reduction in itertools.product(("similarity", "probability"), (0.5, 2.0), ("mean", "none")):

        def loss(x, prototypes, refs, tau, focal=focal, gamma=gamma, reduction=reduction):
            tensors = {"embeddings": x, "prototypes": prototypes, "ref_embeddings": refs, "temperature": tau}
            choice = {"focal": focal, "gamma": gamma, "reduction": reduction, "detach_focal": False}
            return focal_contrastive_loss(**tensors, **options, **choice, backend=backend)

        torch.autograd.gradcheck(loss, (x, prototypes, refs, tau))


@each_backend
def test_compiled_as_eager(backend):
    def loss(x, y, prototypes, tau):
        return focal_contrastive_loss(x, y, prototypes=prototypes, temperature=tau, backend=backend) * 2

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (5, 9, 300):
        leaves = (rows(n), rows(3), torch.tensor(0.2, requires_grad=True))
        y = torch.arange(n) % 3
        eager, traced = loss(leaves[0], y, *leaves[1:]), compiled(leaves[0], y, *leaves[1:])
        torch.testing.assert_close(traced, eager, rtol=0, atol=0)
        pairs = zip(*(torch.autograd.grad(value, leaves) for value in (eager, traced)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@each_backend
def test_export_with_dynamic_rows(backend):
    module = FocalContrastiveLoss(backend=backend)
    n = Dim("n", min=2)
    program = torch.export.export(
        module, (torch.randn(7, 8), torch.arange(7) % 3), dynamic_shapes={"embeddings": {0: n}, "labels": {0: n}}
    )
    for size in (2, 31):
        x, y = torch.randn(size, 8), torch.arange(size) % 3
        assert torch.equal(program.module()(x, y), module(x, y))


@each_backend
def test_autocast_changes_nothing(backend):
    x, y = rows(50), torch.arange(50) % 3
    plain = focal_contrastive_loss(x, y, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        loss = focal_contrastive_loss(x, y, backend=backend)
        under = torch.autograd.grad(loss, x)[0]
    assert torch.equal(loss, plain)
    assert torch.equal(under, torch.autograd.grad(plain, x)[0])


@each_backend
def test_transforms_run_on_the_reference_or_are_refused(backend):
    x, y = torch.randn(3, 6, 8), torch.arange(6) % 2
    mapped = torch.vmap(lambda one: focal_contrastive_loss(one, y))(x)
    torch.testing.assert_close(mapped, torch.stack([focal_contrastive_loss(one, y) for one in x]))
    with pytest.raises(ValueError, match="does not run under torch"):
        torch.vmap(lambda one: focal_contrastive_loss(one, y, backend=backend))(x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(4, dtype=torch.int64)}, r"labels: expected shape \(5\)"),
        ({"labels": torch.zeros(5)}, "labels: expected Long, got Float"),
        ({"prototypes": torch.randn(3, 8)}, r"prototypes: expected shape \(3, 7\)"),
        ({"prototypes": torch.randn(3, 7).double()}, "prototypes: expected float64 as the embeddings, or neither"),
        ({"class_weights": torch.ones(3).double()}, "class_weights: expected Float, got Double"),
        ({"refs": torch.randn(3, 7)}, "ref_labels: expected a tensor"),
        ({"temperature_tensor": torch.ones(2)}, "temperature_tensor: expected one element"),
        ({"focal": 2}, "focal: expected 0 or 1, got 2"),
        ({"reduction": 4}, "reduction: expected 0, 1, 2 or 3, got 4"),
    ],
)
@needs_cpu
def test_the_operator_checks_what_it_reads(change, message):
    usual = {"embeddings": torch.randn(5, 7), "labels": torch.zeros(5, dtype=torch.int64)}
    usual |= dict.fromkeys(("prototypes", "refs", "ref_labels", "class_weights", "temperature_tensor"))
    usual |= {"temperature": 0.1, "gamma": 2.0, "focal": 0, "detach_focal": True, "prototype_anchors": False}
    usual |= {"ref_only": False, "normalize": True, "ignore_index": -100, "reduction": 2}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.merc.focal_contrastive(*{**usual, **change}.values())
