"""The loss of the batches of all processes, with its exact gradient.

torchrun --nproc-per-node 2 examples/several_processes.py
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from merc_kernels.distributed import FocalContrastiveLoss


def main(steps: int = 30) -> None:
    """Each process encodes 32 rows; each row is compared with those of all."""
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    labels = torch.arange(4000, device=device) % 40
    inputs = torch.randn(40, 32, device=device)[labels] + torch.randn(4000, 32, device=device)

    encoder = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)).to(device)
    model = DistributedDataParallel(encoder)  # averages the gradients, for which the loss is scaled
    criterion = FocalContrastiveLoss(temperature=0.1, gamma=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    for step in range(steps):
        rows = torch.randint(len(labels), (32 * dist.get_world_size(),), device=device)  # the same on all
        mine = rows[dist.get_rank() :: dist.get_world_size()]
        loss = criterion(model(inputs[mine]), labels[mine])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if dist.get_rank() == 0 and (step % 10 == 0 or step == steps - 1):
            print(f"step {step}: loss {loss.item():.3f}")  # of all rows
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
