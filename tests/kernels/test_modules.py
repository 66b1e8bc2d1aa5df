"""The modules: the functions' options in the constructor, their tensors in forward."""

import copy
import dataclasses
import importlib
import inspect
import pickle

import pytest
import torch

import merc_kernels
from merc_kernels import FocalContrastiveLoss, KDDivergence, focal_contrastive_loss, kd_divergence, reference
from merc_kernels.focal_contrastive.options import FocalContrastiveOptions
from merc_kernels.kd_divergence.options import KDDivergenceOptions

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


FOCAL_OPTIONS = {
    "temperature": 0.3,
    "gamma": 1.5,
    "focal": "probability",
    "detach_focal": False,
    "class_weights": torch.tensor([0.5, 2.0]),
    "prototype_anchors": True,
    "normalize": False,
    "overlap_threshold": 0.5,
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
FOCAL_FIELDS, KD_FIELDS = (
    {x.name for x in dataclasses.fields(x)} for x in (FocalContrastiveOptions, KDDivergenceOptions)
)


def handed_on(monkeypatch, room: str, name: str, *tensors, **arguments) -> tuple:
    """The tensors and the options that a loss hands to its reference."""
    seen: list[tuple] = []
    monkeypatch.setattr(importlib.import_module(f"merc_kernels.{room}.reference"), name, lambda *x: seen.append(x))
    getattr(merc_kernels, name)(*tensors, **arguments, backend="reference")
    return seen[0]


def test_focal_contrastive_hands_every_argument_on(monkeypatch):
    x, y, prototypes, refs, weights, tau = torch.randn(4, 3), torch.zeros(4).long(), *torch.rand(4, 2, 3)
    tensors = (x, y, prototypes, refs, y[:2], weights[:, 0], tau[0, 0])
    names = ("prototypes", "ref_embeddings", "ref_labels", "class_weights", "temperature")
    options = {name: FOCAL_OPTIONS[name] for name in FOCAL_OPTIONS if name in FOCAL_FIELDS - {"temperature"}}
    given = options | dict(zip(names, tensors[2:], strict=True))
    room = ("focal_contrastive", "focal_contrastive_loss")
    *seen, of_call = handed_on(monkeypatch, *room, x, y, **given)
    assert all(one is other for one, other in zip(seen, tensors, strict=True))
    assert of_call == FocalContrastiveOptions(temperature=1.0, **options)
    given = {"temperature": 0.3, "ref_only": True, "ref_embeddings": refs, "ref_labels": y[:2]}
    *seen, of_call = handed_on(monkeypatch, *room, x, y, **given)
    assert seen[2] is seen[5] is seen[6] is None
    assert of_call == FocalContrastiveOptions(temperature=0.3, ref_only=True)
    assert set(options) | {"temperature", "ref_only"} == FOCAL_FIELDS


def test_kd_divergence_hands_every_argument_on(monkeypatch):
    s, t, temperature, labels, weights = *torch.randn(2, 4, 3), 1 + torch.rand(4), torch.zeros(4).long(), torch.rand(4)
    options = {name: value for name, value in KD_OPTIONS.items() if name in KD_FIELDS - {"temperature"}}
    given = {"temperature": temperature, "labels": labels, "row_weights": weights, **options}
    *seen, of_call = handed_on(monkeypatch, "kd_divergence", "kd_divergence", s, t, **given)
    assert all(one is other for one, other in zip(seen, (s, t, temperature, labels, weights), strict=True))
    assert of_call == KDDivergenceOptions(temperature=1.0, **options)
    *seen, of_call = handed_on(monkeypatch, "kd_divergence", "kd_divergence", s, t, temperature=3.0)
    assert seen[2:] == [None] * 3
    assert of_call == KDDivergenceOptions(temperature=3.0)
    assert set(options) | {"temperature"} == KD_FIELDS


@pytest.mark.parametrize("changed", [None, *FOCAL_OPTIONS, "ref_only"])
def test_focal_contrastive_options_reach_the_function(changed):
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 1, 0])
    tensors = {"ref_embeddings": torch.randn(3, 4), "ref_labels": torch.tensor([0, 1, 0])}
    if changed == "overlap_threshold":  # of sets of labels; the first two have half of theirs in common
        y = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 1], [1, 0], [0, 0]]).bool()
        tensors["ref_labels"] = torch.eye(3, 2).bool()
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


MODULES = [(FocalContrastiveLoss, FOCAL_OPTIONS), (KDDivergence, KD_OPTIONS)]


@pytest.mark.parametrize(("module", "options"), MODULES)
def test_every_option_can_be_read_and_set(module, options):
    loss = module()
    for name, value in options.items():
        if name != "class_weights":
            setattr(loss, name, value)
            assert getattr(loss, name) == value
    other = module(**{name: value for name, value in options.items() if name != "class_weights"})
    assert loss.options == other.options
    assert repr(loss) == repr(other)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        twin.ignore_index = 7
        assert (twin.ignore_index, twin.options.ignore_index, loss.ignore_index) == (7, 7, 1)


@pytest.mark.parametrize(("module", "options"), MODULES)
def test_an_option_that_is_set_is_checked_and_counts(module, options):
    loss = module()
    for name in ("temperature", "reduction", "ignore_index"):
        before = getattr(loss, name)
        with pytest.raises(ValueError, match=f"{name}: expected"):
            setattr(loss, name, "nothing")
        assert getattr(loss, name) == before
    x, y = torch.randn(6, 4), torch.arange(6) % 2
    args = (x, y if module is FocalContrastiveLoss else x.flip(0))
    before = loss(*args)
    loss.temperature = 0.7
    assert loss(*args) == module(temperature=0.7)(*args) != before


def test_a_learned_temperature_stays_when_another_option_is_set():
    loss = FocalContrastiveLoss(temperature=torch.nn.Parameter(torch.tensor(0.2)))
    loss.gamma = 1.0
    assert isinstance(loss.temperature, torch.nn.Parameter)
    assert loss.gamma == 1.0
    with pytest.raises(TypeError, match="temperature"):
        loss.temperature = 0.3
    loss = FocalContrastiveLoss()
    loss.temperature = torch.nn.Parameter(torch.tensor(0.2))
    assert [name for name, _ in loss.named_parameters()] == ["temperature"]


@pytest.mark.parametrize("documented", [focal_contrastive_loss, kd_divergence, FocalContrastiveLoss, KDDivergence])
def test_the_documentation_describes_every_option(documented):
    text = inspect.getdoc(documented)
    fields = KD_FIELDS if documented in (kd_divergence, KDDivergence) else FOCAL_FIELDS
    assert all(f"\n    {name}: " in text for name in fields)
    assert "**options" not in text
