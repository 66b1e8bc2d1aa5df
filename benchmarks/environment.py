"""What a result file says of where it comes from."""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import merc_kernels

PEERS = ("triton", "pytorch-metric-learning", "lightly", "liger-kernel")
RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Machine, versions, commit (+ where more than results has changed; unknown outside a repository) and command."""

    def git(*arguments: str) -> str:
        try:
            return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()
        except OSError:  # there is no git
            return ""

    changed = "+" if git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/benchmarks/results") else ""
    return {
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "merc-kdc": merc_kernels.__version__,
        "peers": {name: _version(name) for name in PEERS},
        "backends": merc_kernels.backends(),
        "commit": (git("rev-parse", "HEAD") or "unknown") + changed,
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
    }


def cpu_name() -> str:
    """The processor, as Linux calls it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
