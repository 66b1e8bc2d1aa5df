"""The losses under other projects' names: value and gradient of the published formula, and what is refused."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from merc_kernels import compat, distributed, kd_divergence, use_backend
from merc_kernels.compat import clip
from tests.kernels import published
from tests.numerics import assert_accurate, assert_equal_fp64

DTYPES = (torch.float64, torch.float32)


def agree(ours, theirs, *inputs, **others):
    """Value and gradients of ``ours`` and ``theirs`` in float64, and in float32 as near to it as theirs.

    Of a formula in float32 there are several roundings: rows in another order are one more.
    """

    def results(loss, dtype):
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        value = loss(*leaves, **others)
        return [value, *torch.autograd.grad(value, leaves)]

    truth = results(theirs, torch.float64)
    for actual, wanted in zip(results(ours, torch.float64), truth, strict=True):
        assert_equal_fp64(actual, wanted)
    for actual, plain, wanted in zip(results(ours, torch.float32), results(theirs, torch.float32), truth, strict=True):
        assert actual.dtype == torch.float32
        assert_accurate(actual, plain, wanted)


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = {
    "several": torch.tensor([0, 1, 0, 2, 1, 0, 2]),
    "a class with one member": torch.tensor([0, 1, 0, 2, 1, 0, 1]),
    "all one class": torch.zeros(7, dtype=torch.int64),
    "all distinct": torch.arange(7),
    "any integer": torch.tensor([-100, -1, -100, 5, -1, -100, 5]),
}


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("labels", [None, *LABELS])
def test_sup_contrast(labels, views, mode, normalized):
    features = rows(7, views, 5)
    features = F.normalize(features, dim=-1) if normalized else features
    options = {"temperature": 0.1, "base_temperature": 0.07, "contrast_mode": mode}

    def theirs(x):
        return published.sup_contrast(x, None if labels is None else LABELS[labels], **options)

    def ours(x):
        return compat.SupContrastLoss(**options)(x, None if labels is None else LABELS[labels])

    agree(ours, theirs, features)


MASKS = {
    "asymmetric": torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0], [1, 1, 0, 1], [1, 0, 0, 1]]),
    "empty rows": torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0]]),
    "only itself": torch.eye(4),
    "weights": torch.tensor([[1.0, 0.5, 0, 0], [0.5, 1, 0.2, 0], [0, 0.2, 1, 0.7], [0, 0, 0.7, 1]]),
    "nothing": torch.zeros(4, 4, dtype=torch.bool),
}


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("mask", MASKS)
def test_sup_contrast_with_a_mask(mask, views, mode, normalized):
    features = rows(4, views, 6)
    features = F.normalize(features, dim=-1) if normalized else features
    loss = compat.SupContrastLoss(contrast_mode=mode)
    agree(
        lambda x: loss(x, mask=MASKS[mask]),
        lambda x: published.sup_contrast(x, mask=MASKS[mask], contrast_mode=mode),
        features,
    )


def test_sup_contrast_flattens_what_follows_the_views_and_takes_a_column_of_labels():
    features, labels = rows(7, 2, 3, 2), LABELS["several"]
    loss = compat.SupContrastLoss()
    assert loss(features, labels[:, None]) == loss(features.flatten(2), labels)


@pytest.mark.parametrize("shape", [(0, 2, 4), (3, 0, 4)])
@pytest.mark.parametrize("mode", ["all", "one"])
def test_sup_contrast_of_nothing_is_0(shape, mode):
    for mask in (None, torch.ones(shape[0], shape[0])):
        features = torch.zeros(shape, requires_grad=True)
        loss = compat.SupContrastLoss(contrast_mode=mode)(features, mask=mask)
        loss.backward()
        assert loss == 0
        assert features.grad.shape == shape


def test_a_mask_of_equal_labels_is_those_labels():
    features, labels = rows(7, 2, 5), LABELS["several"]
    loss = compat.SupContrastLoss()
    torch.testing.assert_close(loss(features, mask=labels[:, None] == labels), loss(features, labels))


@pytest.mark.parametrize("labels", [name for name in LABELS if name != "any integer"])
@pytest.mark.parametrize("gamma", [2.0, 2.4])
def test_multiemo(labels, gamma):
    counts = torch.tensor([504.0, 839, 1324, 933, 742, 1468, 20], dtype=torch.float64)
    loss = compat.SampleWeightedFocalContrastiveLoss(0.8, gamma, 1.1, "MELD", counts, "cpu")
    assert loss.state_dict() == {}
    agree(
        lambda x: loss(x, LABELS[labels]),
        lambda x: published.swfc(x, LABELS[labels], counts, temperature=0.8, gamma=gamma, alpha=1.1),
        rows(7, 5),
    )


PADDING = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])


@pytest.mark.parametrize("mask", [PADDING, PADDING.bool(), PADDING.double(), torch.ones(3, 4)])
def test_sdt(mask):
    """At its inputs, not only at the logits before them."""
    log_pred, target = rows(12, 6).log_softmax(-1), rows(12, 6, seed=1).softmax(-1)
    agree(
        lambda u, p: compat.MaskedKLDivLoss()(u, p, mask),
        lambda u, p: published.masked_kl(u, p, mask),
        log_pred,
        target,
    )


def test_sdt_has_finite_gradients_where_a_probability_is_0_and_where_nothing_is_real():
    logits, teacher = rows(12, 6).requires_grad_(), rows(12, 6, seed=1).requires_grad_()
    target = (1e3 * teacher).softmax(-1)
    assert (target == 0).any()
    for mask in (PADDING, torch.zeros(3, 4)):
        loss = compat.MaskedKLDivLoss()(logits.log_softmax(-1), target, mask)
        gradients = torch.autograd.grad(loss, (logits, teacher), retain_graph=True)
        assert all(x.isfinite().all() for x in (loss, *gradients))
        if not mask.any():
            assert loss == 0
            assert not any(x.any() for x in gradients)


@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
def test_a_divergence_of_padded_dialogues_is_that_of_their_real_rows(direction):
    student, teacher, labels = rows(3, 4, 6).requires_grad_(), rows(3, 4, 6, seed=1).requires_grad_(), rows(3, 4) > 0
    real = PADDING.bool()
    options = {"direction": direction, "teacher_grad": True, "temperature": 2.0}
    padded = torch.where(real[..., None], student, torch.nan)
    more = {
        "labels": labels.long(),
        "ce_weight": 0.5,
        "row_weights": rows(3, 4).abs(),
        "temperature": 1 + rows(3, 4).abs(),
    }
    for given in ({}, more):
        actual = compat.masked_kd_divergence(padded, teacher, PADDING, **options | given)
        kept = {name: x[real] if isinstance(x, torch.Tensor) else x for name, x in given.items()}
        wanted = kd_divergence(student[real], teacher[real], **options | kept)
        torch.testing.assert_close(actual, wanted)
        for x, y in zip(grads(actual, student, teacher), grads(wanted, student, teacher), strict=True):
            torch.testing.assert_close(x, y)
    each = compat.masked_kd_divergence(student, teacher, PADDING, reduction="none", **options)
    assert each.shape == (3, 4)
    assert not each[~real].any()
    wanted = compat.MaskedKLDivLoss()(
        (student / 2).flatten(0, 1).log_softmax(-1), (teacher / 2).flatten(0, 1).softmax(-1), PADDING
    )
    forward = compat.masked_kd_divergence(student, teacher, PADDING, temperature=2.0, scale_by_t2=False)
    torch.testing.assert_close(forward, wanted)


def grads(value, *leaves):
    return torch.autograd.grad(value, leaves, retain_graph=True)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("plain", [0, 100])
@pytest.mark.parametrize(("pairs", "scale"), [(2, 2.0), (9, 14.0)])
def test_clip(pairs, scale, plain, normalized, monkeypatch):
    monkeypatch.setattr(clip, "PLAIN", plain)
    images, texts = rows(pairs, 5), rows(pairs, 5, seed=1)
    if normalized:
        images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    agree(compat.ClipLoss(), published.clip, images, texts, torch.tensor(scale))
    assert abs(compat.ClipLoss()(images[:1], texts[:1], 10.0)) < 1e-12  # one pair: nothing to tell it from
    assert set(compat.ClipLoss(rank=0, world_size=1)(images, texts, 10.0, output_dict=True)) == {"contrastive_loss"}


def test_clip_holds_a_matrix_of_few_pairs_alone_and_follows_the_backend_that_is_asked_for(monkeypatch):
    images, texts = rows(9, 5), rows(9, 5, seed=1)
    fused = []
    monkeypatch.setattr(clip, "focal_contrastive_loss", lambda *_, **options: fused.append(options["backend"]))
    assert compat.ClipLoss()(images, texts, 10.0) == compat.ClipLoss(backend="reference")(images, texts, 10.0)
    assert fused == []
    compat.ClipLoss(backend="torch")(images, texts, 10.0)
    with use_backend("torch"):
        compat.ClipLoss()(images, texts, 10.0)
    monkeypatch.setattr(clip, "PLAIN", 80)
    compat.ClipLoss()(images, texts, 10.0)
    assert fused == ["torch", None, None]


def test_clip_of_16_bits_is_computed_in_float32_and_of_nothing_is_0():
    halves = [F.normalize(rows(9, 5, seed=seed), dim=-1).bfloat16() for seed in (0, 1)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = compat.ClipLoss()(*halves, torch.tensor(14.0))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, published.clip(*(x.float() for x in halves), 14.0))
    nothing = torch.zeros(0, 5, requires_grad=True)
    loss = compat.ClipLoss()(nothing, nothing, 14.0)
    loss.backward()
    assert loss == 0


X, Y = rows(3, 2), torch.tensor([0, 1, 0])
COUNTS = torch.ones(6)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: compat.SupContrastLoss(contrast_mode="two"), "contrast_mode: expected 'all' or 'one', got 'two'"),
        (lambda: compat.SupContrastLoss()(X, Y), "features: expected a tensor of shape"),
        (lambda: compat.SupContrastLoss()(X[:, None], Y, torch.eye(3)), "mask: expected None where labels are given"),
        (lambda: compat.SupContrastLoss()(X[:, None], mask=torch.eye(2)), r"mask: expected a tensor of shape \(3, 3\)"),
        (lambda: compat.SupContrastLoss()(X[:, None], Y[:2]), r"labels: expected a tensor of shape \(3,\)"),
        (lambda: compat.SupContrastLoss()(X[:, None], Y / 2), "labels: expected a tensor of integers"),
        (
            lambda: compat.SampleWeightedFocalContrastiveLoss(1, 2, 1, "DailyDialog", COUNTS, "cpu"),
            "dataset: expected 'IEMOCAP' or 'MELD', got 'DailyDialog'",
        ),
        (
            lambda: compat.SampleWeightedFocalContrastiveLoss(1, 2, 1, "MELD", COUNTS, "cpu"),
            "class_counts: expected 7 counts",
        ),
        (lambda: compat.MaskedKLDivLoss()(X, X.T, Y), "target: expected"),
        (lambda: compat.MaskedKLDivLoss()(X, X, Y[:2]), "mask: expected a tensor of 3 elements"),
        (lambda: compat.masked_kd_divergence(X, X, Y), r"student_logits: expected .* of shape \(B, L, C\)"),
        (
            lambda: compat.masked_kd_divergence(X[None], X[None], Y, ce_weight=1.0),
            "labels: expected a tensor, as ce_weight=1.0",
        ),
        (lambda: compat.ClipLoss(world_size=2), "world_size: expected 1"),
        (lambda: compat.ClipLoss(wrold_size=1), "option: expected 'local_loss' or"),
        (lambda: compat.ClipLoss()(X, X[:2], 1.0), "text_features: expected"),
        (lambda: compat.ClipLoss()(X, X, 1.0, logit_bias=1.0), "logit_bias: expected None"),
    ],
)
def test_what_is_refused_in_one_line(call, said):
    with pytest.raises(ValueError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


def test_what_is_nan_is_not_hidden():
    p, mask = torch.randn(8, 5).softmax(-1), torch.ones(2, 4)
    log_pred = torch.randn(8, 5).log_softmax(-1)
    spoilt = p.clone()
    spoilt[0] = math.nan
    for target in (spoilt, p.log()):
        assert compat.MaskedKLDivLoss()(log_pred, target, mask).isnan()
    padded = torch.tensor([[0.0, 1, 1, 1], [1, 1, 1, 1]])
    assert compat.MaskedKLDivLoss()(log_pred, spoilt, padded).isfinite()
    x = torch.randn(12, 5)
    x[3] = math.nan
    assert compat.SupConLoss()(x, torch.arange(12) % 3).isnan()


def test_masked_kl_of_half_precision_is_summed_in_float32():
    a, b = (torch.randn(40000, 5) * 4).log_softmax(-1).half(), (torch.randn(40000, 5) * 4).softmax(-1).half()
    loss, mask = compat.MaskedKLDivLoss(), torch.ones(400, 100)
    assert loss(a, b, mask).dtype == torch.float32
    torch.testing.assert_close(loss(a, b, mask).double(), loss(a.double(), b.double(), mask), rtol=1e-5, atol=0)


PAIRS, LABEL = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)), torch.arange(4)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("mask: expected 0 or 1, got 0.5", lambda: compat.masked_kd_divergence(PAIRS, PAIRS, torch.full((2, 4), 0.5))),
        ("logit_scale: expected a finite number > 0, got 0.0", lambda: compat.ClipLoss()(*PAIRS, 0.0)),
        ("logit_scale: expected a number > 0, got -3.0", lambda: compat.ClipLoss()(*PAIRS, torch.tensor(-3.0))),
        ("logit_scale: expected", lambda: compat.ClipLoss()(*PAIRS, torch.ones(5))),
        ("logit_scale: expected", lambda: compat.ClipLoss(backend="cpu")(*PAIRS, torch.ones(5))),
        ("temperature: expected", lambda: compat.NTXentLoss(temperature=0.0)),
        ("temperature: expected", lambda: compat.NTXentLoss(temperature=torch.ones(12))),
        ("temperature: expected", lambda: compat.SupConLoss(temperature=-1.0)),
        ("temperature: expected", lambda: compat.SupContrastLoss(-1.0)),
        (
            "temp_param: expected",
            lambda: compat.SampleWeightedFocalContrastiveLoss(0, 2, 1, "MELD", torch.ones(7), "cpu"),
        ),
        (
            "focus_param: expected",
            lambda: compat.SampleWeightedFocalContrastiveLoss(1, -2, 1, "MELD", torch.ones(7), "cpu"),
        ),
        ("features: expected", lambda: compat.SupContrastLoss()(torch.ones(2, 2, 3).long(), mask=torch.eye(2))),
        (
            "max_rows: expected an int",
            lambda: distributed.focal_contrastive_loss(PAIRS[0], torch.arange(4), max_rows=9.5),
        ),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(message, call):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call()


@pytest.mark.parametrize("backend", [None, "cpu", "torch"])
def test_a_logit_scale_of_one_element_is_a_number(backend):
    scale = torch.tensor([3.0], requires_grad=True)
    loss = compat.ClipLoss(backend=backend)(*PAIRS, scale)
    loss.backward()
    torch.testing.assert_close(loss, compat.ClipLoss()(*PAIRS, 3.0))
    assert scale.grad.shape == (1,)
