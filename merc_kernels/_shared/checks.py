"""Argument checks: a ValueError names the argument, what was expected and what came.

Options, shapes, dtypes and devices are checked always. Values inside tensors are checked where reading them
costs nothing: on the CPU, and elsewhere only under ``MERC_CHECK=1``; never while a program is being traced.
"""

import functools
import math
import os
import reprlib
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

FLOAT = "float64, float32, bfloat16 or float16"
INT64 = "int64"
_DTYPES = {
    FLOAT: (torch.float64, torch.float32, torch.bfloat16, torch.float16),
    INT64: (torch.int64,),
}
_PLAIN = (Tensor, torch.nn.Parameter)
Shape = tuple[int | str, ...]  # a letter stands for any size


def fail(name: str, expected: str, actual: object) -> NoReturn:
    """Raise the ValueError for argument ``name``."""
    if isinstance(actual, Tensor):
        dtype = str(actual.dtype).removeprefix("torch.")
        actual = f"{dtype} tensor of shape {_shape_text(tuple(actual.shape))} on {actual.device}"
    else:
        actual = reprlib.repr(actual)  # of a long list the first few
    raise ValueError(f"{name}: expected {expected}, got {actual}")


def _shape_text(shape: Shape) -> str:
    return f"({shape[0]},)" if len(shape) == 1 else f"({', '.join(map(str, shape))})"


def remembered(check: Callable[..., Any]) -> Callable[..., Any]:
    """``check`` of positional arguments, which remembers what it returned for those it has seen."""
    seen = functools.lru_cache(typed=True)(check)  # typed: True is not 1

    def checked(*values: object) -> Any:
        if torch.compiler.is_compiling():
            return check(*values)
        try:
            return seen(*values)
        except TypeError:  # not hashable
            return check(*values)

    return checked


def flag(name: str, value: object) -> None:
    """``value`` is a bool."""
    if not isinstance(value, bool):
        fail(name, "True or False", value)


def choice(name: str, value: object, options: Sequence[str]) -> None:
    """``value`` is one of the strings ``options``."""
    if not isinstance(value, str) or value not in options:
        fail(name, " or ".join(repr(option) for option in options), value)


def number(name: str, value: Any, *, above: float | None = None, below: float = math.inf) -> None:
    """``value`` is a finite number in (above, below), or in [0, below) where ``above`` is None."""
    real = isinstance(value, (int, float, Real)) and not isinstance(value, bool)  # numpy's numbers too
    if (
        real and (value >= 0 if above is None else value > above) and value < below  # a NaN compares False
    ):
        return
    expected = "a finite number >= 0" if above is None else f"a finite number > {above:g}"
    if below != math.inf:
        expected += f" and < {below:g}"
    fail(name, expected, value)


def integer(name: str, value: object) -> None:
    """``value`` is a Python int."""
    if isinstance(value, bool) or not isinstance(value, int):
        fail(name, "an int", value)


def tensor(name: str, value: object, dtypes: str, device: torch.device | None, *shapes: Shape) -> None:
    """``value`` is a tensor of one of ``dtypes`` and one of ``shapes``, on ``device`` where that is given."""
    if isinstance(value, Tensor) and value.dtype in _DTYPES[dtypes] and (device is None or value.device == device):
        for shape in shapes:
            if _fits(value.shape, shape):
                return
    place = "" if device is None else f" on {device}"
    wanted = " or ".join(_shape_text(shape) for shape in shapes)
    fail(name, f"{dtypes} tensor of shape {wanted}{place}", value)


def _fits(size: torch.Size, shape: Shape) -> bool:
    if len(size) != len(shape):
        return False
    for actual, wanted in zip(size, shape, strict=True):  # a plain loop: small batches feel every microsecond
        if not isinstance(wanted, str) and actual != wanted:
            return False
    return True


def eager(*values: Tensor) -> bool:
    """Whether these are plain tensors with elements: nothing is traced, transformed or faked."""
    if torch.compiler.is_compiling():
        return False
    for value in values:  # noqa: SIM110 - a plain loop: small batches feel every microsecond
        if type(value) not in _PLAIN or is_functorch_wrapped_tensor(value):
            return False
    return True


def readable(value: Tensor) -> bool:
    """Whether the elements of ``value`` may be looked at."""
    return eager(value) and (value.device.type == "cpu" or os.environ.get("MERC_CHECK") == "1")


def elements(name: str, expected: str, value: Tensor, good: Tensor) -> None:
    """Every element of ``value``, which must be readable, is ``good`` (a bool tensor of its shape)."""
    if not bool(good.all()):
        fail(name, expected, value[~good].flatten()[0].item())


def labels_in_range(name: str, labels: Tensor, classes: int, ignore_index: int) -> None:
    """Labels lie in [0, classes) or equal ``ignore_index``."""
    if readable(labels):
        good = (labels == ignore_index) | ((labels >= 0) & (labels < classes))
        elements(name, f"labels in [0, {classes}) or ignore_index={ignore_index}", labels, good)


def focal_contrastive_options(
    *,
    gamma: object,
    focal: object,
    detach_focal: object,
    prototype_anchors: object,
    ref_only: object,
    normalize: object,
    ignore_index: object,
    reduction: object,
) -> None:
    """The options of ``focal_contrastive_loss`` that are not tensors."""
    number("gamma", gamma)
    choice("focal", focal, ("similarity", "probability"))
    flag("detach_focal", detach_focal)
    flag("prototype_anchors", prototype_anchors)
    flag("ref_only", ref_only)
    flag("normalize", normalize)
    integer("ignore_index", ignore_index)
    choice("reduction", reduction, ("mean", "batchmean", "sum", "none"))
    if prototype_anchors and reduction == "none":
        fail("prototype_anchors", 'False with reduction="none"', prototype_anchors)


def focal_contrastive_tensors(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor,
    class_weights: Tensor | None,
    prototypes: Tensor | None,
    prototype_anchors: bool,
    ref_embeddings: Tensor | None,
    ref_labels: Tensor | None,
    ref_only: bool,
    ignore_index: int,
) -> int | None:
    """The tensors of ``focal_contrastive_loss``; returns the number of classes where it is known."""
    if (  # the commonest call, with nothing wrong: small batches feel every microsecond
        class_weights is None
        and prototypes is None
        and ref_embeddings is None
        and ref_labels is None
        and not (prototype_anchors or ref_only)
        and type(temperature) is float
        and 0 < temperature < math.inf
        and isinstance(embeddings, Tensor)
        and isinstance(labels, Tensor)
        and embeddings.dtype in _DTYPES[FLOAT]
        and labels.dtype == torch.int64
        and embeddings.device == labels.device
        and len(size := embeddings.shape) == 2
        and size[:1] == labels.shape
        and size[1] > 0
    ):
        return None
    tensor("embeddings", embeddings, FLOAT, None, ("N", "D"), ("G", "N", "D"))
    device, groups = embeddings.device, tuple(embeddings.shape[:-2])
    rows, width = embeddings.shape[-2:]
    if width == 0:
        fail("embeddings", "at least one feature (D > 0)", embeddings)
    tensor("labels", labels, INT64, device, *_shared((rows,), groups))
    if isinstance(temperature, Tensor):
        tensor("temperature", temperature, FLOAT, device, ())
        if readable(temperature):
            elements("temperature", "a finite number > 0", temperature, _positive(temperature))
    else:
        number("temperature", temperature, above=0)

    classes: int | None = None
    if prototypes is not None:
        tensor("prototypes", prototypes, FLOAT, device, *_shared(("C", width), groups))
        classes = prototypes.shape[-2]
    elif prototype_anchors:
        fail("prototypes", "a tensor, as prototype_anchors=True", prototypes)
    if class_weights is not None:
        tensor("class_weights", class_weights, FLOAT, device, ("C" if classes is None else classes,))
        classes = class_weights.shape[0]
    if classes == 0:
        name, value = ("class_weights", class_weights) if prototypes is None else ("prototypes", prototypes)
        fail(name, "at least one class (C > 0)", value)

    if ref_embeddings is not None:
        tensor("ref_embeddings", ref_embeddings, FLOAT, device, *_shared(("M", width), groups))
        tensor("ref_labels", ref_labels, INT64, device, *_shared((ref_embeddings.shape[-2],), groups))
    elif ref_labels is not None:
        fail("ref_embeddings", "a tensor, as ref_labels is given", ref_embeddings)
    elif ref_only:
        fail("ref_embeddings", "a tensor, as ref_only=True", ref_embeddings)
    if ref_only and prototypes is not None:
        fail(
            "prototypes",
            "None with ref_only=True (append them to ref_embeddings, labels 0 to C-1)",
            prototypes,
        )

    if classes is not None:
        labels_in_range("labels", labels, classes, ignore_index)
        if ref_labels is not None:
            labels_in_range("ref_labels", ref_labels, classes, ignore_index)
    return classes


def _positive(value: Tensor) -> Tensor:
    return (value > 0) & (value < torch.inf)


def _shared(shape: Shape, groups: tuple[int, ...]) -> tuple[Shape, ...]:
    """A tensor that the groups share, or that has its own part for each."""
    return (shape, groups + shape) if groups else (shape,)


def kd_options(
    *,
    direction: object,
    beta: object,
    ce_weight: object,
    teacher_grad: object,
    scale_by_t2: object,
    ignore_index: object,
    reduction: object,
) -> None:
    """The options of ``kd_divergence`` that are not tensors."""
    choice("direction", direction, ("forward", "reverse", "js"))
    number("beta", beta, above=0, below=1)
    number("ce_weight", ce_weight)
    flag("teacher_grad", teacher_grad)
    flag("scale_by_t2", scale_by_t2)
    integer("ignore_index", ignore_index)
    choice("reduction", reduction, ("batchmean", "sum", "none"))


def kd_tensors(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float | Tensor,
    labels: Tensor | None,
    ce_weight: float,
    row_weights: Tensor | None,
    ignore_index: int,
) -> None:
    """The tensors of ``kd_divergence``."""
    if (  # the commonest call, with nothing wrong: small batches feel every microsecond
        labels is None
        and row_weights is None
        and ce_weight == 0
        and type(temperature) is float
        and 0 < temperature < math.inf
        and isinstance(student_logits, Tensor)
        and isinstance(teacher_logits, Tensor)
        and student_logits.dtype in _DTYPES[FLOAT]
        and teacher_logits.dtype in _DTYPES[FLOAT]
        and student_logits.device == teacher_logits.device
        and (size := student_logits.shape) == teacher_logits.shape
        and len(size) == 2
        and size[1] > 0
    ):
        return
    tensor("student_logits", student_logits, FLOAT, None, ("N", "C"), ("G", "N", "C"))
    device, groups = student_logits.device, tuple(student_logits.shape[:-2])
    rows, classes = student_logits.shape[-2:]
    if classes == 0:
        fail("student_logits", "at least one class (C > 0)", student_logits)
    tensor("teacher_logits", teacher_logits, FLOAT, device, *_shared((rows, classes), groups))
    if labels is not None:
        tensor("labels", labels, INT64, device, *_shared((rows,), groups))
        labels_in_range("labels", labels, classes, ignore_index)
    elif ce_weight != 0:
        fail("labels", f"a tensor, as ce_weight={ce_weight}", labels)
    if row_weights is not None:
        tensor("row_weights", row_weights, FLOAT, device, *_shared((rows,), groups))
    if isinstance(temperature, Tensor):
        tensor("temperature", temperature, FLOAT, device, (rows,))
        if readable(temperature):
            good = _positive(temperature)
            if labels is not None:  # the temperature of a row that every group ignores is not used
                good |= (labels == ignore_index).expand(*groups, rows).reshape(math.prod(groups), rows).all(0)
            elements("temperature", "finite numbers > 0", temperature, good)
    else:
        number("temperature", temperature, above=0)


def class_counts(counts: object) -> None:
    """The counts of ``class_balanced_weights``."""
    name, expected = "class_counts", "finite numbers >= 0, not all 0"
    if isinstance(counts, Tensor):
        if counts.dim() != 1 or counts.numel() == 0 or counts.is_complex() or counts.dtype == torch.bool:
            fail(name, "an integer or floating tensor of shape (C,), C > 0", counts)
        if readable(counts):
            elements(name, expected, counts, (counts >= 0) & (counts < torch.inf))
            if not bool(counts.any()):
                fail(name, expected, counts.tolist())
        return
    if not isinstance(counts, Sequence) or isinstance(counts, str) or len(counts) == 0:
        fail(name, "a sequence of numbers, or a tensor of shape (C,)", counts)
    for index, count in enumerate(counts):
        number(f"{name}[{index}]", count)
    if not any(counts):
        fail(name, expected, counts)
