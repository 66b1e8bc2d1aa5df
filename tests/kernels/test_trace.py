"""Tracing: whole graphs with dynamic shapes under torch.compile and torch.export, fake tensors, torch.func."""

import functools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from merc_kernels import FocalContrastiveLoss, KDDivergence, backends, focal_contrastive_loss, kd_divergence
from tests.kernels import grid, inference

BACKENDS = [name for name in ("cpu", "torch", "reference") if backends()[name] == "on"]
WEIGHTS = torch.tensor([0.5, 1.0, 1.5])
SETTINGS = {
    "plain": {},
    "probability": {"focal": "probability", "gamma": 2.4, "detach_focal": False, "reduction": "batchmean"},
    "prototypes": {"prototypes": torch.randn(3, 8), "prototype_anchors": True, "class_weights": WEIGHTS},
    "refs": {"ref_embeddings": torch.randn(5, 8), "ref_labels": torch.arange(5) % 3, "ref_only": True},
    "rows": {"reduction": "none", "normalize": False, "temperature": torch.tensor(0.5)},
}
KD_SETTINGS = {
    "forward": {},
    "reverse": {"direction": "reverse", "temperature": 3.0},
    "js": {"direction": "js", "beta": 0.3, "reduction": "sum", "teacher_grad": True},
}


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def follow(eager, compiled, batches):
    """Values and gradients of the compiled function are those of the eager one, without a second compilation."""
    for number, arguments in enumerate(batches):
        results = []
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            for function in (eager, compiled):
                x = arguments[0].clone().requires_grad_()
                loss = function(x, *arguments[1:])
                results.append([loss, torch.autograd.grad(loss.sum(), x)[0]])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_focal_contrastive_compiles_to_one_dynamic_graph(options):
    def loss(x, y):
        return focal_contrastive_loss(x, y, **options)

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    follow(loss, compiled, [(torch.randn(n, 8), torch.randint(3, (n,))) for n in (7, 10, 24)])


@pytest.mark.parametrize("options", KD_SETTINGS.values(), ids=KD_SETTINGS)
def test_kd_divergence_compiles_to_one_dynamic_graph(options):
    def loss(s, t, y, w, temperature=None):
        given = {} if temperature is None else {"temperature": temperature}
        return kd_divergence(s, t, labels=y, ce_weight=0.5, row_weights=w, **options | given)

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    sizes = ((7, 4), (10, 9), (24, 5))
    batches = [(torch.randn(n, c), torch.randn(n, c), torch.randint(c, (n,)), torch.rand(n)) for n, c in sizes]
    follow(loss, compiled, batches)
    torch._dynamo.reset()
    follow(loss, compiled, [(*batch, 1 + torch.rand(len(batch[0]))) for batch in batches])


def test_a_changing_python_float_compiles():
    def loss(x, y, temperature, gamma):
        return focal_contrastive_loss(x, y, temperature=temperature, gamma=gamma)

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    x, y = torch.randn(7, 8), torch.arange(7) % 3
    for temperature, gamma in ((0.1, 2.0), (0.2, 1.5), (0.7, 0.0)):
        torch.testing.assert_close(compiled(x, y, temperature, gamma), loss(x, y, temperature, gamma))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, where it imports its compiler
@pytest.mark.parametrize(
    ("backend", "compiler"),
    [
        *grid.halved(BACKENDS, ["aot_eager", "eager"]),
        *(pytest.param(backend, "inductor", marks=pytest.mark.full) for backend in BACKENDS),
    ],
)
def test_a_compiled_function_takes_inference_tensors(backend, compiler):
    for loss, build in ((kd_divergence, inference.kd_arguments), (focal_contrastive_loss, inference.focal_arguments)):
        for reduction in ("batchmean", "none"):
            arguments = build()
            options = {"reduction": reduction, "backend": backend}
            truth = inference.value_and_gradient(functools.partial(loss, **options), arguments)
            torch._dynamo.reset()
            compiled = torch.compile(functools.partial(loss, **options), fullgraph=True, backend=compiler)
            *_, unusual = inference.made_in_inference_mode(arguments)
            for value, exact in zip(inference.value_and_gradient(compiled, unusual), truth, strict=True):
                torch.testing.assert_close(value, exact)


def test_a_compiled_scalar_divergence_keeps_the_gradient_alone():
    if backends()["cpu"] != "on":
        pytest.skip(backends()["cpu"])
    kept = []
    student, teacher = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7)
    compiled = torch.compile(kd_divergence, fullgraph=True, backend="eager")
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        loss = compiled(student, teacher, backend="cpu")
    assert not any(x.data_ptr() == teacher.data_ptr() for x in kept)
    exact = torch.autograd.grad(kd_divergence(student, teacher, backend="cpu"), student)[0]
    assert torch.equal(torch.autograd.grad(loss, student)[0], exact)


def test_bad_options_raise_while_compiling_too():
    compiled = torch.compile(lambda x, y: focal_contrastive_loss(x, y[:2]), backend="eager")
    with pytest.raises(ValueError, match="labels: expected"):
        compiled(torch.randn(7, 8), torch.arange(7))


def test_labels_out_of_range_count_as_ignored_in_a_compiled_function():
    compiled = torch.compile(lambda x, y: focal_contrastive_loss(x, y, class_weights=WEIGHTS), backend="eager")
    x = torch.randn(5, 8)
    assert compiled(x, torch.tensor([0, 0, 3, 1, 1])) == compiled(x, torch.tensor([0, 0, -100, 1, 1]))


def test_export_of_focal_contrastive_with_dynamic_shapes():
    module = FocalContrastiveLoss(class_weights=WEIGHTS, temperature=torch.nn.Parameter(torch.tensor(0.3)))
    rows = Dim("rows", min=2)
    shapes = {"embeddings": {0: rows}, "labels": {0: rows}, "prototypes": None}
    example = {"prototypes": torch.randn(3, 8)}
    program = torch.export.export(module, (torch.randn(7, 8), torch.arange(7) % 3), example, dynamic_shapes=shapes)
    for n in (2, 7, 31):
        x, y = torch.randn(n, 8), torch.arange(n) % 3
        torch.testing.assert_close(program.module()(x, y, **example), module(x, y, **example))


@pytest.mark.parametrize("strict", [True, False])
def test_export_of_kd_divergence_with_dynamic_shapes(strict):
    module = KDDivergence(direction="js", ce_weight=0.5)
    rows, classes = Dim("rows", min=2), Dim("classes", min=2)
    shapes = {
        "student_logits": {0: rows, 1: classes},
        "teacher_logits": {0: rows, 1: classes},
        "labels": {0: rows},
        "temperature": {0: rows},
    }
    example = {"labels": torch.arange(7) % 4, "temperature": 1 + torch.rand(7)}
    arguments = (torch.randn(7, 4), torch.randn(7, 4))
    program = torch.export.export(module, arguments, example, dynamic_shapes=shapes, strict=strict)
    s, t = torch.randn(9, 6), torch.randn(9, 6)
    tensors = {"labels": torch.arange(9) % 6, "temperature": 1 + torch.rand(9)}
    torch.testing.assert_close(program.module()(s, t, **tensors), module(s, t, **tensors))


def test_fake_tensors():
    with FakeTensorMode():
        x, y = torch.randn(5, 8, requires_grad=True), torch.zeros(5, dtype=torch.int64)
        loss = focal_contrastive_loss(x, y, temperature=torch.tensor(0.1), prototypes=torch.randn(3, 8))
        assert loss.shape == ()
        assert torch.autograd.grad(loss, x)[0].shape == x.shape
        assert kd_divergence(x, x, labels=y, ce_weight=1.0, reduction="none").shape == (5,)


def test_torch_func():
    x, y = torch.randn(4, 5, 8), torch.tensor([[0, 1, 0, 1, 2]] * 4)

    def loss(x, y):
        return focal_contrastive_loss(x, y, class_weights=WEIGHTS)

    mapped = torch.vmap(torch.func.grad(loss))(x, y)
    leaf = x.clone().requires_grad_()
    sum(loss(one, labels) for one, labels in zip(leaf, y, strict=True)).backward()
    torch.testing.assert_close(mapped, leaf.grad)
    divergences = torch.vmap(lambda s, t, y: kd_divergence(s, t, labels=y))(x, x.flip(0), y)
    torch.testing.assert_close(divergences[0], kd_divergence(x[0], x[3]))
