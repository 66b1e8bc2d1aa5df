"""A small classifier learns from a large one.

python examples/distillation.py
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from merc_kernels import KDDivergence


def network(width: int) -> nn.Module:
    """A classifier of ten classes."""
    return nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, 10))


def train(model: nn.Module, inputs: Tensor, steps: int, loss_of: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Train on batches of ``inputs``; ``loss_of`` gets logits and rows."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(inputs), (256,))
        loss = loss_of(model(inputs[rows]), rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(steps: int = 200) -> None:
    """Train the teacher on labels, and a student on both."""
    torch.manual_seed(0)
    labels = torch.arange(4000) % 10
    inputs = 0.5 * torch.randn(10, 32)[labels] + torch.randn(4000, 32)

    teacher, student = network(256), network(8)
    train(teacher, inputs, steps, lambda logits, rows: F.cross_entropy(logits, labels[rows]))
    with torch.no_grad():
        targets = teacher(inputs)
    distillation = KDDivergence(temperature=2.0, ce_weight=0.5)  # the cross entropy in the same pass
    train(student, inputs, steps, lambda logits, rows: distillation(logits, targets[rows], labels=labels[rows]))
    for name, model in (("teacher", teacher), ("student", student)):
        print(f"{name}: accuracy {(model(inputs).argmax(-1) == labels).float().mean():.3f}")


if __name__ == "__main__":
    main()
