"""Tiles of the divergence's kernels in Triton, and how many programs are at work."""

from typing import NamedTuple

import torch

from merc_kernels._shared.triton.integers import cdiv, next_power_of_2

_REGISTERS = 65536  # of a processor
_LEAST = (4, 5)  # of the processors: fewer would compute less than memory reads


class Chip(NamedTuple):
    """What the launches look at."""

    processors: int
    l2: int  # bytes


def chip(device: torch.device) -> Chip:
    """Of a GPU; in the interpreter so small that rows share a program."""
    if device.type != "cuda":
        return Chip(1, 1 << 16)
    properties = torch.cuda.get_device_properties(device)
    return Chip(properties.multi_processor_count, properties.L2_cache_size)


class Blocks(NamedTuple):
    """A program's tile, and its warps."""

    rows: int
    classes: int
    warps: int
    registers: int | None = None  # most a thread: said where ptxas, left alone, spills a few for more programs at once
    lanes: int = 1  # that hold sums of their own; 1 where a tile holds whole rows


def blocks(classes: int, accumulate: torch.dtype, backward: bool) -> Blocks:
    """The tile of a width: whole rows while they fit; in the forward pass wider ones have `wide_blocks`."""
    double = accumulate == torch.float64  # two registers a number, and many more within its exponentials
    block = min(max(8, next_power_of_2(classes)), widest(accumulate) // (2 if backward else 1))
    # Narrow rows share a program, or its threads would idle. Where rows are not aligned, each of a thread's elements
    # is in a row of its own, whose numbers it holds: few a thread.
    rows = (256 if double else 512) // block if block < 256 else 1
    return Blocks(rows, block, 4 if block <= 1024 else 8 if block <= 2048 else 16, 255 if double else None)


def widest(accumulate: torch.dtype) -> int:
    """Most classes in a tile of the forward pass; in the backward pass, for its two gradients, half as many."""
    return 1024 if accumulate == torch.float64 else 4096


def wide_blocks(classes: int, accumulate: torch.dtype, narrowest: int, plain: bool, aligned: bool) -> Blocks:
    """The same where a program sweeps a row of many tiles, each of its threads with sums of its own.

    Where they are ``aligned``, it loads 16 bytes at once of the logits that have the ``narrowest`` type (its bytes);
    ``plain`` is the forward direction without cross entropy.
    """
    double = accumulate == torch.float64
    lean = plain and aligned  # of few registers: more warps
    warps = 8 if double or classes <= 1 << 14 else 16 if classes <= 1 << 16 or not lean else 32
    warps_at_work = 8 if double else 32 if lean else 16
    part = max(4, 16 // narrowest) if aligned else 4
    registers = min(255, _REGISTERS // 32 // warps_at_work)
    return Blocks(1, 32 * warps * part, warps, registers, 32 * warps)


def at_work(rows: int, row_bytes: int, of: Blocks, on: Chip) -> int:
    """How many programs share the wide rows: as many as run at a time, and whose rows stay in L2 until read again."""
    part, whole = _LEAST
    resident = max(1, _REGISTERS // (32 * of.warps * (of.registers or 255)))
    most = min(max(1, on.l2 // row_bytes, on.processors * part // whole), on.processors * resident)
    return cdiv(rows, cdiv(rows, most))  # as few as take as many turns
