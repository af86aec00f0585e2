"""What a call of `score_tokens` takes in bytes, stage by stage: pure arithmetic on sizes, nothing is run.

Each stage lists the tensors that are alive together at its worst moment, by name, as the code of the package makes
them. A stage's temporaries come on top of what is there throughout: weights, states, recorded masks, results.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from basins.activations import MEMORY_BUDGET
from basins.block_parts import KNOWN
from basins.core import FLOATS_PER_PIECE, PIECE_BYTES
from basins.distinct import DIRECTIONS, tokens_at_once
from basins.half_search import DEPTH, KEY_BYTES, KEYS_AT_ONCE, SLOTS, SPARE, groups_of
from basins.indexes import MEMBERS_PER_CHUNK, ROWS_AT_ONCE, SCORE_BYTES, SCORES_PER_CHUNK, uses_faiss
from basins.memory import AHEAD_SHARE, Budget, fitted, within
from basins.neighbors import CANDIDATE_BYTES, CANDIDATE_FLOATS, MARGIN
from basins.rerun import LEAST_ROWS, PROJECTED_AT_ONCE, PROJECTED_BYTES, PROJECTED_FLOATS, ROWS_PER_POS
from basins.selfcheck import N_FOREIGN
from basins.settings import ScorerSettings
from basins.shapes import ModelShape
from basins.sources import even, sequences_per_call
from basins.transition import patch_floats

Tensors = dict[str, float]

# Freed blocks under 32 MiB stay with the process, on a CPU with glibc (DEFAULT_MMAP_THRESHOLD_MAX), until it asks for
# their return: the scorer does so before each layer.
KEPT_BELOW = 32 * 2**20


@dataclass(frozen=True)
class Job:
    """A call: so many sequences of `length` tokens, scored at `n_scored` layers, the last of which is `last`."""

    shape: ModelShape
    n_sequences: int
    length: int
    settings: ScorerSettings
    device: torch.device
    budget: Budget | None = None
    first: int = 0
    last: int | None = None
    n_scored: int | None = None
    states_budget: int = MEMORY_BUDGET
    half: bool = False

    @property
    def n(self) -> int:
        """Tokens, all of them queries and bank."""
        return self.n_sequences * self.length

    @property
    def layers(self) -> int:
        return self.n_scored or self.shape.n_layers

    @property
    def span(self) -> int:
        """Layers that the sweep passes through."""
        return (self.shape.n_layers - 1 if self.last is None else self.last) - self.first + 1

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"

    @property
    def float_bytes(self) -> int:
        """Of distances and variances."""
        if self.settings.dtype is not None:
            return 8 if self.settings.dtype == "float64" else 4
        return max(4, self.shape.dtype_bytes)

    @property
    def states_bytes(self) -> float:
        """One layer's."""
        return self.n * self.shape.d_model * self.float_bytes

    @property
    def rerun(self) -> bool:
        return self.settings.method == "rerun"

    @property
    def core(self) -> bool:
        return self.shape.block in KNOWN

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP read the same state, among the blocks that the core knows."""
        return self.shape.block == "GPTNeoXLayer"

    @property
    def on_disk(self) -> bool:
        return 2 * self.states_bytes > self.states_budget

    @property
    def sequences_at_once(self) -> int:
        with within(self.budget):
            most = sequences_per_call(self.shape.n_heads, self.shape.d_model, self.length, self.device.type)
        return min(self.n_sequences, self.settings.batch_size or even(self.n_sequences, most))

    @property
    def patched_at_once(self) -> int:
        """Patched rows of one group, over all sequences of a chunk."""
        c, k = self.sequences_at_once, self.settings.k
        with within(self.budget):
            per_call = max(1, patch_floats(self.device) // (c * k * self.shape.d_model))
        return min(per_call, self.length) * c * k

    @property
    def piece(self) -> int:
        """Rows of a group that go through the block together."""
        with within(self.budget):
            floats = fitted(FLOATS_PER_PIECE.get(self.device.type, 2**20), PIECE_BYTES)
        heads = -(-self.shape.d_model // self.shape.d_head)
        return min(self.patched_at_once, max(1, floats // max(heads * self.length, 8 * self.shape.d_model)))

    @property
    def projected_row(self) -> int:
        """Floats that are computed ahead for one state."""
        mlp = self.shape.d_model if self.parallel else 0
        return self.shape.d_head * (self.shape.n_heads + 2 * self.shape.n_kv_heads) + mlp

    @property
    def projects_ahead(self) -> bool:
        with within(self.budget):
            most = fitted(PROJECTED_FLOATS.get(self.device.type, 2**26), PROJECTED_BYTES, AHEAD_SHARE)
        fits = 4 * self.n * self.shape.d_model <= most
        return self.rerun and self.core and self.settings.shrink == 1 and fits


def disk_bytes(job: Job) -> float:
    """Mapped files with two layers of states, while the call runs; 0 where they are in memory."""
    return 2 * job.states_bytes if job.on_disk else 0


def recorded(job: Job) -> Tensors:
    """One mask for each chunk of sequences, shared by all layers."""
    chunks = -(-job.n_sequences // job.sequences_at_once)
    return {"recorded masks": chunks * job.length**2 * job.shape.dtype_bytes}


def results(job: Job) -> Tensors:
    """Kept for all layers: ids, distances, counts and the variances, re-run and looked up."""
    one = job.n * (job.settings.k * (8 + job.float_bytes) + 8 + 4)
    variances = job.n * 3 * job.float_bytes * (1 + job.rerun)
    return {"neighbours": job.layers * one, "variances": job.layers * variances}


def scores(job: Job) -> Tensors:
    """Raw, relative and update, made of the variances."""
    return {"scores": job.layers * job.n * 3 * job.float_bytes * (1 + job.rerun)}


def forward_pass(job: Job, sequences: int) -> Tensors:
    """The model as it is, at its widest: the logits, or one block's attention or MLP (GPT-2's GELU in steps).

    A CPU's allocator keeps freed blocks under 32 MiB, so there a block's activations are still held beside the logits.
    """
    rows, m = sequences * job.length, job.shape.dtype_bytes
    attention = 3 * job.shape.n_heads * job.length + 3 * job.shape.d_model
    block = rows * m * (2 * job.shape.d_model + max(attention, 4 * job.shape.d_mlp))
    logits = rows * m * (job.shape.vocab + job.shape.d_model)
    if job.on_cpu:
        return {"logits": logits, "a block's activations": block}
    return {"logits": logits} if logits > block else {"a block's activations": block}


def self_check(job: Job) -> Tensors:
    """One sequence and its foreign states, every layer's input and output, in one forward pass."""
    one = job.length * job.shape.d_model * job.shape.dtype_bytes
    kept = job.span * one * (1 + 2 * (N_FOREIGN + 1))
    return {"inputs and outputs of all layers": kept} | forward_pass(job, N_FOREIGN + 1)


def search(job: Job) -> list[tuple[str, Tensors]]:
    """Neighbours of every state: the worst moments of it."""
    n, width = job.n, job.shape.d_model
    if job.settings.metric == "cosine" or job.settings.normalize:
        return _searches(job, n, width + 2, 8, {"unit vectors": n * (width + 2) * 8})
    return _searches(job, n, width, job.float_bytes, {})


def _searches(job: Job, n: int, width: int, float_bytes: int, kept: Tensors) -> list[tuple[str, Tensors]]:
    # A few rows at a time: centred in float64, and scaled.
    rows = 2 * min(n, ROWS_AT_ONCE) * width * 8
    mean = n * width * 8 if float_bytes < 8 else 0
    centred = {"bank in float64, for its mean": mean} if mean > rows else {"rows in float64": rows}
    kept = kept | {"ids and distances": n * job.settings.k * 16}
    if job.half:
        products, candidates = _half(job, n, width)
        both = [("search: products", kept | products), ("search: candidates", kept | candidates)]
        return [("search: mean", kept | centred), *both]
    faiss = job.settings.index.startswith("faiss") or uses_faiss(job.settings, n, job.device)
    low = n * (width + 1) * (4 if faiss else float_bytes)
    # The last rows are in float64 while those before them are done.
    partly = low * max(0, n - ROWS_AT_ONCE) / n
    candidates = job.settings.k + MARGIN + 1
    with within(job.budget):
        block = min(n, fitted(MEMBERS_PER_CHUNK, (width + 1) * float_bytes))
        at_once = min(n, max(1, fitted(CANDIDATE_FLOATS, CANDIDATE_BYTES) // (candidates * width)))
        scores = min(fitted(SCORES_PER_CHUNK, SCORE_BYTES), at_once * block)
    exact = {} if job.on_cpu else {"candidates in float64": 2.5 * at_once * candidates * width * 8}
    copy = "members' rows"
    if faiss:
        made = {"bank, centred": low, copy: low, "index": low}
        asked = {"bank, centred": low, "index": low, "queries, centred": partly, "rows in float64": rows}
        return [("search: mean", kept | centred), ("search: index", kept | made), ("search: queries", kept | asked)]
    made = {"bank, centred": low, "queries, centred": partly, "rows in float64": rows}
    tile = {copy: block * (width + 1) * float_bytes, "scores": scores * float_bytes}
    lows = {"bank, centred": low, "queries, centred": low}
    found = [("search: mean", kept | centred), ("search: centred", kept | made), ("search: scores", kept | lows | tile)]
    return found + ([("search: candidates", kept | lows | exact)] if exact else [])


def _half(job: Job, n: int, width: int) -> tuple[Tensors, Tensors]:
    """Keys of the smallest products of every query with every group; then what is made of the candidates."""
    depth = -(-width // DEPTH) * DEPTH
    wanted = job.settings.k + (not job.settings.include_self)
    group, keep = groups_of(wanted, n)
    tile = min(SLOTS // keep * group, n)
    slots = keep * -(-tile // group)
    with within(job.budget):
        queries = min(n, max(1, fitted(KEYS_AT_ONCE, KEY_BYTES) // slots))
    most = 1 << (wanted + 2 * SPARE - 1).bit_length()
    halves: Tensors = {"states in float16": n * depth * 2, "shuffled": n * depth * 2}
    keys: Tensors = {
        "queries in float16": queries * depth * 2,
        "keys": queries * slots * 4,
        "candidates": queries * most * 20,
    }
    # Ids, distances and the order of each, in eight bytes, as they are before sorting and after.
    return halves | keys, halves | {"candidates": queries * most * 64}


def distinct(job: Job) -> Tensors:
    with within(job.budget):
        part = min(job.n, tokens_at_once(job.settings.k))
    pairs = 2 * part * (job.settings.k + 1) ** 2 * DIRECTIONS * 8
    whole = job.n * job.shape.d_model * 8
    if job.on_cpu and whole < KEPT_BELOW:
        return {"states in float64": whole, "pairs along directions": pairs}
    return {"states in float64": whole} if whole > pairs else {"pairs along directions": pairs}


def ahead(job: Job) -> Tensors:
    """Queries, keys and values of the whole bank: in pieces, then joined.

    On a CPU the space of a normed piece lies between what is kept, and is not given back before.
    """
    one = job.n * job.projected_row * job.shape.dtype_bytes
    normed = min(job.n, PROJECTED_AT_ONCE) * job.shape.d_model * job.shape.dtype_bytes
    return {"projected, in pieces": one, "projected, joined": one, "a piece, normed": normed * job.on_cpu}


def patched(job: Job) -> Tensors:
    """One group of patched rows: swapped in, pushed through the block, compared."""
    shape, m, f = job.shape, job.shape.dtype_bytes, job.float_bytes
    rows, c, pos = job.patched_at_once, job.sequences_at_once, job.length
    found: Tensors = {}
    if job.projects_ahead:
        found["projected"] = job.n * job.projected_row * m
    found["context"] = c * pos * (shape.d_model * (f + m) + 2 * shape.n_kv_heads * shape.d_head * m)
    found["neighbours"] = rows * (8 + shape.d_model * (f + (m if m != f else 0)))
    if not job.core:
        return found | _packed(job, rows)
    attended = shape.n_heads * (2 * pos if job.on_cpu else shape.d_head)
    gathered = rows * m * (job.projected_row + shape.d_model)
    inside = gathered + job.piece * m * (2 * shape.d_model + max(attended, 2 * shape.d_mlp))
    compared = rows * shape.d_model * (m + 3 * f)
    return found | ({"inside the block": inside} if inside > compared else {"differences": compared})


def _packed(job: Job, rows: int) -> Tensors:
    """Context and patched rows as one sequence: scores of all with all, and the mask that forbids most of them."""
    shape, c, m = job.shape, job.sequences_at_once, job.shape.dtype_bytes
    step = min(-(-rows // c), max(LEAST_ROWS, ROWS_PER_POS * job.length))
    total = c * (job.length + step)
    scores = total * (job.length + step) * m
    return {
        "outputs": rows * shape.d_model * m,
        "packed mask": scores,
        "inside the block": max(3 * scores * shape.n_heads, 4 * total * shape.d_mlp * m),
    }


def looked_up(job: Job) -> Tensors:
    """Outputs checked for infinities, then neighbours' outputs compared a few tokens at a time."""
    with within(job.budget):
        rows = min(job.n * job.settings.k, patch_floats(job.device) // job.shape.d_model)
    outputs = {} if job.on_cpu else {"outputs": job.states_bytes}
    check = job.n * job.shape.d_model * (job.float_bytes + 2)
    compared = rows * job.shape.d_model * job.float_bytes * 4
    return outputs | ({"check": check} if check > compared else {"differences": compared})
