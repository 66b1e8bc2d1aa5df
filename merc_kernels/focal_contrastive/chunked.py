r"""Focal contrastive loss in plain PyTorch, some rows of the N x N matrix at a time.

    L_i = logsumexp_j s_ij      loss_i = a_i sum_{j in P(i)} -h_ij (s_ij - L_i)      G_i = sum_{j in P(i)} dg/dL
    W_ij = a_i ([j in P(i)] dg/ds(s_ij, L_i) + exp(s_ij - L_i) G_i)      dZ = (W + W') Z / tau

with the factor h and the derivatives of g = -h (s - L) as in csrc/focal_contrastive/focal.h. The two primitives keep
rows and columns apart: `_row_stats` and `_gradient_rows`. The forward pass keeps L (in two parts), G and a of each row;
the backward pass recomputes the rest.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from merc_kernels.focal_contrastive.options import FocalContrastiveOptions

Tau = Tensor | float
_CHUNK = 1 << 22  # elements of the matrix at a time


class _Rows(NamedTuple):
    """Unit rows with what says which pairs count; G groups, R rows."""

    z: Tensor  # [G, R, D]
    labels: Tensor  # [G, R]
    places: Tensor  # [R], within the group
    anchor: Tensor  # [G, R]
    candidate: Tensor  # [G, R]

    def part(self, begin: int, end: int) -> "_Rows":
        z, labels, anchor, candidate = (x[:, begin:end] for x in (self.z, self.labels, self.anchor, self.candidate))
        return _Rows(z, labels, self.places[begin:end], anchor, candidate)

    def chunks(self, columns: int) -> Iterator[tuple[int, int]]:
        groups, rows = self.labels.shape
        most = max(1, _CHUNK // max(1, groups * columns))
        count = -(-rows // most)  # of equal chunks: a short last one would round worse
        return ((rows * i // count, rows * (i + 1) // count) for i in range(count))


class _Stats(NamedTuple):
    """Of each anchor: the maximum m of its s, G, the weight a and L - m; [G, R]."""

    row_max: Tensor
    g: Tensor
    a: Tensor
    log_sum: Tensor


def _pairs(rows: _Rows, columns: _Rows) -> tuple[Tensor, Tensor]:
    """Whether j is a candidate of i, whether it is a positive; [G, R, K]."""
    pair = (rows.places[:, None] != columns.places) & rows.anchor[:, :, None] & columns.candidate[:, None]
    return pair, pair & (rows.labels[:, :, None] == columns.labels[:, None])


def _factor(cosine: Tensor, log_p: Tensor, tau: Tau, options: FocalContrastiveOptions) -> tuple[Tensor, Tensor]:
    """The focal factor h, and dh/ds."""
    similarity = options.focal == "similarity"
    base = (1 - cosine) / 2 if similarity else -torch.expm1(log_p)
    floor = torch.finfo(base.dtype).eps / 2
    inside = (base >= floor) & (base <= 1)
    clamped = base.clamp(floor, 1)
    h = clamped**options.gamma
    by_s = -tau / 2 if similarity else clamped - 1
    return h, torch.where(inside, options.gamma * h / clamped * by_s, 0)


def _row_stats(rows: _Rows, columns: _Rows, tau: Tau, options: FocalContrastiveOptions) -> tuple[Tensor, ...]:
    """Per row: m; L - m; sum over positives of -h (s - L); G; the number of positives."""
    cosine = rows.z @ columns.z.mT  # [G, R, K]
    candidate, positive = _pairs(rows, columns)
    s = (cosine / tau).masked_fill(~candidate, -torch.inf)
    row_max = s.amax(-1)
    s = s - row_max[..., None]
    log_sum = s.exp().sum(-1).log()
    log_p = torch.where(positive, s - log_sum[..., None], 0)
    h, slope = _factor(cosine, log_p, tau, options)
    by_lse = h if options.detach_focal or options.focal == "similarity" else h + slope * log_p
    value = -torch.where(positive, h * log_p, 0).sum(-1)
    return row_max, log_sum, value, torch.where(positive, by_lse, 0).sum(-1), positive.sum(-1)


def _weights(
    cosine: Tensor,
    rows: _Rows,
    columns: _Rows,
    stats: _Stats,
    tau: Tensor | float,
    options: FocalContrastiveOptions,
    plain: bool = False,
) -> Tensor:
    """W, the rows as anchors; ``plain``: without the factor's derivative in the similarity form."""
    candidate, positive = _pairs(rows, columns)
    row_max, g, a, log_sum = (x[..., None] for x in stats)
    log_p = torch.where(candidate, cosine / tau - row_max - log_sum, -torch.inf)
    h, slope = _factor(cosine, log_p.masked_fill(~positive, 0), tau, options)
    if not (options.detach_focal or (plain and options.focal == "similarity")):
        h = h + slope * log_p.masked_fill(~positive, 0)
    return torch.where(candidate, a * (log_p.exp() * g - torch.where(positive, h, 0)), 0)


def _gradient_rows(
    rows: _Rows,
    columns: _Rows,
    of_rows: _Stats,
    of_columns: _Stats,
    tau: Tensor | float,
    options: FocalContrastiveOptions,
) -> Tensor:
    """(W + W') Z / tau of the rows: as anchors, and as candidates of the columns."""
    cosine = rows.z @ columns.z.mT
    as_anchors = _weights(cosine, rows, columns, of_rows, tau, options)
    as_candidates = _weights(cosine.mT, columns, rows, of_columns, tau, options).mT
    return (as_anchors + as_candidates) @ columns.z / tau


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length 1, and their lengths; a zero row stays zero, and no square over- or underflows."""
    size = x.abs().amax(-1, keepdim=True)
    nonzero = size != 0
    x = x / torch.where(nonzero, size, 1)
    length = x.square().sum(-1, keepdim=True).sqrt()
    return torch.where(nonzero, x / torch.where(nonzero, length, 1), 0), (length * size).squeeze(-1)


def _rows_of(z: Tensor, labels: Tensor, sizes: tuple[int, int], options: FocalContrastiveOptions) -> _Rows:
    places = torch.arange(z.shape[1], device=z.device)
    kept = labels != options.ignore_index
    anchors = sizes[0] + (sizes[1] if options.prototype_anchors else 0)
    return _Rows(z, labels, places, kept & (places < anchors), kept & (places >= (sizes[0] if options.ref_only else 0)))


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
    """The operator ``merc::focal_contrastive`` of csrc/library.cpp; ``index`` holds the labels of all rows."""
    groups = embeddings.shape[0] if embeddings.dim() == 3 else 1
    dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    vectors, names = [embeddings], [labels]
    if prototypes is not None:
        vectors.append(prototypes)
        names.append(torch.arange(prototypes.shape[-2], device=labels.device))
    if refs is not None and ref_labels is not None:
        vectors.append(refs)
        names.append(ref_labels)
    sizes = (embeddings.shape[-2], 0 if prototypes is None else prototypes.shape[-2])
    tau = options.temperature if temperature is None else temperature

    with torch.autocast(embeddings.device.type, enabled=False):
        x = torch.cat([v.to(dtype).expand(groups, -1, -1) for v in vectors], 1)  # [G, T, D]
        y = torch.cat([n.expand(groups, -1) for n in names], 1)  # [G, T]
        classes = sizes[1] if prototypes is not None else None if class_weights is None else class_weights.shape[0]
        if classes is not None:
            y = y.masked_fill((y < 0) | (y >= classes), options.ignore_index)
        x = torch.where((y != options.ignore_index)[..., None], x, 0)
        z, norms = _unit(x) if options.normalize else (x, torch.ones_like(x[..., 0]))
        rows = _rows_of(z, y, sizes, options)
        sums = z.new_empty(5, *y.shape)  # of all rows, made before the chunks: what each kept would scatter the heap
        for begin, end in rows.chunks(x.shape[1]):
            for of_all, part in zip(sums, _row_stats(rows.part(begin, end), rows, tau, options), strict=True):
                of_all[:, begin:end] = part
        row_max, log_sum, value, g, count = sums
        counts = count > 0
        a = counts / count.clamp(min=1)
        if class_weights is not None:
            a = torch.where(counts, a * class_weights[torch.where(counts, y, 0)], 0)
        row_max = row_max.masked_fill(~counts, torch.inf)
        stats = torch.stack([row_max, *(torch.where(counts, x, 0) for x in (g, a, log_sum))], -1)
        loss = torch.where(counts, a * value, 0)
        divisor = torch.ones((), dtype=dtype, device=z.device)
        if options.reduction in ("mean", "batchmean"):
            divisor = (counts if options.reduction == "mean" else rows.anchor).sum().clamp(min=1).to(dtype)
        if options.reduction == "none":
            loss = loss[:, : sizes[0]].reshape(embeddings.shape[:-1]).contiguous()
        else:
            loss = loss.sum() / divisor
    return loss, divisor, z, norms, stats, y


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
    """The operator ``merc::focal_contrastive_backward`` of csrc/library.cpp."""
    sizes = (embeddings.shape[-2], 0 if prototypes is None else prototypes.shape[-2])
    tau = options.temperature if temperature is None else temperature
    with torch.autocast(z.device.type, enabled=False):
        rows = _rows_of(z, index, sizes, options)
        row_max, g, a, log_sum = stats.unbind(-1)
        if all_anchors:
            rows = rows._replace(anchor=row_max < torch.inf)
        upstream = grad / divisor
        if grad.dim():
            upstream = torch.nn.functional.pad(upstream.reshape(z.shape[0], sizes[0]), (0, z.shape[1] - sizes[0]))
        whole = _Stats(row_max, g, a * upstream, log_sum)

        sources = (embeddings, prototypes, refs)
        ends = [0, sizes[0], sum(sizes), z.shape[1]]
        asked = [place for place in range(3) if wanted[place] and sources[place] is not None]
        low, high = (ends[asked[0]], ends[asked[-1] + 1]) if asked else (0, 0)
        dx = z.new_empty((z.shape[0], high - low, z.shape[2]))
        anchors = ends[3] if all_anchors else ends[2] if options.prototype_anchors else ends[1]
        for place in asked:
            # what is no candidate meets candidates only, what is no anchor meets anchors only
            begin, end = (
                (ends[1] if options.ref_only and place == 0 else 0),
                (ends[3] if ends[place] < anchors else anchors),
            )
            columns, of_columns = rows.part(begin, end), _Stats(*(s[:, begin:end] for s in whole))
            of_place = rows.part(ends[place], ends[place + 1])
            for first, last in of_place.chunks(end - begin):
                chunk, here = of_place.part(first, last), slice(ends[place] + first, ends[place] + last)
                d = _gradient_rows(chunk, columns, _Stats(*(s[:, here] for s in whole)), of_columns, tau, options)
                if options.normalize:
                    d = d - (d * chunk.z).sum(-1, keepdim=True) * chunk.z
                    length = norms[:, here, None]
                    d = torch.where(length == 0, 0, d / length)
                ignored = chunk.labels[..., None] == options.ignore_index
                dx[:, here.start - low : here.stop - low] = torch.where(ignored, 0, d)

        def gradient(place: int) -> Tensor:
            x = sources[place]
            if x is None or place not in asked:
                return z.new_empty(0, dtype=z.dtype if x is None else x.dtype)
            d = dx[:, ends[place] - low : ends[place + 1] - low]
            if x.dim() == 2:
                return d.sum(0).to(x.dtype)
            return d.to(x.dtype, memory_format=torch.contiguous_format, copy=True)  # memory of its own

        of_temperature = z.new_zeros(() if wanted[3] else 0)
        if wanted[3]:
            for first, last in rows.chunks(z.shape[1]):
                part = _Stats(*(s[:, first:last] for s in whole))
                chunk = rows.part(first, last)
                cosine = chunk.z @ rows.z.mT
                weights = _weights(cosine, chunk, rows, part, tau, options, plain=True)
                of_temperature -= (weights * cosine).sum() / tau**2
        return gradient(0), gradient(1), gradient(2), of_temperature
