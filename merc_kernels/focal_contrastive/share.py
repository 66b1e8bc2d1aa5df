r"""One rank's share of the focal contrastive loss of rows that lie on several ranks: its rows against all columns.

    forward:   L, G of the rank's anchors against all candidates;  (m, G, L - m) of all anchors are gathered
    backward:  dz_i = sum_j (W_ij + W_ji) z_j / tau for the rank's rows i and all rows j,  a_j = w / |P(j)| from labels

W ranks; of a rank R rows and M refs, in all R' = W R rows. Each computes R x R' pairs, and keeps rows, never a matrix.
What lies on one rank, rows and refs, gets W times its gradient, for the ranks' mean; what all hold, prototypes and
temperature, gets the whole gradient on each of them, which the mean leaves as it is.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from merc_kernels.focal_contrastive.operator import passes
from merc_kernels.focal_contrastive.options import FocalContrastiveOptions


class Share(NamedTuple):
    """What is no tensor.

    Attributes:
        options: of the loss; of its reductions not ``"none"``.
        backend: the same on all ranks.
        rank: of this process in the group.
        ranks: W.
        own_refs: whether the refs are the rank's own, not the same on all ranks.
        gather: (n,) of each rank → (W, n).
    """

    options: FocalContrastiveOptions
    backend: str
    rank: int
    ranks: int
    own_refs: bool
    gather: Callable[[Tensor], Tensor]

    @property
    def own_options(self) -> FocalContrastiveOptions:
        """Of the rank's own pairs: what prototypes add as anchors is the first rank's to compute."""
        anchors = self.options.prototype_anchors and self.rank == 0
        return replace(self.options, prototype_anchors=anchors, reduction="sum")


def loss(
    tensors: tuple[Tensor | None, ...], far: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor], share: Share
) -> Tensor:
    """The loss of all rows, the same on every rank.

    Args:
        tensors: this rank's, in the operator's order, as it takes them; a label out of range is ignore_index already.
        far: the rows of the other ranks in their order, and their labels.
        columns: what the own rows meet beside themselves, with labels: ``far`` and all refs, or all refs alone.
        share: the rest.
    """
    embeddings, labels, prototypes, refs, ref_labels, class_weights, temperature = tensors
    given = (embeddings, labels, prototypes, *columns, class_weights, temperature, refs, ref_labels, *far)
    result: Tensor = _Share.apply(*given, share)  # type: ignore[no-untyped-call]
    return result


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        labels: Tensor,
        prototypes: Tensor | None,
        columns: Tensor,
        column_labels: Tensor,
        class_weights: Tensor | None,
        temperature: Tensor | None,
        refs: Tensor | None,
        ref_labels: Tensor | None,
        far_embeddings: Tensor,
        far_labels: Tensor,
        share: Share,
    ) -> Tensor:
        options, mine = share.options, share.own_options.numbers
        run, back = passes(share.backend)
        tensors = (embeddings, labels, prototypes, columns, column_labels, class_weights, temperature)
        total, one, z, norms, stats, index = run(*tensors, *mine)
        slope = torch.zeros_like(total)
        if temperature is not None and ctx.needs_input_grad[6]:
            kept = (one, one, z, norms, stats, index, embeddings, prototypes, columns, temperature)
            slope = back(*kept, *mine[:-1], False, False, False, True, False)[3]

        # The second gather: 12 bytes of each anchor, and two sums.
        rows, groups, classes = embeddings.shape[-2], stats.shape[0], 0
        if prototypes is not None and options.prototype_anchors:
            classes = prototypes.shape[-2]
        numbers = torch.cat((stats[..., :2], stats[..., 3:]), -1)[:, : rows + classes]  # m, G, L - m
        gathered = share.gather(torch.cat((numbers.flatten(), torch.stack((total, slope)))))
        total, slope = gathered[:, -2:].sum(0).unbind()
        numbers = gathered[:, :-2].view(share.ranks, groups, rows + classes, 3)
        far = torch.cat((numbers[: share.rank, :, :rows], numbers[share.rank + 1 :, :, :rows]))
        far = far.transpose(0, 1).flatten(1, 2)  # [G, (W - 1) R, 3]
        numbers = torch.cat((numbers[share.rank, :, :rows], numbers[0, :, rows:], far), 1)  # own, prototypes, far

        def of_groups(*parts: Tensor) -> Tensor:
            return torch.cat([x.expand(groups, -1) for x in parts], -1)

        prototype_labels = torch.arange(0 if prototypes is None else prototypes.shape[-2], device=labels.device)
        names = of_groups(labels, prototype_labels[:classes], far_labels)  # [G, R + C + (W - 1) R]
        own = () if options.ref_only else (labels, prototype_labels)
        a = _weights(numbers[..., 0], names, of_groups(*own, column_labels), class_weights, options)
        m, g, log_sum = numbers.unbind(-1)
        anchors = torch.stack((m, g, a, log_sum), -1)

        divisor = torch.ones_like(total)
        if options.reduction == "mean":
            divisor = (m < torch.inf).sum().clamp(min=1).to(total.dtype)
        elif options.reduction == "batchmean":
            divisor = (names != options.ignore_index).sum().clamp(min=1).to(total.dtype)
        ctx.share, ctx.classes = share, classes
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            *(divisor, slope, z, norms, index, stats, anchors, names, embeddings, prototypes, columns),
            *(class_weights, temperature, refs, ref_labels, far_embeddings),
        )
        return total / divisor

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        results: list[Tensor | None] = [None] * 12
        if grad is None:
            return tuple(results)
        share: Share = ctx.share
        options = share.options
        divisor, slope, z, norms, index, stats, anchors, names, embeddings, prototypes, columns, *others = (
            ctx.saved_tensors
        )
        class_weights, temperature, refs, ref_labels, far_embeddings = others
        of_rows, _, of_prototypes, *_, of_temperature, of_refs = ctx.needs_input_grad[:8]
        grad = grad.contiguous()
        rows = embeddings.shape[-2]
        run, back = passes(share.backend)

        if of_rows or of_prototypes:
            if not options.ref_only:  # every row is an anchor, with what was gathered of it
                first = rows + (0 if prototypes is None else prototypes.shape[-2])
                near = rows + ctx.classes
                last = first + anchors.shape[1] - near
                stats = torch.cat((anchors[:, :near], stats[:, near:first], anchors[:, near:], stats[:, last:]), 1)
            kept = (grad, divisor, z, norms, stats, index, embeddings, prototypes, columns, temperature)
            wanted = (of_rows, of_prototypes, False, False)
            made = back(*kept, *share.own_options.numbers[:-1], *wanted, not options.ref_only)
            results[0] = made[0] * share.ranks if of_rows else None
            results[2] = made[1] if of_prototypes else None
        if of_refs:  # as candidates of all anchors
            every = [embeddings] + ([prototypes] if ctx.classes else []) + [far_embeddings]
            every = [x.expand(*embeddings.shape[:-2], -1, -1).to(far_embeddings.dtype) for x in every]
            pairs = replace(options, ref_only=True, prototype_anchors=False, reduction="sum")
            vectors = torch.cat(every, -2)
            given = (vectors, names.view(vectors.shape[:-1]), None, refs, ref_labels, class_weights, temperature)
            _, _, z, norms, stats, index = run(*given, *pairs.numbers)
            stats = torch.cat((anchors, stats[:, anchors.shape[1] :]), 1)
            kept = (grad, divisor, z, norms, stats, index, vectors, None, refs, temperature)
            made = back(*kept, *pairs.numbers[:-1], False, False, True, False, False)[2]
            results[7] = made * share.ranks if share.own_refs else made
        if of_temperature:
            results[6] = grad * slope / divisor
        return tuple(results)


def _weights(
    row_max: Tensor, labels: Tensor, candidates: Tensor, class_weights: Tensor | None, options: FocalContrastiveOptions
) -> Tensor:
    """Of each anchor w / P, P its positives, from the labels, which every rank has; 0 where it has none."""
    ordered = candidates.sort(-1).values
    count = torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)
    count = count if options.ref_only else count - 1  # but for the anchor itself
    counts = row_max < torch.inf
    weight = torch.ones_like(row_max) if class_weights is None else class_weights[torch.where(counts, labels, 0)]
    return torch.where(counts, weight / count.clamp(min=1), 0)
