# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
"""The float options reach a kernel as one argument: a named tuple with the bits of each, which `double` reads.

No rounding, no copy to the device, no recompilation for a new value.
"""

import functools
import struct
from collections import namedtuple
from typing import Any

import triton
import triton.language as tl

from merc_kernels._shared.options import Options


def _halves(value: float) -> tuple[int, int]:
    """Upper and lower half of the bits, odd and of more than 32 bits: Triton compiles anew for 1, 16 n and others."""
    upper, lower = struct.unpack("II", struct.pack("d", value))[::-1]
    return 1 << 33 | upper << 1 | 1, 1 << 33 | lower << 1 | 1


@functools.cache
def _floats(names: tuple[str, ...]) -> Any:
    return namedtuple("Floats", names)


@functools.lru_cache
def float_options(options: Options) -> Any:
    """What a kernel is given of the options that are floats: an attribute each, of which `double` is the number."""
    pairs = zip(options.columns, options.numbers, strict=True)
    numbers = {column.name: _halves(number) for column, number in pairs if column.type == "float"}
    return _floats(tuple(numbers))(**numbers)


@triton.jit
def double(halves):
    """The float64 of these halves."""
    upper, lower = halves[0], halves[1]
    return (((upper >> 1) << 32) | ((lower >> 1) & 0xFFFFFFFF)).to(tl.float64, bitcast=True)
