"""What a call of `score_tokens` takes in bytes, stage by stage: pure arithmetic on sizes, nothing is run.

Each stage lists the tensors that are alive together at its worst moment, by name, as the code of the package makes
them. A stage's temporaries come on top of what is there throughout: weights, states, recorded masks, results.
"""

from __future__ import annotations

from basins.distinct import PAIR_BYTES, tokens_at_once
from basins.half_search import DEPTH, KEY_BYTES, KEYS_AT_ONCE, SLOTS, SPARE, groups_of
from basins.indexes import MEMBERS_PER_CHUNK, ROWS_AT_ONCE, SCORE_BYTES, SCORES_PER_CHUNK, uses_faiss
from basins.jobs import Job
from basins.memory import fitted, within
from basins.neighbor_variances import FLOATS_AT_ONCE
from basins.neighbors import CANDIDATE_BYTES, CANDIDATE_FLOATS, MARGIN
from basins.rerun import LEAST_ROWS, PROJECTED_AT_ONCE, ROWS_PER_POS
from basins.selfcheck import N_FOREIGN

Tensors = dict[str, float]

# Freed blocks under 32 MiB stay with the process, on a CPU with glibc (DEFAULT_MMAP_THRESHOLD_MAX), until it asks for
# their return: the scorer does so before each layer.
KEPT_BELOW = 32 * 2**20


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


def blocks_alone(job: Job, sequences: int) -> float:
    """A forward pass that ends before the logits: bytes of one block's attention or MLP."""
    attention = 3 * job.shape.n_heads * job.length + 3 * job.shape.d_model
    inside = 2 * job.shape.d_model + max(attention, 4 * job.shape.d_mlp)
    return sequences * job.length * job.shape.dtype_bytes * inside


def recording(job: Job) -> Tensors:
    """How blocks are called is known before the last of them runs."""
    return {"a block's activations": blocks_alone(job, job.sequences_at_once)}


def self_check(job: Job) -> Tensors:
    """One sequence and its foreign states, every layer's input and output, in a pass that ends with the last block."""
    one = job.length * job.shape.d_model * job.shape.dtype_bytes
    kept = job.span * one * (1 + 2 * (N_FOREIGN + 1))
    return {"inputs and outputs of all layers": kept, "a block's activations": blocks_alone(job, N_FOREIGN + 1)}


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
    kept = kept | {"ids and distances": n * job.settings.k * 16, "codes of equal states": n * 16}
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
        part = min(job.n, tokens_at_once(job.settings.k, job.device.type))
    pairs = part * (job.settings.k + 1) ** 2 * PAIR_BYTES
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
    """Outputs checked for infinities, then neighbours' states and outputs compared a few tokens at a time."""
    rows = min(job.n * job.settings.k, FLOATS_AT_ONCE.get(job.device.type, 2**17) // job.shape.d_model)
    outputs = {} if job.on_cpu or job.states_on_gpu else {"outputs": job.states_bytes}
    check = job.n * job.shape.d_model * (job.float_bytes + 2)
    compared = rows * job.shape.d_model * job.float_bytes * 2
    return outputs | ({"check": check} if check > compared else {"differences": compared})
