"""Which backend a call takes that names none: one static rule, for any device, present or not.

Timing decides nothing at run time, so the same call takes the same kernels on every run. The bounds come from counting
the launches and the memory traffic of each kernel; a measurement on a GPU may move them.
"""

import re
from typing import NamedTuple

import torch

PAIRS = 1 << 26  # of rows: from there on the plain form's N x N memory matters more than its few launches
LAUNCH_BOUND = 2048  # rows of the contrastive loss up to which launches, not products, take the time
LAUNCH_BOUND_IEEE = 4096  # the same in float32 without tensor cores
LOGITS = 1 << 26  # of the student, from where on Triton's fewer bytes save more than its launches cost the host
PLAIN_BOUND = 1024  # rows up to which the plain form has fewer launches than Triton
CAPABILITY = (8, 0)  # the oldest whose tensor cores and shared memory the fused kernels fit

OPERATORS = ("focal_contrastive", "kd_divergence")


class Default(NamedTuple):
    """The backend of a call that names none, and the reason."""

    backend: str
    reason: str


class Built(NamedTuple):
    """What this install can run, were the device there: the C++ kernels, the CUDA kernels' architectures, Triton."""

    cpu: bool
    cuda: str | None  # as in TORCH_CUDA_ARCH_LIST
    triton: bool


def covers(architectures: str | None, capability: tuple[int, int]) -> bool:
    """Whether CUDA kernels compiled for ``architectures``, such as ``8.0;9.0+PTX``, run on a ``capability``."""
    for architecture in (architectures or "").replace(" ", ";").split(";"):
        found = re.fullmatch(r"(\d+)\.(\d+)(a?)(\+PTX)?", architecture)
        if found is None:
            continue
        compiled = (int(found[1]), int(found[2]))
        later = compiled[0] == capability[0] or found[4] is not None  # within a major version, or compiled on the spot
        if compiled == capability or (compiled < capability and later and not found[3]):
            return True
    return False


def choose(
    operator: str,
    device: str,
    dtype: torch.dtype,
    rows: int | None,
    pairs: int,
    capability: tuple[int, int] | None,
    built: Built,
) -> Default:
    """The rule.

    Args:
        operator: whose call it is.
        device: the type of the tensors' device.
        dtype: the one that the products are computed in.
        rows: of a group, with its prototypes and refs; None in a trace, where no choice may depend on them.
        pairs: of rows over all groups, which the plain form of the contrastive loss would hold at once; logits of the
            divergence, 0 in a trace.
        capability: of the GPU; None elsewhere.
        built: what this install can run.
    """
    if device == "cpu" and built.cpu:
        return Default("cpu", "the C++ kernels are built")
    if device != "cuda" or capability is None:
        return plain(operator, pairs, f"no other kernel is on for {device}")
    if capability < CAPABILITY:
        needed, got = ("sm_" + "".join(map(str, version)) for version in (CAPABILITY, capability))
        return plain(operator, pairs, f"fused kernels are off: they need {needed}, and this is {got}")
    cuda = covers(built.cuda, capability)
    if not (cuda or built.triton):
        return plain(operator, pairs, "there is neither Triton nor a CUDA kernel for this GPU")
    if operator == "kd_divergence":
        if built.triton and pairs >= LOGITS:
            return Default("triton", "of 2^26 logits or more it reads each once")
        return Default("cuda", "its launches are cheaper") if cuda else Default("triton", "no CUDA kernel is built")
    assert operator == "focal_contrastive", f"no rule for {operator}"
    if not built.triton:
        return Default("cuda", "triton is not installed")
    if rows is None:
        return Default("triton", "a trace holds for any number of rows")
    ieee = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32"
    bound = LAUNCH_BOUND_IEEE if ieee else LAUNCH_BOUND
    if rows > bound:
        return Default("triton", f"over {bound} rows its products are faster")
    if cuda:
        return Default("cuda", f"up to {bound} rows its launches are cheaper")
    if rows <= PLAIN_BOUND:
        return plain(
            operator, pairs, f"up to {PLAIN_BOUND} rows it has the fewest launches, as no CUDA kernel is built"
        )
    return Default("triton", f"over {PLAIN_BOUND} rows, as no CUDA kernel is built")


def plain(operator: str, pairs: int, reason: str) -> Default:
    """Plain PyTorch: of the contrastive loss chunked where N x N is large; of the divergence linear as it is."""
    if operator == "focal_contrastive" and pairs >= PAIRS:
        return Default("torch", f"{reason}; from 2^26 pairs of rows on memory counts")
    return Default("reference", reason)
