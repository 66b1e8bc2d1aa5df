"""training_step: encoder and head, cross entropy with both losses, gradients, and AdamW: what a user waits for.

The encoder is 512 → 1024 → 256, the head 256 → 6; float32. The floor is the same step without the two losses. What is
checked is the loss and its gradient in the encoder's second layer.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import contrastive_peers, kd_divergence
from benchmarks.cell import Cell, Floor, Problem, Provider
from benchmarks.focal_contrastive import PROPORTIONS, exact
from benchmarks.providers import compiled, ours
from merc_kernels import reference

FEATURES, HIDDEN, WIDTH, CLASSES = 512, 1024, 256, 6
Loss = Callable[..., Tensor]


def both(contrastive: Loss, divergence: Loss) -> Loss:
    """The sum of two losses, of embeddings, logits, labels and the teacher's logits."""

    def loss(embeddings: Tensor, logits: Tensor, labels: Tensor, teacher: Tensor, **options: Any) -> Tensor:
        return contrastive(embeddings, labels, "focal", **options) + divergence(logits, teacher, **options)

    return loss


eager = both(contrastive_peers.eager, kd_divergence.eager)
chunked = both(contrastive_peers.chunked, kd_divergence.chunked)
merc = both(contrastive_peers.merc, kd_divergence.merc)


class Network(nn.Module):
    """Encoder and head."""

    def __init__(self) -> None:
        super().__init__()
        first, self.last = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.encoder = nn.Sequential(first, nn.ReLU(), self.last)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, CLASSES))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and logits."""
        embeddings = self.encoder(features)
        return embeddings, self.head(embeddings)


class Step(Problem):
    """A training step; ``x`` is the weight whose gradient is checked."""

    def __init__(self, provider: Provider, network: Network, data: tuple[Tensor, Tensor, Tensor]) -> None:
        super().__init__(provider, "", network.last.weight, ())
        self._network, self._data = network, data
        self._optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def forward(self) -> Tensor:
        """The loss."""
        features, labels, teacher = self._data
        embeddings, logits = self._network(features)
        assert self.provider.loss is not None
        value: Tensor = F.cross_entropy(logits, labels) + self.provider.loss(embeddings, logits, labels, teacher)
        return value

    def both(self) -> Tensor:
        """One step."""
        self._optimizer.zero_grad()
        value = self.forward()
        value.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return value.detach()


class TrainingStep:
    """The subject."""

    name = "training_step"
    floor_is = "the same step without the two losses"
    limit: Mapping[str, float] = {"float32": 1e-3}

    def cells(self, scale: str, device: str) -> list[Cell]:
        """Sizes ascend."""
        rows = [128] if scale == "quick" else [128, 1024, 4096] if device == "cpu" else [128, 1024, 4096, 16384]
        seconds = 0.2 if scale == "quick" or device == "cuda" else 1.5
        some = ("merc", "fused", "eager", "chunked")
        names = {1024: (*some, "torch.compile", "merc:reference")}
        return [Cell(self.name, {"rows": n}, providers=names.get(n, some), seconds=seconds) for n in rows]

    def providers(self, device: str) -> list[Provider]:
        return [
            *ours(merc, device),
            Provider("eager", eager, square=True),
            Provider("torch.compile", compiled(eager), square=True),
            Provider("chunked", chunked),
        ]

    def work(self, cell: Cell) -> float:
        rows = float(cell.sizes["rows"])
        return rows**2 * WIDTH + rows * HIDDEN * (FEATURES + WIDTH)

    def problem(self, cell: Cell, provider: Provider, device: str, rows: int | None = None) -> Problem:
        network, data = _start(rows or cell.sizes["rows"], device)
        return Step(provider, network, data)

    def truth(self, cell: Cell, device: str) -> tuple[float, Tensor | None, int]:
        """The network in float64 on the reference."""
        network, (features, labels, teacher) = _start(cell.sizes["rows"], device)
        network = copy.deepcopy(network).double()
        embeddings, logits = network(features.double())
        contrastive, of_embeddings = exact(embeddings, labels, "focal")
        divergence = reference.kd_divergence(logits, teacher.double(), temperature=kd_divergence.TEMPERATURE)
        plain = F.cross_entropy(logits, labels) + divergence
        weight = network.last.weight
        gradient = torch.autograd.grad([plain, embeddings], weight, [torch.ones_like(plain), of_embeddings])[0]
        return float(plain.detach()) + contrastive, gradient, cell.sizes["rows"]

    def floor(self, cell: Cell, device: str) -> Floor:
        network, data = _start(cell.sizes["rows"], device)
        nothing = Provider("nothing", lambda embeddings, *others: embeddings.new_zeros(()))
        return Floor(Step(nothing, network, data).both, {"both": 1.0})


def _start(rows: int, device: str) -> tuple[Network, tuple[Tensor, Tensor, Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network()
        labels = torch.multinomial(PROPORTIONS, rows, replacement=True)
        features, teacher = torch.randn(rows, FEATURES), 3 * torch.randn(rows, CLASSES)
    return network.to(device), (features.to(device), labels.to(device), teacher.to(device))


SUBJECT = TrainingStep()
