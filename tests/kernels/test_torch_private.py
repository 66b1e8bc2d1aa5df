"""The losses in a torch without the private names that they use."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from merc_kernels import focal_contrastive_loss, kd_divergence
from merc_kernels._shared import torch_private
from merc_kernels.kd_divergence.options import KDDivergenceOptions

ROOT = Path(__file__).parents[2]
NAMES = {
    "transform": "_functorch.peek_interpreter_stack",
    "is_wrapped": "_functorch.is_functorch_wrapped_tensor",
    "past_autograd": "_AutoDispatchBelowAutograd",
    "modes": "_len_torch_dispatch_stack",
    "key_sets": "DispatchKeySet",
    "tracing_state": "_get_tracing_state",
    "set_tracing_state": "_set_tracing_state",
}


def results() -> list[torch.Tensor]:
    """Values and gradients of both losses: of small batches, a row at a time, with what has a gradient of its own."""
    x, y = torch.linspace(-1, 1, 40).sin().view(10, 4).requires_grad_(), torch.arange(10) % 3
    found = []
    for options in ({}, {"reduction": "none"}, {"temperature": torch.tensor(0.2, requires_grad=True)}):
        leaves = (x, options["temperature"]) if "temperature" in options else (x,)
        loss = focal_contrastive_loss(x, y, **options)
        found += [loss, *torch.autograd.grad(loss.sum(), leaves)]
    for options in ({}, {"reduction": "none"}, {"teacher_grad": True, "labels": y, "ce_weight": 0.5}):
        loss = kd_divergence(x, x.flip(0), **options)
        found += [loss, *torch.autograd.grad(loss.sum(), x)]
    with torch.no_grad():
        return [*(x.detach() for x in found), kd_divergence(x, x.flip(0)), focal_contrastive_loss(x, y)]


def test_every_name_has_something_that_stands_in():
    assert set(torch_private.FALLBACKS) == set(NAMES)
    for name in NAMES:
        assert getattr(torch_private, name) is not torch_private.FALLBACKS[name]  # this torch has them all


@pytest.mark.parametrize("name", NAMES)
def test_results_are_the_same_without(name, monkeypatch):
    usual = results()
    monkeypatch.setattr(torch_private, name, torch_private.FALLBACKS[name])
    assert all(torch.equal(one, other) for one, other in zip(usual, results(), strict=True))


def test_an_operator_without_its_handle_takes_the_usual_way():
    operator = torch.ops.merc.kd_divergence.default
    x = torch.linspace(-1, 1, 12).sin().view(4, 3)
    arguments = (x, x.flip(0), None, None, None, *KDDivergenceOptions().numbers, 1)
    usual = torch_private.below_autograd(operator)(*arguments)
    without = torch_private.below_autograd(lambda *given: operator(*given))(*arguments)
    assert all(torch.equal(one, other) for one, other in zip(usual, without, strict=True))


def test_a_transformed_tensor_is_seen_without_the_name(monkeypatch):
    monkeypatch.setattr(torch_private, "is_wrapped", torch_private.FALLBACKS["is_wrapped"])
    seen = []

    def look(x):
        seen.append(torch_private.is_wrapped(x))
        return x.sum()

    torch.func.grad(look)(torch.ones(3))
    torch.vmap(look)(torch.ones(3, 2))
    look(torch.ones(3))
    assert seen == [True, True, False]


def test_without_the_search_for_transforms_torch_itself_refuses(monkeypatch):
    monkeypatch.setattr(torch_private, "transform", torch_private.FALLBACKS["transform"])
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: kd_divergence(x, torch.ones(3, 2), backend="cpu"))(torch.ones(3, 2))


GONE = """
import importlib.util, sys, torch
owners = {{}}
for path in {names}:
    *between, name = path.split(".")
    owner = torch._C
    for one in between:
        owner = getattr(owner, one)
    owners[path] = vars(owner), name, vars(owner).pop(name)
name = "merc_kernels._shared.torch_private"
spec = importlib.util.spec_from_file_location(name, "merc_kernels/_shared/torch_private.py")
sys.modules[name] = torch_private = importlib.util.module_from_spec(spec)
spec.loader.exec_module(torch_private)
for owner, name, value in owners.values():  # torch itself cannot do without them
    owner[name] = value
import merc_kernels
from merc_kernels._shared import operator
assert operator.torch_private is torch_private
assert all(getattr(torch_private, name) is value for name, value in torch_private.FALLBACKS.items() if value)
assert torch_private.key_sets == {{}}
x, y = torch.randn(6, 4, requires_grad=True), torch.arange(6) % 2
loss = merc_kernels.focal_contrastive_loss(x, y) + merc_kernels.kd_divergence(x, x.detach().flip(0))
loss.backward()
assert x.grad.isfinite().all() and x.grad.abs().max() > 0
"""


def test_it_works_where_all_of_them_are_gone():
    program = GONE.format(names=list(NAMES.values()))
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
