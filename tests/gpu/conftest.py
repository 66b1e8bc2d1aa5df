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
    """Those of ``BACKEND OPERATOR I/N``: of the tests of both, every N-th from the I-th on."""
    *kind, part = share.split()
    index, count = map(int, part.split("/"))
    return [item for item in items if kind_of(item) == kind][index - 1 :: count]


def kind_of(item):
    """Its backend and its operator; what has none goes with others."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    backend = next((x for x in parameters if x in FUSED), "torch")
    of_divergence = "kd_divergence" in parameters or "divergence" in item.name.partition("[")[0]
    return [backend, "kd_divergence" if of_divergence else "focal_contrastive"]
