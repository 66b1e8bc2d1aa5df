# Triton ships no types, where it is installed at all:
# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-call"
r"""The focal contrastive loss in Triton: the operators, made of the kernels beside this file.

Forward: the order of rows (two launches) and pack, or pack and rank; sums over pairs (for probability a second sweep,
over what L weighs), finish, reduce. Backward: the scaled statistics of a row, and then for each wanted source its
gradient.

A float32 product is what torch.matmul would make of it: tf32 where torch.backends.cuda.matmul allows it, else IEEE.
Tensor cores cut a float32 factor to tf32: z and W + W' are rounded to it before.
A new number of rows compiles nothing, but where it passes one of configuration.py from which rows are sorted or pairs
halved: tiles depend on the dtype and on the width alone. Columns are split among more programs where the rows alone
would leave processors idle.
"""

import torch
from torch import Tensor

from merc_kernels._shared.triton.integers import cdiv
from merc_kernels._shared.triton.reduction import REDUCE_BLOCK, REDUCE_WARPS, reduce_kernel
from merc_kernels.focal_contrastive.options import FocalContrastiveOptions
from merc_kernels.focal_contrastive.triton.call import Call, length, row_programs, splits_of
from merc_kernels.focal_contrastive.triton.configuration import (
    MOST_HALVED,
    ROW_BLOCK,
    SLOT_BLOCK,
    SLOTS,
    row_tile,
    sums_tile,
)
from merc_kernels.focal_contrastive.triton.order import rank, sort
from merc_kernels.focal_contrastive.triton.pack import pack_kernel
from merc_kernels.focal_contrastive.triton.source_gradient import source_gradient
from merc_kernels.focal_contrastive.triton.stats import finish_kernel, scaled_stats_kernel
from merc_kernels.focal_contrastive.triton.sums import BOTH, LSE, TERMS, pair_sums_kernel

_FLOAT16_TOP = 1024.0  # largest a (1 + G) in float16: a 32nd of what it holds, and 2^-34 of it is not yet 0


def forward(
    embeddings: Tensor,
    labels: Tensor,
    prototypes: Tensor | None,
    refs: Tensor | None,
    ref_labels: Tensor | None,
    class_weights: Tensor | None,
    temperature: Tensor | None,
    options: FocalContrastiveOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator ``merc::focal_contrastive`` of csrc/library.cpp.

    Returns: loss; divisor; z (G, T, D); norms (G, T); stats (G, T, 4); index (G, T), labels of the packed rows that
        fit 32 bits, -1 where they are not kept.
    """
    labels = labels.contiguous()
    call = Call((embeddings, prototypes, refs), (labels, ref_labels), temperature, options)
    z = embeddings.new_empty((call.groups, call.total, call.width), dtype=call.packed_dtype)
    norms = z.new_empty((call.groups, call.total), dtype=call.dtype)
    index = labels.new_empty((call.groups, call.total))
    stats = z.new_empty((call.groups, call.total, 4), dtype=call.dtype)
    loss = z.new_empty(embeddings.shape[:-1] if options.reduction == "none" else (), dtype=call.dtype)
    divisor = z.new_ones((), dtype=call.dtype)
    if call.groups * call.total == 0:
        return loss.zero_(), divisor, z, norms, stats, index
    classes = -1
    for known in (prototypes, None if class_weights is None else class_weights[:, None]):
        classes = classes if known is None else known.shape[-2]

    names = index if classes >= 0 or call.sorted else torch.empty_like(index)
    with torch.cuda.device_of(z):
        if call.sorted:
            sort(call, index, labels, classes)
        tile = row_tile(call.width)
        for source in call.sources:
            if source is not None and source.rows > 0:
                pack_kernel[row_programs(source.rows, tile["BLOCK_N"], call.groups)](
                    z,
                    norms,
                    names,
                    source.x,
                    source.labels,
                    *source.strides(),
                    source.rows if source.labels is not None and source.labels.dim() == 2 else 0,
                    source.rows,
                    source.first,
                    call.total,
                    call.width,
                    classes,
                    options.ignore_index,
                    NORMALIZE=options.normalize,
                    SORTED=call.sorted,
                    PRECISION=call.variant.precision,
                    **tile,
                )
        if classes < 0 and not call.sorted:
            rank(call, index, names)
        partial, *kept = _sums(call, z, index)
        rows = SLOT_BLOCK if call.variant.bounded else ROW_BLOCK
        programs = row_programs(call.total, rows, call.groups)
        parts = loss if options.reduction == "none" else z.new_empty((2, *programs), dtype=call.dtype)
        finish_kernel[programs](
            stats,
            parts,
            partial,
            index,
            labels,
            class_weights,
            call.anchors,
            call.total,
            call.groups,
            *kept,
            SIMILARITY=call.variant.similarity,
            BOUNDED=call.variant.bounded,
            PARTIAL=options.reduction != "none",
            KEPT=options.reduction == "batchmean",
            SORTED=call.sorted,
            BLOCK=rows,
            SLOTS=SLOTS,
        )
        if options.reduction != "none":
            counts = options.reduction in ("mean", "batchmean")
            reduce_kernel[(1,)](
                loss, divisor, parts, *programs, 1, COUNTS=counts, BLOCK=REDUCE_BLOCK, num_warps=REDUCE_WARPS
            )
    return loss, divisor, z, norms, stats, index


def _sums(call: Call, z: Tensor, index: Tensor) -> tuple[Tensor, int, int, int]:
    """Partial sums over the pairs, by who kept them; splits, all who did, and the rows of a block of them."""
    tile = sums_tile(call.packed_dtype, call.width, call.variant, call.architecture)
    columns, row_blocks = call.total - call.first_candidate, cdiv(call.anchors, tile.rows)
    planes, size = 4 if call.variant.bounded else 5, call.groups * call.anchors
    ahead = row_blocks // 2
    half = call.symmetric and ahead * planes * size * call.dtype.itemsize <= MOST_HALVED
    met = (ahead + 1) * tile.rows if half else columns
    splits, tiles = splits_of(call.groups * row_blocks, met, tile, call.device)
    slots = splits + ahead if half else splits
    partial = z.new_empty((slots, planes, size), dtype=call.dtype)
    sums = (partial, splits, slots, tile.rows)
    if partial.numel() == 0:
        return sums
    for step in (BOTH,) if call.variant.similarity else (LSE, TERMS):
        pair_sums_kernel[(call.groups * row_blocks * splits,)](
            partial,
            z,
            index,
            z,
            index,
            call.temperature,
            call.anchors,
            0,
            call.total,
            columns,
            call.first_candidate,
            call.total,
            call.groups,
            splits,
            length(tiles, call.device),
            length(cdiv(call.width, tile.width), call.device),
            call.width,
            call.floats,
            STEP=step,
            WHOLE=call.width <= tile.width,
            SORTED=call.sorted,
            SYMMETRIC=half,
            **tile.options(),
            **call.variant.constants(),
        )
    return sums


def backward(
    grad: Tensor,
    divisor: Tensor,
    z: Tensor,
    norms: Tensor,
    stats: Tensor,
    index: Tensor,
    embeddings: Tensor,
    prototypes: Tensor | None,
    refs: Tensor | None,
    temperature: Tensor | None,
    options: FocalContrastiveOptions,
    wanted: tuple[bool, bool, bool, bool],
    all_anchors: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator ``merc::focal_contrastive_backward`` of csrc/library.cpp; what is not wanted has shape (0,)."""
    call = Call((embeddings, prototypes, refs), (None, None), temperature, options)
    if all_anchors:
        call.anchors = call.total
    *sources_wanted, temperature_wanted = wanted
    results = []
    for source, yes in zip(call.sources, sources_wanted, strict=True):
        if source is None:
            results.append(z.new_empty((0,), dtype=call.dtype))
        else:
            results.append(source.x.new_empty(source.x.shape if yes else (0,)))
    dtau = z.new_zeros(() if temperature_wanted else (0,), dtype=call.dtype)
    if call.groups * call.total == 0 or not any(wanted):
        return results[0].zero_(), results[1].zero_(), results[2].zero_(), dtau

    with torch.cuda.device_of(z):
        scaled_stats = z.new_empty((call.groups, 4, call.total), dtype=call.dtype)
        grad = grad.contiguous()
        scaled_stats_kernel[row_programs(call.total, ROW_BLOCK, call.groups)](
            scaled_stats,
            stats,
            index,
            grad,
            divisor,
            *((0, 0) if grad.dim() == 0 else (call.rows, 1)),
            call.total,
            BOUNDED=call.variant.bounded,
            SORTED=call.sorted,
            BLOCK=ROW_BLOCK,
        )
        matrix_scale = None
        if z.dtype == torch.float16:  # a ~ 1 / (N |P|) would be lost in it
            slopes = stats[:, index[0] >> 32, 1] if call.sorted else stats[..., 1]
            largest = (scaled_stats[:, 3] * (1 + slopes)).abs().amax()
            matrix_scale = torch.where(largest > 0, _FLOAT16_TOP / largest, 1)
        taus: list[Tensor] = []
        for source, result in zip(call.sources, results, strict=True):
            of_tau = temperature_wanted and source is not None and source.first < call.anchors
            if source is None or source.rows == 0 or not (result.numel() or of_tau):
                continue
            out = result if result.numel() else None
            source_gradient(call, source, z, norms, index, scaled_stats, matrix_scale, out, taus if of_tau else None)
        if taus:
            dtau = torch.cat(taus).sum(dtype=torch.float64).to(call.dtype)
    return results[0], results[1], results[2], dtau
