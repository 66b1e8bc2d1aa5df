"""`merc_kernels.distributed` on gloo processes: the value and the gradient of one process that has all rows.

Four bugs of others have a check here: open_clip#616 (a loss of all rows on every rank, back through a gather with
gradient: W times too much), lightly#1977 (averaged by DDP: W times too little), pylate#156 (scaled where nothing was
gathered), accelerate#1154 (rows gathered without gradient: only the rank's own anchors pull at them).
"""

import contextlib
import functools
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import merc_kernels
from merc_kernels import distributed, focal_contrastive_loss, reference
from tests.kernels import ranks as gloo
from tests.kernels import test_bank, test_gradient_cache
from tests.numerics import assert_equal_fp64, error

CLASSES, FEATURES, WIDTH = 4, 6, 8
SIZES = (5, 0, 11, 3)  # rows of each rank
USES: dict[str, dict[str, Any]] = {
    "in the batch": {},
    "class weights": {"weights": True, "reduction": "batchmean"},
    "prototypes": {"prototypes": True, "reduction": "batchmean", "focal": "probability", "detach_focal": False},
    "prototype anchors": {"prototypes": True, "weights": True, "prototype_anchors": True, "learned": True},
    "refs": {"refs": 3, "weights": True, "learned": True, "reduction": "sum"},
    "refs and prototype anchors": {"refs": 3, "prototypes": True, "prototype_anchors": True, "detach_focal": False},
    "ref only": {"refs": 3, "ref_only": True, "learned": True, "focal": "probability"},
    "groups": {"groups": 3, "prototypes": True, "prototype_anchors": True, "normalize": False},
    "groups with refs": {"groups": 2, "refs": 2, "detach_focal": False},
}


def part(x: Tensor, sizes: list[int], rank: int) -> Tensor:
    """The rows of a rank, of vectors or labels."""
    return x.narrow(-2 if x.is_floating_point() else -1, sum(sizes[:rank]), sizes[rank]).clone()


def labels(*shape: int) -> Tensor:
    y = torch.randint(CLASSES, shape)
    y[..., ::7] = -100
    return y


def near(actual: Tensor | None, truth: Tensor, name: str) -> None:
    """In float32, to 1e-6 of the largest element."""
    assert actual is not None, name
    wrong = error(actual, truth) / float(truth.abs().max())
    assert wrong <= 1e-6, f"{name}: {wrong:.3g}"


def gradients(loss: Callable[..., Tensor], tensors: dict[str, Any], options: dict[str, Any]) -> dict[str, Tensor]:
    """The loss, and three times its gradients."""
    given = {
        name: x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in tensors.items()
    }
    value = loss(given.pop("embeddings"), given.pop("labels"), **given, **options)
    leaves = {name: x for name, x in tensors.items() if isinstance(x, Tensor) and x.requires_grad}
    made = torch.autograd.grad(3 * value, list(leaves.values()))
    return {"loss": value.detach(), **dict(zip(leaves, made, strict=True))}


def check_use(rank: int, ranks: int, use: str, backend: str) -> None:
    options = dict(USES[use])
    refs, shape = options.pop("refs", 0), (options.pop("groups"),) if "groups" in options else ()
    sizes = {"embeddings": list(SIZES[:ranks]), "ref_embeddings": [refs + r for r in range(ranks)]}
    rows = sum(sizes["embeddings"])
    learned = options.pop("learned", False)
    whole: dict[str, Any] = {
        "embeddings": torch.randn(*shape, rows, WIDTH, dtype=torch.float64),
        "labels": labels(*shape, rows),
        "temperature": torch.tensor(0.2, dtype=torch.float64) if learned else 0.2,
    }
    if options.pop("prototypes", False):
        whole["prototypes"] = torch.randn(CLASSES, WIDTH, dtype=torch.float64)
    if options.pop("weights", False):
        options["class_weights"] = torch.rand(CLASSES, dtype=torch.float64)
    if refs:
        whole["ref_embeddings"] = torch.randn(sum(sizes["ref_embeddings"]), WIDTH, dtype=torch.float64)
        whole["ref_labels"] = labels(sum(sizes["ref_embeddings"]))

    own = {"embeddings": "embeddings", "labels": "embeddings", "ref_embeddings": "ref_embeddings"}
    own["ref_labels"] = "ref_embeddings"
    mine = {name: part(x, sizes[own[name]], rank) if name in own else x for name, x in whole.items()}
    truth = gradients(reference.focal_contrastive_loss, whole, options)
    loss = functools.partial(distributed.focal_contrastive_loss, backend=backend)
    for name, gradient in gradients(loss, mine, options).items():
        wanted = ranks * part(truth[name], sizes[name], rank) if name in sizes else truth[name]
        assert_equal_fp64(gradient, wanted, f"{use}, {name}")


def check_uses_on_cpu(rank: int, ranks: int) -> None:
    for use in USES if "cpu" in backends() else ():
        check_use(rank, ranks, use, "cpu")


def check_uses_in_plain_pytorch(rank: int, ranks: int) -> None:
    for use in USES:
        check_use(rank, ranks, use, "torch")


def backends() -> list[str]:
    return [name for name, state in merc_kernels.backends().items() if state == "on"]


class Net(nn.Module):
    """An encoder with prototypes and a temperature; it gives all that its loss takes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, WIDTH))
        self.prototypes = nn.Parameter(torch.randn(CLASSES, WIDTH))
        self.temperature = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.layers(x), self.prototypes * 1, self.temperature * 1


def batch(rank: int, ranks: int) -> tuple[list[Tensor], list[Tensor]]:
    """Features and labels of every rank."""
    sizes = [size + 9 for size in SIZES[:ranks]]
    x, y = torch.randn(sum(sizes), FEATURES), labels(sum(sizes))
    return list(x.split(sizes)), list(y.split(sizes))


def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    embeddings, prototypes, temperature = net(x)
    return distributed.focal_contrastive_loss(embeddings, y, prototypes=prototypes, temperature=temperature)


def truth_of(net: Net, features: list[Tensor], names: list[Tensor], **autocast: Any) -> dict[str, Tensor]:
    """The parameters' gradient of one process, which encodes what is a rank's together, as there."""
    with torch.autocast("cpu", **autocast) if autocast else contextlib.nullcontext():
        parts = [net(x) for x in features]
    embeddings, (_, prototypes, temperature) = torch.cat([e for e, _, _ in parts]), parts[0]
    loss = focal_contrastive_loss(embeddings, torch.cat(names), prototypes=prototypes, temperature=temperature)
    made = torch.autograd.grad(loss, list(net.parameters()))
    return dict(zip((name for name, _ in net.named_parameters()), made, strict=True))


def check_ddp(rank: int, ranks: int) -> None:
    """lightly#1977."""
    net, (x, y) = Net(), batch(rank, ranks)
    truth = truth_of(net, x, y)
    model = DistributedDataParallel(net)
    loss_of(model, x[rank], y[rank]).backward()
    for name, parameter in net.named_parameters():
        near(parameter.grad, truth[name], name)


def check_ddp_with_autocast_and_grad_scaler(rank: int, ranks: int) -> None:
    net, (x, y) = Net(), batch(rank, ranks)
    to_bfloat16 = {"dtype": torch.bfloat16, "cache_enabled": False}
    truth = truth_of(net, x, y, **to_bfloat16)
    model, scaler = DistributedDataParallel(net), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with torch.autocast("cpu", **to_bfloat16):
        loss = loss_of(model, x[rank], y[rank])
    assert loss.dtype == torch.float32
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for name, parameter in net.named_parameters():
        near(parameter.grad, truth[name], name)


def check_ddp_with_gradient_accumulation(rank: int, ranks: int) -> None:
    net, steps = Net(), [batch(rank, ranks) for _ in range(3)]
    truths = [truth_of(net, x, y) for x, y in steps]
    model = DistributedDataParallel(net)
    for step, (x, y) in enumerate(steps):
        with model.no_sync() if step < 2 else contextlib.nullcontext():
            (loss_of(model, x[rank], y[rank]) / 3).backward()
    for name, parameter in net.named_parameters():
        near(parameter.grad, sum(truth[name] / 3 for truth in truths), name)


def check_fsdp2(rank: int, ranks: int) -> None:
    net, (x, y) = Net(), batch(rank, ranks)
    truth = truth_of(net, x, y)
    net.temperature.requires_grad_(False)  # FSDP2 shards no parameter without a dimension
    net.temperature = nn.Parameter(torch.tensor([0.3]))
    fully_shard(net.layers)
    fully_shard(net)
    embeddings, prototypes, temperature = net(x[rank])
    options = {"prototypes": prototypes, "temperature": temperature[0]}
    distributed.focal_contrastive_loss(embeddings, y[rank], **options).backward()
    for name, parameter in net.named_parameters():
        near(parameter.grad.full_tensor().view_as(truth[name]), truth[name], name)


def check_plain_loop(rank: int, ranks: int) -> None:
    """open_clip#616: W times a rank's share, not W² times; and gradients that are summed, of the loss over W."""
    net, (x, y) = Net(), batch(rank, ranks)
    truth = truth_of(net, x, y)
    for summed in (False, True):
        net.zero_grad()
        (loss_of(net, x[rank], y[rank]) / (ranks if summed else 1)).backward()
        for name, parameter in net.named_parameters():
            if name in ("prototypes", "temperature") and not summed:  # whole on every rank
                near(parameter.grad, truth[name], name)
            dist.all_reduce(parameter.grad)
            near(parameter.grad / (1 if summed else ranks), truth[name], name)


def check_scaled_only_where_gathered(rank: int, ranks: int) -> None:
    """pylate#156: a group of one gathers nothing; nor are refs scaled that all ranks hold."""
    alone = [dist.new_group([r]) for r in range(ranks)][rank]
    x, y = torch.randn(9, WIDTH, dtype=torch.float64), labels(9)
    tensors = {"embeddings": x, "labels": y}
    here = gradients(distributed.focal_contrastive_loss, tensors, {"group": alone})
    for name, wanted in gradients(focal_contrastive_loss, tensors, {}).items():
        assert torch.equal(here[name], wanted)

    shared = {"ref_embeddings": torch.randn(6, WIDTH, dtype=torch.float64), "ref_labels": labels(6)}
    for options in ({"ref_only": True}, {}):
        truth = gradients(reference.focal_contrastive_loss, tensors | shared, options)
        sizes = [9, *[0] * (ranks - 1)]  # all rows are the first rank's
        mine = {name: part(v, sizes, rank) for name, v in tensors.items()} | shared
        made = gradients(distributed.focal_contrastive_loss, mine, {**options, "gather_refs": False})
        assert_equal_fp64(made["ref_embeddings"], truth["ref_embeddings"], "refs")
        assert_equal_fp64(made["embeddings"], ranks * part(truth["embeddings"], sizes, rank), "embeddings")


def check_candidates_are_pulled_from_everywhere(rank: int, ranks: int) -> None:
    """accelerate#1154: rank 0 has no anchor with a positive on any rank, yet its rows repel those of the others."""
    x = torch.randn(3 * ranks, WIDTH, dtype=torch.float64)
    y = torch.tensor([7, 8, 9] + [0, 0, 1] * (ranks - 1))
    truth = gradients(reference.focal_contrastive_loss, {"embeddings": x, "labels": y}, {})
    sizes = [3] * ranks
    mine = {"embeddings": part(x, sizes, rank), "labels": part(y, sizes, rank)}
    made = gradients(distributed.focal_contrastive_loss, mine, {})
    assert_equal_fp64(made["embeddings"], ranks * part(truth["embeddings"], sizes, rank), "embeddings")
    assert bool(made["embeddings"].any())


def check_nothing_to_count(rank: int, ranks: int) -> None:
    for rows in (0, 4):
        x = torch.randn(rows, WIDTH, requires_grad=True)
        loss = distributed.focal_contrastive_loss(x, torch.arange(rows) + 10 * rank)
        loss.backward()
        assert loss.item() == 0
        assert not x.grad.any()


def check_the_same_bits_everywhere(rank: int, ranks: int) -> None:
    """Also in 16 bits, without gradients, and from tensors that were made in inference mode."""
    for dtype in (torch.float32, torch.bfloat16):
        x, y = torch.randn(8 * ranks, WIDTH).to(dtype), labels(8 * ranks)
        sizes, values = [8] * ranks, []
        with torch.inference_mode():
            mine = part(x, sizes, rank), part(y, sizes, rank)
            values.append(distributed.focal_contrastive_loss(*mine))
        values.append(distributed.FocalContrastiveLoss(max_rows=8)(mine[0].clone().requires_grad_(), mine[1]).detach())
        everywhere = [torch.zeros(2) for _ in range(ranks)]
        dist.all_gather(everywhere, torch.stack(values))
        assert len(set(torch.cat(everywhere).tolist())) == 1
        truth = reference.focal_contrastive_loss(x.double(), y)
        assert abs(float(values[0]) - float(truth)) <= {torch.float32: 1e-6, torch.bfloat16: 1e-5}[dtype] * float(truth)


def check_two_gathers(rank: int, ranks: int) -> None:
    """Rows with their labels, and 12 bytes of each row with two sums; none in the backward pass, no reduction."""
    sent: list[int] = []
    gather = distributed._all_gather
    distributed._all_gather = lambda x, group: (sent.append(x.nbytes), gather(x, group))[1]  # type: ignore[assignment]
    try:
        x, y = torch.randn(10, WIDTH, requires_grad=True), labels(10)
        loss = distributed.focal_contrastive_loss(x, y, max_rows=10)
        assert sent == [10 * (4 * WIDTH + 8), 10 * 12 + 8]
        loss.backward()
        assert len(sent) == 2
    finally:
        distributed._all_gather = gather


def check_compiled(rank: int, ranks: int) -> None:
    """One graph, without a break."""
    x, y, prototypes = torch.randn(6, WIDTH), labels(6), torch.randn(CLASSES, WIDTH)
    temperature = torch.tensor(0.2)
    tensors = {"embeddings": x, "labels": y, "prototypes": prototypes, "temperature": temperature}
    eager = gradients(distributed.focal_contrastive_loss, dict(tensors), {"prototype_anchors": True})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, of its own ways
        loss = torch.compile(distributed.focal_contrastive_loss, fullgraph=True, backend="aot_eager")
        compiled = gradients(loss, dict(tensors), {"prototype_anchors": True})
    for name, wanted in eager.items():
        near(compiled[name], wanted, name)


def check_mistakes(rank: int, ranks: int) -> None:
    x, y = torch.randn(4, WIDTH), labels(4)
    for options, expected in (
        ({"reduction": "none"}, "reduction: expected 'mean', 'batchmean' or 'sum' over several ranks, got 'none'"),
        ({"max_rows": 3}, "max_rows: expected at least the 4 of this rank, got 3"),
        ({"backend": "reference"}, "backend: expected .* for distributed focal_contrastive_loss, got 'reference'"),
        ({"temperature": 0.1 + rank}, "dtypes, widths or options: expected the same on every rank"),
    ):
        with pytest.raises(ValueError, match=expected):
            distributed.focal_contrastive_loss(x, y, **options)
    with pytest.raises(ValueError, match="labels: expected int64, a class for each row, over several ranks, got bool"):
        distributed.focal_contrastive_loss(x, torch.ones(4, 3, dtype=torch.bool))
    with pytest.raises(RuntimeError, match=r"has no torch\.func transforms"):
        torch.func.grad(lambda x: distributed.focal_contrastive_loss(x, y, max_rows=4))(x)
    loss = distributed.focal_contrastive_loss(x.requires_grad_(), y.clamp(min=0))
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        first.sum().backward()


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_") and name != "check_use"]


OF_TWO = [  # not of more too: what is slow, and what needs no more
    check_compiled,
    test_bank.check_under_ddp_every_rank_has_the_rows_of_all,
    test_gradient_cache.check_ddp_averages_once_a_step,
]


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.full)])
def test_as_one_process(ranks):
    gloo.run([check for check in CHECKS if check not in OF_TWO] + (OF_TWO if ranks == 2 else []), ranks)


def test_without_processes_it_is_the_loss_of_one():
    x, y = torch.randn(9, WIDTH), labels(9)
    for use, cls in itertools.product(({}, {"gamma": 1.0}), (distributed.FocalContrastiveLoss,)):
        assert torch.equal(cls(**use)(x, y), focal_contrastive_loss(x, y, **use))
    assert torch.equal(distributed.focal_contrastive_loss(x, y), focal_contrastive_loss(x, y))
    with pytest.raises(TypeError, match="unexpected keyword argument 'gama'"):
        distributed.focal_contrastive_loss(x, y, gama=1.0)
