# Triton ships no types, where it is installed at all:
# mypy: disable-error-code="import-untyped,import-not-found"
"""What the launches of the focal contrastive loss in Triton share: a call's rows, and the programs that take them."""

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from merc_kernels._shared.triton.integers import cdiv
from merc_kernels._shared.triton.scalars import float_options
from merc_kernels.focal_contrastive.options import FocalContrastiveOptions
from merc_kernels.focal_contrastive.triton.configuration import (
    HALVED_FROM,
    MOST_SORTED,
    SORTED_FROM,
    WIDEST_SORTED,
    Tile,
    Variant,
    architecture_of,
)

_MOST_SPLITS = 16
_NEARLY = 1.03  # each split is a sum more to keep and to read


def length(count: int, device: torch.device) -> Any:
    """A loop's length: the interpreter takes no range of a run-time length with numpy 2.4."""
    return triton.language.constexpr(count) if device.type == "cpu" else count


def processors(device: torch.device) -> int:
    """Of a GPU; in the interpreter few, for few splits."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def splits_of(programs: int, columns: int, tile: Tile, device: torch.device) -> tuple[int, int]:
    """Shares of the columns for ``programs`` row blocks, and tiles a share: few, where more would shorten nothing."""
    return _splits(programs, cdiv(columns, tile.columns), processors(device) * tile.at_once)


@functools.lru_cache
def _splits(programs: int, tiles: int, places: int) -> tuple[int, int]:
    tiles_of = {splits: cdiv(programs * splits, places) * cdiv(tiles, splits) for splits in range(1, _MOST_SPLITS + 1)}
    least = min(tiles_of.values())  # of the busiest place
    a_run = cdiv(tiles, next(splits for splits, count in tiles_of.items() if count <= _NEARLY * least))
    return cdiv(tiles, max(1, a_run)), a_run


class Source(NamedTuple):
    """Rows that were packed together: embeddings, prototypes or refs."""

    x: Tensor
    labels: Tensor | None
    first: int

    @property
    def rows(self) -> int:
        """Of a group."""
        return self.x.shape[-2]

    def strides(self) -> tuple[int, int]:
        """Of a group, 0 where they share the rows, and of a row."""
        return (self.x.stride(0) if self.x.dim() == 3 else 0), self.x.stride(-2)


class Call:
    """What both passes know of a call."""

    def __init__(
        self,
        tensors: tuple[Tensor, Tensor | None, Tensor | None],
        labels: tuple[Tensor | None, Tensor | None],
        temperature: Tensor | None,
        options: FocalContrastiveOptions,
    ) -> None:
        embeddings, prototypes, refs = tensors
        self.device = embeddings.device
        self.groups = embeddings.shape[0] if embeddings.dim() == 3 else 1
        self.rows, self.width = embeddings.shape[-2:]
        self.sources: list[Source | None] = []
        self.total = 0
        for x, names in zip(tensors, (labels[0], None, labels[1]), strict=True):
            if x is None:
                self.sources.append(None)
                continue
            x = x if x.stride(-1) == 1 else x.contiguous()
            self.sources.append(Source(x, None if names is None else names.contiguous(), self.total))
            self.total += x.shape[-2]
        self.anchors = self.rows
        if prototypes is not None and options.prototype_anchors:
            self.anchors += prototypes.shape[-2]
        self.first_candidate = self.rows if options.ref_only else 0
        dtypes = {x.dtype for x in tensors if x is not None}
        self.dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        self.packed_dtype = dtypes.pop() if len(dtypes) == 1 else self.dtype
        self.temperature = temperature
        self.options = options
        self.floats = float_options(options)
        self.variant = Variant.of(options, known_temperature=temperature is None)
        self.architecture = architecture_of(self.device)
        # Not of float32: what precision its products have may change between the passes.
        self.alone = self.groups == 1 and prototypes is None and refs is None  # the rows are the columns
        bounded = self.alone and self.variant.bounded
        narrow = self.packed_dtype.itemsize == 2 and self.width <= WIDEST_SORTED and self.architecture >= 90
        self.sorted = bounded and narrow and SORTED_FROM <= self.total <= MOST_SORTED
        on_tensor_cores = self.packed_dtype.itemsize == 2 or self.variant.precision == "tf32"
        self.symmetric = bounded and not on_tensor_cores and self.total >= HALVED_FROM


def row_programs(rows: int, block: int, groups: int) -> tuple[int]:
    """The grid of a kernel that takes a block of rows of a group at a time."""
    return (groups * cdiv(rows, block),)
