"""Triton kernels of the float16 search: products kept as group minima, a row's smallest keys, exact distances.

`half_search.py` has the same three steps in plain torch (the reference that tests compare with) and says what the
keys mean. Nothing here is imported unless there is a CUDA device and Triton.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Float, Int
from torch import Tensor

# Rows, columns and depth of a tile, rows of tiles that share the bank's tiles in the cache, warps, stages: the fastest
# of those tried on an H100; and one that fits the shared memory of smaller GPUs.
TILE = (128, 256, 64, 16, 8, 4)
SMALL_TILE = (128, 128, 64, 16, 8, 3)
# The bits of an infinite float32.
INFINITY = tl.constexpr(0x7F800000)
WIDTH, CANDIDATES = 128, 32


@triton.jit
def _minima(
    query,
    bank,
    query_norm_ptr,
    bank_norm_ptr,
    query_label_ptr,
    bank_label_ptr,
    key_ptr,
    n_query,
    n_bank,
    n_groups,
    depth,
    SMALLEST: tl.constexpr,
    RULE: tl.constexpr,
    GROUP: tl.constexpr,
    KEEP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    BAND: tl.constexpr,
    PROGRAMS: tl.constexpr,
    DESCRIBED: tl.constexpr,
):
    n_rows, n_columns = tl.cdiv(n_query, ROWS), tl.cdiv(n_bank, COLUMNS)
    IN_TILE: tl.constexpr = COLUMNS // GROUP
    # Each program takes tile after tile, loading the next while it reduces one.
    for tile in tl.range(tl.program_id(0), n_rows * n_columns, PROGRAMS, flatten=True):
        # In bands of BAND rows, so that the tiles in flight share their rows and columns in the L2 cache.
        first = tile // (BAND * n_columns) * BAND
        height = tl.minimum(n_rows - first, BAND)
        row_start = (first + (tile % (BAND * n_columns)) % height) * ROWS
        column_tile = (tile % (BAND * n_columns)) // height
        row, column = row_start + tl.arange(0, ROWS), column_tile * COLUMNS + tl.arange(0, COLUMNS)
        row_in, column_in = tl.minimum(row, n_query - 1), tl.minimum(column, n_bank - 1)

        product = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, depth, DEPTH):
            if DESCRIBED:
                part = query.load([row_start, start])
                other = bank.load([column_tile * COLUMNS, start]).T
            else:
                along = start + tl.arange(0, DEPTH)
                part = tl.load(query + row_in.to(tl.int64)[:, None] * depth + along[None, :])
                other = tl.load(bank + column_in.to(tl.int64)[None, :] * depth + along[:, None])
            product = tl.dot(part, other, product)

        norms = tl.load(query_norm_ptr + row_in)[:, None] + tl.load(bank_norm_ptr + column_in)[None, :]
        squared = tl.maximum(norms - 2 * product, SMALLEST)
        key = (squared.to(tl.int32, bitcast=True) & -GROUP) | (column % GROUP)[None, :]
        out = (column >= n_bank)[None, :]
        if RULE != 0:
            equal = tl.load(query_label_ptr + row_in)[:, None] == tl.load(bank_label_ptr + column_in)[None, :]
            out = out | (equal if RULE == 1 else equal == 0)
        key = tl.where(out, INFINITY | (column % GROUP)[None, :], key)

        key = tl.reshape(key, (ROWS, IN_TILE, GROUP))
        group = column_tile * IN_TILE + tl.arange(0, IN_TILE)
        stored = (row < n_query)[:, None] & (group < n_groups)[None, :]
        key_at = key_ptr + row.to(tl.int64)[:, None] * (KEEP * n_groups) + group[None, :]
        for place in tl.static_range(KEEP):
            smallest = tl.min(key, axis=2)
            tl.store(key_at + place * n_groups, smallest, mask=stored)
            if place + 1 < KEEP:
                key = tl.where(key == smallest[:, :, None], 0x7FFFFFFF, key)


@triton.jit
def _select(
    key_ptr,
    found_ptr,
    cut_ptr,
    n_groups,
    least_count,
    GROUP: tl.constexpr,
    KEEP: tl.constexpr,
    MOST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slots = KEEP * n_groups
    slot = tl.arange(0, BLOCK)
    key = tl.load(key_ptr + row * slots + slot, mask=slot < slots, other=0x7FFFFFFF)
    # Bisection for a limit with `least_count` to MOST keys at or below it; fewer keys than that are all taken.
    low = tl.min(key, axis=0) - 1
    high = tl.full((), INFINITY - 1, tl.int32)
    limit = high
    count = tl.sum((key <= high).to(tl.int32), axis=0)
    while (count > MOST) & (low + 1 < high):
        limit = low + (high - low) // 2
        at_most = tl.sum((key <= limit).to(tl.int32), axis=0)
        if at_most < least_count:
            low = limit
        else:
            high = limit
            count = at_most
    limit = high
    taken = key <= limit
    place = tl.cumsum(taken.to(tl.int32), axis=0) - 1
    member = (slot % n_groups) * GROUP + (key & (GROUP - 1))
    tl.store(found_ptr + row * MOST + place, member, mask=taken & (place < MOST))
    # The least of what was not taken, and of each group's last key: what a group did not keep is no less than that.
    unknown = (slot >= (KEEP - 1) * n_groups) | (key > limit)
    cut = tl.min(tl.where(unknown, key, 0x7FFFFFFF), axis=0)
    cut = tl.where(count > MOST, 0, tl.minimum(cut, INFINITY) & -GROUP)
    tl.store(cut_ptr + row, cut)


@triton.jit
def _squared(
    query_ptr,
    bank_ptr,
    query_row_ptr,
    bank_row_ptr,
    squared_ptr,
    per_query,
    width,
    CANDIDATES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    query = tl.program_id(0).to(tl.int64)
    candidate = tl.program_id(1) * CANDIDATES + tl.arange(0, CANDIDATES)
    there = candidate < per_query
    query_row = tl.load(query_row_ptr + query)
    bank_row = tl.load(bank_row_ptr + query * per_query + candidate, mask=there, other=-1)
    there = bank_row >= 0
    along = tl.arange(0, WIDTH)
    total = tl.zeros((CANDIDATES, WIDTH), tl.float64)
    for start in range(0, width, WIDTH):
        inside = start + along < width
        state = tl.load(query_ptr + query_row * width + start + along, mask=inside, other=0).to(tl.float64)
        at = bank_ptr + bank_row[:, None] * width + (start + along)[None, :]
        other = tl.load(at, mask=there[:, None] & inside[None, :], other=0).to(tl.float64)
        off = state[None, :] - other
        total += off * off
    squared = tl.where(there, tl.sum(total, axis=1), float("inf"))
    tl.store(squared_ptr + query * per_query + candidate, squared, mask=candidate < per_query)


def group_minima(
    query: Float[Tensor, "q depth"],
    bank: Float[Tensor, "m depth"],
    query_norms: Float[Tensor, "q"],
    bank_norms: Float[Tensor, "m"],
    labels: tuple[int, Tensor, Tensor],
    group: int,
    keep: int,
    smallest: float,
    tile: tuple[int, ...] | None = None,
    described: bool | None = None,
) -> Int[Tensor, "q slots"]:
    """`described`: tiles are fetched by the copy engine that GPUs have since compute capability 9."""
    rule, query_labels, bank_labels = labels
    n_groups = triton.cdiv(len(bank), group)
    keys = torch.empty(len(query), keep * n_groups, dtype=torch.int32, device=query.device)
    if described is None:
        described = torch.cuda.get_device_capability(query.device) >= (9, 0)
    rows, columns, depth, band, warps, stages = tile or (TILE if described else SMALL_TILE)
    operands: tuple = query, bank
    if described:
        operands = _described(query, [rows, depth]), _described(bank, [columns, depth])
    tiles = triton.cdiv(len(query), rows) * triton.cdiv(len(bank), columns)
    programs = min(tiles, torch.cuda.get_device_properties(query.device).multi_processor_count)
    try:
        _launch(
            *(_minima, (programs,), query.device, *operands, query_norms, bank_norms, query_labels, bank_labels, keys),
            *(len(query), len(bank), n_groups, query.shape[1], smallest, rule, group, keep),
            *(rows, columns, depth, band, programs, described),
            num_warps=warps,
            num_stages=stages,
        )
    except triton.runtime.errors.OutOfResources:
        if tile == SMALL_TILE:
            raise
        return group_minima(query, bank, query_norms, bank_norms, labels, group, keep, smallest, SMALL_TILE, False)
    return keys


def _launch(kernel: Any, grid: tuple[int, ...], device: torch.device, *arguments: Any, **options: int) -> None:
    """On the device of the states, which need not be the current one."""
    with torch.cuda.device(device if device.type == "cuda" else -1):
        kernel[grid](*arguments, **options)


def _described(states: Float[Tensor, "token depth"], tile: list[int]):
    from triton.tools.tensor_descriptor import TensorDescriptor  # pyright: ignore[reportMissingImports]

    return TensorDescriptor.from_tensor(states, tile)


def smallest_keys(
    keys: Int[Tensor, "q slots"], least_count: int, most: int, group: int, keep: int
) -> tuple[Int[Tensor, "q most"], Float[Tensor, "q"]]:
    found = torch.full((len(keys), most), -1, dtype=torch.int32, device=keys.device)
    cut = torch.empty(len(keys), dtype=torch.int32, device=keys.device)
    block = triton.next_power_of_2(keys.shape[1])
    warps = min(16, max(1, block // 1024))
    n_groups = keys.shape[1] // keep
    arguments = keys, found, cut, n_groups, least_count, group, keep, most, block
    _launch(_select, (len(keys),), keys.device, *arguments, num_warps=warps)
    return found, cut.view(torch.float32)


def squared_distances(
    query: Float[Tensor, "query width"],
    bank: Float[Tensor, "bank width"],
    queries: Int[Tensor, "q"],
    members: Int[Tensor, "q c"],
) -> Float[Tensor, "q c"]:
    """In float64, as the reference does it; infinite where the member is -1."""
    squared = torch.empty(members.shape, dtype=torch.float64, device=query.device)
    grid = (len(queries), triton.cdiv(members.shape[1], CANDIDATES))
    _launch(
        *(_squared, grid, query.device, query.contiguous(), bank.contiguous(), queries, members.contiguous(), squared),
        *(members.shape[1], query.shape[1], CANDIDATES, WIDTH),
    )
    return squared
