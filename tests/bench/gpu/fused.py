"""Exact top-K over a large catalogue on a GPU in four Triton kernels, the scores never written.

    maxima    user · item + bias in tiles; of each tile, and of each small block in it, only the greatest is kept
    pick      the tiles, and of them the blocks, that may hold one of the K best; see below
    rescore   the scores of their items once more, but not of what the user had
    finish    the K best of them, the greatest first

Which blocks: the K best items of a user lie in the K blocks with the greatest maxima, for an item outside of them is no
better than those K maxima. A block whose maximum is an item that the user had counts for nothing there, so that one
block more is looked through for each of them, and no item is missed. The same holds of tiles.

Shape suffixes: B users, S slots of history, V items, D width, K listed.
"""

# Kernels are written in Triton's language, which has no types.
# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

# Two sums of the same products in another order differ by less than this share of a score.
ROUNDING = tl.constexpr(1e-4)
LOWEST = tl.constexpr(-(2**31))


@dataclass(frozen=True)
class Shape:
    """How the work is cut. block: items of a block. users, items: of a tile. each: programs of one processor.

    rows: items of one program of `rescore`.
    """

    block: int = 8
    users: int = 128
    items: int = 128
    warps: int = 4
    stages: int = 2
    each: int = 2
    rows: int = 128


class FusedTopK:
    """Lists for batches of up to `batch` users.

    table: float16[V, D]. bias: float32[V], -inf for what nobody may be shown. slots: of a history.
    """

    def __init__(self, table: Tensor, bias: Tensor, top_k: int, slots: int, batch: int, shape: Shape) -> None:
        items, self._width = table.shape
        self._shape, self._top_k, self._slots = shape, top_k, triton.next_power_of_2(slots)
        self._tiles = triton.cdiv(items, shape.items)
        spare = self._tiles * shape.items - items
        self._table = torch.nn.functional.pad(table, (0, 0, 0, spare)).contiguous()
        self._bias = torch.nn.functional.pad(bias, (0, spare), value=float("-inf")).contiguous()
        # Of any number of blocks to look through this is the most; a multiple fills the last `rescore`.
        at_once = shape.rows // shape.block
        self._most = triton.cdiv(top_k + slots, at_once) * at_once
        self._blocks = self._tiles * (shape.items // shape.block)
        device = table.device
        self._tile_maxima = torch.empty(batch, self._tiles, device=device)
        self._block_maxima = torch.empty(batch, self._blocks, device=device)
        self._chosen_tiles = torch.empty(batch, self._most, dtype=torch.int32, device=device)
        self._chosen = torch.empty(batch, self._most, dtype=torch.int32, device=device)
        self._count = torch.empty(batch, dtype=torch.int32, device=device)
        self._score = torch.empty(batch, self._most * shape.block, device=device)
        self._packed = torch.empty(batch, triton.next_power_of_2(top_k), dtype=torch.int64, device=device)
        self._index_BK = torch.empty(batch, top_k, dtype=torch.int64, device=device)
        self._score_BK = torch.empty(batch, top_k, device=device)
        processors = torch.cuda.get_device_properties(device).multi_processor_count if table.is_cuda else 2
        self._programs = shape.each * processors

    def __call__(self, user: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
        """Index int64[B, K] and score float32[B, K], best first; they are written over by the next call.

        user: float16[B, D]. history: int32[B, S], filled up with any item that has no score.
        """
        self.maxima(user)
        self.pick(user, history)
        self.rescore(user, history)
        return self.finish(len(user))

    def maxima(self, user: Tensor) -> None:
        """First kernel; the four are apart so that each can be timed."""
        shape = self._shape
        user_tiles = triton.cdiv(len(user), shape.users)
        _maxima[(user_tiles, max(1, self._programs // user_tiles))](
            user, self._table, self._bias, self._tile_maxima, self._block_maxima, len(user), self._tiles,
            D=self._width, USERS=shape.users, ITEMS=shape.items, BLOCK=shape.block,
            num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip

    def pick(self, user: Tensor, history: Tensor) -> None:
        """Second kernel."""
        shape = self._shape
        tiles = triton.next_power_of_2(self._tiles)
        blocks = triton.next_power_of_2(self._most * shape.items // shape.block)
        _pick[(len(user),)](
            self._tile_maxima, self._block_maxima, user, self._table, self._bias, history, self._chosen_tiles,
            self._chosen, self._count, self._tiles, self._top_k, history.shape[1],
            D=self._width, ITEMS=shape.items, BLOCK=shape.block, T=tiles, N=blocks, S=self._slots, MOST=self._most,
            num_warps=min(32, max(4, max(tiles, blocks) // 1024)),
        )  # fmt: skip

    def rescore(self, user: Tensor, history: Tensor) -> None:
        """Third kernel."""
        rows, block = self._shape.rows, self._shape.block
        _rescore[(self._most * block // rows, len(user))](
            user, self._table, self._bias, history, self._chosen, self._count, self._score, history.shape[1],
            D=self._width, BLOCK=block, ROWS=rows, S=self._slots, MOST=self._most, num_warps=4,
        )  # fmt: skip

    def finish(self, users: int) -> tuple[Tensor, Tensor]:
        """Fourth kernel."""
        padded = triton.next_power_of_2(self._most * self._shape.block)
        _finish[(users,)](
            self._score, self._chosen, self._count, self._packed, self._index_BK, self._score_BK,
            BLOCK=self._shape.block, R=padded, MOST=self._most, TOP=self._top_k,
            TOP_PADDED=self._packed.shape[1], num_warps=min(16, max(4, padded // 512)),
        )  # fmt: skip
        return self._index_BK[:users], self._score_BK[:users]


@triton.jit
def _key(score):
    """float32 → int32 in the same order."""
    bits = score.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _nth(key, without, wanted):
    """A bound such that `wanted` keys or, for ties, a few more are at least as great, those in `without` not counted.

    Found by halving; once exactly `wanted` are above it, any bound is as good as the next one.
    """
    low = tl.min(key, axis=0).to(tl.int64) * 0 + LOWEST + 1
    high = tl.max(key, axis=0).to(tl.int64) + 1
    found = tl.sum(key * 0, axis=0)
    while (high - low > 1) & (found != wanted):
        middle = low + (high - low) // 2
        bound = middle.to(tl.int32)
        found = tl.sum((key >= bound).to(tl.int32), axis=0) - tl.sum((without >= bound).to(tl.int32), axis=0)
        low = tl.where(found >= wanted, middle, low)
        high = tl.where(found >= wanted, high, middle)
    return low.to(tl.int32)


@triton.jit
def _places(key, bound):
    """Where to put each key that is at least the bound: the greater ones first. And how many there are."""
    greater = (key > bound).to(tl.int32)
    equal = (key == bound).to(tl.int32)
    before = tl.sum(greater, axis=0)
    place = tl.where(greater > 0, tl.cumsum(greater, axis=0), before + tl.cumsum(equal, axis=0)) - 1
    return place, (greater + equal) > 0, before + tl.sum(equal, axis=0)


@triton.jit
def _maxima(
    users, table, bias, tile_maxima, block_maxima, count, tiles,
    D: tl.constexpr, USERS: tl.constexpr, ITEMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    GROUP: tl.constexpr = 4 * BLOCK
    blocks = tiles * (ITEMS // BLOCK)
    row = tl.program_id(0) * USERS + tl.arange(0, USERS)
    here = row[:, None] < count
    width = tl.arange(0, D)
    nth = tl.arange(0, ITEMS // BLOCK)
    # A thread of the tensor cores' result holds two neighbouring columns of every eight. Such columns are filled with
    # neighbouring items, so that a thread finds the maximum of a block without asking the others.
    column = tl.arange(0, ITEMS)
    place = column // GROUP * GROUP + column % 8 // 2 * BLOCK + column % GROUP // 8 * 2 + column % 2
    user = tl.load(users + row[:, None] * D + width[None, :], mask=here, other=0.0)
    # All programs go through the table side by side: what one read the others find in the cache.
    for tile in range(tl.program_id(1), tiles, tl.num_programs(1)):
        first = table + tile * tl.full((), ITEMS * D, tl.int64)
        item = tl.load(first + place[:, None] * D + width[None, :])
        score = tl.dot(user, tl.trans(item)) + tl.load(bias + tile * ITEMS + place)[None, :]
        score = tl.reshape(score, (USERS, ITEMS // GROUP, BLOCK // 2, 4, 2))
        most = tl.reshape(tl.max(tl.max(score, axis=4), axis=2), (USERS, ITEMS // BLOCK))
        where = row[:, None].to(tl.int64) * blocks + tile * (ITEMS // BLOCK) + nth[None, :]
        tl.store(block_maxima + where, most, mask=here)
        tl.store(tile_maxima + row.to(tl.int64) * tiles + tile, tl.max(most, axis=1), mask=row < count)


@triton.jit
def _pick(
    tile_maxima, block_maxima, users, table, bias, history, chosen_tiles, chosen, count, tiles, top_k, slots,
    D: tl.constexpr, ITEMS: tl.constexpr, BLOCK: tl.constexpr, T: tl.constexpr, N: tl.constexpr, S: tl.constexpr,
    MOST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    SHARE: tl.constexpr = ITEMS // BLOCK
    slot = tl.arange(0, S)
    width = tl.arange(0, D)
    had = tl.load(history + row * slots + slot, mask=slot < slots, other=0)
    user = tl.load(users + row * D + width).to(tl.float32)
    vector = tl.load(table + had[:, None].to(tl.int64) * D + width[None, :]).to(tl.float32)
    own = tl.sum(vector * user[None, :], axis=1) + tl.load(bias + had)

    tile = tl.arange(0, T)
    key = _key(tl.load(tile_maxima + row * tiles + tile, mask=tile < tiles, other=float("-inf")))
    key = tl.where(tile < tiles, key, LOWEST)
    most = tl.load(tile_maxima + row * tiles + had // ITEMS)
    bound = _nth(key, _of_had(own, most, slot < slots), top_k)
    place, taken, found = _places(key, bound)
    tl.store(chosen_tiles + row * MOST + place, tile, mask=taken & (place < MOST))
    found = tl.minimum(found, MOST)
    tl.debug_barrier()  # the whole program has written before any of it reads

    nth = tl.arange(0, N)
    live = nth < found * SHARE
    block = tl.load(chosen_tiles + row * MOST + nth // SHARE, mask=live, other=0) * SHARE + nth % SHARE
    key = _key(tl.load(block_maxima + row * tiles * SHARE + block, mask=live, other=float("-inf")))
    key = tl.where(live, key, LOWEST)
    most = tl.load(block_maxima + row * tiles * SHARE + had // BLOCK)
    bound = _nth(key, _of_had(own, most, slot < slots), top_k)
    place, taken, found = _places(key, bound)
    tl.store(chosen + row * MOST + place, block, mask=taken & (place < MOST))
    tl.store(count + row, tl.minimum(found, MOST))


@triton.jit
def _of_had(own, most, real):
    """Keys of those maxima that are scores of what the user had, the lowest for the others."""
    greatest = (own >= most - ROUNDING * (1.0 + tl.abs(most))) & real
    return tl.where(greatest, _key(most), LOWEST)


@triton.jit
def _rescore(
    users, table, bias, history, chosen, count, score, slots,
    D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, S: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    nth = place // BLOCK
    known = tl.load(count + row)
    if tl.program_id(0) * (ROWS // BLOCK) < known:
        width = tl.arange(0, D)
        slot = tl.arange(0, S)
        live = nth < known
        item = tl.load(chosen + row * MOST + nth, mask=live, other=0) * BLOCK + place % BLOCK
        user = tl.load(users + row * D + width).to(tl.float32)
        vector = tl.load(table + item[:, None].to(tl.int64) * D + width[None, :], mask=live[:, None], other=0.0)
        own = tl.sum(vector.to(tl.float32) * user[None, :], axis=1) + tl.load(bias + item)
        had = tl.load(history + row * slots + slot, mask=slot < slots, other=-1)
        seen = tl.max((item[:, None] == had[None, :]).to(tl.int32), axis=1) > 0
        tl.store(score + row * MOST * BLOCK + place, tl.where(seen, float("-inf"), own))


@triton.jit
def _finish(
    score, chosen, count, packed, out_index, out_score,
    BLOCK: tl.constexpr, R: tl.constexpr, MOST: tl.constexpr, TOP: tl.constexpr, TOP_PADDED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, R)
    nth = place // BLOCK
    live = nth < tl.load(count + row)
    key = _key(tl.load(score + row * MOST * BLOCK + place, mask=live, other=float("-inf")))
    key = tl.where(live, key, LOWEST)
    bound = _nth(key, tl.full((1,), LOWEST, tl.int32), TOP)
    where, taken, _ = _places(key, bound)
    item = tl.load(chosen + row * MOST + nth, mask=live, other=0) * BLOCK + place % BLOCK
    # The score above, below it the index, such that of equals the first comes first.
    both = (key.to(tl.int64) << 32) | (0x7FFFFFFF - item).to(tl.int64)
    tl.store(packed + row * TOP_PADDED + where, both, mask=taken & (where < TOP))
    tl.debug_barrier()  # the whole program has written before any of it reads
    best = tl.arange(0, TOP_PADDED)
    both = tl.load(packed + row * TOP_PADDED + best, mask=best < TOP, other=-(2**63))
    both = tl.sort(both, descending=True)
    bits = (both >> 32).to(tl.int32)
    value = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    tl.store(out_score + row * TOP + best, value, mask=best < TOP)
    tl.store(out_index + row * TOP + best, 0x7FFFFFFF - (both & 0x7FFFFFFF), mask=best < TOP)
