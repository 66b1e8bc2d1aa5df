"""focal_contrastive: its cells, inputs, truth and floor. Labels of six classes in IEMOCAP's proportions.

One pass over the matrix of similarities is 2 N² D operations at the rate of a large `torch.mm` in the same run. Forward
the symmetric half is enough (0.5). Backward the matrix is computed once more, again the half, and multiplied with the
rows (1.5), so 2.0 in all; on a GPU, where writing both halves of a tile's product does not pay, the matrix is computed
in full (2.0), so 2.5. On a GPU the product is in the cell's type, in tf32 for float32.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.cell import Cell, Floor, Problem, Provider, precision
from benchmarks.contrastive_peers import OPTIONS, peers
from merc_kernels import reference

PROPORTIONS = torch.tensor([504.0, 839.0, 1324.0, 933.0, 742.0, 1468.0])
WIDTHS = (128, 768, 1024)  # beside 256
TRUTH_WORK = {"cpu": 4096**2 * 1024, "cuda": 65536**2 * 256}  # N² D up to which the truth is of the whole cell
BLOCK = {"cpu": 1 << 22, "cuda": 1 << 26}  # elements of the matrix that the truth holds at a time
ALL_PASSES = ("forward", "backward", "both")
BACKWARD = {"cpu": 1.5, "cuda": 2.0}  # in passes over the matrix
FORWARD = 0.5


class FocalContrastive:
    """The subject."""

    name = "focal_contrastive"
    floor_is = (
        "0.5 passes over the matrix of similarities forward, 1.5 backward (on a GPU 2), at the rate of a large product"
    )
    limit: Mapping[str, float] = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 5e-3}

    def cells(self, scale: str, device: str) -> list[Cell]:
        """For each formula and type the sizes ascend, so that a cell can be predicted; on a GPU the goals are first."""
        if scale == "quick":
            return [
                _cell(200, seconds=0.3, providers=_MANY),
                _cell(956, seconds=0.6, providers=_MANY),
                _cell(512, formula="supcon", seconds=0.2, providers=("merc", "eager", "pytorch-metric-learning")),
                _cell(64, formula="pairs", seconds=0.1, providers=("merc", "eager", "lightly")),
                _cell(1 << 18, seconds=0.1, providers=_MANY),
                _cell(64, formula="swfc", seconds=0.1, providers=(*_MANY, "loop over anchors")),
            ]
        return _gpu_cells() if device == "cuda" else _cpu_cells()

    def providers(self, device: str) -> list[Provider]:
        return peers(device)

    def work(self, cell: Cell) -> float:
        return float(cell.sizes["rows"] ** 2 * cell.sizes["width"])

    def problem(self, cell: Cell, provider: Provider, device: str, rows: int | None = None) -> Problem:
        embeddings, labels = inputs(cell, device, rows)
        return Problem(provider, cell.formula, embeddings, (labels,))

    def truth(self, cell: Cell, device: str) -> tuple[float, Tensor | None, int]:
        """The reference in float64, a block of anchors at a time; of fewer rows where the cell is very large."""
        rows = min(cell.sizes["rows"], int((TRUTH_WORK[device] / cell.sizes["width"]) ** 0.5))
        embeddings, labels = inputs(cell, device, rows)
        return *exact(embeddings.detach().double(), labels, cell.formula), rows

    def floor(self, cell: Cell, device: str) -> Floor:
        side = 8192 if device == "cuda" else 2048
        dtype = cell.torch_dtype if device == "cuda" else torch.float32  # a CPU need not have 16-bit products
        left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

        def product() -> Tensor:
            with precision("high" if device == "cuda" else "highest"):
                return torch.mm(left, right)

        one_pass = cell.sizes["rows"] ** 2 * cell.sizes["width"] / side**3
        both = FORWARD + BACKWARD[device]
        passes = {"forward": FORWARD, "backward": BACKWARD[device], "both": both, "graph": both}
        return Floor(product, {name: share * one_pass for name, share in passes.items()})


def inputs(cell: Cell, device: str, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """Embeddings and labels, the same tensors for every provider; ``rows`` of them where given."""
    return _inputs(rows or cell.sizes["rows"], cell.sizes["width"], cell.torch_dtype, cell.formula == "pairs", device)


@functools.lru_cache(maxsize=2)
def _inputs(rows: int, width: int, dtype: torch.dtype, pairs: bool, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(PROPORTIONS, rows, replacement=True, generator=generator)
    if pairs:
        labels = torch.arange(rows) // 2
    embeddings = torch.randn(rows, width, generator=generator)
    return embeddings.to(device, dtype).requires_grad_(), labels.to(device)


def exact(embeddings: Tensor, labels: Tensor, formula: str) -> tuple[float, Tensor]:
    """Value and gradient of `merc_kernels.reference`, from blocks of anchors whose other candidates are refs."""
    x = embeddings.detach().requires_grad_()
    options = OPTIONS[formula] | {"reduction": "sum"}
    rows = len(x)
    step = max(1, BLOCK[x.device.type] // rows)
    total = 0.0
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        others = torch.cat([x[:begin], x[end:]])
        names = torch.cat([labels[:begin], labels[end:]])
        loss = reference.focal_contrastive_loss(
            x[begin:end], labels[begin:end], ref_embeddings=others, ref_labels=names, **options
        )
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    _, place, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    divisor = rows if formula == "swfc" else max(1, int((counts[place] > 1).sum()))
    assert x.grad is not None
    return total / divisor, x.grad / divisor


def _cell(
    rows: int, width: int = 256, dtype: str = "float32", formula: str = "focal", *, seconds: float = 2.0, **options: Any
) -> Cell:
    return Cell("focal_contrastive", {"rows": rows, "width": width}, dtype, formula, seconds=seconds, **options)


_MANY = ("merc", "fused", "eager", "eager, tf32", "chunked")
_MOST = (*_MANY, "merc:reference")


def _cpu_cells() -> list[Cell]:
    return [
        _cell(200, passes=ALL_PASSES, providers=(*_MOST, "torch.compile"), seconds=0.7),
        _cell(956, passes=ALL_PASSES, providers=(*_MOST, "torch.compile", "loop over anchors"), seconds=1.5),
        _cell(2048, providers=_MANY, seconds=1.0),
        _cell(4096, providers=(*_MANY, "torch.compile"), seconds=3.0),
        _cell(4096, dtype="bfloat16", providers=("merc", "merc:cpu", "eager"), seconds=2.0),
        _cell(16384, providers=("merc", "merc:cpu", "eager"), seconds=3.0),
        _cell(65536, providers=_MANY),
        _cell(262144, providers=_MANY),
        _cell(956, formula="supcon", seconds=1.0, providers=("merc", "eager", "pytorch-metric-learning")),
        _cell(4096, formula="supcon", providers=("merc", "eager", "pytorch-metric-learning")),
        _cell(956, formula="swfc", seconds=1.0, providers=("merc", "merc:torch", "eager", "loop over anchors")),
        _cell(4096, formula="swfc", providers=("merc", "merc:torch", "eager")),
        _cell(4096, formula="pairs", providers=("merc", "eager", "pytorch-metric-learning", "lightly")),
        *(_cell(4096, width, providers=("merc", "merc:cpu", "eager")) for width in WIDTHS),
    ]


_brief = functools.partial(_cell, seconds=0.06)  # hundreds of samples on a GPU


def _gpu_cells() -> list[Cell]:
    """The goals first. Compiling takes long, so the compiled peer has few sizes; widths are for those that scale."""
    from benchmarks.goals import GOALS  # which imports this module

    types, peer = ("float32", "bfloat16"), "pytorch-metric-learning"
    ours = ("merc", "fused", "eager")
    cells = []
    for rows, dtype in itertools.product((200, 1024, 4096, 16384, 65536), types):
        passes = ("both", "graph") if rows <= 1024 else ALL_PASSES if rows <= 16384 else ("both",)
        providers = _MOST if rows <= 16384 else _MANY
        if rows == 4096 or (rows, dtype) == (16384, "bfloat16"):
            providers = (*providers, "torch.compile")
        cells.append(_brief(rows, 256, dtype, passes=passes, providers=providers))
    cells.append(_brief(956, formula="swfc", providers=(*ours, "loop over anchors")))
    cells += [_brief(rows, formula="supcon", providers=(*ours, peer)) for rows in (956, 4096, 16384)]
    cells.append(_brief(4096, formula="pairs", providers=(*ours, peer, "lightly")))
    scaling = itertools.product((4096, 16384, 65536), WIDTHS, types)
    cells += [_brief(*size, providers=("fused", "eager")) for size in scaling]
    order = {cell.title: place for place, cell in enumerate(GOALS)}
    return sorted(cells, key=lambda cell: order.get(cell.title, len(order)))


SUBJECT = FocalContrastive()


@functools.cache
def share_apart(rows: int, block: int, columns: int) -> float:
    """Of the tiles of sorted rows, ``block`` by ``columns``, how many hold no two equal labels."""
    cuts = (PROPORTIONS.cumsum(0) / PROPORTIONS.sum() * rows).long()
    names = torch.bucketize(torch.arange(rows), cuts, right=True)
    whole = rows // columns * columns  # a tile that is not whole takes the long path
    (first, last), (begin, end) = (
        (some[::size], some[size - 1 :: size]) for some, size in ((names, block), (names[:whole], columns))
    )
    first, last = first[: len(last), None], last[:, None]
    return float(((end < first) | (begin > last)).double().mean())
