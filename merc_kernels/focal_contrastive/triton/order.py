# ruff: noqa: N803 - compile-time parameters are upper case, as everywhere in Triton
# A kernel's parameters have no Python types, and Triton ships none (where it is installed at all):
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,import-untyped,import-not-found"
r"""The labels of the focal contrastive loss, as numbers that pairs compare, and an order of rows by them, in Triton.

    rank      labels of 64 bits as numbers of 32; -1 where a row is not kept. A scan takes T / RANK_BLOCK steps where
              all labels differ: of many rows `enter` and `look_up` make a hash table
    enter, place     the same, and rows sorted by label

A label's bucket is one of BUCKETS - 1, the same for equal labels and for the numbers below that their own; rows that
are not kept have the last one. Sorted, rows lie by bucket and in a bucket as they came, and what is known of each is 64
bits: the row that it came from, and a key of 32, bucket and number, -1 where it is not kept. Two runs of rows whose
buckets do not meet hold no two equal labels: of such a tile of pairs, nearly every one, no label is compared.
Counts decide where a row goes, and no atomic but in the table of labels: the same bits on every run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from merc_kernels._shared.triton.integers import cdiv, next_power_of_2
from merc_kernels.focal_contrastive.triton.call import Call, row_programs
from merc_kernels.focal_contrastive.triton.configuration import ORDER, RANK_BLOCK, ROW_BLOCK, SCANNED

BUCKETS = tl.constexpr(32)
NAME_BITS = tl.constexpr(26)


@triton.jit
def is_kept(label, inside, classes, ignore_index):
    """Whether rows of these labels count; ``classes`` is -1 where any label is a class."""
    return inside & (label != ignore_index) & ((classes < 0) | ((label >= 0) & (label < classes)))


@triton.jit
def sorted_row(index_ptr, inside):
    """Key of a sorted row, and the row that it came from."""
    packed = tl.load(index_ptr, mask=inside, other=-1)
    return packed.to(tl.int32), packed >> 32


@triton.jit
def key_of(label_ptr):
    """A sorted row's key."""
    return tl.load(label_ptr).to(tl.int32)


@triton.jit
def _bucket(label, kept):
    folded = (label ^ (label >> 5) ^ (label >> 10) ^ (label >> 32)).to(tl.int32) & (BUCKETS - 1)
    return tl.where(kept, tl.minimum(folded, BUCKETS - 2), BUCKETS - 1)


@triton.jit
def _first(labels_ptr, label, kept, total, ignore_index, BLOCK_M: tl.constexpr):
    # Where each label stands first; -1 where a row is not kept
    first = tl.where(kept, total, -1)  # as soon as it is less than total, it is found
    start = total * 0
    while tl.max(first, 0) == total:
        j = start + tl.arange(0, BLOCK_M)
        column = tl.load(labels_ptr + j, mask=j < total, other=ignore_index)
        here = tl.where(label[:, None] == column[None, :], j[None, :], total)
        first = tl.minimum(first, tl.min(here, 1))
        start += BLOCK_M
    return first


@triton.jit(do_not_specialize=["total", "ignore_index"])
def rank_kernel(
    index_ptr,  # (G, T)
    labels_ptr,  # (G, T), ignore_index where a row is not kept
    total,
    ignore_index: tl.int64,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """The place where a label stands first, a number of 32 bits; -1 where a row is not kept."""
    blocks = tl.cdiv(total, BLOCK_N)
    g = (tl.program_id(0) // blocks).to(tl.int64)
    labels_ptr += g * total
    i = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    label = tl.load(labels_ptr + i, mask=i < total, other=ignore_index)
    first = _first(labels_ptr, label, label != ignore_index, total, ignore_index, BLOCK_M)
    tl.store(index_ptr + g * total + i, first, mask=i < total)


@triton.jit(do_not_specialize=["total", "slots", "classes", "ignore_index"])
def enter_kernel(
    counts_ptr,  # (programs, BUCKETS): the rows of each bucket; or None
    table_ptr,  # (G, slots + 1) of `total`: afterwards the first row of each label that a slot belongs to; or None
    slot_ptr,  # (G, T): the slot of each row's label, -1 where a row is not kept
    labels_ptr,  # (G, T)
    total,
    slots,  # a power of 2, at least twice the rows; the one behind them belongs to nobody
    classes: tl.int64,  # -1 where any label is a class
    ignore_index: tl.int64,
    BLOCK_N: tl.constexpr,
):
    """Each label of a block takes the next free slot from where its hash points, or finds it taken by an equal one."""
    blocks = tl.cdiv(total, BLOCK_N)
    g = (tl.program_id(0) // blocks).to(tl.int64)
    labels_ptr += g * total
    lane = tl.arange(0, BLOCK_N)
    i = tl.program_id(0) % blocks * BLOCK_N + lane  # [BLOCK_N]
    label = tl.load(labels_ptr + i, mask=i < total, other=ignore_index)
    kept = is_kept(label, i < total, classes, ignore_index)
    if counts_ptr is not None:
        bucket, each = _bucket(label, kept), tl.arange(0, BUCKETS)
        counts = tl.sum((bucket[:, None] == each[None, :]).to(tl.int32), 0)
        tl.store(counts_ptr + tl.program_id(0) * BUCKETS + each, counts)
    if table_ptr is not None:
        table_ptr += g * (slots + 1)
        # The first of equal rows in the block enters for all: few labels would crowd on few slots.
        leader = tl.min(tl.where(label[:, None] == label[None, :], lane[None, :], BLOCK_N), 1)
        waiting = kept & (leader == lane)
        mixed = label * -7046029254386353131  # 2^64 over the golden ratio
        place = ((mixed >> 32) ^ mixed).to(tl.int32) & (slots - 1)
        slot = tl.full([BLOCK_N], -1, tl.int32)
        while tl.max(waiting.to(tl.int32), 0) > 0:
            at = table_ptr + tl.where(waiting, place, slots)
            owner = tl.atomic_cas(at, tl.where(waiting, total, -1), i)
            taken = waiting & (owner != total)
            same = tl.load(labels_ptr + owner, mask=taken, other=ignore_index) == label
            found = waiting & ((owner == total) | same)
            slot = tl.where(found, place, slot)
            waiting = waiting & (found == 0)
            place = (place + 1) & (slots - 1)
        tl.atomic_min(table_ptr + slot, i, mask=slot >= 0)
        slot = tl.max(tl.where(leader[:, None] == lane[None, :], slot[None, :], -1), 1)
        tl.store(slot_ptr + g * total + i, tl.where(kept, slot, -1), mask=i < total)


@triton.jit(do_not_specialize=["total", "slots"])
def look_up_kernel(index_ptr, slot_ptr, table_ptr, total, slots, BLOCK: tl.constexpr):
    """A slot becomes the first row of its label, as `rank_kernel` says it: the same on every run."""
    blocks = tl.cdiv(total, BLOCK)
    g = (tl.program_id(0) // blocks).to(tl.int64)
    n = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(slot_ptr + g * total + n, mask=n < total, other=-1)
    first = tl.load(table_ptr + g * (slots + 1) + slot, mask=slot >= 0, other=-1)
    tl.store(index_ptr + g * total + n, first, mask=n < total)


@triton.jit(do_not_specialize=["total", "steps", "classes", "ignore_index"])
def place_kernel(
    index_ptr,  # (T,): the sorted rows
    labels_ptr,  # (T,)
    counts_ptr,  # (programs, BUCKETS)
    table_ptr,  # None: a scan finds where a label stands first
    slot_ptr,
    total,
    steps,  # through the counts, BLOCK_P programs' at a time
    classes: tl.int64,
    ignore_index: tl.int64,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Each row of a block behind all rows of lower buckets, and the earlier ones of its own."""
    lane, each = tl.arange(0, BLOCK_N), tl.arange(0, BUCKETS)
    n = tl.program_id(0) * BLOCK_N + lane
    label = tl.load(labels_ptr + n, mask=n < total, other=ignore_index)
    kept = is_kept(label, n < total, classes, ignore_index)
    bucket = _bucket(label, kept)
    rows = tl.zeros([BUCKETS], tl.int32)
    earlier = tl.zeros([BUCKETS], tl.int32)
    step = steps * 0
    while step < steps:
        program = step * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = (program < tl.num_programs(0))[:, None]
        counts = tl.load(counts_ptr + program[:, None] * BUCKETS + each[None, :], mask=inside, other=0)
        rows += tl.sum(counts, 0)
        earlier += tl.sum(tl.where((program < tl.program_id(0))[:, None], counts, 0), 0)
        step += 1
    start = tl.cumsum(rows, 0) - rows + earlier
    place = tl.sum(tl.where(bucket[:, None] == each[None, :], start[None, :], 0), 1)
    before = (bucket[:, None] == bucket[None, :]) & (lane[:, None] > lane[None, :])
    place += tl.sum(before.to(tl.int32), 1)
    if table_ptr is not None:
        slot = tl.load(slot_ptr + n, mask=kept, other=0)
        name = tl.load(table_ptr + slot, mask=kept, other=0)
    else:
        name = _first(labels_ptr, label, kept, total, ignore_index, BLOCK_N)
    key = tl.where(kept, (bucket << NAME_BITS) | name, -1)
    packed = (n.to(tl.int64) << 32) | (key.to(tl.int64) & 0xFFFFFFFF)
    tl.store(index_ptr + place, packed, mask=n < total)


def rank(call: Call, index: Tensor, names: Tensor) -> None:
    """Fills ``index`` with the first row of each label."""
    programs = row_programs(call.total, RANK_BLOCK, call.groups)
    ignore_index = call.options.ignore_index
    if call.total <= SCANNED:
        rank_kernel[programs](index, names, call.total, ignore_index, BLOCK_N=RANK_BLOCK, BLOCK_M=RANK_BLOCK)
        return
    table, slots, slot = _table(call, index)
    enter_kernel[programs](None, table, slot, names, call.total, slots, -1, ignore_index, **ORDER)
    look_up = row_programs(call.total, ROW_BLOCK, call.groups)
    look_up_kernel[look_up](index, slot, table, call.total, slots, BLOCK=ROW_BLOCK)


def _table(call: Call, index: Tensor) -> tuple[Tensor, int, Tensor]:
    """A hash table of labels with nothing in it, how many it may hold, and room for where each row's is."""
    slots = next_power_of_2(2 * call.total)
    table = index.new_full((call.groups, slots + 1), call.total, dtype=torch.int32)
    return table, slots, torch.empty_like(index, dtype=torch.int32)


def sort(call: Call, index: Tensor, labels: Tensor, classes: int) -> None:
    """Fills ``index`` with the key of each sorted row, and where it comes from."""
    programs = row_programs(call.total, RANK_BLOCK, 1)
    counts = index.new_empty((*programs, BUCKETS.value), dtype=torch.int32)
    table, slots, slot = (None, 0, None) if call.total <= SCANNED else _table(call, index)
    known = classes, call.options.ignore_index
    enter_kernel[programs](counts, table, slot, labels, call.total, slots, *known, **ORDER)
    steps = cdiv(programs[0], RANK_BLOCK)
    place_kernel[programs](index, labels, counts, table, slot, call.total, steps, *known, BLOCK_P=RANK_BLOCK, **ORDER)
