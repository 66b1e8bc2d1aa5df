"""cached_backward: the gradient of a step that encodes the whole batch at once."""

import contextlib
import copy
import random

import numpy
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from merc_kernels import FocalContrastiveLoss, cached_backward
from tests.numerics import TOLERANCE

LABELS = torch.arange(11) % 3


def drawn():
    return numpy.random.rand()  # noqa: NPY002 - the generator that masks of Hugging Face's speech models ask


class Encoder(nn.Module):
    """Dropout from each generator that a model may ask, and a power iteration: what it gives depends on a buffer."""

    def __init__(self, width=5, dropout=0.0, everyone=False):
        super().__init__()
        self.first, self.second = nn.Linear(width, 8), nn.Linear(8, 4)
        self.dropout, self.everyone = nn.Dropout(dropout), everyone
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, scale=1.0):
        hidden = self.dropout(self.first(x).tanh())
        if self.everyone:
            hidden = hidden * (1 + random.random()) * (1 + drawn())
        self.calls += 1
        return self.second(hidden) * scale + self.calls


def gradients(*modules):
    return [p.grad for module in modules for p in module.parameters()]


def step(encoder, inputs, criterion, chunks, labels=LABELS):
    """The truth: the same chunks with their graphs, all of which stay in memory."""
    loss = criterion(torch.cat([encoder(x) for x in inputs.split(chunks)]), labels)
    loss.backward()
    return loss.detach()


def assert_close(ours, truth):
    for x, y in zip(ours, truth, strict=True):
        size = max(y.abs().max(), 1) if y.dtype == torch.float64 else y.abs().max()
        assert (x - y).abs().max() <= TOLERANCE[x.dtype] * size, (x, y)


def fresh(seed=0):
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed)  # noqa: NPY002 - see drawn


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_the_gradient_of_the_whole_batch(chunk):
    x = torch.randn(11, 5, dtype=torch.float64)
    encoder = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    criterion = FocalContrastiveLoss(temperature=nn.Parameter(torch.tensor(0.2, dtype=torch.float64)))
    twin = copy.deepcopy((encoder, criterion))
    truth = step(twin[0], x, twin[1], 11)
    loss = cached_backward(encoder, x, lambda z: criterion(z, LABELS), chunk_size=chunk)
    assert not loss.requires_grad
    assert_close([loss, *gradients(encoder, criterion)], [truth, *gradients(*twin)])
    cached_backward(encoder, x, lambda z: criterion(z, LABELS), chunk_size=chunk)  # gradients add up
    assert_close(gradients(encoder), [2 * x for x in gradients(twin[0])])


def test_both_passes_draw_the_same_numbers_and_see_the_same_buffers():
    x, criterion = torch.randn(11, 5, dtype=torch.float64), FocalContrastiveLoss()
    encoder = Encoder(dropout=0.5, everyone=True).double()
    twin = copy.deepcopy(encoder)
    fresh()
    truth = step(twin, x, criterion, 4)
    after = torch.rand(1), random.random(), drawn()
    fresh()
    loss = cached_backward(encoder, x, lambda z: criterion(z, LABELS), chunk_size=4)
    assert_close([loss, *gradients(encoder)], [truth, *gradients(twin)])
    assert (torch.rand(1), random.random(), drawn()) == after
    assert encoder.calls == twin.calls == 3


def test_buffers_of_batch_norm_and_of_a_frozen_encoder_end_as_after_one_pass():
    x = torch.randn(12, 5, dtype=torch.float64)
    for frozen in (False, True):
        encoder = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).double().requires_grad_(not frozen)
        head, twin = nn.Linear(4, 4).double(), copy.deepcopy(encoder)
        for part in x.split(4):
            twin(part)
        cached_backward(encoder, x, lambda z, head=head: head(z).square().mean(), chunk_size=4)
        assert encoder.state_dict()["1.num_batches_tracked"] == 3
        assert_close(list(encoder.buffers())[:2], list(twin.buffers())[:2])
        assert (encoder[0].weight.grad is None) == frozen
        assert head.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_a_scaler(dtype):
    """A cast weight that the first pass cached has no graph; the gradients are those of the same casts."""
    x, criterion = torch.randn(11, 5), FocalContrastiveLoss()
    encoder, twin = (Encoder(dropout=0.3) for _ in range(2))
    twin.load_state_dict(encoder.state_dict())
    scalers = [torch.amp.GradScaler("cpu", init_scale=65536.0) for _ in range(2)]
    fresh()
    with torch.autocast("cpu", dtype=dtype):
        truth = criterion(torch.cat([twin(part) for part in x.split(4)]), LABELS)
    scalers[0].scale(truth).backward()
    fresh()
    with torch.autocast("cpu", dtype=dtype):
        cached_backward(
            encoder,
            x,
            lambda z: criterion(z, LABELS),
            chunk_size=4,
            backward=lambda loss: scalers[1].scale(loss).backward(),
        )
    for ours, other in zip(gradients(encoder), gradients(twin), strict=True):
        assert other.abs().max() > 1  # scaled
        assert (ours - other).abs().max() <= TOLERANCE[dtype] * other.abs().max()
    for scaler, module in zip(scalers, (twin, encoder), strict=True):
        scaler.step(torch.optim.SGD(module.parameters(), lr=0.1))
        scaler.update()


def clip(a, b):
    return F.cross_entropy(a @ b.T, torch.arange(len(a)))


def test_several_encoders_each_with_its_chunks():
    pixels, tokens = torch.randn(11, 5, dtype=torch.float64), torch.randn(11, 2, 3, dtype=torch.float64)
    image, text = Encoder().double(), Encoder(6).double()
    inputs = [pixels, {"x": tokens.flatten(1), "scale": 2.0}]
    twins = copy.deepcopy((image, text))
    a = torch.cat([twins[0](part) for part in pixels.split(4)])
    b = torch.cat([twins[1](part, scale=2.0) for part in tokens.flatten(1).split(3)])
    clip(a, b).backward()
    cached_backward([image, text], inputs, clip, chunk_size=[4, 3])
    assert_close(gradients(image, text), gradients(*twins))


def test_two_views_of_one_encoder():
    views, encoder = torch.randn(2, 11, 5, dtype=torch.float64), Encoder(dropout=0.3).double()
    twin = copy.deepcopy(encoder)
    fresh()
    clip(*(torch.cat([twin(part) for part in view.split(4)]) for view in views)).backward()
    fresh()
    cached_backward([encoder, encoder], list(views), clip, chunk_size=4)
    assert_close(gradients(encoder), gradients(twin))


class Output(dict):
    """As those of Hugging Face: a mapping of its own type, not all of it tensors."""


def test_inputs_and_outputs_may_be_trees_with_more_than_tensors():
    encoder, rows = Encoder(), torch.randn(11, 5)

    def run(batch, *, names):
        assert names == "text"  # not cut
        assert batch["scale"].dim() == 0
        z = encoder(batch["x"], batch["scale"])
        return Output(pooled=z, indices=torch.arange(len(z)), states=(z.tanh(), None))

    def loss(output):
        assert isinstance(output, Output)
        assert output["states"][1] is None
        assert output["indices"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]
        return output["pooled"].square().mean()  # the states are not used

    inputs = {"batch": {"x": rows, "scale": torch.tensor(0.5)}, "names": "text"}
    cached_backward(run, inputs, loss, chunk_size=4)
    ours = gradients(encoder)
    encoder.zero_grad()
    encoder.calls.zero_()
    (torch.cat([encoder(x, torch.tensor(0.5)) for x in rows.split(4)]).square().mean()).backward()
    assert encoder.calls == 3
    assert_close(ours[2:], gradients(encoder)[2:])


def test_inputs_that_need_a_gradient_get_it():
    x, encoder = torch.randn(11, 5, dtype=torch.float64, requires_grad=True), Encoder().double()
    (truth,) = torch.autograd.grad(clip(encoder(x) - 1, encoder(x) - 2), x)
    encoder.calls.zero_()
    cached_backward(encoder, x, lambda z: clip(z - 1, z - 1), chunk_size=11)
    assert_close([x.grad], [truth])


BAD = {
    "chunk_size: expected an int >= 1, got 0": {"chunk_size": 0},
    "chunk_size: expected an int, got 2.5": {"chunk_size": 2.5},
    "chunk_size: expected one for each of 1 encoders, got 2": {"chunk_size": [2, 2]},
    "inputs: expected tensors of the same number of rows, got": {"inputs": {"x": torch.ones(3, 5), "y": torch.ones(2)}},
    "inputs: expected tensors of the same number of rows, got []": {"inputs": "a text"},
    "inputs: expected tensors without a graph": {"inputs": torch.ones(3, 5, requires_grad=True) * 2},
    "inputs: expected one for each of 2 encoders, got 3": {"encoder": [Encoder(), Encoder()]},
    "encoder: expected a row for each of 2 rows, got [()]": {"encoder": lambda x: x.sum()},
    "loss: expected a function that gives a scalar which requires a gradient, got float32 tensor": {
        "loss": lambda z: z
    },
    "loss: expected a function": {"loss": lambda z: 0.0},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    good = {"encoder": Encoder(), "inputs": torch.randn(3, 5), "loss": torch.sum, "chunk_size": 2}
    with pytest.raises(ValueError, match=r"^\w+: expected") as caught:
        cached_backward(**good | BAD[message])
    assert str(caught.value).startswith(message)


def test_gradients_must_be_on():
    with torch.no_grad(), pytest.raises(ValueError, match=r"^cached_backward: expected gradients to be on"):
        cached_backward(Encoder(), torch.randn(3, 5), torch.sum, chunk_size=2)


def check_ddp_averages_once_a_step(rank, ranks):
    """Run by test_distributed.py."""
    xs, encoder = torch.randn(ranks, 8, 5, dtype=torch.float64), Encoder().double()
    alone = copy.deepcopy(encoder)
    model, synchronized = nn.parallel.DistributedDataParallel(encoder), []
    model.register_comm_hook(None, lambda _, bucket: synchronized.append(1) or _averaged(bucket, ranks))
    views = [xs[rank, :4], xs[rank, 4:]]
    for accumulating in (True, False):
        with model.no_sync() if accumulating else contextlib.nullcontext():
            cached_backward([model, model], views, clip, chunk_size=2)
    for x in xs:
        alone.calls.zero_()
        for _ in range(2):
            a, b = (torch.cat([alone(part) for part in view.split(2)]) for view in (x[:4], x[4:]))
            (clip(a, b) / ranks).backward()
    assert len(synchronized) == 1
    assert_close(gradients(encoder), gradients(alone))


def _averaged(bucket, ranks):
    future = dist.all_reduce(bucket.buffer() / ranks, async_op=True).get_future()
    return future.then(lambda done: done.value()[0])
