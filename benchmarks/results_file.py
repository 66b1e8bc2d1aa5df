"""Result files: one a device, in it one run a subject with what it was made by; a new run replaces the old one."""

import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import merc_kernels

PEERS = ("triton", "pytorch-metric-learning", "lightly", "liger-kernel")
RESULTS = Path(__file__).parent / "results"
Run = dict[str, Any]
Result = dict[str, Any]


def slug(device: str, threads: int | None = None) -> str:
    """The name of a device's file: ``nvidia-h100-80gb-hbm3``, ``amd-epyc-2-threads``."""
    plain = re.sub(r"\((r|tm|c)\)", "", device.lower())
    words = re.findall(r"[a-z0-9]+", plain)
    words = [word for word in words if word not in ("processor", "cpu")]
    return "-".join([*words, *([] if threads is None else [str(threads), "threads"])])


def environment() -> dict[str, Any]:
    """Day, machine, versions, commit (+ where more than results has changed; or unknown), command."""

    def git(*arguments: str) -> str:
        try:
            return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()
        except OSError:  # there is no git
            return ""

    changed = "+" if git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/benchmarks/results") else ""
    return {
        "date": datetime.now(UTC).date().isoformat(),
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


def store(run: Run, device: str, folder: Path = RESULTS, scale: str = "full", finished: bool = True) -> Path:
    """Write a run, with the environment it was made in, into its device's file.

    What is not ``finished`` goes into a file beside it, ending in .partial, until the run that is takes its place.
    """
    where = environment()
    name = where["gpu"] if device == "cuda" else where["cpu"]
    file = slug(name, None if device == "cuda" else where["threads"]) + ("" if scale == "full" else f"-{scale}")
    path = folder / f"{file}.json"
    start = {"device": name, "kind": device, "scale": scale, "runs": []}
    result = _read(path) if path.exists() else start
    runs = [old for old in result["runs"] if old["subject"] != run["subject"]] + [{**run, "environment": where}]
    result["runs"] = sorted(runs, key=lambda run: str(run["subject"]))
    partial = path.with_suffix(".partial")
    partial.write_text(dumps(result))
    return partial.replace(path) if finished else partial


def prepare(folder: Path) -> None:
    """See, before anything is measured, that results can be written there and added to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SystemExit(f"--results: {folder} cannot be written to: {error.strerror}") from None
    load(folder)


def _read(path: Path) -> Result:
    try:
        result: Result = json.loads(path.read_text())
    except ValueError:
        raise SystemExit(f"{path} is not valid JSON: remove it, and measure again") from None
    return result


def dumps(result: Result) -> str:
    """JSON with a row of a table in one line."""
    text = json.dumps(result, indent=1)
    inner = re.compile(r"\{\n {5,}[^{}]*(?:\{[^{}]*\}[^{}]*)*\}")
    return inner.sub(lambda found: re.sub(r"\s*\n\s*", " ", found[0]), text) + "\n"


def load(folder: Path = RESULTS) -> list[Result]:
    """Every file, CPUs first."""
    if not folder.is_dir():
        raise SystemExit(f"{folder} is no folder of results")
    results = [_read(path) | {"file": path.name} for path in sorted(folder.glob("*.json"))]
    return sorted((x for x in results if "kind" in x), key=lambda result: (result["kind"] != "cpu", result["file"]))


def write(path: Path, value: Any) -> None:
    """JSON, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(dumps(value))
    partial.replace(path)


def merge(path: Path, key: str, value: Any) -> None:
    """One entry of a file that several processes write, whole or not at all."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        known = _read(path) if path.exists() else {}
        write(path, {**known, key: value})
    finally:
        os.close(folder)
