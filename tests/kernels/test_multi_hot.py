"""Sets of labels: the loss on ``torch`` and ``reference`` beside a loop, and the formula of MultiSupConLoss.

That loss is no part of a released pytorch-metric-learning (its pull request 667), so its formula stands here.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from merc_kernels import FocalContrastiveLoss, backends, focal_contrastive_loss, use_backend
from merc_kernels.focal_contrastive import multi_hot
from tests.kernels import grid
from tests.numerics import assert_accurate, assert_equal_fp64

ROWS, CLASSES, REFS, WIDTH = 9, 4, 5, 3
OPTIONS = {
    "backend": ["torch", "reference"],
    "dtype": [torch.float64, torch.float32],
    "focal": ["similarity", "probability"],
    "detach_focal": [True, False],
    "gamma": [0.0, 2.0, 1.5],
    "normalize": [True, False],
    "overlap_threshold": [0.0, 0.3, 0.5, 0.9],
    "prototypes": [None, "candidates", "anchors"],
    "refs": [None, "more", "only"],
    "groups": [None, "shared labels", "own labels"],
    "learned": [False, True],
    "reduction": ["mean", "batchmean", "sum", "none"],
}


def valid(case: grid.Case) -> bool:
    if case["prototypes"] and case["refs"] == "only":
        return False
    return not (case["prototypes"] == "anchors" and case["reduction"] == "none")


CASES = grid.cover(OPTIONS, valid)


def sets(*shape: int, seed: int) -> Tensor:
    labels = torch.rand(*shape, CLASSES, generator=torch.Generator().manual_seed(seed)) < 0.4
    labels[..., 1, :] = False  # a row without a label
    labels[..., 2, :] = labels[..., 0, :]
    return labels


def loop(x, y, protos, refs, ref_y, temperature, case) -> list[Tensor | None]:
    """One group; None for an anchor without a positive."""
    batch = [(v, set(row.nonzero().flatten().tolist())) for v, row in zip(x, y, strict=True)]
    batch += [] if protos is None else [(v, {c}) for c, v in enumerate(protos)]
    anchors = len(batch) if case["prototypes"] == "anchors" else len(x)
    first = len(batch) if case["refs"] == "only" else 0
    if refs is not None:
        batch += [(v, set(row.nonzero().flatten().tolist())) for v, row in zip(refs, ref_y, strict=True)]
    z = [F.normalize(v, dim=-1) if case["normalize"] else v for v, _ in batch]
    losses = []
    for i in range(anchors):
        mine = [j for j in range(first, len(batch)) if j != i]
        log_p = (torch.stack([z[i] @ z[j] for j in mine]) / temperature).log_softmax(0)
        terms = []
        for n, j in enumerate(mine):
            a, b = batch[i][1], batch[j][1]
            overlap = len(a & b) / len(a | b) if a | b else 0.0
            if overlap > case["overlap_threshold"]:
                base = (1 - z[i] @ z[j]) / 2 if case["focal"] == "similarity" else 1 - log_p[n].exp()
                h = base.clamp(2.0**-53 if x.dtype == torch.float64 else 2.0**-24, 1) ** case["gamma"]
                terms.append(-overlap * (h.detach() if case["detach_focal"] else h) * log_p[n])
        losses.append(torch.stack(terms).mean() if terms else None)
    return losses


def truth(x, y, protos, refs, ref_y, temperature, case) -> Tensor:
    groups = x.unbind(0) if x.dim() == 3 else [x]
    names = y.unbind(0) if y.dim() == 3 else [y] * len(groups)
    each = [loop(g, n, protos, refs, ref_y, temperature, case) for g, n in zip(groups, names, strict=True)]
    counted = [loss for losses in each for loss in losses if loss is not None]
    nothing = 0 * x.sum()
    losses = torch.stack([torch.stack([nothing if loss is None else loss for loss in losses]) for losses in each])
    if case["reduction"] == "none":
        return losses if x.dim() == 3 else losses[0]
    return losses.sum() / {"mean": max(1, len(counted)), "batchmean": losses.numel(), "sum": 1}[case["reduction"]]


def problem(case: grid.Case, dtype: torch.dtype) -> tuple[list[Tensor | None], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def vectors(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    lead = () if case["groups"] is None else (2,)
    x = vectors(*lead, ROWS, WIDTH)
    protos = vectors(CLASSES, WIDTH) if case["prototypes"] else None
    refs = vectors(REFS, WIDTH) if case["refs"] else None
    temperature = torch.tensor(0.4, dtype=dtype, requires_grad=True) if case["learned"] else None
    y = sets(*(lead if case["groups"] == "own labels" else ()), ROWS, seed=1)
    return [x, protos, refs, temperature], y, sets(REFS, seed=2)


@pytest.mark.parametrize("case", CASES, ids=map(grid.title, CASES))
def test_equals_a_loop(case, monkeypatch):
    monkeypatch.setattr(multi_hot, "_CHUNK", 60)  # four anchors or two
    names = ("backend", "focal", "detach_focal", "gamma", "normalize", "overlap_threshold", "reduction")
    options = {name: case[name] for name in names}

    def results(dtype: torch.dtype, ours: bool, backwards: bool = False) -> list[Tensor]:
        tensors, y, ref_y = problem(case, dtype)
        x, protos, refs, temperature = tensors
        if backwards:  # other roundings of the same
            x, protos, refs = (None if v is None else v.flip(-1) for v in (x, protos, refs))
        tau = 0.4 if temperature is None else temperature
        if ours:
            value = focal_contrastive_loss(
                x,
                y,
                prototypes=protos,
                prototype_anchors=case["prototypes"] == "anchors",
                ref_embeddings=refs,
                ref_labels=None if refs is None else ref_y,
                ref_only=case["refs"] == "only",
                temperature=tau,
                **options,
            )
        else:
            value = truth(x, y, protos, refs, ref_y, tau, case)
        upstream = torch.linspace(0.3, 1.7, value.numel(), dtype=dtype).reshape(value.shape)
        leaves = [leaf for leaf in tensors if leaf is not None]
        return [value, *torch.autograd.grad(value, leaves, upstream, materialize_grads=True)]

    exact = results(torch.float64, ours=False)
    if case["dtype"] == torch.float64:
        for actual, wanted in zip(results(torch.float64, ours=True), exact, strict=True):
            assert_equal_fp64(actual, wanted)
    else:
        plain = zip(*(results(torch.float32, ours=False, backwards=b) for b in (False, True)), strict=True)
        for actual, one, wanted in zip(results(torch.float32, ours=True), plain, exact, strict=True):
            assert_accurate(actual, one, wanted)


def multi_sup_con(x: Tensor, y: Tensor, temperature: float, threshold: float) -> Tensor:
    """Of its matrices, as there; every set has a label, for it has a NaN where one is empty."""
    y = y.to(x.dtype)
    common = y @ y.T
    overlap = common / (y.sum(1)[:, None] + y.sum(1) - common)
    others = ~torch.eye(len(x), dtype=torch.bool)
    positive = (overlap > threshold) & others
    z = F.normalize(x, dim=1)
    s = z @ z.T / temperature
    log_p = s - s.masked_fill(~others, -torch.inf).logsumexp(1, keepdim=True)
    losses = -(overlap * log_p * positive).sum(1) / positive.sum(1).clamp(min=1)
    return losses[losses > 0].mean()


@pytest.mark.parametrize("threshold", [0.3, 0.5])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_without_a_focal_factor_it_is_multi_sup_con(backend, threshold):
    x = torch.randn(20, 8, dtype=torch.float64, requires_grad=True)
    y = torch.rand(20, 5) < 0.4
    y[torch.arange(20), torch.randint(5, (20,))] = True
    options = {"gamma": 0.0, "temperature": 0.1, "overlap_threshold": threshold, "backend": backend}
    results = [focal_contrastive_loss(x, y, **options), multi_sup_con(x, y, 0.1, threshold)]
    assert_equal_fp64(*results)
    assert_equal_fp64(*(torch.autograd.grad(value, x)[0] for value in results))


def test_sets_of_one_label_are_labels():
    x, labels = torch.randn(20, 8, dtype=torch.float64, requires_grad=True), torch.randint(5, (20,))
    y = F.one_hot(labels, 5).bool()
    module = FocalContrastiveLoss()
    assert_equal_fp64(module(x, y), module(x, labels))


def test_memory_is_linear_in_the_rows(monkeypatch):
    monkeypatch.setattr(multi_hot, "_CHUNK", 1 << 10)
    x, y = torch.randn(512, 4, requires_grad=True), torch.rand(512, 5) < 0.4
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda kept: sizes.append(kept.numel()) or kept, lambda kept: kept):
        loss = focal_contrastive_loss(x, y)
    assert 0 < max(sizes) <= 512 * 5
    loss.backward()
    assert x.grad.any()


def test_second_derivatives(monkeypatch):
    monkeypatch.setattr(multi_hot, "_CHUNK", 20)
    x, y = torch.randn(6, 3, dtype=torch.float64, requires_grad=True), sets(6, seed=3)
    assert torch.autograd.gradgradcheck(lambda x: focal_contrastive_loss(x, y, detach_focal=False, temperature=0.5), x)


def test_is_traced_whole(monkeypatch):
    monkeypatch.setattr(multi_hot, "_CHUNK", 300)  # two steps
    compiled = torch.compile(focal_contrastive_loss, fullgraph=True, dynamic=True, backend="eager")
    x, y = torch.randn(20, 8, requires_grad=True), torch.rand(20, 5) < 0.4
    value, wanted = compiled(x, y), focal_contrastive_loss(x, y)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in (value, wanted)))


X, Y = torch.randn(3, 2), torch.ones(3, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"class_weights": torch.ones(4)}, "class_weights: expected None with multi-hot labels"),
        ({"labels": Y[:2]}, r"labels: expected bool tensor of shape \(3, C\)"),
        ({"prototypes": torch.ones(5, 2)}, r"prototypes: expected .* of shape \(4, 2\)"),
        ({"ref_embeddings": X, "ref_labels": torch.arange(3)}, r"ref_labels: expected bool tensor of shape \(3, 4\)"),
        ({"overlap_threshold": 1.0}, "overlap_threshold: expected a finite number >= 0 and < 1, got 1.0"),
    ],
)
def test_what_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        focal_contrastive_loss(**{"embeddings": X, "labels": Y} | change)


@pytest.mark.skipif(backends()["cpu"] != "on", reason="needs the extension")
def test_fused_backends_are_refused_in_one_line():
    said = "expected 'torch' or 'reference' for multi-hot labels, got 'cpu'"
    with pytest.raises(ValueError, match=f"^backend: {said}$"):
        focal_contrastive_loss(X, Y, backend="cpu")
    with use_backend("cpu"), pytest.raises(ValueError, match=said):
        focal_contrastive_loss(X, Y)
