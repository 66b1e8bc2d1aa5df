# Triton ships no types, where it is installed at all:
# mypy: disable-error-code="import-untyped,import-not-found"
"""Which kernels a call of the focal contrastive loss launches, in tiles of what size: never a matter of its rows."""

from typing import Any, NamedTuple

import torch

from merc_kernels._shared.triton.integers import cdiv, next_power_of_2
from merc_kernels.focal_contrastive.options import SMALLEST_BOUNDED, FocalContrastiveOptions

ROW_BLOCK, RANK_BLOCK = 512, 64
ORDER = {"BLOCK_N": RANK_BLOCK, "maxnreg": 255}  # of what sorts rows: ptxas, left alone, spills a few registers
SORTED_FROM, MOST_SORTED = 2048, 1 << 26  # rows that are sorted by label: one launch more, and keys of 32 bits
WIDEST_SORTED = 256  # features: L2 bounds the tiles of wider rows, whatever they do with labels
HALVED_FROM = 2048  # rows from which a pair that takes no tensor core is met once, for both of them
MOST_HALVED = 1 << 28  # bytes of the sums that are kept for it: as many as of a strip of the backward pass
SLOT_BLOCK, SLOTS = 64, 16  # rows, and partial sums of each, that are read at a time
SCANNED = 4096  # packed rows up to which labels are named by a scan, of 32 us at most; a table takes 10, and 2 launches


class Tile(NamedTuple):
    """Rows and columns of a tile of pairs, features read at a time; parts, warps, stages of the pipeline, registers."""

    rows: int
    columns: int
    width: int
    parts: int
    warps: int
    stages: int
    registers: int = 255  # at most: 128 let two programs of 8 warps share a processor

    @property
    def at_once(self) -> int:
        """Programs that a processor's registers hold."""
        return 65536 // (32 * self.warps * cdiv(self.registers, 8) * 8)

    def options(self) -> dict[str, int]:
        """The constants and options that a kernel of pairs takes from it."""
        blocks = {"BLOCK_N": self.rows, "BLOCK_M": self.columns, "BLOCK_D": self.width, "PARTS": self.parts}
        # ptxas, left alone, spills a few registers to have more programs at once
        return blocks | {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": self.registers}


class Variant(NamedTuple):
    """What compiles kernels of its own, beside dtype and width."""

    similarity: bool
    detach: bool
    power: int  # gamma: 0, 1, 2 or (3) any other
    bounded: bool  # similarity, and no |score| exceeds 1/tau, which the host knows
    precision: str  # of a float32 product: ieee, tf32

    @classmethod
    def of(cls, options: FocalContrastiveOptions, known_temperature: bool) -> "Variant":
        """Variant of a call; of a temperature that is only on the device the host knows no bound."""
        flat = options.gamma == 0  # the factor is 1 in both, and one sweep is enough
        similarity = options.focal == "similarity" or flat
        precision = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
        return cls(
            similarity,
            options.detach_focal or flat,
            int(options.gamma) if options.gamma in (0, 1, 2) else 3,
            similarity and options.normalize and known_temperature and options.temperature >= SMALLEST_BOUNDED,
            precision,
        )

    @property
    def light(self) -> bool:
        """Whether the numbers of a pair leave registers for large tiles: no derivative of the factor, no maximum."""
        return self.detach and self.bounded

    @property
    def brief(self) -> bool:
        """Whether they leave registers for tiles that are stored twice."""
        return self.light and self.power < 3

    def constants(self) -> dict[str, Any]:
        """The constants that every kernel of pairs takes from it."""
        return {
            "DETACH": self.detach,
            "POWER": self.power,
            "BOUNDED": self.bounded,
            "PRECISION": self.precision,
        }


def architecture_of(device: torch.device) -> int:
    """90 or 100 for sm_90 and sm_100, where a program finds 227 KB of shared memory; else 80, where it may find 99."""
    if device.type != "cuda":
        return 90
    return {9: 90, 10: 100}.get(torch.cuda.get_device_capability(device)[0], 80)


def _block(width: int) -> int:
    return max(16, next_power_of_2(width))


def _aligned(width: int) -> bool:
    """Whether Triton takes rows to start at multiples of 16 bytes: others come through registers."""
    return width % 16 == 0


def _ieee_features(width: int) -> int:
    """How many features a float32 product reads at a time: its factors come through registers."""
    return min(_block(width), 32 if _aligned(width) else 16)


def _streamed(dtype: torch.dtype, width: int, variant: Variant, architecture: int) -> bool:
    """Whether wide rows come by 128 bytes for tiles of 128 x 256 pairs: L2 bounds smaller ones."""
    few_numbers = variant.bounded and variant.power < 3
    tensor_cores = dtype.itemsize == 2 or (dtype == torch.float32 and variant.precision == "tf32")
    wide = width > 512 // dtype.itemsize
    return few_numbers and tensor_cores and wide and architecture >= 90 and _aligned(width)


def sums_tile(dtype: torch.dtype, width: int, variant: Variant, architecture: int) -> Tile:
    """Tile of `pair_sums_kernel` on an `architecture`."""
    roomy = architecture >= 90
    block = _block(width)
    if dtype == torch.float64:
        return Tile(32, 32, min(block, 32), 2, 8, 2)
    if _streamed(dtype, width, variant, architecture):
        return Tile(128, 256, 128 // dtype.itemsize, 16, 8, 3)  # each row is read once for 256 columns
    if dtype == torch.float32:  # IEEE products are made of registers
        columns = 64 if variant.light and variant.power < 3 and _aligned(width) else 32
        return Tile(64, columns, _ieee_features(width), 2, 8, 3)
    widest = 64 if not roomy else 256 if _aligned(width) else 128
    half_light = roomy and (variant.detach or variant.bounded)
    if variant.similarity and (variant.light or half_light) and block <= widest:
        if variant.bounded and variant.power < 3 and architecture >= 90 and _aligned(width):
            return Tile(128, 64, block, 8, 8, 2 if block <= 128 else 1, 128)
        return Tile(128, 64, block, 4 if variant.bounded else 2, 8, 3 if block <= 128 else 2)
    if block <= 128:
        return Tile(128, 32, block, 2, 8, 3)
    if variant.similarity and roomy and _aligned(width):
        return Tile(128, 64, 64, 4, 8, 3)
    return Tile(128 if _aligned(width) else 64, 32, 64, 2, 8, 3)  # the numbers of a pair leave no room for more


def held_tile(dtype: torch.dtype, width: int, variant: Variant, tau: bool, architecture: int) -> Tile | None:
    """Tile of `pair_gradient_kernel` for rows that stay in registers with their gradient; None for wider ones."""
    block = _block(width)
    light = variant.light and not tau
    widest = 64 if dtype == torch.float32 else 256 if _aligned(width) else 128
    if dtype == torch.float64 or block > widest:
        return None
    if dtype != torch.float32 and light and (block <= 128 or architecture >= 90):
        rows = 64 if block == 256 and architecture == 100 else 128
        return Tile(rows, 64, block, 4 if architecture >= 90 else 2, 8, 2)
    return Tile(32, 32, block, 2, 4, 2)  # the numbers of a pair leave no room for more


def matrix_tile(dtype: torch.dtype, width: int, variant: Variant, tau: bool, architecture: int) -> Tile:
    """Tile of `pair_gradient_kernel` where it writes W + W'."""
    block = _block(width)
    light = variant.light and not tau
    if dtype == torch.float64:
        return Tile(32, 32, min(block, 32), 2, 8, 2)
    if light and _streamed(dtype, width, variant, architecture):
        return Tile(128, 256, 128 // dtype.itemsize, 16, 8, 3)
    if dtype == torch.float32:
        if light and variant.brief and _aligned(width):
            return Tile(64, 64, 16, 2, 8, 3)
        return Tile(64, 32, _ieee_features(width), 2, 8, 3)
    large = light and (architecture >= 90 or _aligned(width))
    return Tile(128, 64, 64, 4, 8, 3) if large else Tile(64, 32, 64, 2, 8, 3)


def row_tile(width: int) -> dict[str, int]:
    """Constants and options of a kernel that normalises whole rows."""
    block = next_power_of_2(width)
    warps = min(16, max(4, block // 512))
    return {
        "BLOCK_N": min(64, max(1, 1024 // block)),
        "BLOCK_D": block,
        "num_warps": warps,
        "maxnreg": min(255, 2048 // warps),
    }
