"""A model like MultiEMO, with the loss of its own project; after.py differs in one import.

python examples/multiemo/before.py
"""

import torch
from loss import SampleWeightedFocalContrastiveLoss
from torch import nn
from torch.nn import functional as F

COUNTS = torch.tensor([60, 90, 150, 110, 80, 20])  # of IEMOCAP's six emotions, in a small way


class Model(nn.Module):
    """Text, audio and visual features, each through a layer; text asks the others, and their states are summed."""

    def __init__(self, dims: tuple[int, ...] = (24, 12, 12), width: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, width) for dim in dims])
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.classifier = nn.Linear(width, len(COUNTS))

    def forward(self, *features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Fused states and logits, a row an utterance."""
        states = torch.stack([layer(rows) for layer, rows in zip(self.layers, features, strict=True)], dim=1)
        fused = states.sum(1) + self.attention(states[:, :1], states, states)[0][:, 0]
        return fused, self.classifier(fused)


def main(steps: int = 40) -> None:
    """Train on made-up utterances."""
    torch.manual_seed(0)
    labels = torch.arange(len(COUNTS)).repeat_interleave(COUNTS)
    features = [torch.randn(len(COUNTS), dim)[labels] + torch.randn(len(labels), dim) for dim in (24, 12, 12)]
    model = Model()
    swfc = SampleWeightedFocalContrastiveLoss(0.8, 2.0, 0.8, "IEMOCAP", COUNTS, "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(labels), (64,))
        fused, logits = model(*(each[rows] for each in features))
        loss = F.cross_entropy(logits, labels[rows]) + 0.5 * swfc(fused, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = (model(*features)[1].argmax(-1) == labels).float().mean()
    print(f"loss {loss.item():.4f}, accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
