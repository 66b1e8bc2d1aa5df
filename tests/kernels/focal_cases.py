"""Cases of the focal contrastive loss in every dtype, and their comparison with the float64 reference."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from merc_kernels import reference
from merc_kernels.focal_contrastive.reference import _unit
from tests.kernels import grid
from tests.numerics import assert_accurate

CLASSES, GROUPS = 5, 3
VECTORS = ("embeddings", "prototypes", "ref_embeddings")
OPTIONS: dict[str, list[Any]] = {
    "dtype": [torch.float64, torch.float32, torch.bfloat16, torch.float16],
    "focal": ["similarity", "probability"],
    "gamma": [0.0, 0.5, 1.0, 2.0, 2.4],
    "temperature": [0.01, 0.07, 0.8, 1.4, "learnable"],
    "detach_focal": [True, False],
    "use": [
        "plain",
        "class weights",
        "prototypes",
        "prototype anchors",
        "refs",
        "refs with gradient",
        "ref only",
        "groups",
        "groups that share all",
    ],
    "normalize": [True, False],
    "reduction": ["mean", "batchmean", "sum", "none"],
}
SIZES = [(1, 8), (2, 5), (37, 96), (97, 123), (130, 64), (257, 33)]  # N, D
SCALE = {torch.float16: 1024.0}  # of the loss, as in training: 16 bits hold no gradient of 1e-6


def valid(case: grid.Case) -> bool:
    """Not ill-conditioned, and not refused."""
    if case["use"] == "prototype anchors" and case["reduction"] == "none":
        return False
    if case["temperature"] in (0.01, 0.07) and case["size"][0] < 3:
        return False  # one candidate holds all of p, and the gradient is a difference of roundings
    if case["dtype"] == torch.float16 and case["temperature"] == 0.01 and case["reduction"] in ("sum", "none"):
        return False  # a gradient of `SCALE` may be beyond float16
    # (1 - p)^(gamma - 1) has no bound as p nears 1: how a sum was rounded shows in the gradient
    unbounded = case["focal"] == "probability" and not case["detach_focal"] and case["gamma"] in (0.5, 1.0)
    return not (unbounded and case["temperature"] in (0.01, 0.07))


def build(case: grid.Case) -> dict[str, Any]:
    """The arguments of a case; what requires a gradient is a leaf."""
    (rows, width), dtype, use = case["size"], case["dtype"], case["use"]
    groups = (GROUPS,) if use.startswith("groups") else ()

    def vectors(*shape: int) -> Tensor:
        scale = 1.0 if case["normalize"] else width**-0.5
        return (torch.randn(*shape, width, dtype=torch.float64) * scale).to(dtype).requires_grad_()

    labels = torch.randint(CLASSES, (*(groups if use == "groups" else ()), rows))
    labels[..., 1::7] = -100
    options = {k: case[k] for k in ("focal", "gamma", "temperature", "detach_focal", "normalize", "reduction")}
    options |= {"embeddings": vectors(*groups, rows), "labels": labels}
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    if options["temperature"] == "learnable":
        options["temperature"] = torch.tensor(0.3, dtype=accumulate, requires_grad=True)
    if use in ("class weights", "groups"):
        options["class_weights"] = torch.linspace(0.0, 2.0, CLASSES, dtype=accumulate)
    if use.startswith("prototype") or use.startswith("groups"):
        options["prototypes"] = vectors(*(groups if use == "groups" else ()), CLASSES)
        options["prototype_anchors"] = use == "prototype anchors"
    if use.startswith("ref") or use == "groups that share all":
        refs = vectors(rows // 2 + 3)
        options["ref_embeddings"] = refs.detach() if use == "refs" else refs
        options["ref_labels"] = torch.randint(CLASSES, (rows // 2 + 3,))
        options["ref_labels"][2] = -100
        options["ref_only"] = use == "ref only"
    return options


def value_and_gradients(
    loss: Callable[..., Tensor], options: dict[str, Any], scale: float, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Of every input that requires a gradient; floating inputs in ``dtype`` (None: as they are)."""

    def leaf(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        return x.detach().to(dtype or x.dtype).requires_grad_(x.requires_grad)

    options = {name: leaf(x) for name, x in options.items()}
    leaves = {name: x for name, x in options.items() if isinstance(x, Tensor) and x.requires_grad}
    value = loss(**options)
    upstream = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
    upstream = upstream * scale
    gradients = torch.autograd.grad(value, list(leaves.values()), upstream, materialize_grads=True)
    return {"value": value.detach(), **dict(zip(leaves, gradients, strict=True))}


class RoundedProducts(TorchFunctionMode):
    """The gradient of a product is rounded to ``dtype``, scaled as far as that allows, before it is multiplied."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is Tensor.matmul and result.requires_grad:
            result.register_hook(self._rounded)
        return result

    def _rounded(self, grad: Tensor) -> Tensor:
        scale = grad.abs().amax().clamp(min=torch.finfo(grad.dtype).tiny) / 1024
        return (grad / scale).to(self.dtype).to(grad.dtype) * scale


def rounded_reference(dtype: torch.dtype, **options: Any) -> Tensor:
    """The reference where products take factors of ``dtype``: unit rows, whose gradient passes the rounding, and W."""
    if options["normalize"]:
        for name in ("embeddings", "prototypes", "ref_embeddings"):
            if options.get(name) is not None:
                z = _unit(options[name])
                options[name] = z + (z.to(dtype).to(z.dtype) - z).detach()
        options["normalize"] = False
    with RoundedProducts(dtype):
        return reference.focal_contrastive_loss(**options)


def check(options: dict[str, Any], loss: Callable[..., Tensor], short_rows: bool = False) -> None:
    """Value and gradients by the accuracy rule; ``short_rows``: 16-bit vectors have unit rows of 16 bits."""
    dtype = options["embeddings"].dtype
    scale = SCALE.get(dtype, 1.0)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    ours = value_and_gradients(loss, options, scale)
    eager = reference.focal_contrastive_loss
    if short_rows and dtype.itemsize == 2:
        eager = functools.partial(rounded_reference, dtype)
    plain = value_and_gradients(eager, {"normalize": True, **options}, scale, compute)
    truth = value_and_gradients(reference.focal_contrastive_loss, options, scale, torch.float64)
    for name, exact in truth.items():
        assert_accurate(ours[name], plain[name], exact, name)


SPOILT_USES = ("plain", "no positive", "prototypes", "prototype anchors", "refs", "ref only", "groups", "class weights")


def spoilt_cases(use: str) -> Iterator[dict[str, Any]]:
    """Arguments with a NaN or an infinity in a row that counts, and in one that is ignored.

    An infinity where rows are not normalised is left out: a score of -inf is a probability of 0.
    """
    spoils = [(torch.nan, True), (torch.nan, False), (torch.inf, True), (-torch.inf, True)]
    forms = itertools.product(("similarity", "probability"), ((0.3, True), (0.3, False), (0.01, True)))
    of_others = [False, True] if use.startswith(("prototype", "ref")) else [False]
    cases = itertools.product(spoils, forms, of_others)
    for number, ((value, normalize), (focal, (temperature, detach_focal)), of_other) in enumerate(cases):
        x = torch.randn(*((3, 9) if use == "groups" else (9,)), 6) * 0.5
        labels = torch.tensor([0, 0, 1, -100, 1, 2, 2, 0, 1])
        other = torch.randn(5 if use.startswith("ref") else 3, 6) * 0.5
        options = {"embeddings": x, "labels": labels, "temperature": temperature, "gamma": 2.4, "focal": focal}
        options |= {"detach_focal": detach_focal, "normalize": normalize, "reduction": "none"}
        if use == "no positive":
            labels[2] = 7
        elif use.startswith("prototype"):
            options |= {"prototypes": other, "prototype_anchors": use == "prototype anchors"}
            options["reduction"] = "sum" if use == "prototype anchors" else "none"
        elif use.startswith("ref"):
            options |= {"ref_embeddings": other, "ref_labels": torch.tensor([0, 1, 5, -100, 1])}
            options["ref_only"] = use == "ref only"
            other[3] = value
        elif use == "class weights":
            options["class_weights"] = torch.tensor([1.0, 0.0, 2.0])
        first = x[1] if use == "groups" else x
        first[3] = value
        spoilt = (other if of_other else first)[2]
        if number % 2:
            spoilt.zero_()
        spoilt[3] = value
        yield {name: x.requires_grad_() if name in VECTORS else x for name, x in options.items()}


def assert_as_spoilt(ours: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    """NaN where the truth is, in value and gradients; what it leaves finite is right."""
    for name, exact in truth.items():
        torch.testing.assert_close(ours[name].to(exact.dtype), exact, rtol=1e-2, atol=1e-3, equal_nan=True, msg=name)


def check_spoilt(loss: Callable[..., Tensor], use: str, every: int = 1) -> None:
    """As the reference says, in ``every`` n-th case of a use; another first one for each use."""
    for options in itertools.islice(spoilt_cases(use), SPOILT_USES.index(use) % every, None, every):
        assert_as_spoilt(*(value_and_gradients(f, options, 1.0) for f in (loss, reference.focal_contrastive_loss)))
