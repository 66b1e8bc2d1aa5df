"""Values and gradients in float64, against the loop and against what is known of the loss."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from merc_kernels import class_balanced_weights, focal_contrastive_loss
from tests.kernels import grid, loop
from tests.numerics import assert_equal_fp64

GROUPS, ROWS, WIDTH, CLASSES, REFS = 3, 9, 24, 4, 5
OPTIONS = {
    "focal": ["similarity", "probability"],
    "gamma": [0, 0.5, 1.0, 2.0, 2.4],
    "temperature": [0.01, 0.07, 0.8, 1.4, "learnable"],
    "detach_focal": [True, False],
    "class_weights": [True, False],
    "prototypes": [None, "shared", "own"],
    "prototype_anchors": [True, False],
    "refs": [None, "constant", "learnable", "own"],
    "ref_only": [True, False],
    "grouped": [None, "shared labels", "own labels"],
    "normalize": [True, False],
    "ignore_index": [-100, 1],
    "reduction": ["mean", "batchmean", "sum", "none"],
}


def valid(case: grid.Case) -> bool:
    if case["prototype_anchors"] and (case["prototypes"] is None or case["reduction"] == "none"):
        return False
    if (case["focal"], case["detach_focal"], case["gamma"], case["temperature"]) == ("probability", False, 0.5, 0.01):
        return False  # (1 - p)^(gamma - 1) has no bound as p nears 1: how a sum was rounded shows in the gradient
    if case["ref_only"] and (case["refs"] is None or case["prototypes"] is not None):
        return False
    return case["grouped"] is not None or "own" not in (case["prototypes"], case["refs"])


def vectors(*shape: int, requires_grad: bool = True) -> Tensor:
    return (torch.randn(*shape, dtype=torch.float64) / math.sqrt(shape[-1])).requires_grad_(requires_grad)


def build(case: grid.Case) -> tuple[tuple[Tensor, Tensor], dict]:
    """The arguments of a case; what requires a gradient is a leaf."""
    lead = (GROUPS,) if case["grouped"] else ()
    options = {k: case[k] for k in ("focal", "gamma", "detach_focal", "normalize", "ignore_index", "reduction")}
    labels = torch.randint(CLASSES, (*(lead if case["grouped"] == "own labels" else ()), ROWS))
    labels[..., 3] = case["ignore_index"]
    temperature = case["temperature"]
    learnable = temperature == "learnable"
    options["temperature"] = torch.tensor(0.3, dtype=torch.float64, requires_grad=True) if learnable else temperature
    if case["class_weights"]:
        options["class_weights"] = torch.tensor([0.5, 1.25, 0.0, 2.0], dtype=torch.float64)
    if case["prototypes"]:
        options["prototypes"] = vectors(*(lead if case["prototypes"] == "own" else ()), CLASSES, WIDTH)
        options["prototype_anchors"] = case["prototype_anchors"]
    if case["refs"]:
        own = lead if case["refs"] == "own" else ()
        options["ref_embeddings"] = vectors(*own, REFS, WIDTH, requires_grad=case["refs"] != "constant")
        options["ref_labels"] = torch.randint(CLASSES, (*own, REFS))
        options["ref_labels"][..., 2] = case["ignore_index"]
        options["ref_only"] = case["ref_only"]
    return (vectors(*lead, ROWS, WIDTH), labels), options


def value_and_gradients(loss, args, options) -> dict[str, Tensor]:
    value = loss(*args, **options)
    leaves = {name: x for name, x in {"embeddings": args[0], **options}.items() if isinstance(x, Tensor)}
    leaves = {name: x for name, x in leaves.items() if x.requires_grad}
    if not value.requires_grad:  # the loop met no positive
        return {"value": value, **{name: torch.zeros_like(x) for name, x in leaves.items()}}
    upstream = torch.linspace(-1.3, 1.7, value.numel(), dtype=value.dtype).reshape(value.shape)
    gradients = torch.autograd.grad(value, list(leaves.values()), upstream, materialize_grads=True)
    return {"value": value.detach(), **dict(zip(leaves, gradients, strict=True))}


def agree(case: grid.Case) -> None:
    args, options = build(case)
    truth = value_and_gradients(loop.focal_contrastive, args, options)
    for name, actual in value_and_gradients(focal_contrastive_loss, args, options).items():
        assert_equal_fp64(actual, truth[name], name)


CASES = grid.cover(OPTIONS, valid)


@pytest.mark.parametrize("case", CASES, ids=map(grid.title, CASES))
def test_equals_the_loop(case):
    agree(case)


@pytest.mark.full
def test_equals_the_loop_on_a_large_sample():
    for case in grid.sample(OPTIONS, valid, 4000):
        agree(case)


def batch(rows: int = 12, width: int = 7, classes: int = 3) -> tuple[Tensor, Tensor]:
    return vectors(rows, width), torch.arange(rows) % classes


@pytest.mark.parametrize("focal", ["similarity", "probability"])
@pytest.mark.parametrize("detach_focal", [True, False])
def test_gamma_zero_is_supcon(focal, detach_focal):
    x, y = batch()
    z = F.normalize(x, dim=-1)
    s = (z @ z.T / 0.2).fill_diagonal_(-torch.inf)
    log_p = s.log_softmax(-1)
    positive = (y[:, None] == y) & ~torch.eye(len(y), dtype=torch.bool)
    supcon = -(log_p.masked_fill(~positive, 0).sum(-1) / positive.sum(-1)).mean()
    loss = focal_contrastive_loss(x, y, temperature=0.2, gamma=0, focal=focal, detach_focal=detach_focal)
    assert_equal_fp64(loss, supcon)
    assert_equal_fp64(*(torch.autograd.grad(value, x)[0] for value in (loss, supcon)))


def test_is_the_swfc_loss_of_multiemo():
    # MultiEMO scales its class weights to sum 1, and averages over all rows; ours have mean 1: the factor is C.
    counts, alpha, gamma, temperature = [5, 4, 2, 1], 0.8, 2.4, 0.8
    x, y = vectors(12, 7), torch.tensor([0] * 5 + [1] * 4 + [2] * 2 + [3])
    weights = F.normalize((12 / torch.tensor(counts, dtype=torch.float64)) ** alpha, p=1.0, dim=0)
    z = F.normalize(x, dim=-1)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(12):
        rest = torch.arange(12) != i
        p = torch.softmax(z[rest] @ z[i] / temperature, 0)[y[rest] == y[i]]
        if len(p):
            total = total + weights[y[i]] * torch.mean((1 - p) ** gamma * p.log())
    swfc = -total / 12
    ours = focal_contrastive_loss(
        x,
        y,
        temperature=temperature,
        gamma=gamma,
        focal="probability",
        detach_focal=False,
        class_weights=class_balanced_weights(torch.tensor(counts, dtype=torch.float64), alpha) / len(counts),
        reduction="batchmean",
    )
    assert_equal_fp64(ours, swfc)
    assert_equal_fp64(*(torch.autograd.grad(value, x)[0] for value in (ours, swfc)))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.4])
@pytest.mark.parametrize("detach_focal", [True, False])
@pytest.mark.parametrize("focal", ["similarity", "probability"])
def test_gradient_is_the_one_matrix(focal, detach_focal, gamma):
    # M = W + W', dZ = M Z / tau, dX = (dZ - (z.dZ) z) / |x|, d tau = -sum W s / tau (without what comes from h')
    x, y = batch()
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    w = torch.tensor([0.4, 1.0, 1.6], dtype=torch.float64)
    options = {"focal": focal, "gamma": gamma, "detach_focal": detach_focal, "temperature": tau}
    loss = focal_contrastive_loss(x, y, class_weights=w, reduction="batchmean", **options)
    dx, dtau = torch.autograd.grad(loss, (x, tau))

    with torch.no_grad():
        n, t, norm = len(y), tau.item(), x.norm(dim=-1, keepdim=True)
        z = x / norm
        s = (z @ z.T / t).fill_diagonal_(-torch.inf)
        positive = (y[:, None] == y) & ~torch.eye(n, dtype=torch.bool)
        lse = s.logsumexp(-1, keepdim=True)
        ell, p = s - lse, (s - lse).exp()
        if focal == "similarity":
            base = (1 - t * s.fill_diagonal_(0)) / 2
            h, dh = base**gamma, -gamma * t / 2 * base ** (gamma - 1)
            g_s, g_lse = -h, h
            through_h = torch.zeros_like(h) if detach_focal else -dh * ell.fill_diagonal_(0)
        else:
            h = (1 - p) ** gamma
            g_s = -h if detach_focal else -h + gamma * p * (1 - p) ** (gamma - 1) * ell.fill_diagonal_(0)
            g_lse, through_h = -g_s, torch.zeros_like(h)
        a = (w[y] / positive.sum(-1) / n)[:, None]
        plain = a * (positive * g_s + p * (positive * g_lse).sum(-1, keepdim=True))
        m = plain + a * positive * through_h
        m = m + m.T
        dz = m @ z / t
        assert_equal_fp64(dx, (dz - (z * dz).sum(-1, keepdim=True) * z) / norm)
        assert_equal_fp64(dtau, -(plain * s.fill_diagonal_(0)).sum() / t)


@pytest.mark.parametrize("detach_focal", [True, False])
def test_gradient_of_the_temperature_from_that_of_the_rows(detach_focal):
    # in-batch, probability: s depends on Z and tau through Z Z' / tau alone
    z = F.normalize(batch()[0].detach(), dim=-1).requires_grad_()
    tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    options = {"focal": "probability", "detach_focal": detach_focal, "normalize": False}
    loss = focal_contrastive_loss(z, batch()[1], temperature=tau, **options)
    dz, dtau = torch.autograd.grad(loss, (z, tau))
    assert_equal_fp64(dtau, -(z * dz).sum() / (2 * tau.detach()))


def test_does_not_depend_on_the_order_of_rows():
    x, y = batch()
    order = torch.randperm(len(y))
    rows = focal_contrastive_loss(x, y, reduction="none")
    shuffled = focal_contrastive_loss(x[order], y[order], reduction="none")
    assert_equal_fp64(shuffled, rows[order])
    assert_equal_fp64(*(torch.autograd.grad(value.sum(), x)[0] for value in (rows, shuffled)))


def test_does_not_depend_on_the_names_of_classes():
    x, y = batch()
    names = torch.tensor([-7, 2**62, 3])
    assert torch.equal(focal_contrastive_loss(x, y), focal_contrastive_loss(x, names[y]))


def test_reductions_agree():
    x = vectors(2, 6, 5)
    y = torch.tensor([[0, 0, 1, 1, 2, -100], [0, 1, 1, 1, -100, -100]])  # 4 + 3 have a positive; 5 + 4 are kept
    rows, total, mean, batchmean = (
        focal_contrastive_loss(x, y, reduction=reduction) for reduction in ("none", "sum", "mean", "batchmean")
    )
    assert rows.shape == (2, 6)
    assert (rows == 0).tolist() == [[False] * 4 + [True] * 2, [True] + [False] * 3 + [True] * 2]
    assert_equal_fp64(rows.sum(), total)
    assert_equal_fp64(total / 7, mean)
    assert_equal_fp64(total / 9, batchmean)


def test_weights_multiply_and_never_divide():
    x, y = batch(rows=6)
    weights = torch.tensor([0.0, 3.0, 0.5], dtype=torch.float64)
    plain = focal_contrastive_loss(x, y, reduction="none")
    for reduction in ("mean", "batchmean"):
        loss = focal_contrastive_loss(x, y, class_weights=weights, reduction=reduction)
        assert_equal_fp64(loss, (weights[y] * plain).sum() / 6)


def test_groups_are_independent_batches():
    x, y = vectors(3, 6, 5), torch.randint(3, (3, 6))
    together = focal_contrastive_loss(x, y, reduction="none")
    alone = torch.stack([focal_contrastive_loss(a, b, reduction="none") for a, b in zip(x, y, strict=True)])
    assert_equal_fp64(together, alone)


def test_prototypes_are_labelled_rows():
    x, y = batch()
    prototypes = vectors(3, 7)
    rows = focal_contrastive_loss(torch.cat([x, prototypes]), torch.cat([y, torch.arange(3)]), reduction="none")
    candidates = focal_contrastive_loss(x, y, prototypes=prototypes, reduction="none")
    assert_equal_fp64(candidates, rows[: len(y)])
    anchors = focal_contrastive_loss(x, y, prototypes=prototypes, prototype_anchors=True, reduction="sum")
    assert_equal_fp64(anchors, rows.sum())


def test_with_prototypes_every_row_has_a_positive():
    x = vectors(4, 5)
    loss = focal_contrastive_loss(x, torch.arange(4), prototypes=vectors(4, 5), reduction="none")
    assert (loss > 0).all()


def test_batchmean_counts_prototypes_only_as_anchors():
    x, y = batch(rows=6)
    y = torch.where(y == 2, -100, y)
    prototypes = vectors(3, 7)
    for anchors, count in ((False, 4), (True, 7)):
        options = {"prototypes": prototypes, "prototype_anchors": anchors}
        total = focal_contrastive_loss(x, y, reduction="sum", **options)
        assert_equal_fp64(focal_contrastive_loss(x, y, reduction="batchmean", **options), total / count)


def test_ref_only_excludes_no_row():
    x, y = batch(rows=6)
    loss = focal_contrastive_loss(x, y, ref_embeddings=x.detach(), ref_labels=y, ref_only=True, reduction="none")
    z = F.normalize(x, dim=-1)
    log_p = (z @ z.T / 0.1).log_softmax(-1)
    h = ((1 - z @ z.T) / 2).clamp(2**-53) ** 2
    positive = y[:, None] == y
    assert_equal_fp64(loss, (-(h * log_p) * positive).sum(-1) / positive.sum(-1))


def test_the_base_is_clamped_with_derivative_zero():
    # long rows, not normalised: the cosine leaves [-1, 1] on both sides
    x = torch.tensor([[2.0, 0.0], [3.0, 0.1], [-4.0, 0.2]], dtype=torch.float64, requires_grad=True)
    y = torch.zeros(3, dtype=torch.int64)
    options = {"normalize": False, "temperature": 5.0, "gamma": 0.5}
    through, detached = (
        focal_contrastive_loss(x, y, detach_focal=detach_focal, **options) for detach_focal in (False, True)
    )
    assert_equal_fp64(through, loop.focal_contrastive(x, y, **options))
    assert_equal_fp64(*(torch.autograd.grad(value, x)[0] for value in (through, detached)))
    floor = math.sqrt(2**-53)
    two = focal_contrastive_loss(x[:2], y[:2], reduction="none", **options)
    three = focal_contrastive_loss(x, y, reduction="none", **options)
    assert (two == 0).all()
    log_p = loop.focal_contrastive(x, y, reduction="none", **{**options, "gamma": 0}).detach()
    assert (three < log_p * 2).all()
    assert floor < three.min()


def test_probability_base_is_clamped_with_derivative_zero():
    # one candidate alone: p = 1, so the base is 2**-53 and the loss -(2**-53)**gamma * log 1 = 0, whatever the cosine
    x = vectors(2, 5)
    y = torch.zeros(2, dtype=torch.int64)
    for gamma, detach_focal in itertools.product([0, 0.5, 1.0, 2.4], [True, False]):
        options = {"focal": "probability", "gamma": gamma, "detach_focal": detach_focal}
        loss = focal_contrastive_loss(x, y, **options)
        assert loss.item() == 0
        assert torch.autograd.grad(loss, x)[0].abs().max() < 1e-12


def test_class_weights_carry_no_gradient():
    x, y = batch()
    weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
    loss = focal_contrastive_loss(x, y, class_weights=weights)
    assert torch.autograd.grad(loss, weights, allow_unused=True) == (None,)


def test_an_infinite_weight_of_an_absent_class_is_not_met():
    x, y = batch(rows=6)
    y = torch.where(y == 0, -100, y)
    weights = torch.tensor([torch.inf, 1.0, 1.0], dtype=torch.float64)
    loss = focal_contrastive_loss(x, y, class_weights=weights)
    assert_equal_fp64(loss, focal_contrastive_loss(x, y))
    assert torch.autograd.grad(loss, x)[0].isfinite().all()


def test_only_some_inputs_require_a_gradient():
    y = torch.arange(6) % 3
    leaves = {"embeddings": vectors(6, 5), "prototypes": vectors(3, 5), "ref_embeddings": vectors(4, 5)}
    leaves["temperature"] = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    whole = focal_contrastive_loss(labels=y, ref_labels=torch.arange(4) % 3, **leaves)
    truth = dict(zip(leaves, torch.autograd.grad(whole, list(leaves.values())), strict=True))
    for name, leaf in leaves.items():
        others = {other: x if other == name else x.detach() for other, x in leaves.items()}
        loss = focal_contrastive_loss(labels=y, ref_labels=torch.arange(4) % 3, **others)
        assert torch.equal(loss, whole)
        assert_equal_fp64(torch.autograd.grad(loss, leaf)[0], truth[name], name)


def test_same_bits_on_repeat():
    x, y = batch(rows=37)
    x = x.float().detach().requires_grad_()
    runs = [focal_contrastive_loss(x, y, focal="probability", detach_focal=False) for _ in range(3)]
    gradients = [torch.autograd.grad(loss, x)[0] for loss in runs]
    assert all(torch.equal(loss, runs[0]) for loss in runs)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
