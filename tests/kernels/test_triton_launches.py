"""Launches through Triton's own binder, compiler and launcher, with a driver that does nothing: no GPU, no values."""

import functools
import itertools
import os
import shutil
import sys
from unittest import mock

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to launch on"),
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="needs gcc on Linux"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not launched"),
]
ROWS = 70  # more than one block of any kernel that takes pairs
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float16]


def in_each_size(small: int, large: int) -> list:
    """A size and a dtype: by default float32 in the small one and bfloat16 in the large one."""
    some = ((small, torch.float32), (large, torch.bfloat16))
    every = itertools.product((small, large), DTYPES)
    return [case if case in some else pytest.param(*case, marks=pytest.mark.full) for case in every]


@pytest.fixture(scope="module")
def driver():
    """How often something was launched so far, and how often compiled."""
    from triton.runtime.jit import JITFunction

    from benchmarks.idle_driver import idle_driver

    compilations = []
    compile_ = JITFunction._do_compile

    def counted(self, *args, **kwargs):
        compilations.append(self.fn.__name__)
        return compile_(self, *args, **kwargs)

    with idle_driver() as launches, mock.patch.object(JITFunction, "_do_compile", counted):
        yield lambda: (launches(), len(compilations))


@pytest.fixture
def contrastive(driver):
    """Forward and backward pass of the focal contrastive loss; every gradient where ``everything`` is there."""
    from merc_kernels.focal_contrastive.options import FocalContrastiveOptions
    from merc_kernels.focal_contrastive.triton import launch as kernels

    def both(rows, width, dtype, focal="similarity", everything=False, **numbers):
        x, labels = torch.zeros(rows, width, dtype=dtype), torch.zeros(rows, dtype=torch.int64)
        accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        prototypes, refs = (torch.zeros(5, width, dtype=dtype) if everything else None for _ in range(2))
        tau = torch.ones((), dtype=accumulate) if everything else None
        weights = torch.ones(5, dtype=accumulate) if everything else None
        options = FocalContrastiveOptions(
            focal=focal, detach_focal=not everything, prototype_anchors=everything, **numbers
        )
        others = (prototypes, refs, None if refs is None else labels[:5])
        loss, divisor, *saved = kernels.forward(x, labels, *others, weights, tau, options)
        wanted = (True, everything, everything, everything)
        kernels.backward(loss, divisor, *saved, x, *others[:2], tau, options, wanted, all_anchors=False)

    return both


@pytest.fixture
def divergence(driver):
    """Forward and backward pass of the divergence; with ``ahead`` the first writes the student's gradient."""
    from merc_kernels.kd_divergence.options import GRADIENT, STATS, KDDivergenceOptions
    from merc_kernels.kd_divergence.triton import launch as kernels

    def both(rows, classes, dtype, everything=False, ahead=False, **numbers):
        pair = torch.zeros(rows, classes, dtype=dtype), torch.zeros(rows, classes, dtype=dtype)
        accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        ones, labels = torch.ones(rows, dtype=accumulate), torch.zeros(rows, dtype=torch.int64)
        some = (ones, labels, ones) if everything else (None, None, None)
        chosen = {"direction": "js", "ce_weight": 0.3} if everything else {}
        options = KDDivergenceOptions(**chosen | numbers)
        if ahead:
            loss, _, gradient = kernels.forward(*pair, *some, options, GRADIENT)
            kernels.scale(gradient, loss, some[1], options.ignore_index)
            return
        loss, divisor, saved = kernels.forward(*pair, *some, options, STATS)
        kernels.backward(loss, divisor, saved, *pair, *some, options, (True, everything))

    return both


@pytest.mark.parametrize(("width", "dtype"), in_each_size(24, 600), ids=str)  # held in registers, and not
def test_contrastive(driver, contrastive, width, dtype):
    before, _ = driver()
    contrastive(ROWS, width, dtype)
    contrastive(ROWS, width, dtype, focal="probability", everything=True)
    assert driver()[0] - before == 8 + 14


def test_sorted_rows(driver, contrastive):
    before = driver()
    contrastive(3000, 24, torch.bfloat16)
    after = driver()
    assert after[0] - before[0] == 9
    contrastive(2048, 24, torch.bfloat16)
    assert driver()[1] == after[1]


@pytest.mark.parametrize(("classes", "dtype"), in_each_size(7, 9000), ids=str)
def test_divergence(driver, divergence, classes, dtype):
    before, _ = driver()
    divergence(ROWS, classes, dtype)
    divergence(ROWS, classes, dtype, everything=True)
    assert driver()[0] - before == 3 + 3
    divergence(ROWS, classes, dtype, ahead=True)
    divergence(ROWS, classes, dtype, everything=True, ahead=True)  # the rows with a label are counted first
    assert driver()[0] - before == 3 + 3 + 3 + 4


def test_another_number_of_rows_compiles_nothing(driver, contrastive, divergence):
    ahead = functools.partial(divergence, everything=True, ahead=True)
    for call, width in ((contrastive, 24), (divergence, 7), (ahead, 7), (ahead, 9000)):
        call(1000, width, torch.float32)
        _, before = driver()
        for rows in (1001, 1024, 16, 2, 1):
            call(rows, width, torch.float32)
        assert driver()[1] == before


@pytest.mark.parametrize(
    ("loss", "width", "name", "values"),
    [("contrastive", 24, "gamma", (3.0, 2.4, 0.5)), ("divergence", 7, "beta", (0.3, 0.875))],
)
def test_another_value_of_a_float_option_compiles_nothing(driver, loss, width, name, values, request):
    call = functools.partial(request.getfixturevalue(loss), ROWS, width, torch.float32)
    call(**{name: 0.7})
    _, before = driver()
    for temperature, value in itertools.product((0.5, 0.07, 1.0, 1 / 3, 2.0**29), values):
        call(temperature=temperature, **{name: value})
    assert driver()[1] == before


def test_a_launch_that_a_gpu_would_refuse_is_refused(driver):
    from merc_kernels._shared.triton.reduction import reduce_kernel

    x = torch.zeros(8)
    with pytest.raises(RuntimeError, match="refused"):
        reduce_kernel[(1, 70000)](x, x, x, 1, 1, COUNTS=False, BLOCK=16)
