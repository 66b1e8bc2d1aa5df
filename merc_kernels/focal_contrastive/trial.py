"""What the choice of a backend on a GPU looks at, and the small problem that a first use is tried on."""

from collections.abc import Callable

import torch
from torch import Tensor

from merc_kernels._shared import backends, first_use
from merc_kernels.focal_contrastive.options import SMALLEST_BOUNDED, FocalContrastiveOptions

_CLASSES, _REFS = 7, 65  # of a problem


def call(
    loss: Callable[..., Tensor],
    embeddings: Tensor,
    labels: Tensor,
    prototypes: Tensor | None,
    refs: Tensor | None,
    ref_labels: Tensor | None,
    class_weights: Tensor | None,
    temperature: Tensor | None,
    options: FocalContrastiveOptions,
) -> backends.Call:
    """Of these tensors; ``loss`` is the public function."""
    width = embeddings.shape[-1]
    bounded = options.normalize and temperature is None and options.temperature >= SMALLEST_BOUNDED
    # What compiles kernels of its own (triton/configuration.py); the temperature and any other gamma do not.
    gamma = options.gamma if options.gamma in (0, 1, 2) else 2.5
    chosen: dict[str, object] = {"focal": options.focal, "detach_focal": options.detach_focal, "gamma": gamma}
    chosen |= {"normalize": options.normalize, "ref_only": options.ref_only}
    path = (*(f"{name}={value}" for name, value in chosen.items()), "bounded" if bounded else "unbounded", f"D {width}")

    def problem() -> first_use.Problem:
        made = torch.Generator().manual_seed(0)
        targets = torch.randint(_CLASSES, (first_use.ROWS + _REFS,), generator=made)
        centers = torch.randn(_CLASSES, width, generator=made)
        rows = centers[targets] + 2 * torch.randn(len(targets), width, generator=made)
        if not options.normalize:
            rows /= rows.norm(dim=-1, keepdim=True)
        targets[::9] = options.ignore_index
        targets, rows = targets.to(embeddings.device), rows.to(embeddings)
        tensors = {"embeddings": rows[: first_use.ROWS], "labels": targets[: first_use.ROWS]}
        if refs is not None:
            tensors |= {"ref_embeddings": rows[first_use.ROWS :], "ref_labels": targets[first_use.ROWS :]}
        if not bounded:
            dtype = torch.promote_types(embeddings.dtype, torch.float32)
            tensors["temperature"] = torch.tensor(0.1, dtype=dtype, device=embeddings.device)
        return first_use.Problem(tensors, chosen | {"ignore_index": options.ignore_index, "reduction": "sum"})

    count, pairs = None, 0
    if not torch.compiler.is_compiling():
        columns = sum(x.shape[-2] for x in (embeddings, prototypes, refs) if x is not None)
        groups = embeddings.shape[0] if embeddings.dim() == 3 else 1
        count, pairs = columns, groups * embeddings.shape[-2] * columns
    return backends.Call(embeddings, count, pairs, loss, problem, (*path, f"refs {refs is not None}"))
