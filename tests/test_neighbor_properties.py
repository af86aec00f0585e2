"""Properties of the neighbour search that hold for any states, by hypothesis."""

from __future__ import annotations

from contextlib import ExitStack
from unittest import mock

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from reference import assert_same_neighbors, sorted_candidates, tokens_of

from basins.neighbors import find_neighbors, table_of
from basins.settings import ScorerSettings

CHUNKS = {
    "basins.neighbors.MARGIN": (0, 1, 16),
    "basins.neighbors.CANDIDATE_FLOATS": (1, 100, 2**24),
    "basins.neighbors.PAIRS_PER_CHUNK": (1, 40, 2**21),
    "basins.neighbors.PAIRS_AT_ONCE": (1, 7, 2**15),
    "basins.indexes.SCORES_PER_CHUNK": (1, 50, 2**25),
    "basins.indexes.MEMBERS_PER_CHUNK": (1, 5, 2**17),
}
rules = st.fixed_dictionaries(
    {
        "neighbors": st.sampled_from(["same_layer", "cross_sequence", "same_token"]),
        "metric": st.sampled_from(["euclidean", "cosine"]),
        "include_self": st.booleans(),
    }
)
indexes = st.sampled_from(["exact", "half", "faiss"])


def search(states, mask, ids, k, exclude_first=0, **options):
    flat = torch.as_tensor(states).flatten(0, 1)
    table = table_of(torch.as_tensor(mask), torch.as_tensor(ids), exclude_first)
    options = ScorerSettings(k=k, exclude_first=exclude_first, **options)
    return find_neighbors(flat, table, flat, table, options, True)


@st.composite
def batches(draw):
    """Small integers in few dimensions: ties, duplicates and zeros everywhere. Padding anywhere that is allowed."""
    batch, pos, d_model = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    states = draw(npst.arrays(np.float32, (batch, pos, d_model), elements=st.integers(-2, 2)))
    ids = draw(npst.arrays(np.int64, (batch, pos), elements=st.integers(0, 2)))
    mask = np.zeros((batch, pos), np.int64)
    for row in mask:
        start = draw(st.integers(0, pos - 1))
        row[start : draw(st.integers(start + 1, pos))] = 1
    return states, mask, ids


@settings(max_examples=250, deadline=None)
@given(batches(), st.integers(2, 6), st.integers(0, 2), rules, indexes)
def test_equals_the_loop(batch, k, exclude_first, rules, index):
    states, mask, ids = batch
    found = search(*batch, k, exclude_first, index=index, **rules)
    table, flat = tokens_of(mask, ids, exclude_first), states.reshape(-1, states.shape[-1])
    candidates = sorted_candidates(flat, table, flat, table, **rules)
    assert_same_neighbors(found.ids, found.distances, candidates, k, ties_exact=rules["metric"] == "euclidean")


@settings(max_examples=60, deadline=None)
@given(
    batches(),
    st.integers(2, 4),
    rules,
    indexes,
    st.fixed_dictionaries({n: st.sampled_from(v) for n, v in CHUNKS.items()}),
)
def test_chunk_sizes_change_nothing(batch, k, rules, index, chunks):
    expected = search(*batch, k, index=index, **rules)
    with ExitStack() as patches:
        for constant, value in chunks.items():
            patches.enter_context(mock.patch(constant, value))
        found = search(*batch, k, index=index, **rules)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.distances.nan_to_num(-1), expected.distances.nan_to_num(-1))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.permutations(range(5)), st.integers(2, 5), rules, indexes)
def test_the_order_of_unrelated_sequences_only_renames_neighbours(seed, order, k, rules, index):
    """No two distances are equal here, so no tie is broken by an id."""
    rng = np.random.default_rng(seed)
    states, ids = rng.normal(size=(5, 6, 4)).astype(np.float32), rng.integers(0, 3, (5, 6))
    mask = (np.arange(6) < rng.integers(3, 7, (5, 1))).astype(np.int64)
    plain = search(states, mask, ids, k, index=index, **rules)
    moved = search(states[order], mask[order], ids[order], k, index=index, **rules)
    back = torch.as_tensor(order)[moved.ids // 6] * 6 + moved.ids % 6
    back = torch.where(moved.ids < 0, -1, back).view(5, 6, k)
    assert torch.equal(back, plain.ids.view(5, 6, k)[order])
    expected = plain.distances.view(5, 6, k)[order]
    torch.testing.assert_close(moved.distances.view(5, 6, k), expected, rtol=1e-6, atol=0, equal_nan=True)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 4), st.sampled_from(["same_layer", "same_token"]), indexes)
def test_a_corpus_twice_gives_every_neighbour_twice(seed, k, rule, index):
    rng = np.random.default_rng(seed)
    states, ids = rng.normal(size=(3, 6, 4)).astype(np.float32), rng.integers(0, 2, (3, 6))
    mask = np.ones((3, 6), np.int64)
    options = {"neighbors": rule, "include_self": True, "index": index}
    once = search(states, mask, ids, k, **options)
    twice = search(*(np.concatenate([part, part]) for part in (states, mask, ids)), 2 * k, **options)
    assert torch.equal(twice.ids[:18, ::2], once.ids)
    assert torch.equal(twice.ids[:18, 1::2], torch.where(once.ids < 0, -1, once.ids + 18))
    assert torch.equal(twice.ids[18:], twice.ids[:18])
    assert torch.equal(twice.distances[:18, ::2].nan_to_num(-1), once.distances.nan_to_num(-1))
    # Without the token itself, its copy stands first, at distance 0.
    copies = search(*(np.concatenate([part, part]) for part in (states, mask, ids)), 2, neighbors=rule, index=index)
    scored = copies.ids[:18, 0] >= 0
    assert bool((copies.ids[:18, 0] == torch.arange(18) + 18)[scored].all())
    assert bool((copies.distances[:18, 0] == 0)[scored].all())
