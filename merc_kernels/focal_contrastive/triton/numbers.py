# ruff: noqa: N803 - compile-time parameters are upper case, as everywhere in Triton
# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
"""Constants of the focal contrastive loss in Triton, its float options, and arithmetic that is rounded once."""

import triton
import triton.language as tl

from merc_kernels._shared.triton.scalars import double

LN2, LOG2E = tl.constexpr(0.6931471805599453), tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e38)  # where a maximum starts: differences stay finite
NEVER = tl.constexpr(1e30)  # m of a row that is no anchor: 2^(s - m) = 0, and 0 m is no NaN


@triton.jit
def scalar(pointer, option, dtype: tl.constexpr):
    """The number on the device, where there is one."""
    value = double(option).to(dtype)
    if pointer is not None:
        value = tl.load(pointer).to(dtype)
    return value


@triton.jit
def divided(x, y):
    """The quotient, rounded to the nearest; in float32 the plain operator may be two roundings off."""
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)


@triton.jit
def root(x):
    """The square root, rounded to the nearest."""
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def factor_of(x, PRECISION: tl.constexpr):
    """What a product is given of x: a tensor core cuts float32 to the 10 bits of tf32, so it is rounded before."""
    if x.dtype == tl.float32 and PRECISION == "tf32":
        bits = x.to(tl.int32, bitcast=True)
        x = tl.where(x == x, ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True), x)  # a NaN might carry over
    return x


@triton.jit
def log2_per_tau(pointer, floats, dtype: tl.constexpr):
    """log2(e) / tau, rounded once: an error in it is one of every score."""
    tau = double(floats.temperature)
    if pointer is not None:
        tau = tl.load(pointer).to(tl.float64)
    return (1 / tau * LOG2E).to(dtype)
