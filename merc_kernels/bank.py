"""A memory bank: embeddings of past batches with their labels, as more candidates for the contrastive loss."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from merc_kernels._shared import checks


class MemoryBank(nn.Module):
    """The last ``size`` embeddings with their labels; the oldest make room (MoCo's queue, cross-batch memory).

    Calling it adds a batch, and gives what was there before it as arguments of the loss::

        bank = MemoryBank(4096, 128)
        for inputs, labels in batches:
            embeddings = encoder(inputs)
            loss = criterion(embeddings, labels, **bank(embeddings, labels))

    so no row meets its own copy. Shapes do not depend on how much was added: slots that are empty, or hold this batch,
    have the label ``ignore_index``, and a row added with that label leaves its slot empty. Nothing waits for the
    device, and a step with it may be compiled or captured as a CUDA graph.

    All state is in buffers. With `torch.distributed` started, each rank adds the rows of all, which must be as many
    on every rank (fill up with rows of ``ignore_index``): the banks are the same then, as DDP, which broadcasts
    buffers, and a saved state want it. Call `backward` before the next batch is added: autograd refuses what was
    overwritten.

    Args:
        size: of the bank, at least the rows of a batch (of all ranks together).
        dim: D, the width of an embedding.
        ignore_index: that of the loss.
        group: the processes that share their rows; None: all.
        device: of the buffers.
        dtype: of the embeddings in the bank; None: torch's default.

    Raises:
        ValueError: a size or width below 1.
    """

    embeddings: Tensor
    labels: Tensor
    position: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        ignore_index: int = -100,
        group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("size", size), ("dim", dim)):
            checks.integer(name, value)
            if value < 1:
                checks.fail(name, "an int >= 1", value)
        checks.integer("ignore_index", ignore_index)
        self.ignore_index, self.group = ignore_index, group
        self.register_buffer("embeddings", torch.zeros(size, dim, device=device, dtype=dtype))
        checks.tensor("dtype", self.embeddings, checks.FLOAT, None, (size, dim))
        self.register_buffer("labels", torch.full((size,), ignore_index, device=device))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64, device=device))  # the next slot

    def forward(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Add a batch; in eval mode nothing is added.

        Args:
            embeddings: ``(N, D)``; what is kept has no gradient.
            labels: int64 ``(N,)``.

        Returns:
            ``ref_embeddings`` ``(size, D)`` and ``ref_labels`` ``(size,)``, without the batch that was added.

        Raises:
            ValueError: shapes, dtypes or devices that do not match, or more rows than the bank has.
        """
        if not self.training:
            return self.refs()
        slots = self.add(embeddings, labels)
        return {"ref_embeddings": self.embeddings, "ref_labels": self.labels.index_fill(0, slots, self.ignore_index)}

    def refs(self) -> dict[str, Tensor]:
        """All that is in the bank, as arguments of the loss."""
        return {"ref_embeddings": self.embeddings, "ref_labels": self.labels}

    @torch.no_grad()
    def add(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Add a batch, as `forward` does; the slots that it takes, int64 ``(N,)``, N the rows of all ranks."""
        size, dim = self.embeddings.shape
        checks.tensor("embeddings", embeddings, checks.FLOAT, self.embeddings.device, ("N", dim))
        checks.tensor("labels", labels, checks.INT64, self.embeddings.device, (embeddings.shape[0],))
        embeddings, labels = self._of_all(embeddings.detach().to(self.embeddings.dtype)), self._of_all(labels)
        rows = embeddings.shape[0]
        if rows > size:
            checks.fail("embeddings", f"at most as many rows as the bank has, {size}", rows)
        slots = (self.position + torch.arange(rows, device=labels.device)) % size
        self.embeddings.index_copy_(0, slots, embeddings)
        self.labels.index_copy_(0, slots, labels)
        self.position.add_(rows).remainder_(size)
        return slots

    def _of_all(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, in their order."""
        if not (dist.is_available() and dist.is_initialized()) or (world := dist.get_world_size(self.group)) == 1:
            return rows
        gathered = rows.new_empty(world * rows.shape[0], *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.contiguous(), group=self.group)
        return gathered

    def extra_repr(self) -> str:
        """The arguments of the constructor that say what it holds."""
        size, dim = self.embeddings.shape
        return f"{size}, {dim}, ignore_index={self.ignore_index}"
