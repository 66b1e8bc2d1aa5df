"""SupConLoss and NTXentLoss beside the installed pytorch-metric-learning, and what its own tests of them check."""

import warnings

import pytest
import torch

from merc_kernels import compat
from tests.kernels import published
from tests.kernels.test_compat import LABELS, agree, rows

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    losses = pytest.importorskip("pytorch_metric_learning.losses")
from pytorch_metric_learning import distances, reducers

CLASSES = [(compat.SupConLoss, losses.SupConLoss), (compat.NTXentLoss, losses.NTXentLoss)]
DISTANCES = {
    "cosine": distances.CosineSimilarity,
    "dot": lambda: distances.DotProductSimilarity(normalize_embeddings=False),
}
REFS = {
    "some": torch.tensor([1, 0, 2, 0, 7]),
    "all of one class": torch.zeros(5, dtype=torch.int64),
    "none that is known": torch.full((5,), 9),
}


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("refs", [None, *REFS])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(("ours", "theirs"), CLASSES)
def test_value_and_gradient_are_the_package_s(ours, theirs, labels, refs, distance):
    options = {"temperature": 0.2, "distance": DISTANCES[distance]()}
    tensors = (rows(7, 5),) if refs is None else (rows(7, 5), rows(5, 5, seed=1))

    def of(loss):
        def call(x, ref=None):
            given = {} if ref is None else {"ref_emb": ref, "ref_labels": REFS[refs]}
            value = loss(x, LABELS[labels], **given)
            return value + 0 * x.sum() + (0 if ref is None else 0 * ref.sum())  # a 0 of theirs forgets the refs

        return call

    agree(of(ours(**options)), of(theirs(**options)), *tensors)


@pytest.mark.parametrize(
    ("ours", "theirs", "reducer"),
    [
        (*CLASSES[0], reducers.MeanReducer()),
        (*CLASSES[0], reducers.SumReducer()),
        (*CLASSES[0], reducers.AvgNonZeroReducer()),
        (*CLASSES[1], reducers.MeanReducer()),
        (*CLASSES[1], reducers.PerAnchorReducer(reducers.AvgNonZeroReducer())),
        (*CLASSES[1], reducers.PerAnchorReducer()),
    ],
)
def test_reducers(ours, theirs, reducer):
    for labels in LABELS.values():
        agree(
            lambda x, y=labels: ours(reducer=reducer)(x, y),
            lambda x, y=labels: theirs(reducer=reducer)(x, y),
            rows(7, 5),
        )


def test_an_anchor_whose_loss_rounds_to_0_is_left_out_of_the_mean_as_there():
    x = torch.tensor([[30.0, 0], [30, 0], [0, 1], [0, 1], [1, 1]])
    labels = torch.tensor([0, 0, 1, 1, 2])
    options = {"distance": DISTANCES["dot"]()}
    assert compat.SupConLoss(**options)(x, labels) == losses.SupConLoss(**options)(x, labels) > 0


@pytest.mark.parametrize("ours", [compat.SupConLoss, compat.NTXentLoss])
def test_two_rows_are_too_few_to_compare(ours):
    x, y = rows(1, 5), torch.tensor([0])
    refs = {"ref_emb": rows(2, 5, seed=1), "ref_labels": torch.tensor([0, 1])}
    assert ours()(x, y, **refs) == 0


# What the package's tests check (tests/losses/test_supcon_loss.py and test_ntxent_loss.py, which its wheel has not),
# with ours in its place. Its cases with LpDistance are those that are refused.
ANGLES = [0, 10, 20, 50, 60, 80]


def circle(angles, dtype):
    radians = torch.tensor(angles, dtype=dtype).deg2rad()
    return torch.stack((radians.cos(), radians.sin()), 1).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("refs", [False, True])
def test_the_losses_of_its_pairs(dtype, refs):
    x, labels = circle(ANGLES, dtype), torch.tensor([0, 0, 0, 1, 1, 2])
    given, columns, names = {}, x, labels
    if refs:
        columns, names = circle([5, 30, 70], dtype), torch.tensor([0, 1, 2])
        given = {"ref_emb": columns, "ref_labels": names}
    s = x.double() @ columns.double().T / 0.1
    positive = labels[:, None] == names
    negative = ~positive
    if not refs:
        positive = positive & ~torch.eye(6, dtype=torch.bool)
    pairs = published.nt_xent(s, positive, negative)
    of_anchors = [x.mean() for x in pairs.split([n for n in positive.sum(1).tolist() if n])]
    per_anchor = reducers.PerAnchorReducer(reducers.AvgNonZeroReducer())
    wanted = {
        compat.NTXentLoss(temperature=0.1): pairs.mean(),
        compat.NTXentLoss(temperature=0.1, reducer=per_anchor): torch.stack(of_anchors).mean(),
        compat.SupConLoss(temperature=0.1): published.sup_con(s, positive, negative).mean(),
    }
    for loss, value in wanted.items():
        close = 1e-2 if dtype == torch.float16 else 1e-5
        torch.testing.assert_close(loss(x, labels, **given).double(), value, rtol=close, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("ours", [compat.SupConLoss, compat.NTXentLoss])
@pytest.mark.parametrize(("angles", "labels"), [([0], [0]), ([0, 10, 20], [0, 0, 0]), ([0, 40, 60], [1, 2, 3])])
def test_no_valid_pairs(ours, angles, labels, dtype):
    x = circle(angles, dtype)
    loss = ours(0.1)(x, torch.tensor(labels))
    loss.backward()
    assert loss == 0
    assert not x.grad.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("ours", [compat.SupConLoss, compat.NTXentLoss])
def test_backward(ours, dtype):
    x = circle([0, 20, 40, 60, 80], dtype)
    ours(0.1)(x, torch.tensor([0, 0, 1, 1, 2])).backward()
    assert x.grad.isfinite().all()
    assert x.grad.any()


X, Y = rows(3, 2), torch.tensor([0, 1, 0])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda c: c(distance=distances.LpDistance()),
            r"distance: .* \(keep pytorch_metric_learning.losses.*'LpDistance",
        ),
        (lambda c: c(distance=distances.CosineSimilarity(p=1)), r"distance: .*got 'p=1, power=1'"),
        (lambda c: c(reducer=reducers.ThresholdReducer(low=0)), "reducer: .*got 'ThresholdReducer'"),
        (lambda c: c(embedding_regularizer=torch.nn.Identity()), "embedding_regularizer: expected None"),
        (lambda c: c()(X, Y, (Y, Y, Y)), "indices_tuple: expected None, as every pair counts"),
        (lambda c: c()(X, Y[:2]), r"labels: expected a tensor of shape \(3,\)"),
        (lambda c: c()(X), "labels: expected a tensor of integers, got None"),
        (lambda c: c()(X, Y, ref_emb=X), "ref_labels: expected a tensor of integers, got None"),
        (lambda c: c()(X, Y, ref_emb=X[:, :1], ref_labels=Y), "ref_emb: expected"),
    ],
)
@pytest.mark.parametrize("ours", [compat.SupConLoss, compat.NTXentLoss])
def test_what_is_refused_in_one_line(ours, call, said):
    with pytest.raises(ValueError, match=said) as error:
        call(ours)
    assert "\n" not in str(error.value)
