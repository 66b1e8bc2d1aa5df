"""The memory bank: a queue that wraps round, in buffers, without this batch's own copies."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from merc_kernels import FocalContrastiveLoss, MemoryBank, focal_contrastive_loss
from tests.numerics import TOLERANCE


def batch(rows, dim=4, first=0):
    labels = torch.arange(first, first + rows)
    return labels[:, None].expand(rows, dim).float(), labels


def test_it_fills_wraps_round_and_forgets_the_oldest():
    bank = MemoryBank(5, 4, ignore_index=-1)
    seen = []
    for first in range(0, 12, 3):
        bank.add(*batch(3, first=first))
        seen.append(bank.labels.tolist())
    assert seen == [[0, 1, 2, -1, -1], [5, 1, 2, 3, 4], [5, 6, 7, 8, 4], [10, 11, 7, 8, 9]]
    assert torch.equal(bank.embeddings[:, 0], bank.labels.float())
    assert bank.position == 2


@pytest.mark.parametrize("backend", ["reference", "cpu", "torch"])
def test_the_loss_is_that_of_the_batch_and_what_was_there_before(backend):
    bank, criterion = MemoryBank(10, 4), FocalContrastiveLoss(backend=backend)
    past = []
    for _ in range(5):  # empty, half full, full, wrapped
        embeddings, labels = torch.randn(4, 4, requires_grad=True), torch.randint(0, 2, (4,))
        loss = criterion(embeddings, labels, **bank(embeddings, labels))
        kept = past[-6:]
        rows, classes = zip(*kept, strict=True) if kept else ((), ())
        refs = {"ref_embeddings": torch.stack(rows), "ref_labels": torch.stack(classes)} if kept else {}
        truth = criterion(embeddings, labels, **refs)
        gradients = [torch.autograd.grad(x, embeddings)[0] for x in (loss, truth)]
        assert (gradients[0] - gradients[1]).abs().max() <= TOLERANCE[torch.float32]
        assert (loss - truth).abs() <= TOLERANCE[torch.float32] * truth.abs()
        past += zip(embeddings.detach(), labels, strict=True)


def test_all_of_it_serves_queries_of_another_encoder():
    """MoCo: the keys of this batch count, as the positives of its queries."""
    bank = MemoryBank(8, 4)
    keys, queries, images = torch.randn(4, 4), torch.randn(4, 4, requires_grad=True), torch.arange(4)
    bank.add(keys, images)
    loss = focal_contrastive_loss(queries, images, **bank.refs(), ref_only=True, gamma=0.0)
    truth = focal_contrastive_loss(queries, images, ref_embeddings=keys, ref_labels=images, ref_only=True, gamma=0.0)
    assert (loss - truth).abs() <= TOLERANCE[torch.float32] * truth.abs()


def test_eval_mode_adds_nothing():
    bank = MemoryBank(8, 4)
    bank.add(*batch(3))
    bank.eval()
    assert bank(*batch(3))["ref_labels"].tolist() == [0, 1, 2, *[-100] * 5]
    assert bank.position == 3


def test_state_is_saved_resumed_and_converted_with_the_module():
    model = nn.ModuleDict({"bank": MemoryBank(5, 4)})
    model["bank"].add(*batch(4))
    twin = nn.ModuleDict({"bank": MemoryBank(5, 4)})
    twin.load_state_dict(model.state_dict())
    for one in (model, twin, copy.deepcopy(model)):
        one["bank"].add(*batch(3, first=7))
        assert one["bank"].labels.tolist() == [8, 9, 2, 3, 7]
    assert list(model.state_dict()) == ["bank.embeddings", "bank.labels", "bank.position"]
    assert not list(model.parameters())
    bank = model.double()["bank"]
    bank.add(*batch(1))
    assert (bank.embeddings.dtype, bank.labels.dtype) == (torch.float64, torch.int64)
    assert {x.device.type for x in MemoryBank(5, 4, device="meta").buffers()} == {"meta"}
    assert MemoryBank(5, 4, dtype=torch.bfloat16).embeddings.dtype == torch.bfloat16
    assert repr(bank) == "MemoryBank(5, 4, ignore_index=-100)"


def test_a_compiled_step_has_no_break():
    bank, criterion = MemoryBank(10, 4), FocalContrastiveLoss()
    other = copy.deepcopy(bank)
    labels = torch.tensor([0, 1, 0, 1])

    def step(embeddings, bank):
        return criterion(embeddings, labels, **bank(embeddings, labels))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for _ in range(4):
        embeddings = torch.randn(4, 4, requires_grad=True)
        ours, truth = compiled(embeddings, bank), step(embeddings, other)
        gradients = [torch.autograd.grad(x, embeddings)[0] for x in (ours, truth)]
        assert (gradients[0] - gradients[1]).abs().max() <= TOLERANCE[torch.float32]
    assert all(torch.equal(a, b) for a, b in zip(bank.buffers(), other.buffers(), strict=True))


def test_nothing_of_a_step_reads_the_device():
    """What would wait for a GPU, or break the capture of a graph, fails on tensors without elements."""
    bank = MemoryBank(10, 4, device="meta")
    embeddings, labels = (x.to("meta") for x in batch(4))
    assert bank(embeddings, labels)["ref_labels"].shape == (10,)


def test_what_was_overwritten_before_the_backward_pass_is_refused():
    bank, criterion = MemoryBank(6, 4), FocalContrastiveLoss(backend="torch", normalize=False)
    bank.add(torch.randn(4, 4), torch.arange(4) % 2)
    embeddings, labels = torch.randn(4, 4, requires_grad=True), torch.arange(4) % 2
    loss = criterion(embeddings, labels, **bank(embeddings, labels))
    bank.add(embeddings, labels)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


BAD = {
    "size: expected an int >= 1, got 0": lambda: MemoryBank(0, 4),
    "dim: expected an int, got 2.0": lambda: MemoryBank(3, 2.0),
    "dtype: expected float64": lambda: MemoryBank(3, 4, dtype=torch.int64),
    "embeddings: expected at most as many rows as the bank has, 3, got 4": lambda: MemoryBank(3, 4)(*batch(4)),
    "embeddings: expected float64, float32, bfloat16 or float16 tensor of shape (N, 4)": lambda: MemoryBank(3, 4)(
        *batch(2, dim=5)
    ),
    "labels: expected int64 tensor of shape (2,)": lambda: MemoryBank(3, 4)(batch(2)[0], torch.zeros(3).long()),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=r"^\w+: expected") as caught:
        BAD[message]()
    assert str(caught.value).startswith(message)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.bank = nn.Linear(4, 4), MemoryBank(10, 4)

    def forward(self, x, labels):
        embeddings = self.encoder(x)
        return embeddings, self.bank(embeddings, labels)


def check_under_ddp_every_rank_has_the_rows_of_all(rank, ranks):
    """Run by test_distributed.py."""
    model, criterion = Model(), FocalContrastiveLoss()
    alone = copy.deepcopy(model)
    alone.bank.group = [dist.new_group([r]) for r in range(ranks)][rank]  # is given all rows, and gathers none
    wrapped = nn.parallel.DistributedDataParallel(model)  # which sends the buffers of rank 0 to all
    labels = torch.arange(3) + torch.arange(ranks)[:, None]
    for x in torch.randn(4, ranks, 3, 4):
        embeddings, refs = wrapped(x[rank], labels[rank])
        criterion(embeddings, labels[rank], **refs).backward()
        alone(x.flatten(0, 1), labels.flatten())
    everywhere = [torch.empty_like(model.bank.embeddings) for _ in range(ranks)]
    dist.all_gather(everywhere, model.bank.embeddings)
    assert all(torch.equal(one, everywhere[0]) for one in everywhere)
    assert torch.equal(model.bank.labels, alone.bank.labels)
    assert (model.bank.embeddings - alone.bank.embeddings).abs().max() <= TOLERANCE[torch.float32]
