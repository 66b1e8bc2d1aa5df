"""Every test here is marked gpu, and skipped where there is none."""

import os
from pathlib import Path

import pytest
import torch

from tests.gpu.operators import FUSED

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config, items):
    here = [item for item in items if item.path.is_relative_to(HERE)]
    for item in here:
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    if share := os.environ.get("MERC_GPU_TESTS"):
        left_out = set(here) - set(of_share(here, share))
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def of_share(items, share):
    """Those of ``BACKEND I/N``: every N-th test of the backend from the I-th on; what has no backend goes to torch."""
    backend, part = share.split()
    index, count = map(int, part.split("/"))
    return [item for item in items if backend_of(item) == backend][index - 1 :: count]


def backend_of(item):
    parameters = getattr(item, "callspec", None)
    return next((x for x in parameters.params.values() if x in FUSED), "torch") if parameters else "torch"
