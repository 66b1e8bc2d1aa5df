"""Training in several processes, started by torchrun: who does what of a step, and who writes.

Every process, a rank, has the whole model. Of each batch it runs its share of the dialogues; what the losses look at is
gathered from all, so that they are those of the whole batch, and the gradients are averaged: a step is that of one
process. What a gather brings back to a rank is W times the gradient, for that mean over the W ranks.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from merc_model.data.batch import Batch
from merc_model.errors import UserError

_LOST = "another process of the training has ended; start all again with --resume"

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: its number; the first writes the files.
        count: W.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def part(self, batch: Batch) -> Batch:
        """This rank's dialogues, as many as every rank has: without labels the last one again, where there are less."""
        if self.count == 1:
            return batch
        each = -(-len(batch.labels) // self.count)
        places = torch.arange(self.rank * each, (self.rank + 1) * each, device=batch.labels.device)
        return batch.dialogues(places)

    def gathered(self, x: Tensor, dialogues: int) -> Tensor:
        """``(dialogues, …)`` of all ranks, of which this one has those of its `part`, ``x``."""
        if self.count == 1:
            return x
        whole: Tensor = _Gather.apply(x, self)  # type: ignore[no-untyped-call]
        return whole[:dialogues]

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Have every gradient be its mean over the ranks."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        mean = nn.utils.parameters_to_vector(gradients)
        dist.all_reduce(mean)
        nn.utils.vector_to_parameters(mean / self.count, gradients)

    @contextmanager
    def own_random(self, share: float) -> Iterator[None]:
        """Random numbers of a rank's own, at that ``share`` of the training; afterwards all go on as before."""
        if self.count == 1:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**62, ())) + int(share * 2**52) + self.rank)
            yield

    def of_first(self, work: Callable[[], Result]) -> Result:
        """What ``work`` gives on the first rank, where alone it is done; its UserError is raised on all."""
        if self.count == 1:
            return work()
        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = work()
            except UserError as error:
                told[1] = str(error)
        dist.broadcast_object_list(told, device=torch.device("cpu"))
        if told[1] is not None:
            raise UserError(told[1])
        result: Result = told[0]
        return result


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks, ctx.rows = ranks, len(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(ranks.count)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        own = grad[ctx.ranks.rank * ctx.rows : (ctx.ranks.rank + 1) * ctx.rows]
        return own * ctx.ranks.count, None


class LostRankError(UserError):
    """Another process has ended; the message is empty where one has told it already."""


class _Terminated(BaseException):
    """What SIGTERM becomes: torchrun sends it to the others when one has ended."""


def number() -> int:
    """Of this process, as torchrun gave it; 0 where it stands alone."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun started, if it did.

    Raises:
        LostRankError: where another of them ends.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    store, rank, count = next(rendezvous("env://"))
    dist.init_process_group(store=store, rank=rank, world_size=count)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield Ranks(rank, count)
        dist.destroy_process_group()
    except (RuntimeError, _Terminated) as error:
        if not isinstance(error, dist.DistError | _Terminated) and not _of_group(error):
            raise
        raise LostRankError(_LOST if _is_first(store) else "") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


def _of_group(error: Exception) -> bool:
    return any(name in str(error).lower() for name in ("gloo", "nccl", "closed by peer"))


def _is_first(store: Any) -> bool:
    """Whether no other process was here before; the store is torchrun's, and outlives us."""
    try:
        return bool(store.add("merc: a process has ended", 1) == 1)
    except RuntimeError:
        return True
