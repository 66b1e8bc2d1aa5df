"""The choice of a backend."""

import re
import threading

import pytest
import torch

from merc_kernels import backends, focal_contrastive_loss, kd_divergence, reference, use_backend
from merc_kernels._shared import backends as registry
from merc_kernels.focal_contrastive import FocalContrastiveOptions, trial

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
    reason = re.escape(backends()[name])
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


def test_what_may_be_named_does_not_choose(monkeypatch):
    monkeypatch.setattr(registry, "_C", None)
    tensors = (torch.randn(4, 3), torch.arange(4) % 2, None, None, None, None, None)

    def of_call():
        return trial.call(focal_contrastive_loss, *tensors, FocalContrastiveOptions())

    by_rule = registry.choose(None, "focal_contrastive", tensors[0], of_call)
    assert by_rule != "cpu"
    assert registry.choose(None, "focal_contrastive", tensors[0], of_call, ("cpu", "torch")) == by_rule
    assert registry.choose(None, "focal_contrastive", tensors[0], None, ("torch", "reference")) == "torch"


def test_a_backend_without_the_operator_or_for_another_device_raises(monkeypatch):
    monkeypatch.setattr(registry, "_state", lambda name: "on")
    with pytest.raises(ValueError, match="backend: expected 'reference' for nothing_of_ours, got 'cpu'"):
        registry.choose("cpu", "nothing_of_ours", X, no_call, offered=("reference",))
    with pytest.raises(ValueError, match="backend: 'cpu' does not take tensors on meta"):
        registry.choose("cpu", "kd_divergence", X.to("meta"), no_call)


def no_call():
    raise AssertionError("asked for what only a GPU wants")


def chosen(backend=None):
    return registry.choose(backend, "kd_divergence", X, no_call)


@pytest.fixture
def _cpu_is_on(monkeypatch):
    monkeypatch.setattr(registry, "_state", lambda name: "on")
    monkeypatch.setattr(registry, "_C", registry)


@pytest.mark.usefixtures("_cpu_is_on")
class TestOfTwo:
    def test_blocks_nest_and_end(self):
        with use_backend("reference"):
            assert chosen() == "reference"
            with use_backend("cpu"):
                assert chosen() == "cpu"
            assert chosen() == "reference"
        assert chosen() == "cpu"
        with pytest.raises(KeyError), use_backend("reference"):
            raise KeyError
        assert chosen() == "cpu"

    def test_an_argument_wins(self):
        with use_backend("cpu"):
            assert chosen("reference") == "reference"

    def test_a_block_holds_for_its_own_thread(self):
        seen = []
        with use_backend("reference"):
            thread = threading.Thread(target=lambda: seen.append(chosen()))
            thread.start()
            thread.join()
        assert seen == ["cpu"]


def test_a_compiled_function_follows_the_block():
    def call(x):
        return x + 1 if chosen() == "reference" else x - 1

    compiled = torch.compile(call, fullgraph=True, backend="eager")
    usual = 1 if chosen() == "reference" else -1
    assert compiled(torch.zeros(1)) == usual
    with use_backend("reference"):
        assert compiled(torch.zeros(1)) == 1
    assert compiled(torch.zeros(1)) == usual


def test_the_torch_backend_serves_both_losses():
    assert kd_divergence(X, X.flip(0), backend="torch") == kd_divergence(X, X.flip(0), backend="reference")
    with use_backend("torch"):
        torch.testing.assert_close(focal_contrastive_loss(X, Y), reference.focal_contrastive_loss(X, Y))
