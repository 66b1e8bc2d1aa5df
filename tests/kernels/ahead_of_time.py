# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-call"
"""Every configuration of a kernel that a call can launch, to be compiled without a GPU."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import torch

from merc_kernels._shared.options import Options
from merc_kernels._shared.triton import reduction
from merc_kernels._shared.triton.scalars import float_options
from merc_kernels.focal_contrastive.options import FocalContrastiveOptions
from merc_kernels.focal_contrastive.triton import configuration as contrastive
from merc_kernels.focal_contrastive.triton import order as of_labels
from merc_kernels.focal_contrastive.triton import pack as of_rows
from merc_kernels.focal_contrastive.triton import stats as of_numbers
from merc_kernels.focal_contrastive.triton.gradient import pair_gradient_kernel
from merc_kernels.focal_contrastive.triton.sums import BOTH, LSE, TERMS, pair_sums_kernel
from merc_kernels.kd_divergence.options import Direction, KDDivergenceOptions
from merc_kernels.kd_divergence.triton import ahead
from merc_kernels.kd_divergence.triton import configuration as kd_divergence
from merc_kernels.kd_divergence.triton.backward import backward_kernel
from merc_kernels.kd_divergence.triton.forward import forward_kernel

_TYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_PAIRS = (*((dtype, dtype) for dtype in _TYPES), (torch.bfloat16, torch.float32))
_LONG = ("classes", "ignore_index", "counted")
_INTEGERS = ("table_ptr", "slot_ptr", "counts_ptr")
_LABELS = ("labels_ptr", "index_ptr", "row_label_ptr", "column_label_ptr", "kept_counts_ptr")
_OPTIONS = ("num_warps", "num_stages", "maxnreg")
_DIVERGENCE = (forward_kernel, backward_kernel)
_WIDEST = 512  # wider rows have its tiles
_WIDE = (1 << 14, 1 << 16, 1 << 17)  # rows that the divergence sweeps with 8, 16 and 32 warps
_ARCHITECTURES = (80, 90, 100)


class Configuration(NamedTuple):
    """The arguments of `triton.compiler.ASTSource`, the options of `triton.compile`, and where a call launches it."""

    kernel: Any
    signature: dict[str, Any]
    constants: dict[str, Any]
    attributes: dict[tuple[int], list[list[Any]]]
    options: dict[str, Any]
    architectures: tuple[int, ...]


def kd_divergence_configurations() -> Iterator[Configuration]:
    """Each kernel, pair of dtypes, tile and direction: with every option and with none, rows aligned or not."""
    directions = get_args(Direction)
    for backward, pair, width in itertools.product((False, True), _PAIRS, (8 << i for i in range(10))):
        accumulate = _accumulate(pair)
        blocks = kd_divergence.blocks(width, accumulate, backward)
        if blocks.classes != width:
            continue
        for direction, every, aligned in itertools.product(directions, (True, False), (True, False)):
            for tiles in (1, 3) if backward and kd_divergence.blocks(2 * width, accumulate, True) == blocks else (1,):
                yield from _divergence(backward, pair, direction, blocks, tiles, every, every, aligned)
    for pair, direction, ce, aligned in itertools.product(_PAIRS, directions, (False, True), (True, False)):
        of = (_accumulate(pair), min(x.itemsize for x in pair), direction == "forward" and not ce, aligned)
        for blocks in dict.fromkeys(kd_divergence.wide_blocks(width, *of) for width in _WIDE):
            for every in (True,) if ce else (False, True):
                yield from _divergence(False, pair, direction, blocks, 3, every, ce, aligned)
    for accumulate, counts in itertools.product((torch.float64, torch.float32), (True, False)):
        constants = {"COUNTS": counts, "BLOCK": reduction.REDUCE_BLOCK, "num_warps": reduction.REDUCE_WARPS}
        yield _configuration(reduction.reduce_kernel, accumulate, {}, constants)
    constants = {"COUNTS": ahead.COUNTS, "BLOCK": ahead.COUNT_BLOCK}
    yield _configuration(ahead.count_kernel, torch.float32, {}, constants)
    for dtype, width, labelled in itertools.product(_TYPES, (8, 256, 2048), (True, False)):
        accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        of = kd_divergence.blocks(width, accumulate, backward=True)
        constants = {"TILES": 3, "BLOCK_N": of.rows, "BLOCK_C": of.classes, "num_warps": of.warps}
        constants |= {} if labelled else {"labels_ptr": None}
        yield _configuration(ahead.scale_kernel, accumulate, {"student_grad_ptr": dtype}, constants, ("classes",))


def _accumulate(dtypes: tuple[torch.dtype, ...]) -> torch.dtype:
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _divergence(
    backward: bool,
    pair: tuple[torch.dtype, torch.dtype],
    direction: str,
    blocks: kd_divergence.Blocks,
    tiles: int,
    every: bool,
    ce: bool,
    aligned: bool,
) -> Iterator[Configuration]:
    """With ``every`` argument that may be absent; of the forward pass what saves numbers, and what writes gradients."""
    pointees = dict(zip(("student_ptr", "teacher_ptr"), pair, strict=True))
    pointees |= dict(zip(("student_grad_ptr", "teacher_grad_ptr"), pair, strict=True))
    constants: dict[str, Any] = {
        "DIRECTION": direction,
        "CE": ce,
        "SCALE_BY_T2": True,
        "PARTIAL": True,
        "REPEATS": 4 if every else 1,
        "COUNTS": ahead.COUNTS,
        "TILES": tiles,
        "BLOCK_N": blocks.rows,
        "BLOCK_C": blocks.classes,
        "LANES": blocks.lanes,
        "VECTORS": aligned,
        "num_warps": blocks.warps,
        "maxnreg": 255 if backward and every else blocks.registers,
    }
    if not every:
        absent = ("temperature_ptr", "labels_ptr", "weights_ptr", "teacher_grad_ptr", "kept_counts_ptr")
        constants |= dict.fromkeys(absent) | {"groups": 1}
    multiples = ("stride_sg", "stride_sn", "stride_tg", "stride_tn", "classes") if aligned else ()
    if backward:
        yield _configuration(backward_kernel, _accumulate(pair), pointees, constants, multiples)
        return
    for saved in ({"student_grad_ptr": None, "kept_counts_ptr": None}, {"saved_ptr": None}):
        yield _configuration(forward_kernel, _accumulate(pair), pointees, constants | saved, multiples)


def focal_contrastive_configurations() -> Iterator[Configuration]:
    """Each kernel in its dtypes, tiles and variants, rows aligned or not; what takes most registers comes last."""
    blocks = {"BLOCK_N": contrastive.RANK_BLOCK, "BLOCK_M": contrastive.RANK_BLOCK}
    yield _configuration(of_labels.rank_kernel, torch.float32, {}, blocks)
    yield _configuration(of_labels.look_up_kernel, torch.float32, {}, {"BLOCK": contrastive.ROW_BLOCK})
    for absent in ({"table_ptr": None, "slot_ptr": None}, {}):
        of_it = contrastive.ORDER | absent
        yield _configuration(of_labels.enter_kernel, torch.float32, {}, of_it)
        yield _configuration(of_labels.place_kernel, torch.float32, {}, of_it | {"BLOCK_P": contrastive.RANK_BLOCK})
    yield _configuration(of_labels.enter_kernel, torch.float32, {}, {**contrastive.ORDER, "counts_ptr": None})
    yield from _linear()
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    for dtype, width in itertools.product(dtypes, (_WIDEST, 16, 32, 64, 128, 256)):
        for variant, aligned in itertools.product(_variants(dtype), (True, False)):
            yield from _pairs(dtype, width, variant, aligned)


def _linear() -> Iterator[Configuration]:
    """The kernels that take a row at a time, of up to 4096 features."""
    for accumulate, some in itertools.product((torch.float64, torch.float32), (False, True)):
        block: dict[str, Any] = {"BLOCK": contrastive.ROW_BLOCK}
        yield _configuration(of_numbers.scaled_stats_kernel, accumulate, {}, {**block, "BOUNDED": some, "SORTED": some})
        for partial, kept in ((True, True), (True, False), (False, False)):
            constants = {**block, "SIMILARITY": some, "BOUNDED": some, "PARTIAL": partial, "KEPT": kept}
            constants |= {"SORTED": some} | ({"BLOCK": contrastive.SLOT_BLOCK} if some else {})
            constants |= {"SLOTS": contrastive.SLOTS}
            constants |= {} if some else {"weights_ptr": None}
            yield _configuration(of_numbers.finish_kernel, accumulate, {}, constants)
    stored = [(x, x) for x in _TYPES] + [(x, torch.float32) for x in (torch.bfloat16, torch.float16)]
    widths = (1, *(8 << i for i in range(10)))
    for (dtype, packed), width, normalize in itertools.product(stored, widths, (False, True)):
        accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        pointees = {"x_ptr": dtype, "z_ptr": packed, "out_ptr": dtype}
        for aligned, some in itertools.product((("stride_xg", "stride_xn", "width"), ()), (False, True)):
            arguments: dict[str, Any] = {**contrastive.row_tile(width)} | {"NORMALIZE": normalize, "SHARED": some}
            arguments |= {"SORTED": some}
            arguments |= {} if packed == torch.float16 else {"matrix_scale_ptr": None}
            arguments |= {} if some else {"labels_ptr": None, "temperature_ptr": None}
            for precision in ("ieee", "tf32") if packed == torch.float32 else ("ieee",):
                packing = arguments | {"PRECISION": precision}
                yield _configuration(of_rows.pack_kernel, accumulate, pointees, packing, aligned)
            yield _configuration(of_rows.unpack_kernel, accumulate, pointees, arguments, aligned)


def _variants(dtype: torch.dtype) -> Iterator[contrastive.Variant]:
    factors = [(True, True, 0), *itertools.product((True, False), (True, False), (1, 2, 3))]
    precisions = ("tf32", "ieee") if dtype == torch.float32 else ("ieee",)
    for (similarity, detach, power), precision in itertools.product(factors, precisions):
        for bounded in (True, False) if similarity else (False,):
            yield contrastive.Variant(similarity, detach, power, bounded, precision)


def _pairs(dtype: torch.dtype, width: int, variant: contrastive.Variant, aligned: bool) -> Iterator[Configuration]:
    """The kernels of pairs for rows of ``width``, a power of 2, or of one less where they are not aligned."""
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    pointees = {"row_z_ptr": dtype, "column_z_ptr": dtype}
    absent: dict[str, Any] = {} if dtype == torch.float16 else {"matrix_scale_ptr": None}
    absent |= {"temperature_ptr": None} if variant.bounded else {}  # of one on the device no bound is known

    less = 0 if aligned else 1
    multiples = ("width",) if aligned else ()

    def sums(width: int, architecture: int) -> dict[str, Any]:
        tile = contrastive.sums_tile(dtype, width, variant, architecture)
        return tile.options() | {"WHOLE": width <= tile.width}

    def gradient(tau: bool, width: int, architecture: int) -> dict[str, Any]:
        question = (dtype, width, variant, tau, architecture)
        held = contrastive.held_tile(*question)
        tile = held or contrastive.matrix_tile(*question)
        options = tile.options() | {"WHOLE": width <= tile.width, "MATRIX": held is None}
        return options if tau else options | {"tau_ptr": None}

    def widest(in_order: bool) -> int:
        return contrastive.WIDEST_SORTED if in_order else _WIDEST

    narrow = dtype.itemsize == 2 and width <= contrastive.WIDEST_SORTED
    orders = (False, True) if variant.bounded and narrow else (False,)
    on_tensor_cores = dtype.itemsize == 2 or variant.precision == "tf32"
    ways = [(in_order, False) for in_order in orders]
    ways += [(False, True)] if variant.bounded and not on_tensor_cores else []
    for step, (in_order, half) in itertools.product((BOTH,) if variant.similarity else (LSE, TERMS), ways):
        for tile, architectures in _tiles(sums, width - less, widest(in_order) - less):
            arguments = absent | variant.constants() | tile | {"STEP": step.value}
            arguments |= {"SORTED": in_order, "SYMMETRIC": half}
            architectures = tuple(x for x in architectures if x >= 90 or not in_order)
            yield _configuration(pair_sums_kernel, accumulate, pointees, arguments, multiples, architectures)
    for tau, in_order in itertools.product((False,) if variant.bounded else (False, True), orders):
        for tile, architectures in _tiles(functools.partial(gradient, tau), width - less, widest(in_order) - less):
            arguments = absent | variant.constants() | tile | {"SIMILARITY": variant.similarity, "SORTED": in_order}
            of_it = pointees | {"out_ptr": dtype if tile["MATRIX"] else accumulate}
            architectures = tuple(x for x in architectures if x >= 90 or not in_order)
            for half in (False, True) if tile["MATRIX"] and variant.brief else (False,):
                of_half = arguments | {"SYMMETRIC": half}
                yield _configuration(pair_gradient_kernel, accumulate, of_it, of_half, multiples, architectures)


def _tiles(
    options: Callable[[int, int], dict[str, Any]], width: int, widest: int
) -> Iterator[tuple[dict[str, Any], tuple[int, ...]]]:
    """The options of a launch, and the architectures it is for; none where they are those of the widest rows."""
    new = [x for x in _ARCHITECTURES if width == widest or options(width, x) != options(widest, x)]
    for tile, architectures in itertools.groupby(new, functools.partial(options, width)):  # neighbours alone
        yield tile, tuple(architectures)


def _configuration(
    kernel: Any,
    accumulate: torch.dtype,
    pointees: dict[str, torch.dtype],
    arguments: dict[str, Any],
    aligned: tuple[str, ...] = (),
    architectures: tuple[int, ...] = _ARCHITECTURES,
) -> Configuration:
    """A launch with these keyword ``arguments``.

    ``pointees``: of the pointers that point to neither labels nor ``accumulate``; ``aligned``: multiples of 16.
    """
    constants = {name: value for name, value in arguments.items() if name in kernel.arg_names}
    options = {name: value for name, value in arguments.items() if name in _OPTIONS}
    signature, attributes = {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name == "floats":
            signature[name] = _floats(KDDivergenceOptions if kernel in _DIVERGENCE else FocalContrastiveOptions)
        elif name in _LABELS:
            signature[name] = "*i64"
        elif name in _INTEGERS:
            signature[name] = "*i32"
        elif name.endswith("_ptr"):
            signature[name] = "*" + _TYPES[pointees.get(name, accumulate)]
        else:
            signature[name] = "i64" if name in _LONG else "i32"
        if name.endswith("_ptr") or name in aligned:
            attributes[(position,)] = [["tt.divisibility", 16]]
    return Configuration(kernel, signature, constants, attributes, options, architectures)


def _floats(options: type[Options]) -> Any:
    """The types of what a kernel is given of the options that are floats."""
    floats = float_options(options())
    return type(floats)(*[("i64", "i64")] * len(floats))
