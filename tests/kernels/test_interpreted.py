"""The values of the Triton kernels, on CPU tensors under the interpreter."""

from pathlib import Path

import pytest

from tests.kernels import interpreted

pytest.importorskip("triton", reason="triton is not installed")
pytest.importorskip("numpy", reason="the interpreter of triton needs numpy")

HERE = Path(__file__).parent
TESTS = [
    HERE / "test_triton_focal_contrastive.py",
    HERE / "test_triton_kd_divergence.py",
    HERE / "test_triton_kd_ahead.py",
    f"{HERE / 'test_learned_temperature.py'}::TestInterpreted",
]


@pytest.mark.parametrize(("marker", "share"), interpreted.shares())
def test_values(marker, share):
    interpreted.run(TESTS, marker, share)
