"""The focal contrastive loss beside cross entropy, in a loop of your own.

python examples/plain_loop.py
"""

import torch
from torch import nn
from torch.nn import functional as F

from merc_kernels import FocalContrastiveLoss, class_balanced_weights


def main(steps: int = 60) -> None:
    """Train on points around six centres, some of them rare."""
    torch.manual_seed(0)
    counts = torch.tensor([500, 800, 1300, 900, 700, 100])
    labels = torch.arange(6).repeat_interleave(counts)
    inputs = torch.randn(6, 32)[labels] + torch.randn(len(labels), 32)

    encoder, classifier = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)), nn.Linear(16, 6)
    contrastive = FocalContrastiveLoss(temperature=0.1, class_weights=class_balanced_weights(counts, alpha=0.5))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *classifier.parameters()], lr=3e-3)

    for step in range(steps):
        rows = torch.randint(len(labels), (256,))
        embeddings = encoder(inputs[rows])
        entropy = F.cross_entropy(classifier(embeddings), labels[rows])
        loss = entropy + 0.3 * contrastive(embeddings, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}")
    accuracy = (classifier(encoder(inputs)).argmax(-1) == labels).float().mean()
    print(f"accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
