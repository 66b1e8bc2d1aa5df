"""The focal contrastive loss of a batch that lies on several processes, with the exact gradient of the whole.

Every rank computes its own rows against those of all. Two all-gathers carry what it needs: rows with their labels, and
12 bytes of each row for the backward pass, which needs no collective then. Under ``torch.compile`` they are functional
collectives, without a graph break.
"""

import functools
import zlib
from typing import Any

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
    return _loss(tensors, checked, backend, group, (max_rows, max_refs), gather_refs)


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
        self.group, self.max_rows, self.max_refs, self.gather_refs = group, max_rows, max_refs, gather_refs

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
        sizes = (self.max_rows, self.max_refs)
        return _loss(
            (*tensors, self.learned_temperature), self.options, self.backend, self.group, sizes, self.gather_refs
        )


def _loss(
    tensors: tuple[Any, ...],
    options: FocalContrastiveOptions,
    backend: str | None,
    group: dist.ProcessGroup | None,
    sizes: tuple[int | None, int | None],
    gather_refs: bool,
) -> Tensor:
    """The loss; of the temperatures the tensor counts, where it is there."""
    if options.reduction == "none":
        checks.fail("reduction", "'mean', 'batchmean' or 'sum' over several ranks", options.reduction)
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return loss.loss_of(*tensors, options, backend)
    tensors = checks.untyped(*tensors)
    torch_private.untraced(lambda: inputs.check(*tensors, options))
    rows, refs = _sizes(tensors, options, group, sizes, gather_refs)
    embeddings, labels, prototypes, ref_embeddings, ref_labels, weights, temperature = operator.typed(*tensors)
    labels, ref_labels = (_known(x, prototypes, weights, options) for x in (labels, ref_labels))
    if embeddings.dim() == 3:
        labels = labels.expand(embeddings.shape[:2])
    embeddings, labels = _padded(embeddings, labels, rows, options)
    if gather_refs and ref_embeddings is not None:
        ref_embeddings, ref_labels = _padded(ref_embeddings, ref_labels, refs, options)
    tensors = embeddings, labels, prototypes, ref_embeddings, ref_labels, weights, temperature
    if torch.is_grad_enabled():
        tensors = ordinary(*tensors)
        embeddings, labels, prototypes, ref_embeddings, ref_labels, weights, temperature = tensors

    own = [(embeddings, labels)] + (
        [(ref_embeddings, ref_labels)] if gather_refs and ref_embeddings is not None else []
    )
    far = _far(own, group)
    columns = ([] if options.ref_only else far[:1]) + far[1:]
    columns += [] if ref_embeddings is None else [(ref_embeddings, ref_labels)]
    if embeddings.dim() == 3:  # what the groups share, for each of them
        groups = embeddings.shape[0]
        columns = [(x.expand(groups, -1, -1), names.expand(groups, -1)) for x, names in columns]
    every, names = torch.cat([x.detach() for x, _ in columns], -2), torch.cat([x for _, x in columns], -1)

    def chosen() -> str:
        checks_of = (embeddings, labels, prototypes, every, names, weights, temperature)
        call = lambda: trial.call(_focal_contrastive.focal_contrastive_loss, *checks_of, options)  # noqa: E731
        return backends.choose(backend, "distributed focal_contrastive_loss", embeddings, call, _FUSED)

    if not torch.compiler.is_compiling() and torch_private.transformed():
        raise RuntimeError("merc_kernels.distributed has no torch.func transforms and no forward-mode derivatives")
    name = torch_private.untraced(chosen)
    rest = share.Share(
        options,
        "torch" if name == "reference" else name,
        dist.get_rank(group),
        dist.get_world_size(group),
        gather_refs,
        functools.partial(_all_gather, group=group),
    )
    return share.loss(*tensors, far[0], (every, names), rest)


def _sizes(
    tensors: tuple[Any, ...],
    options: FocalContrastiveOptions,
    group: dist.ProcessGroup | None,
    given: tuple[int | None, int | None],
    gather_refs: bool,
) -> tuple[int, int]:
    """The rows, and refs, that every rank sends: those given, or the most that a rank has."""
    embeddings, _, prototypes, refs, *_ = tensors
    own = [embeddings.shape[-2], 0 if refs is None or not gather_refs else refs.shape[-2]]
    if not torch.compiler.is_compiling() and any(
        size is None and x for size, x in zip(given, (1, own[1]), strict=True)
    ):
        shapes = [None if x is None else (x.dtype, x.shape[:-2], x.shape[-1]) for x in (embeddings, refs)]
        alike = repr((shapes, None if prototypes is None else prototypes.shape, options.numbers, gather_refs))
        told = torch.tensor([*own, zlib.crc32(alike.encode())], device=embeddings.device)
        asked = _all_gather(told, group).tolist()
        if len({signature for *_, signature in asked}) > 1:
            raise ValueError("dtypes, widths, prototypes or options: expected the same on every rank")
        given = tuple(max(x) if size is None else size for size, *x in zip(given, *[r[:2] for r in asked], strict=True))
    sizes = []
    for name, size, count in zip(("max_rows", "max_refs"), given, own, strict=True):
        if size is not None and (size < count or isinstance(size, bool)):
            checks.fail(name, f"at least the {count} of this rank", size)
        sizes.append(count if size is None else size)
    return sizes[0], sizes[1]


def _known(
    labels: Tensor | None, prototypes: Tensor | None, class_weights: Tensor | None, options: FocalContrastiveOptions
) -> Tensor | None:
    """The labels, ignore_index where they are none of the classes (if those are known)."""
    classes = [x.shape[dim] for x, dim in ((prototypes, -2), (class_weights, 0)) if x is not None]
    if labels is None or not classes:
        return labels
    return labels.masked_fill((labels < 0) | (labels >= classes[0]), options.ignore_index)


def _padded(x: Tensor, labels: Tensor, rows: int, options: FocalContrastiveOptions) -> tuple[Tensor, Tensor]:
    """With rows that are ignored at the end."""
    lacking = rows - x.shape[-2]
    if lacking == 0:
        return x, labels
    return F.pad(x, (0, 0, 0, lacking)), F.pad(labels, (0, lacking), value=options.ignore_index)


def _far(own: list[tuple[Tensor, Tensor]], group: dist.ProcessGroup | None) -> list[tuple[Tensor, Tensor]]:
    """Rows and labels of the other ranks, one after the other, in one all-gather of bytes."""
    sent = [labels for _, labels in own] + [x for x, _ in own]  # what takes eight bytes first
    data = [x.detach().contiguous().flatten().view(torch.uint8) for x in sent]
    rank = dist.get_rank(group)
    parts = _all_gather(torch.cat(data), group).split([len(x) for x in data], 1)
    far = []
    for x, part in zip(sent, parts, strict=True):
        others = torch.cat((part[:rank], part[rank + 1 :]))  # [W - 1, bytes]
        at = x.dim() - (1 if len(far) < len(own) else 2)  # of the rows
        far.append(others.view(x.dtype).view(-1, *x.shape).movedim(0, at).flatten(at, at + 1))
    return list(zip(far[len(own) :], far[: len(own)], strict=True))


def _all_gather(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """(n,) of each rank → (W, n)."""
    ranks = dist.get_world_size(group)
    result = x.new_empty(ranks * len(x))
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # before torch 2.13
    gather(result, x, group=group)
    return result.view(ranks, -1)
