"""Floating-point operations of a call of `score_tokens`, stage by stage: those of its matrix products.

A product of an (a, b) with a (b, c) matrix counts 2 a b c. What has no product (norms, softmax, variances, the float64
distances of candidates) is left out: it is little arithmetic, though not always little time.
"""

from __future__ import annotations

from basins.distinct import DIRECTIONS
from basins.jobs import Job
from basins.selfcheck import N_FOREIGN
from basins.shared_calls import FEW, MORE


def block_operations(job: Job, rows: float) -> float:
    """The block on whole sequences, `rows` tokens of them: its matrices, scores of all with all, mixtures of values."""
    attention = 4 * job.length * job.shape.n_heads * job.shape.d_head
    return rows * (2 * job.shape.block_weights + attention)


def recording(job: Job) -> float:
    """A few sequences up to the last layer: how blocks are called; every token up to the first layer."""
    few = min(job.n_sequences, FEW + MORE) * job.length
    return job.end * block_operations(job, few) + job.first * block_operations(job, job.n)


def self_check(job: Job) -> float:
    """One sequence up to the last layer, it again with foreign states and through it, and each block of it re-run."""
    rows = job.length + N_FOREIGN
    again = block_operations(job, job.length) + _projection(job, job.length) + _projection(job, rows)
    again += rows * _patched_row(job, job.length) if job.core else block_operations(job, job.length + rows)
    passes = job.end * block_operations(job, job.length)
    passes += (job.end + 1) * block_operations(job, job.length * (N_FOREIGN + 1))
    return passes + job.span * again


def search(job: Job) -> float:
    """Every state with every state; with FAISS these are its own products."""
    return job.layers * 2.0 * job.n**2 * (job.shape.d_model + 1)


def distinct(job: Job) -> float:
    return job.layers * 4.0 * job.n * job.shape.d_model * DIRECTIONS


def patched(job: Job) -> float:
    """Neighbours pushed through the block: what is projected ahead, and what each pair of query and neighbour needs."""
    if not job.rerun:
        return 0.0
    rows = float(job.n * job.settings.k)
    if not job.core:
        # The context comes again with every call, and every row is scored with every row.
        most = max(job.patched_at_once // job.sequences_at_once, 1)
        calls = -(-job.length * job.settings.k // most)
        total = job.length + most
        attention = 4 * total * job.shape.n_heads * job.shape.d_head
        return job.layers * calls * job.n_sequences * total * (2 * job.shape.block_weights + attention)
    projected = _projection(job, job.n if job.projects_ahead else rows + job.n)
    return job.layers * (projected + rows * _patched_row(job, _mean_reach(job)))


def next_layers(job: Job) -> float:
    return job.span * block_operations(job, job.n)


def operations(job: Job) -> dict[str, float]:
    """By stage."""
    return {
        "recording how blocks are called": recording(job),
        "self-check": self_check(job),
        "nearest neighbours": search(job),
        "counting distinct states": distinct(job),
        "neighbours through the block": patched(job),
        "next layers": next_layers(job),
    }


def _projection(job: Job, rows: float) -> float:
    """Queries, keys and values; in a parallel block its MLP too."""
    weights = job.shape.d_model * job.shape.d_head * (job.shape.n_heads + 2 * job.shape.n_kv_heads)
    if job.parallel:
        weights += job.shape.block_weights - job.shape.attention_weights
    return 2.0 * rows * weights


def _patched_row(job: Job, reach: float) -> float:
    """Scores with `reach` keys and the mixture of their values, output projection, MLP."""
    width = job.shape.n_heads * job.shape.d_head
    weights = width * job.shape.d_model
    if not job.parallel:
        weights += job.shape.block_weights - job.shape.attention_weights
    return 2.0 * weights + 4.0 * reach * width


def _mean_reach(job: Job) -> float:
    """Keys up to the last position of a group, on average over its rows."""
    step = max(1, job.patched_at_once // (job.sequences_at_once * job.settings.k))
    ends = [(start, min(start + step, job.length)) for start in range(0, job.length, step)]
    return sum((end - start) * end for start, end in ends) / job.length
