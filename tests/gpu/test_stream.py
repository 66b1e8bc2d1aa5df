"""What the kernels owe to the stream they run on: no synchronisation, graphs, the same bits, no unwritten memory."""

import pytest
import torch

from tests.gpu.operators import FUSED, OPERATORS, call, inputs, step, why_not

SIZES = [(37, 7), (956, 256), (2051, 123)]


@pytest.fixture(params=OPERATORS)
def operator(request):
    return request.param


@pytest.fixture(params=FUSED)
def loss(request, operator):
    if reason := why_not(request.param):
        pytest.skip(reason)
    return call(operator, request.param)


@pytest.fixture
def _no_synchronisation():
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("_no_synchronisation")
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_nothing_synchronises(rows, width, operator, loss):
    x, other = inputs(operator, rows, width)
    step(loss, x, other)  # compiling and loading may
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    step(loss, x, other)


def test_the_check_of_synchronisation_can_fail():
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1, device="cuda").item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_the_same_bits_on_every_run(rows, width, dtype, operator, loss):
    x, other = inputs(operator, rows, width, dtype)
    first = step(loss, x, other)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, step(loss, x, other), strict=True))


def poison() -> None:
    """Leave NaN in the memory that the caching allocator hands out next, in its small and its large blocks."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    blocks = [torch.full((size // 4,), torch.nan, device="cuda") for size in [1 << 9] * 512 + [1 << 19] * 64]
    blocks += [torch.full((1 << 26,), torch.nan, device="cuda") for _ in range(2)]
    del blocks
    torch.cuda.synchronize()


def test_poisoned_memory_is_handed_out():
    poison()
    assert torch.empty(100, device="cuda").isnan().all()
    assert torch.empty(1 << 21, device="cuda").isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_nothing_depends_on_what_memory_held(rows, width, dtype, operator, loss):
    x, other = inputs(operator, rows, width, dtype)
    clean = step(loss, x, other)
    poison()
    poisoned = step(loss, x, other)
    assert all(x.isfinite().all() for x in poisoned)
    assert all(torch.equal(a, b) for a, b in zip(clean, poisoned, strict=True))


@pytest.mark.parametrize(("rows", "width"), [(956, 256), (2051, 520)])
def test_deterministic_mode(rows, width, operator, loss, monkeypatch):
    """It wants cuBLAS's workspace set, as for any matrix product, and fills fresh memory with NaN."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    x, other = inputs(operator, rows, width)
    plain = step(loss, x, other)
    torch.use_deterministic_algorithms(True)
    try:
        strict = step(loss, x, other)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(plain, strict, strict=True))


def test_another_stream_is_used_where_it_is_current(operator, loss):
    x, other = inputs(operator, 956, 256)
    expected = step(loss, x, other)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # a kernel on the default stream would run ahead of what follows
        scaled = (x.detach() * 3).requires_grad_()
        value, _ = step(loss, (scaled.detach() / 3).requires_grad_(), other)
    stream.synchronize()
    assert torch.allclose(value, expected[0], rtol=1e-4)


@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_a_graph_captures_forward_and_backward(rows, width, operator, loss):
    """The last test here: a capture that fails can leave its stream behind."""
    x, other = inputs(operator, rows, width)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(loss, x, other)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(loss, x, other)
    for _ in range(2):  # with fresh input each time
        fresh, _ = inputs(operator, rows, width)
        with torch.no_grad():
            x.copy_(fresh)
        graph.replay()
        for replayed, eager in zip(captured, step(loss, x, other), strict=True):
            assert torch.equal(replayed, eager)
