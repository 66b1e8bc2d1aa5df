# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
"""A float option reaches a kernel as the bits of a float64 in an integer.

No rounding, no copy to the device, no recompilation for a new value.
"""

import struct

import triton
import triton.language as tl


def bits(value: float) -> int:
    """What a kernel is given."""
    number: int = struct.unpack("q", struct.pack("d", value))[0]
    return number


@triton.jit
def double(bits):
    """The float64 of these bits."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)
