"""(N / n_c)^alpha, mean 1 over the classes present."""

import numpy
import pytest
import torch

from merc_kernels import class_balanced_weights


@pytest.mark.parametrize("alpha", [0, 0.5, 1, 1.7])
@pytest.mark.parametrize("counts", [[1], [5, 3, 1], [648, 1084, 1708, 1103, 1041, 1849], [0.5, 2.5]])
def test_formula(counts, alpha):
    raw = [(sum(counts) / n) ** alpha for n in counts]
    expected = [w * len(raw) / sum(raw) for w in raw]
    assert class_balanced_weights(counts, alpha).tolist() == pytest.approx(expected, rel=1e-5)
    assert class_balanced_weights(torch.tensor(counts).double(), alpha).tolist() == pytest.approx(expected, rel=1e-12)


def test_an_absent_class_weighs_nothing_and_does_not_count():
    weights = class_balanced_weights([4, 0, 2, 0])
    assert weights[1] == weights[3] == 0
    assert torch.equal(weights[[0, 2]], class_balanced_weights([4, 2]))
    assert weights[[0, 2]].mean() == pytest.approx(1)


def test_kinds_of_counts():
    wanted = class_balanced_weights([4, 2, 1])
    array = numpy.bincount([0, 0, 0, 0, 1, 1, 2])
    for counts in (
        (4, 2, 1),
        [4.0, 2.0, 1.0],
        array,
        list(array),
        *(torch.tensor([4, 2, 1], dtype=d) for d in (torch.int32, torch.half)),
    ):
        weights = class_balanced_weights(counts)
        assert weights.dtype == torch.float32
        assert torch.equal(weights, wanted)
    assert class_balanced_weights(torch.tensor([4.0, 2.0, 1.0]).double()).dtype == torch.float64
    assert class_balanced_weights(torch.tensor([4, 2, 1]).to("meta")).device.type == "meta"
    assert not class_balanced_weights(torch.ones(3, requires_grad=True)).requires_grad


def test_a_high_power_does_not_overflow():
    weights = class_balanced_weights([10**9, 1, 1], alpha=100.0)
    assert weights.tolist() == pytest.approx([0, 1.5, 1.5])
