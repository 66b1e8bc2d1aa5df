"""The peers compute what ours computes, and the truth is the reference."""

import pytest
import torch

from benchmarks import contrastive_peers, focal_contrastive, kd_divergence, memory, training_step
from benchmarks.cell import Cell, Problem
from benchmarks.harness import relative_error
from benchmarks.providers import absent, compiled, optional
from merc_kernels import reference
from tests.benchmarks import subject as made

SLOW = "torch.compile"  # it starts a compiler
SMALL = Cell("kd_divergence", {"rows": 4, "classes": 4})


def cell(formula):
    return Cell("focal_contrastive", {"rows": 60, "width": 16}, formula=formula)


@pytest.mark.parametrize("formula", contrastive_peers.FORMULAS)
def test_the_truth_in_blocks_is_the_reference(formula, monkeypatch):
    monkeypatch.setitem(focal_contrastive.BLOCK, "cpu", 60 * 7)
    x, labels = focal_contrastive.inputs(cell(formula), "cpu")
    labels = torch.cat([labels[:-1], torch.tensor([9])])  # one without a positive
    value, gradient = focal_contrastive.exact(x.detach().double(), labels, formula)
    x = x.detach().double().requires_grad_()
    whole = reference.focal_contrastive_loss(x, labels, **contrastive_peers.OPTIONS[formula])
    assert value == pytest.approx(whole.item(), rel=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, x)[0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("formula", contrastive_peers.FORMULAS)
def test_contrastive_peers_are_right(formula, monkeypatch):
    monkeypatch.setattr(contrastive_peers, "CHUNK", 60 * 7)
    truth = focal_contrastive.SUBJECT.truth(cell(formula), "cpu")
    names = []
    for provider in focal_contrastive.SUBJECT.providers("cpu"):
        if provider.loss and provider.takes(cell(formula)) and provider.name != SLOW:
            result = focal_contrastive.SUBJECT.problem(cell(formula), provider, "cpu").result()
            assert relative_error(result, truth) < 1e-5, provider.name
            names.append(provider.name)
    assert {"merc", "eager", "chunked"} <= set(names)


def test_kd_peers_are_right():
    where = Cell("kd_divergence", {"rows": 33, "classes": 50})
    truth = kd_divergence.SUBJECT.truth(where, "cpu")
    for provider in kd_divergence.SUBJECT.providers("cpu"):
        if provider.loss and provider.name != SLOW:
            result = kd_divergence.SUBJECT.problem(where, provider, "cpu").result()
            assert relative_error(result, truth) < 1e-5, provider.name


def test_training_steps_are_right():
    where = Cell("training_step", {"rows": 40})
    truth = training_step.SUBJECT.truth(where, "cpu")
    for provider in training_step.SUBJECT.providers("cpu"):
        if provider.loss and provider.name != SLOW:
            problem = training_step.SUBJECT.problem(where, provider, "cpu")
            assert relative_error(problem.result(), truth) < 1e-5, provider.name
            before = problem.x.detach().clone()
            problem.both()
            assert not torch.equal(problem.x, before)


def test_compiled_sees_each_size_anew(monkeypatch):
    count = []

    def compile_(loss, dynamic):
        count.append(dynamic)
        return loss

    monkeypatch.setattr(torch, "compile", compile_)
    call = compiled(lambda x: x.sum())
    for size in (3, 3, 4):
        call(torch.ones(size))
    assert count == [False, False]


def test_a_peer_that_does_not_import_is_absent():
    provider = optional("peer", "no_such_module_at_all", lambda module: module.loss)
    assert provider.loss is None
    assert "no_such_module_at_all" in provider.absent
    assert absent("x", "a\n  b").absent == "a b"


def test_every_backend_is_there_or_says_why_not():
    named = {p.name: p for p in focal_contrastive.SUBJECT.providers("cpu") if p.name.startswith("merc")}
    assert set(named) == {"merc", *(f"merc:{name}" for name in ("cpu", "cuda", "triton", "torch", "reference"))}
    assert all((provider.loss is None) == bool(provider.absent) for provider in named.values())


def test_peak_memory_is_what_a_call_takes():
    if not memory.Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")
    size = 64 << 20
    peak = memory.resident_peak(lambda: torch.ones(size // 4).sum())
    assert size * 0.9 < peak < size * 1.3


def test_the_process_that_weighs():
    if not memory.Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")
    where = Cell("kd_divergence", {"rows": 512, "classes": 8000})  # 16 MiB of logits
    worker = memory.Worker("cpu", 3 << 30, 120)
    try:
        assert 24 << 20 < worker.weigh("kd_divergence", where, "eager").extra_bytes < 96 << 20
        with pytest.raises(RuntimeError, match="StopIteration"):
            worker.weigh("kd_divergence", where, "nobody")
        large = Cell("kd_divergence", {"rows": 1 << 14, "classes": 1 << 15})
        with pytest.raises(MemoryError):
            worker.weigh("kd_divergence", large, "eager")
    finally:
        worker.close()


def test_a_process_that_dies_on_a_gpu_says_of_what(monkeypatch):
    monkeypatch.setattr(memory, "serve", made.dies)
    worker = memory.Worker("cuda", 0, 60)
    with pytest.raises(memory.ProcessLostError, match="died, exit code -11"):
        worker.weigh("kd_divergence", SMALL, "eager")


def test_a_process_that_does_not_answer_is_killed():
    worker = memory.Worker("cpu", 3 << 30, 0.01)
    with pytest.raises(memory.ProcessLostError, match="no answer"):
        worker.weigh("kd_divergence", SMALL, "eager")
    assert worker._process is None


def test_a_problem_gives_each_pass():
    provider = next(p for p in focal_contrastive.SUBJECT.providers("cpu") if p.name == "eager")
    problem: Problem = focal_contrastive.SUBJECT.problem(cell("focal"), provider, "cpu")
    gradient = problem.call("both")()
    assert torch.equal(problem.call("backward")()[0], gradient)
    assert problem.call("forward")().requires_grad
