"""The host's integer arithmetic is Triton's."""

import pytest

from merc_kernels._shared.triton.integers import cdiv, next_power_of_2

triton = pytest.importorskip("triton", reason="triton is not installed")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 63, 64, 65, 255, 256, 257, 4095, 4097, 2**31 - 1, 2**31 + 1])
def test_as_triton_has_it(count):
    assert next_power_of_2(count) == triton.next_power_of_2(count)
    for size in (1, 2, 3, 64, 128):
        assert cdiv(count, size) == triton.cdiv(count, size)
    assert cdiv(0, 64) == 0
