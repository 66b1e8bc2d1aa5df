"""The modules: the functions' options in the constructor, their tensors in forward."""

import copy
import inspect

import pytest
import torch

import merc_kernels
from merc_kernels import FocalContrastiveLoss, KDDivergence, focal_contrastive_loss, kd_divergence, reference

PAIRS = [
    (FocalContrastiveLoss, focal_contrastive_loss, {"prototypes", "ref_embeddings", "ref_labels"}),
    (KDDivergence, kd_divergence, {"labels", "row_weights"}),
]


def keywords(function) -> dict[str, object]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize(("module", "function", "tensors"), PAIRS)
def test_defaults_are_those_of_the_function(module, function, tensors):
    options = {name: default for name, default in keywords(function).items() if name not in tensors}
    assert keywords(module.__init__) == options
    assert list(keywords(module.__init__)) == list(options)
    forward = keywords(module.forward)
    assert set(forward) - {"temperature"} == tensors
    assert all(default is None for default in forward.values())


@pytest.mark.parametrize("name", ["focal_contrastive_loss", "kd_divergence"])
def test_reference_has_the_same_signature(name):
    assert inspect.signature(getattr(reference, name)) == inspect.signature(getattr(merc_kernels, name))


def test_functions_hand_every_argument_on(monkeypatch):
    for name in ("focal_contrastive_loss", "kd_divergence"):
        function, seen = getattr(merc_kernels, name), {}
        monkeypatch.setattr(reference, name, lambda *args, seen=seen, **options: seen.update(options))
        options = {option: object() for option in keywords(function) if option != "backend"}
        function(None, None, **options, backend="reference")
        seen.pop("backend", None)
        assert seen == options


FOCAL_OPTIONS = {
    "temperature": 0.3,
    "gamma": 1.5,
    "focal": "probability",
    "detach_focal": False,
    "class_weights": torch.tensor([0.5, 2.0]),
    "prototype_anchors": True,
    "normalize": False,
    "ignore_index": 1,
    "backend": "reference",
    "reduction": "sum",
}
KD_OPTIONS = {
    "temperature": 3.0,
    "direction": "js",
    "beta": 0.2,
    "ce_weight": 0.5,
    "teacher_grad": True,
    "scale_by_t2": False,
    "ignore_index": 1,
    "backend": "reference",
    "reduction": "none",
}


@pytest.mark.parametrize("changed", [None, *FOCAL_OPTIONS, "ref_only"])
def test_focal_contrastive_options_reach_the_function(changed):
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 1, 0])
    tensors = {"ref_embeddings": torch.randn(3, 4), "ref_labels": torch.tensor([0, 1, 0])}
    if changed == "ref_only":
        options = {"ref_only": True}
    else:
        tensors["prototypes"] = torch.randn(2, 4)
        options = FOCAL_OPTIONS if changed is None else {changed: FOCAL_OPTIONS[changed]}
    x.requires_grad_()
    results = []
    for loss in (
        focal_contrastive_loss(x, y, **tensors, **options),
        FocalContrastiveLoss(**options)(x, y, **tensors),
        FocalContrastiveLoss()(x, y, **tensors),
    ):
        results.append([loss, *torch.autograd.grad(loss.sum(), x)])
    expected, actual, default = results
    assert all(torch.equal(one, other) for one, other in zip(expected, actual, strict=True))
    if changed not in (None, "backend"):
        assert not torch.equal(default[1], expected[1])


@pytest.mark.parametrize("changed", [None, *KD_OPTIONS])
def test_kd_options_reach_the_function(changed):
    s, t = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    tensors = {"labels": torch.tensor([0, 1, 2, 3, 1, 0]), "row_weights": torch.rand(6)}
    options = KD_OPTIONS if changed is None else {changed: KD_OPTIONS[changed]}
    if changed == "beta":
        options["direction"] = "js"
    expected = kd_divergence(s, t, **tensors, **options)
    loss = KDDivergence(**options)(s, t, **tensors)
    assert torch.equal(loss, expected)
    if changed not in (None, "backend", "teacher_grad"):
        default = KDDivergence()(s, t, **tensors)
        assert loss.shape != default.shape or loss != default
    gradients = [torch.autograd.grad(x.sum(), t, allow_unused=True)[0] for x in (loss, expected)]
    assert (gradients[0] is None) == (gradients[1] is None) == (not options.get("teacher_grad", False))


def test_class_weights_are_a_buffer():
    module = FocalContrastiveLoss(class_weights=torch.tensor([1.0, 3.0]))
    assert list(module.state_dict()) == ["class_weights"]
    assert module.double().class_weights.dtype == torch.float64
    other = FocalContrastiveLoss(class_weights=torch.ones(2))
    other.load_state_dict(module.state_dict())
    assert other.class_weights.tolist() == [1.0, 3.0]
    assert not FocalContrastiveLoss().state_dict()


def test_the_temperature_may_be_learned():
    module = FocalContrastiveLoss(temperature=torch.nn.Parameter(torch.tensor(0.2)))
    assert [name for name, _ in module.named_parameters()] == ["temperature"]
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    x, y = torch.randn(8, 4), torch.arange(8) % 2
    before = module(x, y)
    before.backward()
    assert module.temperature.grad.abs() > 0
    optimizer.step()
    assert module(x, y) < before
    assert copy.deepcopy(module)(x, y) == module(x, y)


def test_a_temperature_a_row_stands_in_for_the_modules():
    s, t, rows = torch.randn(6, 4), torch.randn(6, 4), torch.linspace(1, 3, 6)
    assert KDDivergence()(s, t, temperature=rows) == kd_divergence(s, t, temperature=rows)


def test_repr_tells_the_options():
    text = repr(FocalContrastiveLoss(gamma=1.5, class_weights=torch.ones(6)))
    assert "gamma=1.5" in text
    assert "class_weights=(6,)" in text
    assert "temperature=Parameter" in repr(FocalContrastiveLoss(temperature=torch.nn.Parameter(torch.tensor(0.1))))
    for module in (FocalContrastiveLoss, KDDivergence):
        text = repr(module())
        assert all(f"{name}=" in text for name in keywords(module.__init__))
