import pytest
import torch

from merc_kernels.focal_contrastive.operator import passes
from merc_kernels.focal_contrastive.options import FocalContrastiveOptions
from tests.kernels.all_anchors import check


@pytest.mark.parametrize("focal", ["similarity", "probability"])
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_rows_of_a_part_get_the_gradient_of_the_whole(backend, focal):
    if backend == "cpu":
        pytest.importorskip("merc_kernels._C")
    check(*passes(backend), focal)


@pytest.mark.parametrize("focal", ["similarity", "probability"])
def test_in_cuda_sources(focal, on_host):
    check(on_host.focal_contrastive, on_host.focal_contrastive_backward, focal)


def test_a_gradient_a_row_is_refused():
    pytest.importorskip("merc_kernels._C")
    run, back = passes("cpu")
    x, y = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    numbers = FocalContrastiveOptions(reduction="none").numbers
    loss, *saved = run(x, y, None, None, None, None, None, *numbers)
    with pytest.raises(RuntimeError, match="grad: expected a scalar with all_anchors, got"):
        back(torch.ones_like(loss), *saved, x, None, None, None, *numbers[:-1], True, False, False, False, True)
