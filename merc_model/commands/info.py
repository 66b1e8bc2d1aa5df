"""``merc info``."""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import torch

import merc_kernels
from merc_model.errors import UserError


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """What the command of ``merc`` takes."""
    command = commands.add_parser("info", help="versions, devices, backends, and which of them a call takes")
    command.set_defaults(run=_info)
    command.add_argument("--check", action="store_true", help="try each backend on small problems, and time them")


def _info(options: argparse.Namespace) -> None:
    print(f"merc-kdc {merc_kernels.__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in ("torch", "triton", "numpy", "scikit-learn", "safetensors", "matplotlib"):
        try:
            print(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            print(f"{package} not installed")
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(f"devices: cpu ({torch.get_num_threads()} threads)" + "".join(f", {name}" for name in devices))
    for name, state in merc_kernels.backends().items():
        print(f"backend {name}: {state}")
    for line in _defaults():
        print(line)
    if options.check and subprocess.run([sys.executable, "-m", "merc_kernels.check"], check=False).returncode:
        raise UserError("a backend that is on has wrong values, or broke off; the lines above say which")


def _defaults() -> Iterator[str]:
    """What a call without ``backend=`` takes here, on this machine's devices and on the kinds of GPU there are."""
    here: list[tuple[str, tuple[int, int] | None]] = [("cpu", None)]
    if torch.cuda.is_available():
        here.append(("cuda", torch.cuda.get_device_capability()))
    else:
        here += [("cuda", capability) for capability in ((7, 5), (8, 0), (9, 0))]
    for device, capability in here:
        place = device if capability is None else f"{device}, sm_{capability[0]}{capability[1]}"
        for operator, sizes, width in (("focal_contrastive", (512, 2048, 16384), 256), ("kd_divergence", (512,), 7)):
            for count in sizes:
                name, reason = merc_kernels.default_backend(
                    operator, device=device, dtype=torch.bfloat16, rows=count, width=width, capability=capability
                )
                yield f"default of {operator} on {place}, {count} x {width}, bfloat16: {name} ({reason})"
