"""A model is built only where it fits into the memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch

from merc_model.config import Config
from merc_model.errors import UserError
from merc_model.model import MercModel


def build(
    dims: Mapping[str, int], label_names: Sequence[str], config: Config, device: torch.device, copies: int = 1
) -> MercModel:
    """A new model, still on the CPU.

    Args:
        dims: modality → width of its features.
        label_names: the C emotions.
        config: the sizes and switches.
        device: where it will go.
        copies: of its weights that will be held: training keeps gradients, moments and averages beside them.

    Raises:
        UserError: a model larger than the machine's or the device's memory.
    """
    named = ("hidden_dim", "layers", "projection_dim")
    sizes = ", ".join(f"{name}={getattr(config, name)}" for name in named)
    try:
        with torch.device("meta"):
            parameters = sum(value.numel() for value in MercModel(dims, label_names, config).state_dict().values())
    except (RuntimeError, OverflowError, TypeError):  # more elements than torch can count
        raise UserError(f"the model is too large for any memory ({sizes}); choose smaller sizes") from None
    needed, there = 4 * parameters * copies / 2**30, _gibibytes(device)
    if needed > there:
        raise UserError(
            f"the model needs {needed:.0f} GiB, of {there:.0f} GiB of memory ({sizes}); choose smaller sizes"
        )
    return MercModel(dims, label_names, config)


def _gibibytes(device: torch.device) -> float:
    """What memory the machine has, or the GPU if it has less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if device.type == "cuda":
        memory = min(memory, torch.cuda.get_device_properties(device).total_memory / 2**30)
    return memory
