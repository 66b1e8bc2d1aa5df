"""The focal contrastive loss of a batch that lies on several processes, with the exact gradient of the whole.

Every rank computes its own rows against those of all. Two all-gathers carry what it needs: rows with their labels, and
12 bytes of each row for the backward pass, which needs no collective then. Under ``torch.compile`` they are functional
collectives, without a graph break.
"""

import functools
import zlib
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from merc_kernels import focal_contrastive as _focal_contrastive
from merc_kernels._shared import backends, checks, torch_private
from merc_kernels._shared.options import described
from merc_kernels._shared.ordinary import ordinary
from merc_kernels.focal_contrastive import inputs, loss, operator, share, trial
from merc_kernels.focal_contrastive.options import FocalContrastiveOptions

__all__ = ["FocalContrastiveLoss", "focal_contrastive_loss"]

_Tensors = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
_FUSED = ("cpu", "cuda", "triton", "torch")


@described(FocalContrastiveOptions)
def focal_contrastive_loss(  # noqa: D417 - the options are described where they are defined
    embeddings: Tensor,
    labels: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    max_rows: int | None = None,
    max_refs: int | None = None,
    gather_refs: bool = True,
    temperature: float | Tensor = FocalContrastiveOptions.temperature,
    class_weights: Tensor | None = None,
    prototypes: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    backend: str | None = None,
    **options: Any,
) -> Tensor:
    """`merc_kernels.focal_contrastive_loss` of the rows of all ranks; every rank calls it, and gets the same value.

    The gradient is that of one process which holds all rows, once it is averaged over the ranks, as DDP and FSDP2 do:
    what is a rank's own, rows and refs, gets W times its gradient for W ranks; what all hold alike, prototypes, a
    temperature and refs that are not gathered, the whole gradient on each. Where gradients are summed instead, divide
    the loss by W. Without `torch.distributed` started, or in a group of one, it is the loss of one process.

    Args:
        embeddings: ``(N, D)`` or ``(G, N, D)``, a rank's own rows; N may be 0, and differ between ranks.
        labels: of these rows. No rank needs to have an anchor with a positive.
        group: the processes; None: all.
        max_rows: at least the N of every rank, and the same on all: nothing is asked then. None: the ranks are
            asked for theirs, which waits for the device; under ``torch.compile`` all N must then be the same.
        max_refs: the same of the rows of ``ref_embeddings``.
        gather_refs: the refs are each rank's own, as of two views; False: all hold the same, as of a memory bank that
            is filled alike everywhere.
        class_weights, prototypes: as in one process, the same on every rank.
        ref_embeddings, ref_labels: as in one process.
        **options: those of `FocalContrastiveOptions`, by keyword.
        backend: a fused one, or None; every rank must come to the same.

    Returns:
        A scalar, the loss of all rows.

    Raises:
        ValueError: as in one process; ``reduction="none"``; N above ``max_rows``; and on every rank, unless sizes are
            given, where the ranks' dtypes, sizes or options differ.
    """
    tensor, number = (temperature, 1.0) if isinstance(temperature, Tensor) else (None, temperature)
    tensors = (embeddings, labels, prototypes, ref_embeddings, ref_labels, class_weights, tensor)
    checked = FocalContrastiveOptions(temperature=number, **options)
    return _loss(tensors, checked, backend, _Ranks(group, max_rows, max_refs, gather_refs))


class FocalContrastiveLoss(_focal_contrastive.FocalContrastiveLoss):
    """The module of `focal_contrastive_loss`; see there, and `merc_kernels.FocalContrastiveLoss`.

    A temperature that is learned belongs to no rank: keep the module outside of DDP and FSDP2, or inside, as you like.

    Args:
        group: the processes; None: all.
        max_rows: at least the number of rows of every rank, and the same on all; None: the ranks are asked.
        max_refs: the same of the refs.
        gather_refs: the refs are each rank's own.
        **options: all that `merc_kernels.FocalContrastiveLoss` takes.
    """

    def __init__(
        self,
        *,
        group: dist.ProcessGroup | None = None,
        max_rows: int | None = None,
        max_refs: int | None = None,
        gather_refs: bool = True,
        temperature: float | nn.Parameter = FocalContrastiveOptions.temperature,
        **options: Any,
    ) -> None:
        super().__init__(temperature=temperature, **options)
        self.ranks = _Ranks(group, max_rows, max_refs, gather_refs)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        prototypes: Tensor | None = None,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of the rows of all ranks, of which ``embeddings`` ``(N, D)`` are this one's."""
        tensors = (embeddings, labels, prototypes, ref_embeddings, ref_labels, self.class_weights)
        return _loss((*tensors, self.learned_temperature), self.options, self.backend, self.ranks)


class _Ranks(NamedTuple):
    """Where the rows are: the group, the sizes that were given, and whether refs are gathered."""

    group: dist.ProcessGroup | None
    max_rows: int | None
    max_refs: int | None
    gather_refs: bool


def _loss(tensors: _Tensors, options: FocalContrastiveOptions, backend: str | None, ranks: _Ranks) -> Tensor:
    """The loss; of the temperatures the tensor counts, where it is there."""
    for name, size in (("max_rows", ranks.max_rows), ("max_refs", ranks.max_refs)):
        if size is not None:
            checks.integer(name, size)
    if options.reduction == "none":
        checks.fail("reduction", "'mean', 'batchmean' or 'sum' over several ranks", options.reduction)
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(ranks.group) == 1:
        return loss.loss_of(*tensors, options, backend)
    embeddings, labels, prototypes, refs, ref_labels, class_weights, temperature = checks.untyped(*tensors)
    tensors = (embeddings, labels, prototypes, refs, ref_labels, class_weights, temperature)
    backends.check(backend)
    if inputs.are_sets(labels):
        checks.fail("labels", "int64, a class for each row, over several ranks", labels)
    if not torch.compiler.is_compiling() and torch_private.transformed():
        raise RuntimeError("merc_kernels.distributed has no torch.func transforms and no forward-mode derivatives")
    torch_private.untraced(lambda: inputs.check(*tensors, options))
    rows, ref_rows = _sizes(tensors, options, ranks)

    embeddings, labels, prototypes, refs, ref_labels, class_weights, temperature = operator.typed(*tensors)
    classes = [x.shape[dim] for x, dim in ((prototypes, -2), (class_weights, 0)) if x is not None]
    if embeddings.dim() == 3:
        labels = labels.expand(embeddings.shape[:2])
    embeddings, labels = _padded(embeddings, labels, rows, classes, options)
    own = [(embeddings, labels)]
    if refs is not None and ref_labels is not None:
        refs, ref_labels = _padded(refs, ref_labels, ref_rows, classes, options)
        own += [(refs, ref_labels)] if ranks.gather_refs else []
    far = _far(own, ranks.group)
    columns = far[1:] if options.ref_only else far.copy()
    columns += [] if refs is None or ref_labels is None else [(refs.detach(), ref_labels)]
    if embeddings.dim() == 3:  # what the groups share, for each of them
        groups = embeddings.shape[0]
        columns = [(x.expand(groups, -1, -1), names.expand(groups, -1)) for x, names in columns]
    column, names = torch.cat([x for x, _ in columns], -2), torch.cat([x for _, x in columns], -1)

    def call() -> backends.Call:
        seen = (embeddings, labels, prototypes, column, names, class_weights, temperature)
        return trial.call(_focal_contrastive.focal_contrastive_loss, *seen, options)

    def chosen() -> str:
        return backends.choose(backend, "distributed focal_contrastive_loss", embeddings, call, _FUSED)

    name = torch_private.untraced(chosen)
    shared = share.Share(
        options=options,
        backend="torch" if name == "reference" else name,
        rank=dist.get_rank(ranks.group),
        ranks=dist.get_world_size(ranks.group),
        own_refs=ranks.gather_refs,
        gather=functools.partial(_all_gather, group=ranks.group),
    )
    given = ordinary(embeddings, labels, prototypes, refs, ref_labels, class_weights, temperature)
    return share.loss(given, far[0], (column, names), shared)


def _sizes(tensors: _Tensors, options: FocalContrastiveOptions, ranks: _Ranks) -> tuple[int, int]:
    """Rows and refs that every rank sends: as many as were given, or as the rank with the most has."""
    embeddings, _, prototypes, refs, _, class_weights, temperature = tensors
    rows, ref_rows = embeddings.shape[-2], 0 if refs is None else refs.shape[-2]
    most_rows, most_refs = ranks.max_rows, ranks.max_refs
    if refs is None or not ranks.gather_refs:
        most_refs = ref_rows
    if (most_rows is None or most_refs is None) and not torch.compiler.is_compiling():
        shapes = [
            None if x is None else (x.dtype, *x.shape[:-2], *x.shape[-1:])
            for x in (embeddings, refs, prototypes, class_weights, temperature)
        ]
        alike = zlib.crc32(repr((shapes, options, ranks.gather_refs)).encode())
        told = _all_gather(torch.tensor([alike, rows, ref_rows], device=embeddings.device), ranks.group).tolist()
        if any(other != alike for other, _, _ in told):
            raise ValueError("dtypes, widths or options: expected the same on every rank")
        most_rows = max(x for _, x, _ in told) if most_rows is None else most_rows
        most_refs = max(x for _, _, x in told) if most_refs is None else most_refs
    for name, given, count in (("max_rows", most_rows, rows), ("max_refs", most_refs, ref_rows)):
        if given is not None and given < count:
            checks.fail(name, f"at least the {count} of this rank", given)
    return rows if most_rows is None else most_rows, ref_rows if most_refs is None else most_refs


def _padded(
    x: Tensor, labels: Tensor, rows: int, classes: list[int], options: FocalContrastiveOptions
) -> tuple[Tensor, Tensor]:
    """With rows that are ignored at the end; a label that is none of the classes, where they are known, is ignored."""
    if classes:
        labels = labels.masked_fill((labels < 0) | (labels >= classes[0]), options.ignore_index)
    lacking = rows - x.shape[-2]
    if lacking == 0:
        return x, labels
    return F.pad(x, (0, 0, 0, lacking)), F.pad(labels, (0, lacking), value=options.ignore_index)


def _far(own: list[tuple[Tensor, Tensor]], group: dist.ProcessGroup | None) -> list[tuple[Tensor, Tensor]]:
    """Rows and labels of the other ranks, one after the other, in one all-gather of bytes."""
    sent = [(labels, labels.dim() - 1) for _, labels in own] + [(x, x.dim() - 2) for x, _ in own]
    data = [x.detach().contiguous().flatten().view(torch.uint8) for x, _ in sent]
    far: list[Tensor] = []
    rank, first = dist.get_rank(group), 0
    gathered = _all_gather(torch.cat(data), group)
    for (x, place_of_rows), part in zip(sent, data, strict=True):
        others = gathered[:, first : first + len(part)]
        others = torch.cat((others[:rank], others[rank + 1 :])).flatten().view(x.dtype)
        others = others.view(len(gathered) - 1, *x.shape)
        far.append(others.movedim(0, place_of_rows).flatten(place_of_rows, place_of_rows + 1))
        first += len(part)
    return list(zip(far[len(own) :], far[: len(own)], strict=True))


def _all_gather(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """(n,) of each rank → (W, n)."""
    ranks = dist.get_world_size(group)
    result = x.new_empty(ranks * len(x))
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # before torch 2.13
    gather(result, x, group=group)
    return result.view(ranks, -1)
