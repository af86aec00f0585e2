from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from test_rerun import one_forward_per_neighbour, padded, some_tokens
from tiny_models import tiny_model

from basins.errors import BasinsError
from basins.neighborhoods import neighborhoods
from basins.overlap import nearest_after, overlap
from basins.settings import ScorerSettings


def by_adjacency(first: np.ndarray, second: np.ndarray, n: int) -> float:
    """chi of Valeriani et al. (2023), from the two adjacency matrices: (1 / n) sum_i (1 / k) sum_j A_ij B_ij."""
    a, b = np.zeros((2, n, n))
    for i in range(n):
        a[i, first[i]], b[i, second[i]] = 1, 1
    return float((a * b).sum() / n / first.shape[1])


@pytest.mark.parametrize("k", [1, 4, 9])
def test_agrees_with_the_adjacency_matrices_of_two_clouds(k):
    rng = np.random.default_rng(k)
    before = rng.normal(size=(60, 5))
    after = before + 0.7 * rng.normal(size=(60, 5))
    nearest = []
    for points in (before, after):
        gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.diag(np.full(60, np.inf))
        nearest.append(np.argsort(gaps, 1)[:, :k])
    found = overlap(torch.tensor(nearest[0]), torch.tensor(nearest[1]))
    assert float(found.mean()) == pytest.approx(by_adjacency(nearest[0], nearest[1], 60))
    assert float(overlap(torch.tensor(nearest[0]), torch.tensor(nearest[0][:, ::-1].copy())).min()) == 1


def test_too_few_neighbours_are_nan_and_shapes_must_agree():
    found = overlap(torch.tensor([[0, 1], [-1, -1], [2, 3]]), torch.tensor([[1, 5], [0, 1], [-1, -1]]))
    assert found[0] == 0.5
    assert found[1:].isnan().all()
    with pytest.raises(BasinsError, match=r"shapes \[2, 3\] and \[2, 2\]"):
        overlap(torch.zeros(2, 3).long(), torch.zeros(2, 2).long())


@pytest.mark.parametrize("padding", ["none", "left"])
def test_the_nearest_after_the_block_agree_with_plain_patching(padding):
    model, tokens, mask = tiny_model("llama"), some_tokens(), padded(padding)
    settings = ScorerSettings(k=6, neighbors="cross_sequence", exclude_first=1)
    # At layer 0 of a rotary model equal tokens are equal states, and which of them is nearer is rounding.
    for hood in neighborhoods(model, settings, tokens, None, mask, [1, 2], sample=4):
        share, rho = nearest_after(hood)
        states, outputs = hood.states(), hood.place.outputs.flatten(0, 1)
        for number, query in enumerate(hood.queries.tolist()):
            ids = hood.neighbors[number].tolist()
            sequence, position = divmod(query, mask.shape[1])
            rerun = [
                one_forward_per_neighbour(model, tokens, mask, hood.layer, sequence, position, states[i]) for i in ids
            ]
            gaps = [float((y - outputs[query]).norm()) for y in rerun]
            looked = [float((outputs[i] - outputs[query]).norm()) for i in ids]
            near = set(np.argsort(gaps)[:2]) & set(np.argsort(looked)[:2])
            assert float(share[number]) == len(near) / 2
            wanted: Any = spearmanr(gaps, looked)
            assert float(rho[number]) == pytest.approx(wanted.statistic)
