# Triton ships no types, where it is installed at all:
# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-call"
"""Every configuration of a kernel that a call can launch, to be compiled without a GPU."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from merc_kernels._triton import kd_divergence

_TYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_PAIRS = (*((dtype, dtype) for dtype in _TYPES), (torch.bfloat16, torch.float32))
_LONG = ("temperature", "beta", "ce_weight", "ignore_index", "counted")
_TILED = ("stride_sg", "stride_sn", "stride_tg", "stride_tn", "classes")


class Configuration(NamedTuple):
    """The arguments of `triton.compiler.ASTSource`, and the options of `triton.compile`."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int], list[list[Any]]]
    options: dict[str, Any]


def kd_divergence_configurations() -> Iterator[Configuration]:
    """Each kernel, pair of dtypes, tile and direction: with every option and with none, rows aligned or not."""
    kernels = (kd_divergence.forward_kernel, kd_divergence.backward_kernel)
    widths = (8 << i for i in range(10))
    for kernel, pair, width, direction in itertools.product(kernels, _PAIRS, widths, range(3)):
        accumulate = torch.float64 if torch.float64 in pair else torch.float32
        blocks = kd_divergence.blocks(width, accumulate, kernel is kd_divergence.backward_kernel)
        if blocks.classes != width:
            continue
        widest = kd_divergence.blocks(2 * width, accumulate, kernel is kd_divergence.backward_kernel) == blocks
        for tiles, whole, aligned in itertools.product((1, 3) if widest else (1,), (True, False), (True, False)):
            constants: dict[str, Any] = {
                "DIRECTION": direction,
                "CE": whole,
                "SCALE_BY_T2": True,
                "PARTIAL": True,
                "REPEATS": 4 if whole else 1,
                "TILES": tiles,
                "BLOCK_N": blocks.rows,
                "BLOCK_C": blocks.classes,
            }
            if not whole:
                constants |= dict.fromkeys(("temperature_ptr", "labels_ptr", "weights_ptr", "teacher_grad_ptr"))
                constants |= {"groups": 1}
            repeats = constants["REPEATS"] if kernel is kd_divergence.backward_kernel else 1
            options = {"num_warps": blocks.warps, "maxnreg": kd_divergence.registers(accumulate, repeats)}
            yield _configuration(kernel, pair, accumulate, constants, aligned, options)
    for accumulate, counts in itertools.product((torch.float64, torch.float32), (True, False)):
        constants = {"COUNTS": counts, "BLOCK": kd_divergence.REDUCE_BLOCK}
        pair = (accumulate, accumulate)
        options = {"num_warps": kd_divergence.REDUCE_WARPS}
        yield _configuration(kd_divergence.reduce_kernel, pair, accumulate, constants, True, options)


def _configuration(
    kernel: Any,
    pair: tuple[torch.dtype, torch.dtype],
    accumulate: torch.dtype,
    constants: dict[str, Any],
    aligned: bool,
    options: dict[str, Any],
) -> Configuration:
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    student, teacher = pair
    pointees = {"student": student, "student_grad": student, "teacher": teacher, "teacher_grad": teacher}
    signature, attributes = {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name == "labels_ptr":
            signature[name] = "*i64"
        elif name.endswith("_ptr"):
            signature[name] = "*" + _TYPES[pointees.get(name.removesuffix("_ptr"), accumulate)]
        else:
            signature[name] = "i64" if name in _LONG else "i32"
        if name.endswith("_ptr") or (aligned and name in _TILED):
            attributes[(position,)] = [["tt.divisibility", 16]]
    return Configuration(kernel, signature, constants, attributes, options)
