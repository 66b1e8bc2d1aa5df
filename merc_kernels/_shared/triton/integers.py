"""The host's integer arithmetic: Triton's own functions serve kernels too, and take 2 µs a call."""


def cdiv(count: int, size: int) -> int:
    """How many blocks of ``size`` hold ``count``."""
    return -(-count // size)


def next_power_of_2(count: int) -> int:
    """The smallest power of 2 that is at least ``count``, which is at least 1."""
    return 1 << (count - 1).bit_length()
