"""Options as operators know them: a number for each, in the order of the schema."""

import dataclasses
import re

import pytest
import torch

from merc_kernels._shared.options import REDUCTIONS
from merc_kernels.focal_contrastive import operator as focal_contrastive
from merc_kernels.focal_contrastive.options import FocalContrastiveOptions
from merc_kernels.kd_divergence import operator as kd_divergence
from merc_kernels.kd_divergence.options import KDDivergenceOptions

CHANGED = [
    FocalContrastiveOptions(temperature=1, gamma=0, focal="probability", ref_only=True, reduction="none"),
    FocalContrastiveOptions(detach_focal=False, prototype_anchors=True, normalize=False, ignore_index=7),
    KDDivergenceOptions(direction="js", beta=0.25, ce_weight=2, scale_by_t2=False, reduction="sum"),
]


@pytest.mark.parametrize("options", [FocalContrastiveOptions(), KDDivergenceOptions(), *CHANGED], ids=str)
def test_numbers_and_back(options):
    assert type(options).of_numbers(options.numbers) == options
    without = type(options).of_numbers(options.numbers[:-1])  # a backward pass is not told the reduction
    assert dataclasses.replace(without, reduction=options.reduction) == options


def test_a_reduction_has_one_number_for_all_operators():
    for options in (FocalContrastiveOptions, KDDivergenceOptions):
        assert options().numbers[-1] == REDUCTIONS.index(options.reduction)
        assert options(reduction="sum").numbers[-1] == 1


def test_numbers_that_stand_for_nothing_are_refused():
    for number in (-1, 2):
        with pytest.raises(ValueError, match=f"focal: expected a number from 0 to 1, got {number}"):
            FocalContrastiveOptions.of_numbers((0.1, 2.0, number))
    with pytest.raises(ValueError, match="reduction: expected 'batchmean' or 'sum' or 'none', got 'mean'"):
        KDDivergenceOptions.of_numbers((*KDDivergenceOptions().numbers[:-1], REDUCTIONS.index("mean")))


def test_options_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FocalContrastiveOptions().gamma = 1.0
    with pytest.raises(ValueError, match="gamma: expected"):
        dataclasses.replace(FocalContrastiveOptions(), gamma=-1.0)


@pytest.mark.parametrize("described", [focal_contrastive.DESCRIPTION, kd_divergence.DESCRIPTION], ids=lambda x: x.name)
def test_the_schemas_of_python_are_those_of_the_extension(described):
    if not hasattr(torch.ops.merc, described.name):
        pytest.skip("the extension is not built")
    assert str(getattr(torch.ops.merc, described.name).default._schema) == f"merc::{described.name}" + (
        described.forward_schema()
    )
    types = r"(?<=[(, ])(Tensor\??|float|int|bool)(?= )"
    backward = str(getattr(torch.ops.merc, f"{described.name}_backward").default._schema)
    assert re.findall(types, backward) == re.findall(types, described.backward_schema())
