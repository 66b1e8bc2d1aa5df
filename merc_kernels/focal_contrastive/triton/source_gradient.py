# Triton ships no types, where it is installed at all:
# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-call"
"""The gradient of one source of rows, from all columns that its rows meet: in registers, or by strips of W + W'.

Narrow rows stay in registers with their gradient (`held_tile`). Wider ones have W + W' written strip by strip, and the
vendor's matrix product multiplies it by Z: the scores are then computed once, whatever the width.
"""

import itertools
import math

import torch
from torch import Tensor

from merc_kernels._shared.triton.integers import cdiv
from merc_kernels.focal_contrastive.triton.call import Call, Source, length, row_programs, splits_of
from merc_kernels.focal_contrastive.triton.configuration import held_tile, matrix_tile, row_tile
from merc_kernels.focal_contrastive.triton.gradient import pair_gradient_kernel
from merc_kernels.focal_contrastive.triton.pack import unpack_kernel

_STRIP_BYTES = 1 << 28  # of W + W' at a time: thousands of rows, to fill the chip with one matrix product


def source_gradient(
    call: Call,
    source: Source,
    z: Tensor,
    norms: Tensor,
    index: Tensor,
    scaled_stats: Tensor,
    matrix_scale: Tensor | None,
    result: Tensor | None,
    taus: list[Tensor] | None,
) -> None:
    """Fills the gradient of a source, where wanted, and adds to ``taus``."""
    # An anchor meets the candidates, a candidate the anchors.
    first = 0 if source.first >= call.first_candidate else call.first_candidate
    columns = (call.total if source.first < call.anchors else call.anchors) - first
    question = (call.packed_dtype, call.width, call.variant, taus is not None, call.architecture)
    in_registers = held_tile(*question)
    tile = in_registers or matrix_tile(*question)
    block = max(tile.rows, tile.columns)

    def launch(
        out: Tensor | None, row: int, rows: int, group: int, groups: int, splits: int, tiles: int, half: bool = False
    ) -> None:
        row_blocks = cdiv(rows, block) * (block // tile.rows) if half else cdiv(rows, tile.rows)
        programs = groups * row_blocks * splits
        tau = None
        if taus is not None:
            tau = z.new_empty((programs,), dtype=call.dtype)
            taus.append(tau)
        pair_gradient_kernel[(programs,)](
            out,
            tau,
            z,
            index,
            scaled_stats,
            z,
            index,
            scaled_stats,
            call.temperature,
            matrix_scale,
            rows,
            source.first + row,
            call.total,
            columns,
            first,
            call.total,
            group,
            groups,
            splits,
            length(tiles, call.device),
            length(cdiv(call.width, tile.width), call.device),
            call.width,
            call.floats,
            SIMILARITY=call.variant.similarity,
            MATRIX=in_registers is None,
            SYMMETRIC=half,
            WHOLE=call.width <= tile.width,
            SORTED=call.sorted,
            **tile.options(),
            **call.variant.constants(),
        )

    whole = (call.groups, source.rows, call.width)
    if columns == 0:
        if result is not None:
            _unpack(call, source, result, z.new_zeros((1, *whole), dtype=call.dtype), norms, index, matrix_scale, 0, 0)
        return
    if in_registers:
        blocks = call.groups * cdiv(source.rows, tile.rows)
        splits, tiles = splits_of(blocks, columns, tile, call.device)
        dz = None if result is None else z.new_empty((splits, *whole), dtype=call.dtype)
        launch(dz, 0, source.rows, 0, call.groups, splits, tiles)
        if result is not None and dz is not None:
            _unpack(call, source, result, dz, norms, index, matrix_scale, 0, 0)
        return
    stride = cdiv(columns, block) * block  # of a row of the matrix, which is whole blocks
    fitting = max(128, _STRIP_BYTES // (stride * z.itemsize))  # rows of a strip
    groups, rows = min(call.groups, max(1, fitting // source.rows)), min(source.rows, fitting // 128 * 128)
    half = call.alone and call.variant.brief and taus is None and rows == source.rows
    splits = stride // tile.columns
    if half:  # each block meets itself and the half of the others that follows
        splits = (cdiv(columns, block) // 2 + 1) * (block // tile.columns)
    shared = source.x.dim() == 2  # by the groups: a row is unpacked once all of them are there
    matrix = dz = None
    if result is not None:
        matrix = z.new_empty((groups * rows * stride,))
        dz = z.new_empty(((call.groups if shared else groups) * rows * call.width,), dtype=call.dtype)
    for row, group in itertools.product(range(0, source.rows, rows), range(0, call.groups, groups)):
        count, some = min(rows, source.rows - row), min(groups, call.groups - group)
        strip = None if matrix is None else _front(matrix, some, count, stride)
        launch(strip, row, count, group, some, splits, 1, half)
        if result is None or strip is None or dz is None:
            continue
        gradient = _front(dz, call.groups if shared else some, count, call.width)
        factor = z[group : group + some, first : first + columns]
        _product(strip[..., :columns], factor, gradient[group : group + some] if shared else gradient)
        if not shared or group + some == call.groups:
            _unpack(call, source, result, gradient[None], norms, index, matrix_scale, row, 0 if shared else group)


def _front(memory: Tensor, *shape: int) -> Tensor:
    """The beginning of it in this shape."""
    return memory[: math.prod(shape)].view(shape)


def _product(matrix: Tensor, z: Tensor, out: Tensor) -> None:
    with torch.autocast(matrix.device.type, enabled=False):  # a backward pass may run inside it
        if matrix.dtype == out.dtype:
            torch.bmm(matrix, z, out=out)
        elif matrix.device.type == "cuda":
            torch.bmm(matrix, z, out_dtype=out.dtype, out=out)  # sums in 16 bits nowhere
        else:
            torch.bmm(matrix.to(out.dtype), z.to(out.dtype), out=out)


def _unpack(
    call: Call,
    source: Source,
    result: Tensor,
    dz: Tensor,
    norms: Tensor,
    index: Tensor,
    matrix_scale: Tensor | None,
    row: int,
    group: int,
) -> None:
    """The gradient of some rows of a source, from ``row`` and ``group`` on: as many as ``dz`` (splits, G, rows, D)."""
    splits, groups, rows, _ = dz.shape
    tile = row_tile(call.width)
    shared = source.x.dim() == 2
    unpack_kernel[row_programs(rows, tile["BLOCK_N"], 1 if shared else groups)](
        result,
        dz,
        source.x,
        norms,
        index,
        call.temperature,
        matrix_scale,
        *source.strides(),
        rows,
        row,
        source.rows,
        source.first,
        call.total,
        group,
        groups,
        splits,
        call.width,
        call.floats,
        SHARED=shared,
        SORTED=call.sorted,
        NORMALIZE=call.options.normalize,
        **tile,
    )
