# Triton ships no types, where it is installed at all:
# mypy: disable-error-code="import-untyped,import-not-found"
"""What a compiled kernel asks of the units of an NVIDIA GPU: its machine instructions, counted, none of them run.

A loop is found by its backward branch. Counts are of one warp, and of one iteration of a loop without what its inner
loops hold, on the longest path and on the shortest one; a guarded instruction counts as if it ran.
"""

import functools
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from triton import knobs

UNITS = {  # unit → the beginnings of its instructions; the first match counts
    "tensor": ("HGMMA", "HMMA", "DMMA", "QGMMA", "IGMMA"),
    "fp32": ("FFMA", "FADD", "FMUL", "HFMA2", "HADD2", "HMUL2"),
    "imad": ("IMAD", "IDP"),
    "fp64": ("DADD", "DMUL", "DFMA", "DSETP"),
    "special": ("MUFU", "I2F", "F2I", "I2I", "POPC", "FLO", "BREV"),
    "shuffle": ("SHFL", "REDUX", "VOTE", "MATCH"),
    "shared": ("LDS", "STS", "ATOMS", "STSM"),
    "global": ("LDGSTS", "LDG", "STG", "UTMALDG", "UTMASTG", "ATOMG", "RED", "UBLKCP"),
    "spill": ("LDL", "STL"),
    "select": ("FSEL", "FSET", "FMNMX", "ISETP", "SEL", "IMNMX", "VIMNMX", "PLOP3", "P2R", "R2P", "FCHK"),
    "integer": ("IADD", "LOP3", "LEA", "SHF", "SHL", "SHR", "PRMT", "VIADD", "IABS", "SGXT", "F2F", "MOV", "CS2R"),
}
_SHAPES = {"16816": (16, 8, 16), "1688": (16, 8, 8), "1684": (16, 8, 4), "884": (8, 8, 4)}  # of a warp's products
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
_LABEL = re.compile(r"\.L_x_\d+")


class Body(NamedTuple):
    """Instructions of a warp: outside of loops, or of one iteration of a loop.

    Attributes:
        counts: unit → instructions; ``other`` has the rest.
        beside: those of them that stand between a product that runs by itself and the wait for it.
        products: multiply-adds of the warp on the tensor cores, by instruction and type: ``HGMMA.BF16``.
        factors: bytes that the products read of shared memory while they run.
        shared: bytes that the rest moves from and to it.
        stored: bytes, to global memory.
        loaded: bytes from there, by 16 a lane: what is narrower are labels and numbers, which few lanes load.
        depth: of the loop; 0 for what is in none.
    """

    counts: Counter[str]
    beside: Counter[str]
    products: Counter[str]
    factors: int
    shared: int
    stored: int
    loaded: int
    depth: int


class Kernel(NamedTuple):
    """A compiled kernel: outside of its loops, and loops with outer before inner."""

    registers: int
    spilled: int  # bytes of stack and local memory
    shared: int  # bytes that are static
    outside: Body
    loops: list[Body]  # on the longest path
    shortest: list[Body]  # of the same loops


def unit(opcode: str) -> str:
    """The unit that executes it."""
    found = ((len(start), name) for name, starts in UNITS.items() for start in starts if opcode.startswith(start))
    return max(found, default=(0, "other"))[1]


def _width(opcode: str) -> int:
    """Bytes of a lane."""
    for part, size in ((".128", 16), (".64", 8), (".U16", 2), (".S16", 2), (".U8", 1), (".S8", 1)):
        if part in opcode:
            return size
    return 4


def product(opcode: str, arguments: str) -> tuple[str, int, int]:
    """Kind, multiply-adds of a warp, bytes of factors in shared memory."""
    kind = next((x for x in ("TF32", "BF16", "F64") if x in opcode), "F16")
    if opcode.startswith("HGMMA"):
        m, n, k = map(int, re.findall(r"\.(\d+)x(\d+)x(\d+)", opcode)[0])
        size = 4 if kind == "TF32" else 2
        left = 0 if re.search(r", R\d+, gdesc", arguments) else m * k * size  # in registers, or shared memory
        return f"HGMMA.{kind}", m * n * k // 4, (left + n * k * size) // 4
    m, n, k = _SHAPES[re.findall(r"\.(\d{3,5})", opcode)[0]]
    return f"{opcode[:4]}.{kind}", m * n * k, 0


def _beside(instructions: list[tuple[str, str]], depth: int) -> Counter[str]:
    found: Counter[str] = Counter()
    running = False
    for _ in range(2 if depth else 1):  # what a loop starts, the next iteration may wait for
        found.clear()
        for opcode, _arguments in instructions:
            if opcode.startswith(("HGMMA", "WARPGROUP.DEPBAR")):
                running = opcode.startswith("HGMMA")
            elif running:
                found[unit(opcode)] += 1
    return found


def _body(instructions: list[tuple[str, str]], depth: int) -> Body:
    counts: Counter[str] = Counter()
    products: Counter[str] = Counter()
    factors = shared = stored = loaded = 0
    for opcode, arguments in instructions:
        of = unit(opcode)
        counts[of] += 1
        if of == "tensor":
            kind, size, read = product(opcode, arguments)
            products[kind] += size
            factors += read
        elif of == "shared":
            matrices = 4 if opcode.endswith(".4") else 2 if opcode.endswith(".2") else 1
            shared += 32 * (4 * matrices if opcode.startswith(("LDSM", "STSM")) else _width(opcode))
        elif "ST" in opcode[:3]:
            stored += 32 * _width(opcode)
        elif of == "global" and _width(opcode) == 16:
            loaded += 32 * 16
            shared += 32 * 16 if opcode.startswith("LDGSTS") else 0
    return Body(counts, _beside(instructions, depth), products, factors, shared, stored, loaded, depth)


@functools.cache  # a kernel is launched many times
def kernels(cubin: bytes) -> dict[str, Kernel]:
    """Every kernel of a cubin by its name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tools = ([knobs.nvidia.cuobjdump.path, "-res-usage"], [knobs.nvidia.nvdisasm.path, "-c"])
        usage, code = (
            subprocess.run([*tool, path], capture_output=True, text=True, check=True).stdout for tool in tools
        )
    found = {}
    for name, text in re.findall(r"\.section\s+\.text\.(\w+),(.*?)(?=\.section\s|\Z)", code, re.DOTALL):
        numbers = re.search(rf"Function {name}:\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
        assert numbers
        registers, stack, shared, local = map(int, numbers.groups())
        found[name] = Kernel(registers, stack + local, shared, *loops(text))
    return found


def loops(text: str) -> tuple[Body, list[Body], list[Body]]:
    """Of a kernel's text what is in no loop, and each loop on its longest path and on its shortest."""
    instructions: list[tuple[str, str]] = []
    guarded: list[bool] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            instructions.append((found[2], found[3]))
            guarded.append(found[1] is not None or "," in found[3])
    targets: dict[int, int] = {}  # branch → instruction
    for place, (opcode, arguments) in enumerate(instructions):
        if opcode.startswith("BRA") and (target := _LABEL.search(arguments)):
            targets[place] = labels.get(target[0], place)
    spans: dict[int, int] = {}  # first → last instruction
    for place, first in targets.items():
        if first < place:
            spans[first] = max(place, spans.get(first, 0))
    depths = [sum(first <= place <= last for first, last in spans.items()) for place in range(len(instructions))]

    def body(places: Iterable[int], depth: int) -> Body:
        return _body([instructions[i] for i in places if depths[i] == depth], depth)

    def path(first: int, last: int, sign: int) -> list[int]:
        # Every one forward runs the products and the inner loops
        best = {first: (0, 0, first)}  # place → what it passed of those, its length, the place before
        for place in range(first, last):
            if place not in best:
                continue
            passed, length, _ = best[place]
            needed = depths[place] > depths[first] or unit(instructions[place][0]) == "tensor"
            reached = (passed + needed, length + sign * (depths[place] == depths[first]))
            following = [targets[place]] if place in targets else []
            if place not in targets or guarded[place]:
                following.append(place + 1)
            for after in following:
                if place < after <= last and reached > best.get(after, (-1, 0, 0))[:2]:
                    best[after] = (*reached, place)
        places = [last]
        while places[-1] != first:
            places.append(best[places[-1]][2])
        return places[::-1]

    of_loops = [
        [body(path(first, last, sign), depths[first]) for first, last in sorted(spans.items())] for sign in (1, -1)
    ]
    return body(range(len(instructions)), 0), of_loops[0], of_loops[1]
