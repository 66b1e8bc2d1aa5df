"""csrc/focal_contrastive/cuda on the CPU, thread by thread, against the reference in float64."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from merc_kernels import reference
from merc_kernels.focal_contrastive.reference import _unit
from tests.kernels import focal_cases, grid
from tests.numerics import assert_accurate, assert_equal_fp64

FOCAL = ("similarity", "probability")
REDUCTIONS = ("none", "sum", "mean", "batchmean")
DEFAULTS = {"temperature": 0.1, "gamma": 2.0, "focal": "similarity", "detach_focal": True, "class_weights": None}
DEFAULTS |= {"prototypes": None, "prototype_anchors": False, "ref_embeddings": None, "ref_labels": None}
DEFAULTS |= {"ref_only": False, "normalize": True, "ignore_index": -100, "reduction": "mean"}
VECTORS = ("embeddings", "prototypes", "ref_embeddings")
WANTED = (*VECTORS, "temperature")  # in the order of the operator's gradients
Case = dict[str, Any]


def accumulate(case: Case) -> torch.dtype:
    double = any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in case.values())
    return torch.float64 if double else torch.float32


def stored(case: Case) -> torch.dtype:
    """What z is stored in."""
    dtypes = {case[name].dtype for name in VECTORS if case.get(name) is not None}
    return dtypes.pop() if len(dtypes) == 1 else accumulate(case)


def upstream(case: Case) -> Tensor:
    rows = case["embeddings"].shape[:-1] if case.get("reduction") == "none" else ()
    return torch.linspace(0.5, 1.5, math.prod(rows)).view(rows).to(accumulate(case))


def fused(operators, case: Case, wanted: tuple[str, ...] = WANTED) -> dict[str, Tensor]:
    """The loss, and the gradients of ``wanted``."""
    grad = upstream(case)
    case = DEFAULTS | case
    dtype, temperature = accumulate(case), case["temperature"]
    learnable = isinstance(temperature, Tensor)
    weights = case["class_weights"]
    options = (case["detach_focal"], case["prototype_anchors"], case["ref_only"], case["normalize"])
    shared = (
        temperature.to(dtype) if learnable else None,
        0.0 if learnable else temperature,
        case["gamma"],
        FOCAL.index(case["focal"]),
        *options,
        case["ignore_index"],
    )
    vectors = (case["prototypes"], case["ref_embeddings"])
    loss, divisor, *saved = operators.focal_contrastive(
        case["embeddings"],
        case["labels"],
        *vectors,
        case["ref_labels"],
        None if weights is None else weights.to(dtype),
        *shared,
        REDUCTIONS.index(case["reduction"]),
    )
    flags = [name in wanted and isinstance(case[name], Tensor) for name in WANTED]
    gradients = operators.focal_contrastive_backward(
        grad, divisor, *saved, case["embeddings"], *vectors, *shared, *flags, False
    )
    assert saved[0].dtype == stored(case)
    assert all(gradient.is_contiguous() for gradient in gradients)
    assert all(flag or gradient.numel() == 0 for flag, gradient in zip(flags, gradients, strict=True))
    return {"loss": loss, **{name: x for name, x, flag in zip(WANTED, gradients, flags, strict=True) if flag}}


def rounded_unit(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Unit rows rounded to ``dtype``, with the gradient of unit rows."""
    z = _unit(x.float())
    return z + (z.to(dtype).float() - z).detach()


def plain(case: Case, doubled: bool) -> dict[str, Tensor]:
    """The reference in float64, or in the case's own dtypes; 16-bit unit rows are rounded as the kernel stores them."""
    case, half = dict(case), stored(case) in (torch.bfloat16, torch.float16)
    if doubled:
        case = {k: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for k, x in case.items()}
    grad = upstream(case)
    leaves = {}
    for name in WANTED:
        if isinstance(case.get(name), Tensor):
            leaves[name] = case[name] = case[name].detach().requires_grad_()
    weights, prototypes = case.get("class_weights"), case.get("prototypes")
    known = len(weights) if weights is not None else None if prototypes is None else prototypes.shape[-2]
    ignore = case.get("ignore_index", -100)
    for name in ("labels", "ref_labels"):
        if known is not None and case.get(name) is not None:  # out of range: ignored, as on a GPU
            case[name] = case[name].masked_fill((case[name] < 0) | (case[name] >= known), ignore)
    if half and not doubled and case.get("normalize", True):
        dtype = stored(case)
        for name, labels in zip(VECTORS, ("labels", None, "ref_labels"), strict=True):
            if case.get(name) is not None:
                x = case[name]
                if labels:
                    x = torch.where((case[labels] != ignore)[..., None], x, 0)
                case[name] = rounded_unit(x, dtype)
        case["normalize"] = False
    loss = reference.focal_contrastive_loss(**case)
    gradients = torch.autograd.grad(loss, list(leaves.values()), grad.to(loss.dtype), materialize_grads=True)
    return {"loss": loss.detach(), **dict(zip(leaves, gradients, strict=True))}


def check(operators, case: Case) -> None:
    truth, eager = plain(case, doubled=True), plain(case, doubled=False)
    ours, again = fused(operators, case), fused(operators, case)
    assert ours.keys() == truth.keys()
    for name, value in ours.items():
        assert value.dtype == (case[name].dtype if name in VECTORS else accumulate(case))
        if value.dtype == torch.float64:
            assert_equal_fp64(value, truth[name], name)
        else:
            assert_accurate(value, eager[name], truth[name], name)
        assert torch.equal(value, again[name])


def vectors(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).div(math.sqrt(shape[-1])).to(dtype)


CLASSES = 5
SMALL = [(9, 24), (1, 3), (17, 40)]
OPTIONS: dict[str, list[Any]] = {
    "dtype": [torch.float64, torch.float32, torch.bfloat16, torch.float16],
    "focal": ["similarity", "probability"],
    "gamma": [0.0, 0.5, 1.0, 2.0, 2.4],
    "temperature": [0.01, 0.07, 0.8, 1.4, "learnable"],
    "detach_focal": [True, False],
    "class_weights": [True, False],
    "prototypes": [None, "shared", "own"],
    "prototype_anchors": [True, False],
    "refs": [None, "shared", "own"],
    "ref_only": [True, False],
    "mixed": [True, False],
    "grouped": [None, "shared labels", "own labels"],
    "normalize": [True, False],
    "ignore_index": [-100, 1],
    "reduction": list(REDUCTIONS),
    "size": SMALL,
}


def valid(case: Case) -> bool:
    if case["prototype_anchors"] and (case["prototypes"] is None or case["reduction"] == "none"):
        return False
    if case["ref_only"] and (case["refs"] is None or case["prototypes"] is not None):
        return False
    if case["mixed"] and case["refs"] is None and case["prototypes"] is None:
        return False
    if case["temperature"] in (0.01, 0.07) and case["size"][0] < 3:
        return False  # one candidate holds all of p, and the gradient is a difference of roundings
    return case["grouped"] is not None or "own" not in (case["prototypes"], case["refs"])


def build(case: Case, groups: int = 3, refs: int = 7) -> Case:
    """The arguments of a case; some rows are ignored and hold NaN, one is zero."""
    rows, width = case["size"]
    lead = (groups,) if case["grouped"] else ()
    other = torch.float32 if case["mixed"] and case["dtype"] != torch.float64 else case["dtype"]  # float64: all or none
    names = ("focal", "gamma", "detach_focal", "prototype_anchors", "normalize", "ignore_index", "reduction")
    built = {name: case[name] for name in names}
    learnable = case["temperature"] == "learnable"
    built["temperature"] = torch.tensor(0.3) if learnable else case["temperature"]

    def labels(*shape: int) -> Tensor:
        drawn = torch.randint(CLASSES, shape)
        drawn[..., 3::11] = case["ignore_index"]
        if case["class_weights"] or case["prototypes"]:
            drawn[..., 6::31] = CLASSES
            drawn[..., 8::31] = -1
        return drawn

    def rows_of(dtype: torch.dtype, *shape: int, of: Tensor | None = None) -> Tensor:
        x = vectors(*shape, dtype=dtype)
        if of is not None:
            kept = (of != case["ignore_index"]) & (of >= (0 if case["class_weights"] or case["prototypes"] else -1))
            kept = kept if x.dim() - 1 == kept.dim() else kept.any(0) if x.dim() == 2 else kept.expand(shape[:-1])
            x[~kept] = math.nan
        x[..., 4::13, :] = torch.where(x[..., 4::13, :].isnan(), x[..., 4::13, :], 0)
        return x

    own = case["grouped"] == "own labels"
    built["labels"] = labels(*(lead if own else ()), rows)
    built["embeddings"] = rows_of(case["dtype"], *lead, rows, width, of=built["labels"])
    if case["class_weights"]:
        built["class_weights"] = torch.tensor([0.5, 1.25, 0.0, 2.0, 1.0])
    if case["prototypes"]:
        built["prototypes"] = vectors(*(lead if case["prototypes"] == "own" else ()), CLASSES, width, dtype=other)
    if case["refs"]:
        own_refs = lead if case["refs"] == "own" else ()
        built["ref_labels"] = labels(*own_refs, refs)
        built["ref_embeddings"] = rows_of(other, *own_refs, refs, width, of=built["ref_labels"])
        built["ref_only"] = case["ref_only"]
    return built


CASES = grid.cover(OPTIONS, valid)


def check_all(operators, cases: list[Case]) -> None:
    for number, case in enumerate(cases):
        torch.manual_seed(number)
        try:
            check(operators, build(case))
        except AssertionError as wrong:
            raise AssertionError(f"{number}: {grid.title(case)}") from wrong


@pytest.mark.parametrize("part", range(7))
def test_options(on_host, part):
    check_all(on_host, CASES[part::7])


@pytest.mark.full
def test_options_of_a_sample(on_host):
    check_all(on_host, grid.sample(OPTIONS, valid, 200))


@pytest.mark.full
def test_options_of_a_large_sample(on_host):
    """In float64: in others, chance has eager PyTorch ten times nearer to an ill-conditioned truth now and then."""
    check_all(on_host, grid.sample(OPTIONS | {"dtype": [torch.float64], "mixed": [False]}, valid, 1000))


def plain_case(
    rows: int, width: int, dtype: torch.dtype = torch.float32, classes: int = CLASSES, **options: Any
) -> Case:
    return {"embeddings": vectors(rows, width, dtype=dtype), "labels": torch.arange(rows) % classes, **options}


# Across the edges of a tile of 64 rows, of 16 columns, and of what one chunk and one block hold of the columns.
SIZES = [(64, 16), (65, 17), (130, 33), (63, 257), (70, 130), (3, 600)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize(("size", "dtype"), grid.halved(SIZES, DTYPES))
def test_sizes(on_host, size, dtype):
    rows, width = size
    focal = FOCAL[rows % 2]
    check(
        on_host, plain_case(rows, width, dtype, focal=focal, temperature=torch.tensor(0.2), detach_focal=width % 2 == 0)
    )


@pytest.mark.full
@pytest.mark.parametrize(("rows", "width"), [(300, 520), (513, 64), (1, 1), (128, 256), (257, 96), (5, 2100)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_large_sizes(on_host, rows, width, dtype):
    for focal, temperature in itertools.product(FOCAL, (0.02, torch.tensor(0.1))):
        check(on_host, plain_case(rows, width, dtype, focal=focal, temperature=temperature))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("focal", FOCAL)
def test_several_tiles_of_everything(on_host, focal, dtype):
    """Prototypes that are anchors, refs and the temperature, each with a gradient, over more than one block of rows."""
    case = plain_case(70, 24, dtype, focal=focal, temperature=torch.tensor(0.05), detach_focal=False)
    case |= {"prototypes": vectors(CLASSES, 24, dtype=dtype), "prototype_anchors": True}
    case |= {"ref_embeddings": vectors(90, 24, dtype=dtype), "ref_labels": torch.arange(90) % 7}
    check(on_host, case)
    only = plain_case(70, 24, dtype, focal=focal, temperature=torch.tensor(0.05), ref_only=True)
    check(on_host, only | {"ref_embeddings": vectors(90, 24, dtype=dtype), "ref_labels": torch.arange(90) % 7})


@pytest.mark.parametrize("focal", FOCAL)
def test_labels(on_host, focal):
    labels = {
        "one class": torch.zeros(70, dtype=torch.int64),
        "all distinct": torch.arange(70),
        "all ignored": torch.full((70,), -100),
        "one kept": torch.where(torch.arange(70) == 66, 1, -100),
        "far apart": (torch.arange(70) % 3 << 32) + 1,
    }
    for of in labels.values():
        for reduction in ("mean", "none"):
            case = plain_case(70, 16, focal=focal, reduction=reduction) | {"labels": of}
            check(on_host, case)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_strides(on_host, dtype):
    base = vectors(3, 12, 40, dtype=dtype)
    labels = torch.arange(36).view(12, 3).T % 4
    for embeddings in (base[..., ::2], base[..., 1:20], base.transpose(0, 1).contiguous().transpose(0, 1), base.mT):
        own = labels if embeddings.shape[1] == 12 else labels[:, :1].expand(3, 40)
        refs = base[1, :, : embeddings.shape[-1]].T.contiguous().T
        case = {"embeddings": embeddings, "labels": own, "ref_embeddings": refs, "ref_labels": labels[0]}
        check(on_host, case)
    check(on_host, {"embeddings": base[:1].expand(3, 12, 40), "labels": labels})


def test_rows_of_any_length(on_host):
    scale = torch.tensor([1e-30, 1e30, 3e-20, 0.0, 1.0, 1e15]).repeat(3)[:, None]
    case = plain_case(18, 24, temperature=torch.tensor(0.5))
    check(on_host, case | {"embeddings": case["embeddings"] * scale})


def test_cosines_beyond_one(on_host):
    for gamma, focal, detach_focal in itertools.product((0.5, 2.0), FOCAL, (True, False)):
        case = plain_case(12, 8, temperature=5.0, gamma=gamma, focal=focal, detach_focal=detach_focal, normalize=False)
        check(on_host, case | {"embeddings": case["embeddings"] * 3})


def test_only_what_is_wanted(on_host):
    case = plain_case(70, 24, temperature=torch.tensor(0.05), prototypes=vectors(CLASSES, 24))
    case |= {"ref_embeddings": vectors(9, 24), "ref_labels": torch.arange(9) % CLASSES}
    everything = fused(on_host, case)
    for count in range(4):
        for wanted in itertools.combinations(WANTED, count):
            some = fused(on_host, case, wanted)
            assert some.keys() == {"loss", *wanted}
            assert all(torch.equal(x, everything[name]) for name, x in some.items() if name in ("loss", "embeddings"))
            for name, x in some.items():
                torch.testing.assert_close(x, everything[name], rtol=1e-5, atol=1e-6)


def test_nothing_to_count(on_host):
    empty = torch.zeros(0, dtype=torch.int64)
    prototypes = vectors(CLASSES, 24)
    cases = [
        plain_case(0, 24),
        plain_case(0, 24, reduction="none"),
        plain_case(0, 24, prototypes=prototypes, prototype_anchors=True, temperature=torch.tensor(0.1)),
        plain_case(5, 24, ref_embeddings=vectors(0, 24), ref_labels=empty, ref_only=True),
        {"embeddings": vectors(0, 4, 24), "labels": torch.arange(4), "prototypes": prototypes},
        {"embeddings": vectors(2, 0, 24), "labels": empty, "prototypes": prototypes},
    ]
    for case in cases:
        assert all((value == 0).all() for value in fused(on_host, case).values())


@pytest.mark.parametrize("focal", FOCAL)
def test_an_infinite_weight_of_an_absent_class_is_not_met(on_host, focal):
    case = plain_case(9, 24, focal=focal, class_weights=torch.tensor([1.0, math.inf, 2.0, math.inf, 1.0]))
    case["labels"] = torch.tensor([0, 0, 1, 2, 2, 4, 4, 3, 0])
    check(on_host, case)


def test_nan_is_not_lost(on_host):
    for focal, temperature in itertools.product(FOCAL, (0.01, 0.1)):
        case = plain_case(9, 24, focal=focal, temperature=temperature)
        case["embeddings"][4, 3] = math.nan
        values = fused(on_host, case)
        assert values["loss"].isnan()
        assert values["embeddings"].isnan().any()


@pytest.mark.parametrize("use", focal_cases.SPOILT_USES)
def test_a_spoilt_row_is_nan_to_all_that_depends_on_it(on_host, use):
    for case in focal_cases.spoilt_cases(use):
        case = {name: x.detach() if isinstance(x, Tensor) else x for name, x in case.items()}
        ours, truth = fused(on_host, case), plain(case, doubled=True)
        if use == "ref only":  # rows of one tile share a product, in which 0 NaN is NaN
            truth["embeddings"] = torch.where(ours["embeddings"].isnan(), torch.nan, truth["embeddings"])
        focal_cases.assert_as_spoilt(ours, truth)
