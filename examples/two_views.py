"""Two encoders that learn to agree, as CLIP's do, with batches larger than the encoders can take.

Rows of a batch are each other's views; rows of one label are positives too, which CLIP counts as negatives.

python examples/two_views.py
"""

import torch
from torch import Tensor, nn

from merc_kernels import FocalContrastiveLoss, cached_backward


def main(steps: int = 100) -> None:
    """Train on pairs: the same points as two instruments see them."""
    torch.manual_seed(0)
    labels = torch.arange(1024) % 64
    points = torch.randn(64, 16)[labels] + 0.3 * torch.randn(1024, 16)
    pictures, sounds = points @ torch.randn(16, 40), points @ torch.randn(16, 24)

    picture, sound = (nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 16)) for width in (40, 24))
    criterion = FocalContrastiveLoss(temperature=nn.Parameter(torch.tensor(0.07)), gamma=0.0, ref_only=True)
    optimizer = torch.optim.AdamW([*picture.parameters(), *sound.parameters(), *criterion.parameters()], lr=3e-3)

    for step in range(steps):
        rows = torch.randint(len(labels), (512,))

        def loss(a: Tensor, b: Tensor, names: Tensor = labels[rows]) -> Tensor:
            return criterion(torch.stack((a, b)), names, ref_embeddings=torch.stack((b, a)), ref_labels=names)

        optimizer.zero_grad()
        value = cached_backward([picture, sound], [pictures[rows], sounds[rows]], loss, chunk_size=128)
        optimizer.step()
        if step % 25 == 0 or step == steps - 1:
            print(f"step {step}: loss {value.item():.3f}, temperature {criterion.temperature.item():.4f}")
    nearest = (picture(pictures) @ sound(sounds).T).argmax(-1)
    print(f"accuracy {(labels[nearest] == labels).float().mean():.3f}")


if __name__ == "__main__":
    main()
