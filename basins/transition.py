"""One transition: find neighbours, run the block for them or look its outputs up, measure the variances."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from basins.activations import check_finite
from basins.core import Ahead
from basins.distinct import count_distinct
from basins.errors import BasinsError
from basins.lens import block_device, block_dtype
from basins.memory import fitted
from basins.neighbor_variances import neighbor_variances
from basins.neighbors import Neighbors, TokenTable, find_neighbors
from basins.rerun import Replay, project_ahead
from basins.selfcheck import disagreement
from basins.settings import ScorerSettings
from basins.sources import Chunk, Source

# Floats of the neighbours of one piece: on a CPU they stay in its cache.
PATCH_FLOATS = {"cpu": 2**20, "cuda": 2**25}
# For each: the neighbour, its output, query, key and value, and the differences that variances are taken of.
PATCH_BYTES = 40
# The context rows of a re-run must be the model's own next layer. A cache may come from another batch shape or kernel,
# so this allows more than the self-check does; a wrong mask or another model is off by far more.
NEXT_LAYER_TOLERANCE = 30.0


@dataclass(frozen=True)
class Bank:
    """Where neighbours are looked for at one layer. `outputs` are the layer's outputs in the states' own contexts."""

    states: Float[Tensor, "bank d_model"]
    outputs: Float[Tensor, "*bank d_model"] | None
    table: TokenTable
    same: bool


@dataclass
class Measured:
    """One transition's numbers, one row a token; NaN (or -1, 0) where not scored."""

    neighbors: Neighbors
    n_distinct: Int[Tensor, "token"]
    same_token_share: Float[Tensor, "token"] | None
    variances: dict[str, Float[Tensor, "token"]] = field(default_factory=dict)
    lookup: dict[str, Float[Tensor, "token"]] | None = None


def measure_transition(
    model: Any, layer: int, source: Source, table: TokenTable, bank: Bank, settings: ScorerSettings
) -> Measured:
    """Score every usable token of the source's states at transition `layer`.

    Where the source knows layer L+1 (a cache), the re-run's own next layer must agree with it.
    """
    states, known = source.states(layer), source.outputs(layer)
    queries = bank.states if bank.same else states.flatten(0, 1)
    neighbors = find_neighbors(queries, table, bank.states, bank.table, settings, bank.same)
    scored = neighbors.ids[:, 0] >= 0
    n_distinct, coincide = count_distinct(queries, bank.states, neighbors.ids, block_dtype(model, layer))
    result = Measured(neighbors, n_distinct.masked_fill(~scored, 0), _same_token(table, bank.table, neighbors.ids))
    coincide &= scored
    next_states = None
    if settings.method == "rerun":
        next_states = source.room_for_next(layer)
        result.variances = rerun_variances(model, layer, source, bank, neighbors.ids, settings, next_states)
        _check_outputs(result.variances["var_out"], scored, layer)
        # Neighbours that are one state have one output: what is left of a variance is rounding.
        for value in result.variances.values():
            value[coincide] = 0
    outputs = bank.outputs
    if outputs is None and bank.same:
        outputs = known if known is not None else next_states
    if outputs is not None:
        outputs = outputs.to(bank.states).flatten(0, -2)
        check_finite(outputs, bank.table.usable, layer + 1)
        result.lookup = _look_up_all(bank.states, outputs, neighbors.ids, settings)
        result.lookup["var_in"][coincide] = 0
    if settings.method == "lookup":
        if result.lookup is None:
            raise BasinsError(
                f'method="lookup" needs the outputs of block {layer}, and they are not in the '
                f"{'cache' if bank.same else 'bank'}. Cache blocks.{layer}.hook_resid_post too, or pass "
                'method="rerun", which computes them.'
            )
        result.variances, result.lookup = result.lookup, None
    return result


def patch_floats(device: torch.device) -> int:
    return fitted(PATCH_FLOATS.get(device.type, PATCH_FLOATS["cpu"]), PATCH_BYTES)


def _look_up_all(
    states: Float[Tensor, "bank d_model"],
    outputs: Float[Tensor, "bank d_model"],
    ids: Int[Tensor, "token k"],
    settings: ScorerSettings,
) -> dict[str, Tensor]:
    """Variances of the neighbours' cached outputs, each in its own context. No block is run."""
    found = {name: states.new_full((len(ids),), float("nan")) for name in ("var_in", "var_out", "var_update")}
    scored = (ids[:, 0] >= 0).nonzero()[:, 0]
    some = ids[scored]
    values = neighbor_variances(states, outputs, settings.k, some, some, settings.normalize, states.dtype)
    for name, value in zip(found, values, strict=True):
        found[name][scored] = value
    return found


def rerun_variances(
    model: Any,
    layer: int,
    source: Source,
    bank: Bank,
    ids: Int[Tensor, "token k"],
    settings: ScorerSettings,
    next_states: Float[Tensor, "batch pos d_model"],
) -> dict[str, Tensor]:
    """Variances of the neighbours pushed through the block in their query's place; fills `next_states`."""
    states, known = source.states(layer), source.outputs(layer)
    batch, pos, d_model = states.shape
    ids = ids.view(batch, pos, -1)
    # One column more takes what is not a query, so that no device has to say how many there are.
    found = {name: states.new_full((batch, pos + 1), float("nan")) for name in ("var_in", "var_out", "var_update")}
    device, dtype = block_device(model, layer), block_dtype(model, layer)
    path = source.paths[layer].path
    # Known to the host once and for all: a GPU that is asked in between stands still.
    scored = (ids[..., 0] >= 0).cpu()
    ahead = None
    if settings.shrink == 1:
        n_rows = int(scored.sum()) * settings.k
        ahead = project_ahead(model, layer, path, bank.states, n_rows, settings.precision)
    context_ahead = ahead.unflatten(batch) if ahead is not None and bank.same else None
    for chunk in source.chunks:
        context = states[chunk.rows, : chunk.length]
        chunk_ids = ids[chunk.rows, : chunk.length]
        where, position = queries_of(scored[chunk.rows, : chunk.length], chunk.attention_mask.cpu())
        replay = Replay(
            model,
            path,
            chunk.calls[layer],
            context.to(device, dtype),
            chunk.attention_mask,
            settings.precision,
            None if context_ahead is None else context_ahead[chunk.rows, : chunk.length],
        )
        per_call = max(1, patch_floats(states.device) // (len(context) * settings.k * d_model))
        for start in range(0, position.shape[1], per_call):
            at, real = position[:, start : start + per_call], where[:, start : start + per_call]
            last = int(at.max())
            at, real = (tensor.to(states.device, non_blocking=True) for tensor in (at, real))
            row = torch.arange(len(context), device=at.device)[:, None]
            # Rows that fill up a short sequence take some neighbour of another: a real state, and dropped.
            found_ids = torch.where(real[..., None], chunk_ids[row, at], chunk_ids.max())
            neighbor = bank.states[found_ids]
            if settings.shrink != 1:
                query = context[row, at][:, :, None]
                neighbor = query + settings.shrink * (neighbor - query)
            pushed = neighbor.to(device, dtype)
            outputs = replay.outputs(
                pushed.flatten(1, 2),
                at.to(device).repeat_interleave(settings.k, 1),
                None if ahead is None else Ahead(ahead, found_ids.flatten(1).to(device)),
                last,
            )
            before, after = (some.flatten(end_dim=-2).to(states.device) for some in (pushed, outputs))
            values = neighbor_variances(before, after, settings.k, normalize=settings.normalize, dtype=states.dtype)
            rows = torch.arange(batch, device=at.device)[chunk.rows][:, None].expand_as(at)
            for name, value in zip(found, values, strict=True):
                found[name][rows, torch.where(real, at, pos)] = value.view(at.shape)
        next_states[chunk.rows, : chunk.length] = replay.next_states().to(next_states)
        if known is not None:
            check_next_layer(chunk, layer, context, next_states, known, dtype)
    return {name: value[:, :pos].flatten() for name, value in found.items()}


def queries_of(
    scored: Bool[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"]
) -> tuple[Bool[Tensor, "batch query"], Int[Tensor, "batch query"]]:
    """Positions to re-run, padded to the chunk's largest count with a real position whose results are dropped."""
    n = int(scored.sum(1).max()) if scored.numel() else 0
    order = (~scored).byte().argsort(dim=1, stable=True)[:, :n]
    is_query = scored.gather(1, order)
    return is_query, torch.where(is_query, order, attention_mask.argmax(1, keepdim=True))


def check_next_layer(
    chunk: Chunk,
    layer: int,
    before: Float[Tensor, "batch pos d_model"],
    next_states: Float[Tensor, "all_rows all_pos d_model"],
    known: Float[Tensor, "all_rows all_pos d_model"],
    dtype: torch.dtype,
) -> None:
    """Raise where the next layer, run anew, is not the one in the cache: `dtype` is the block's own."""
    real = chunk.attention_mask.bool().to(before.device)
    got = next_states[chunk.rows, : chunk.length].to(before.device)[real].to(dtype)
    error = disagreement(got, known[chunk.rows, : chunk.length].to(before.device)[real], before[real])
    if not error <= NEXT_LAYER_TOLERANCE:
        raise BasinsError(
            f"re-running block {layer} on the cached states does not give the cached layer {layer + 1} (off by "
            f"{error:.3g} times what rounding explains). Likely causes: the batch was padded and attention_mask was "
            "not passed to score(); the cache comes from other weights or another precision; hooks were active then "
            "and are not now (or the reverse); the model was in training mode or under autocast; its blocks read the "
            "tokens (per-layer embeddings), and tokens were not passed to score()."
        )


def _check_outputs(var_out: Float[Tensor, "token"], scored: Bool[Tensor, "token"], layer: int) -> None:
    bad = scored & ~var_out.isfinite()
    if bad.any():
        raise BasinsError(
            f"re-running block {layer} gives NaN or infinite variances for {int(bad.sum())} of {int(scored.sum())} "
            "tokens. Half precision overflows in some models: run the model in bfloat16 or float32, or pass "
            "dtype='float64'."
        )


def _same_token(table: TokenTable, bank: TokenTable, ids: Int[Tensor, "token k"]) -> Float[Tensor, "token"] | None:
    if table.token is None or bank.token is None:
        return None
    same = bank.token.to(ids.device)[ids.clamp_min(0)] == table.token.to(ids.device)[:, None]
    return same.float().mean(1).masked_fill(ids[:, 0] < 0, float("nan"))
