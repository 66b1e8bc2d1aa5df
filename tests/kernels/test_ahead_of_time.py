"""Triton kernels compiled for real architectures without a GPU: nothing spilled, in the shared memory there is.

It takes every iterator ``*_configurations`` of tests.kernels.ahead_of_time: an operator adds its own there. make archs
compiles of each kernel the last configuration that the iterator gives, which should be the one that takes most
registers, and on the reference machine that of each set of types it is launched with; make test-full every one.
"""

import functools
import multiprocessing
import os
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from tests import cores

triton = pytest.importorskip("triton", reason="triton is not installed")

SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB that a program may have
REFERENCE = 90
OPERATORS = ("focal_contrastive", "kd_divergence")


@functools.cache
def configurations(operator: str) -> list:
    from tests.kernels import ahead_of_time

    return list(getattr(ahead_of_time, f"{operator}_configurations")())


def launched(operator: str, architecture: int) -> list[int]:
    """Positions of the configurations that a call launches there."""
    from merc_kernels.focal_contrastive.triton.configuration import architecture_of

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda device: divmod(architecture, 10))
        of_tiles = architecture_of(torch.device("cuda"))
    return [i for i, one in enumerate(configurations(operator)) if of_tiles in one.architectures]


def representatives(operator: str, architecture: int, every_type: bool = False) -> list[int]:
    """Positions of the last configuration of each kernel, or of each set of its types."""
    chosen: dict[tuple, int] = {}
    for position in launched(operator, architecture):
        configuration = configurations(operator)[position]
        types = sorted({x for x in configuration.signature.values() if x[0] == "*"})
        key = (configuration.kernel.__name__, *(types if every_type else ()))
        chosen[key] = position
    return sorted(set(chosen.values()))


def compiled_in(folder: str, configuration, architecture: int):
    """What Triton makes of a configuration."""
    source = triton.compiler.ASTSource(
        configuration.kernel, configuration.signature, configuration.constants, configuration.attributes
    )
    target = triton.backends.compiler.GPUTarget("cuda", architecture, 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", folder)
        return triton.compile(source, target=target, options=configuration.options)


def problem(operator: str, position: int, architecture: int) -> str | None:
    """What is wrong with a configuration once it is compiled."""
    configuration = configurations(operator)[position]
    with tempfile.TemporaryDirectory() as folder:
        compiled = compiled_in(folder, configuration, architecture)
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    shared = compiled.metadata.shared
    if re.search(r"STACK:0 .*LOCAL:0 ", usage) and shared <= SHARED_MEMORY[architecture] << 10:
        return None
    of_it = f"{configuration.kernel.__name__} {configuration.constants} {configuration.signature.values()}"
    return f"sm_{architecture}: {of_it} {configuration.options}: shared {shared}, {usage.split('Function')[-1].strip()}"


def problems(operator: str, positions: list[int], architecture: int) -> list[str]:
    """Those of many, compiled by as many processes as this one has cores."""
    workers = min(cores.of_a_worker(), len(positions) // 12)  # a process takes as long to start as some compile
    if workers < 2:
        return [one for one in (problem(operator, position, architecture) for position in positions) if one is not None]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        count = len(positions)
        found = pool.map(problem, [operator] * count, positions, [architecture] * count, chunksize=4)
        return [one for one in found if one is not None]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
class TestCompiles:
    def test_every_iterator_is_here(self):
        from tests.kernels import ahead_of_time

        ending = "_configurations"
        assert {f"{operator}{ending}" for operator in OPERATORS} == {
            x for x in vars(ahead_of_time) if x.endswith(ending)
        }

    @pytest.mark.full
    @pytest.mark.parametrize("architecture", SHARED_MEMORY)
    @pytest.mark.parametrize("operator", OPERATORS)
    def test_representatives(self, operator, architecture):
        positions = representatives(operator, architecture)
        assert len(positions) > 2
        assert problems(operator, positions, architecture) == []

    @pytest.mark.full
    @pytest.mark.parametrize("operator", OPERATORS)
    def test_representatives_of_every_type(self, operator):
        positions = representatives(operator, REFERENCE, every_type=True)
        assert len(positions) > len(representatives(operator, REFERENCE))
        assert problems(operator, positions, REFERENCE) == []

    @pytest.mark.full
    @pytest.mark.parametrize("architecture", SHARED_MEMORY)
    @pytest.mark.parametrize("operator", OPERATORS)
    def test_every_configuration(self, operator, architecture):
        assert problems(operator, launched(operator, architecture), architecture) == []

    @pytest.mark.full  # and of make archs
    @pytest.mark.parametrize("symmetric", [False, True])
    @pytest.mark.parametrize("dtype", ["*bf16", "*fp32"])
    def test_wide_rows_have_their_matrix_stored_16_bytes_at_a_time(self, dtype, symmetric, tmp_path):
        plain = {"MATRIX": True, "SIMILARITY": True, "DETACH": True, "POWER": 2, "BOUNDED": True, "PRECISION": "ieee"}
        plain["SYMMETRIC"] = symmetric
        for configuration in configurations("focal_contrastive"):
            of_it = configuration.constants.items() >= plain.items() and configuration.signature["out_ptr"] == dtype
            if of_it and 90 in configuration.architectures:
                code = compiled_in(str(tmp_path), configuration, 90).asm["ptx"]
                stores = set(re.findall(r"st\.global\S*", code))
                assert "st.global.v4.b32" in stores
                assert len(stores) == 1 or symmetric  # a tile's transpose by elements
