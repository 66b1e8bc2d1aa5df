"""What a call takes that names no backend: the rule, and the check of values at the first use on a GPU."""

import subprocess
import sys
import warnings

import pytest
import torch

import merc_kernels
from merc_kernels import check, default_backend, focal_contrastive_loss, kd_divergence, reference, use_backend
from merc_kernels._shared import backends, default, first_use

ALL = default.Built(cpu=True, cuda="8.0;9.0+PTX", triton=True)
NO_CUDA = ALL._replace(cuda=None)
NO_TRITON = ALL._replace(triton=False)
NEITHER = NO_CUDA._replace(triton=False)
FP32, BF16 = torch.float32, torch.bfloat16
H100, A100, T4, RTX4090, LATER = (9, 0), (8, 0), (7, 5), (8, 9), (12, 0)


@pytest.mark.parametrize(
    ("dtype", "rows", "capability", "built", "name"),
    [
        (BF16, 2048, H100, ALL, "cuda"),
        (BF16, 2049, H100, ALL, "triton"),
        (FP32, 4096, H100, ALL, "cuda"),  # IEEE
        (FP32, 4097, H100, ALL, "triton"),
        (BF16, 1024, A100, NO_CUDA, "reference"),
        (BF16, 1025, A100, NO_CUDA, "triton"),
        (FP32, 4096, A100, NO_CUDA, "triton"),
        (BF16, 1 << 17, RTX4090, ALL, "triton"),
        (BF16, 200, LATER, ALL, "cuda"),  # by its PTX
        (BF16, 200, LATER, ALL._replace(cuda="8.0;9.0"), "reference"),
        (BF16, 1 << 17, H100, NO_TRITON, "cuda"),
        (BF16, 8191, H100, NEITHER, "reference"),
        (BF16, 8192, H100, NEITHER, "torch"),
        (BF16, 8191, T4, ALL, "reference"),
        (BF16, 8192, T4, ALL, "torch"),
        (BF16, None, H100, ALL, "triton"),
    ],
)
def test_the_contrastive_loss_on_a_gpu(dtype, rows, capability, built, name):
    pairs = 0 if rows is None else rows**2
    assert default.choose("focal_contrastive", "cuda", dtype, rows, pairs, capability, built).backend == name


def test_float32_that_may_round_to_tf32_moves_to_triton_earlier():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert default.choose("focal_contrastive", "cuda", FP32, 2049, 2049**2, H100, ALL).backend == "triton"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize(
    ("capability", "built", "name"),
    [(H100, ALL, "cuda"), (H100, NO_CUDA, "triton"), (T4, ALL, "reference"), (A100, NEITHER, "reference")],
)
def test_the_divergence_on_a_gpu(capability, built, name):
    for rows in (1, 1 << 20):
        assert default.choose("kd_divergence", "cuda", FP32, rows, 7 * rows, capability, built).backend == name


@pytest.mark.parametrize(("logits", "built", "name"), [(1 << 26, ALL, "triton"), (1 << 26, NO_TRITON, "cuda")])
def test_the_divergence_of_many_logits_on_a_gpu(logits, built, name):
    assert default.choose("kd_divergence", "cuda", BF16, 8192, logits, H100, built).backend == name
    assert default.choose("kd_divergence", "cuda", BF16, 8192, logits - 1, H100, built).backend == "cuda"


def test_elsewhere():
    assert default.choose("focal_contrastive", "cpu", FP32, 9, 81, None, ALL).backend == "cpu"
    assert default.choose("focal_contrastive", "mps", FP32, 9, 2**26 - 1, None, ALL).backend == "reference"
    assert default.choose("focal_contrastive", "mps", FP32, 9, 2**26, None, ALL).backend == "torch"
    assert default.choose("kd_divergence", "mps", FP32, 9, 2**26, None, ALL).backend == "reference"


@pytest.mark.parametrize(
    ("architectures", "capability", "covered"),
    [
        ("8.0;9.0+PTX", (8, 6), True),
        ("8.0;9.0+PTX", (7, 5), False),
        ("8.0;9.0+PTX", (12, 0), True),
        ("8.0 9.0", (10, 0), False),
        ("8.6", (8, 0), False),
        ("9.0a", (9, 0), True),
        ("9.0a+PTX", (10, 0), False),
        ("Hopper", (9, 0), False),
        (None, (9, 0), False),
    ],
)
def test_which_gpus_compiled_kernels_run_on(architectures, capability, covered):
    assert default.covers(architectures, capability) is covered


def test_default_backend_tells_it_with_the_reason():
    name, reason = default_backend("kd_divergence", device="cuda:1", dtype=BF16, rows=9, width=6, capability=(7, 5))
    assert (name, reason) == ("reference", "fused kernels are off: they need sm_80, and this is sm_75")
    usual = default_backend("focal_contrastive", device="cpu", dtype=FP32, rows=9, width=6)
    assert usual.backend == ("cpu" if backends.backends()["cpu"] == "on" else "reference")


@pytest.mark.parametrize(
    ("argument", "wrong"),
    [("operator", "supcon"), ("dtype", torch.int64), ("rows", -1), ("width", 2.5), ("capability", None)],
)
def test_default_backend_refuses_what_it_cannot_answer(argument, wrong, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    good = {"operator": "kd_divergence", "dtype": FP32, "rows": 9, "width": 6, "capability": (9, 0)}
    with pytest.raises(ValueError, match=f"{argument}: expected"):
        default_backend(**(good | {argument: wrong}), device="cuda")


X, LABELS = torch.randn(40, 8), torch.arange(40) % 5
LOSSES = {
    "focal_contrastive": lambda: focal_contrastive_loss(X, LABELS),
    "kd_divergence": lambda: kd_divergence(X, X.flip(0)),
}


@pytest.fixture(params=LOSSES)
def operator(request, monkeypatch):
    """An operator whose calls take ``triton`` by default, with what computes it: here plain PyTorch, to be spoilt."""
    pytest.importorskip("triton")
    module = __import__(f"merc_kernels.{request.param}.triton.launch", fromlist=["forward"])
    usual = getattr(reference, "focal_contrastive_loss" if request.param == "focal_contrastive" else "kd_divergence")
    monkeypatch.setattr(backends, "_C", None)
    monkeypatch.setattr(default, "choose", lambda *_: default.Default("triton", "planted"))
    monkeypatch.setitem(backends._BACKENDS, "triton", backends._Backend(lambda: "on", lambda device: True))
    monkeypatch.setattr(first_use, "_outcomes", {})
    return request.param, module, usual


def plant(monkeypatch, operator, run):
    """``run`` of the true loss takes the kernels' place."""
    name, _, usual = operator
    package = __import__(f"merc_kernels.{name}.operator", fromlist=[name])

    def fused(*arguments):
        *tensors, options, _ = arguments
        truth = __import__(f"merc_kernels.{name}.reference", fromlist=["x"])
        return run(getattr(truth, usual.__name__)(*tensors, options))

    monkeypatch.setattr(package, name, fused)


def test_right_kernels_are_used_after_one_check(operator, monkeypatch):
    calls = []
    plant(monkeypatch, operator, lambda value: calls.append(value) or value + 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            LOSSES[operator[0]]()
    assert len(calls) == 1 + 3


def raising(message, kind=RuntimeError):
    def run(value):
        raise kind(message)

    return run


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lambda value: value * 1.02, "its values on a small problem are off by 2.0e-02, relative"),
        (lambda value: value * torch.nan, "off by inf"),
        (lambda value: value.detach() + 0 * value, "off by 1.0e[+]00"),  # a right value, a wrong gradient
        (raising("ptxas fatal: register allocation failed"), "RuntimeError: ptxas fatal"),
        (raising("CUDA error: too many resources requested for launch"), "too many resources"),
        (raising("Failed to find C compiler. Please specify via CC environment variable"), "find C compiler"),
        (raising("No such file: ptxas", FileNotFoundError), "FileNotFoundError: No such file"),
    ],
)
def test_a_planted_fault_warns_once_and_plain_pytorch_goes_on(operator, fault, told, monkeypatch):
    plant(monkeypatch, operator, fault)
    with use_backend("reference"):
        truth = LOSSES[operator[0]]()
    with pytest.warns(UserWarning, match=f"plain PyTorch takes the place of backend 'triton' .*{told}") as caught:
        assert LOSSES[operator[0]]() == truth
    assert caught[0].filename == __file__
    assert LOSSES[operator[0]]() == truth  # a second warning would be an error


def test_a_named_backend_is_not_replaced(operator, monkeypatch):
    plant(monkeypatch, operator, raising("no launch"))
    with use_backend("triton"), pytest.raises(RuntimeError, match="no launch"):
        LOSSES[operator[0]]()


def test_nothing_is_tried_in_a_capture(operator, monkeypatch):
    calls = []
    plant(monkeypatch, operator, lambda value: calls.append(value) or value + 0)
    monkeypatch.setattr(backends, "_capturing", lambda: True)
    LOSSES[operator[0]]()
    assert len(calls) == 1


def test_a_check_leaves_the_callers_state_alone(operator, monkeypatch):
    plant(monkeypatch, operator, lambda value: value + 0)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with torch.inference_mode():
        assert LOSSES[operator[0]]().is_inference()
    assert torch.rand(1) == expected


def test_the_environment_names_a_backend():
    program = "import torch, merc_kernels as m; x = torch.randn(6, 4); print(m.kd_divergence(x, x + 1).item() < 1e-6)"
    for name, told in (("reference", "True"), ("nothing", "MERC_BACKEND: expected one of")):
        run = subprocess.run(
            [sys.executable, "-c", program], env={"MERC_BACKEND": name, "PATH": ""}, capture_output=True, text=True
        )
        assert told in run.stdout + run.stderr


def test_what_names_it_more_closely_wins_over_the_environment(monkeypatch):
    monkeypatch.setattr(backends, "_of_environment", lambda: "torch")
    seen = []
    monkeypatch.setattr(backends, "_named", lambda argument, name, *_: seen.append((argument, name)) or "reference")
    kd_divergence(X, X)
    with merc_kernels.use_backend("reference"):
        kd_divergence(X, X)
    kd_divergence(X, X, backend="reference")
    assert seen == [("MERC_BACKEND", "torch"), ("backend", "reference"), ("backend", "reference")]


@pytest.mark.parametrize("name", ["cpu", "torch"])
def test_the_check_of_a_backend(name, monkeypatch):
    if backends.backends()[name] != "on":
        pytest.skip(backends.backends()[name])
    monkeypatch.setattr(check, "WIDTHS", {"focal_contrastive": (16,), "kd_divergence": (7,)})
    assert list(check.values(name)) == []

    def spoilt(*tensors, backend, **options):
        return kd_divergence(*tensors, backend=backend, **options) * (1.1 if backend == name else 1)

    monkeypatch.setattr(check, "kd_divergence", spoilt)
    lines = list(check.values(name))
    assert len(lines) == len(check.DTYPES) * len(check.DIVERGENCE)
    assert all("off by 1.0e-01" in line for line in lines)


def test_the_times_of_the_backends(monkeypatch):
    monkeypatch.setattr(check, "ROWS", {"focal_contrastive": (32,), "kd_divergence": (32,)})
    monkeypatch.setattr(check, "SECONDS", 0.001)
    lines = list(check.crossings("cpu", FP32, ["torch", "reference"]))
    assert [line.split(",")[0] for line in lines] == [
        "focal_contrastive 32 x 256 float32 on cpu",
        "kd_divergence 32 x 7 float32 on cpu",
    ]
