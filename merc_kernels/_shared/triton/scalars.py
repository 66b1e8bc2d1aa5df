# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
"""A float option reaches a kernel as the bits of a float64 in an integer.

No rounding, no copy to the device, no recompilation for a new value.
"""

import struct

import triton
import triton.language as tl

from merc_kernels._shared.options import Options


def bits(value: float) -> int:
    """What a kernel is given."""
    number: int = struct.unpack("q", struct.pack("d", value))[0]
    return number


def float_options(options: Options) -> tuple[int, ...]:
    """What a kernel is given of the options that are floats, in the order of their fields."""
    pairs = zip(options.columns, options.numbers, strict=True)
    return tuple(bits(number) for column, number in pairs if column.type == "float")


@triton.jit
def double(bits):
    """The float64 of these bits."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)
