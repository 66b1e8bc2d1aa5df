"""Small batches that see the embeddings of earlier ones.

python examples/memory_bank.py
"""

import torch
from torch import nn

from merc_kernels import FocalContrastiveLoss, MemoryBank


def main(steps: int = 60) -> None:
    """Train with 16 rows a step and forty classes: alone, few rows of a batch would have a positive."""
    torch.manual_seed(0)
    labels = torch.arange(4000) % 40
    inputs = torch.randn(40, 32)[labels] + torch.randn(4000, 32)

    encoder, bank = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)), MemoryBank(512, 16)
    criterion = FocalContrastiveLoss(temperature=0.1, gamma=1.0)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-3)

    for step in range(steps):
        rows = torch.randint(len(labels), (16,))
        embeddings = encoder(inputs[rows])
        loss = criterion(embeddings, labels[rows], **bank(embeddings, labels[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}, in the bank {(bank.labels >= 0).sum()}")


if __name__ == "__main__":
    main()
