"""The kernels' machine code keeps to the committed counts: what a tile costs is seen before it is merged."""

import json
import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from benchmarks import predict, sass
from benchmarks.focal_contrastive import PROPORTIONS
from benchmarks.goals import PREDICTED, focal
from benchmarks.report import predictions

COMMITTED = json.loads(PREDICTED.read_text())
TENSORS = ("student", "teacher", "student_grad")
MORE = 1.03  # instructions, registers, shared memory; spills never
ACCEPT = "where that is meant: python -m benchmarks.predict --write, then make docs"


def over_budget(now: dict, before: dict) -> list[str]:
    """What a kernel takes more of than it did."""
    pairs = {name: (now[name], before[name]) for name in ("registers", "shared", "spilled")}
    loops = now["instructions"][1:], before["instructions"][1:]  # what is outside of them runs once
    for place, counts in enumerate(zip(*loops, strict=False)):
        pairs[f"instructions of loop {place}"] = counts
    if not any(loops):
        pairs["instructions"] = (now["instructions"][0], before["instructions"][0])
    lines = [
        f"{now['kernel']}: {name} {more}, committed {known}; {ACCEPT}"
        for name, (more, known) in pairs.items()
        if more > MORE * known
    ]
    if len(now["instructions"]) > len(before["instructions"]):
        lines.append(f"{now['kernel']}: {len(now['instructions']) - 1} loops, committed fewer; {ACCEPT}")
    return lines


def check(cell, names: tuple[str, ...] = ()) -> None:
    before = {}
    for row in COMMITTED["cells"][cell.title]["kernels"]:
        before.setdefault(row["kernel"], row)
    rows = [
        predict.kernel_row(launch)
        for launch in predict.launches_of(cell, names)
        if launch.compiled is not None and (not names or launch.name in names)
    ]
    assert [line for row in rows for line in over_budget(row, before[row["kernel"]])] == []
    assert {row["kernel"] for row in rows} == set(names) or not names


def test_the_pairs_of_a_forward_pass_keep_their_budget():
    check(focal(16384, 256, "bfloat16"), ("pair_sums_kernel",))


@pytest.mark.full
@pytest.mark.parametrize("cell", predict.CELLS, ids=lambda cell: cell.title)
def test_every_kernel_of_every_cell_keeps_its_budget(cell):
    check(cell)


def test_a_kernel_that_costs_more_is_named_with_what_accepts_it():
    before = {"kernel": "k", "registers": 100, "shared": 1024, "spilled": 0, "instructions": [50, 400]}
    assert over_budget(before | {"instructions": [50, 410]}, before) == []
    (line,) = over_budget(before | {"instructions": [50, 440]}, before)
    assert line.startswith("k: instructions of loop 0 440, committed 400; where that is meant: python -m")
    assert len(over_budget(before | {"spilled": 8, "registers": 110}, before)) == 2


@pytest.mark.parametrize(("programs", "bytes_a_pair"), [(100, 6), (200, 6), (400, 8)])
def test_a_second_sweep_finds_in_l2_what_it_has_room_for(programs, bytes_a_pair):
    logits = {f"{name}_ptr": torch.empty(1000, 1 << 16, dtype=torch.bfloat16, device="meta") for name in TENSORS}
    launch = predict.Launch("forward_kernel", programs, {**logits, "LANES": 512})  # rows of 256 KiB
    assert predict.memory_traffic(launch) == bytes_a_pair * 1000 << 16
    assert predict.memory_traffic(launch._replace(name="scale_kernel")) == 0


def test_every_cell_is_committed_and_says_that_it_is_predicted():
    assert set(COMMITTED["cells"]) == {cell.title for cell in predict.CELLS}
    assert "nothing here was measured" in COMMITTED["note"]
    for line in (*predictions().splitlines()[2:], *predict.table(COMMITTED["cells"]).splitlines()):
        assert "predicted" in line or line.startswith("    ")


@pytest.mark.parametrize(
    ("opcode", "arguments", "found"),
    [
        ("HGMMA.64x64x16.F32.BF16", "R24, gdesc[UR12], R24", ("HGMMA.BF16", 16384, 1024)),
        ("HGMMA.64x256x16.F32.BF16", "R24, R196, gdesc[UR20].tnspB, R24", ("HGMMA.BF16", 65536, 2048)),
        ("HMMA.16816.F32.BF16", "R4, R8, R12, R4", ("HMMA.BF16", 2048, 0)),
        ("HMMA.1688.F32.TF32", "R4, R8, R12, R4", ("HMMA.TF32", 1024, 0)),
    ],
)
def test_products_are_counted(opcode, arguments, found):
    assert sass.product(opcode, arguments) == found


CODE = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/              @!P0 FFMA R2, R3, R4, R5 ;
.L_x_0:
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/               @P0 BRA `(.L_x_0) ;
        /*0040*/                   ISETP.NE.AND P0, PT, R2, RZ, PT ;
        /*0050*/               @P1 BRA `(.L_x_1) ;
        /*0060*/                   EXIT ;
"""


def test_loops_are_found_by_their_backward_branches():
    outside, (outer, inner), _ = sass.loops(CODE)
    assert dict(outside.counts) == {"integer": 1, "other": 1}
    assert dict(outer.counts) == {"fp32": 1, "select": 1, "other": 1}
    assert dict(inner.counts) == {"global": 1, "other": 1}
    assert (inner.depth, inner.loaded, inner.stored) == (2, 512, 0)


BRANCHES = """
.L_x_0:
        /*0000*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR12], R24 ;
        /*0010*/               @P0 BRA `(.L_x_1) ;
        /*0020*/                   FADD R2, R3, R4 ;
        /*0030*/                   FADD R2, R3, R4 ;
        /*0040*/                   BRA `(.L_x_2) ;
.L_x_1:
        /*0050*/                   MUFU.EX2 R2, R3 ;
.L_x_2:
        /*0060*/               @P1 BRA `(.L_x_0) ;
        /*0070*/                   EXIT ;
"""


def test_a_loop_has_a_longest_path_and_a_shortest_one():
    _, (longest,), (shortest,) = sass.loops(BRANCHES)
    assert dict(longest.counts) == {"tensor": 1, "fp32": 2, "other": 3}
    assert dict(shortest.counts) == {"tensor": 1, "special": 1, "other": 2}


def test_the_share_of_tiles_without_equal_labels_is_counted():
    arguments = {"SORTED": True, "BLOCK_N": 128, "BLOCK_M": 64, "column_total": 16384}
    pairs = (PROPORTIONS / PROPORTIONS.sum()).square().sum()
    assert 0 < 1 - predict.apart(arguments) - pairs < 0.02
    assert predict.apart(arguments | {"SORTED": False}) == 0
