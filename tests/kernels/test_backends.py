"""The choice of a backend."""

import threading

import pytest
import torch

from merc_kernels import _library, backends, focal_contrastive_loss, kd_divergence, reference, use_backend

X, Y = torch.randn(6, 4), torch.arange(6) % 2


def test_backends_tells_each_state():
    states = backends()
    assert list(states) == ["cpu", "cuda", "triton", "torch", "reference"]
    assert states["reference"] == "on"
    for state in states.values():
        assert state == "on" or (state.startswith("off: ") and len(state) > len("off: "))
    states.clear()
    assert backends()["reference"] == "on"


def test_a_name_forces_the_backend():
    truth = reference.focal_contrastive_loss(X, Y)
    assert focal_contrastive_loss(X, Y, backend="reference") == truth
    with use_backend("reference"):
        assert focal_contrastive_loss(X, Y) == truth
        assert kd_divergence(X, X + X, backend="reference") == kd_divergence(X, X + X)


@pytest.mark.parametrize("name", [name for name, state in backends().items() if state != "on"])
def test_one_that_is_off_raises_with_the_reason(name):
    reason = backends()[name]
    for call in (focal_contrastive_loss, kd_divergence):
        with pytest.raises(ValueError, match=f"backend: .*'{name}', which is {reason}"):
            call(X, Y if call is focal_contrastive_loss else X, backend=name)
    with pytest.raises(ValueError, match=f"name: .*'{name}', which is {reason}"), use_backend(name):
        pass


@pytest.mark.parametrize("name", ["nothing", "", None, 3])
def test_an_unknown_name_raises_with_the_names(name):
    with pytest.raises(ValueError, match="'cpu', 'cuda', 'triton', 'torch', 'reference', got "), use_backend(name):
        pass


def test_the_reference_takes_no_other():
    for call, args in ((reference.focal_contrastive_loss, (X, Y)), (reference.kd_divergence, (X, X))):
        assert call(*args, backend="reference") == call(*args)
        with pytest.raises(ValueError, match="backend: expected None or 'reference', got 'torch'"):
            call(*args, backend="torch")


@pytest.fixture
def _torch_is_on(monkeypatch):
    monkeypatch.setitem(_library._STATE, "torch", "on")


@pytest.mark.usefixtures("_torch_is_on")
class TestOfTwo:
    def test_none_is_the_fastest(self):
        assert _library.choose(None) == "torch"

    def test_blocks_nest_and_end(self):
        with use_backend("reference"):
            assert _library.choose(None) == "reference"
            with use_backend("torch"):
                assert _library.choose(None) == "torch"
            assert _library.choose(None) == "reference"
        assert _library.choose(None) == "torch"
        with pytest.raises(KeyError), use_backend("reference"):
            raise KeyError
        assert _library.choose(None) == "torch"

    def test_an_argument_wins(self):
        with use_backend("torch"):
            assert _library.choose("reference") == "reference"

    def test_a_block_holds_for_its_own_thread(self):
        seen = []
        with use_backend("reference"):
            thread = threading.Thread(target=lambda: seen.append(_library.choose(None)))
            thread.start()
            thread.join()
        assert seen == ["torch"]

    def test_a_compiled_function_follows_the_block(self):
        def chosen(x):
            return x + 1 if _library.choose(None) == "torch" else x - 1

        compiled = torch.compile(chosen, fullgraph=True, backend="eager")
        assert compiled(torch.zeros(1)) == 1
        with use_backend("reference"):
            assert compiled(torch.zeros(1)) == -1
        assert compiled(torch.zeros(1)) == 1
