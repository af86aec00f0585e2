"""Cached, batched continuation with TransformerLens 2.18 and 3.9 is that of each row alone without a cache."""

from __future__ import annotations

import pytest
import torch
from cases import TINY
from test_continuation import N_NEW, ids, padded, plain_greedy, prompts
from tiny_models import tiny_hooked

import basins
from basins.continuation import continue_greedily

pytestmark = pytest.mark.compat


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("name", TINY)
def test_hooked_transformer(name, left, untouched):
    model = tiny_hooked(name)
    tokens, mask = padded(prompts(), left)
    with untouched(model):
        found = continue_greedily(model, tokens, N_NEW, attention_mask=mask, batch_size=4)
    assert ids(found) == [plain_greedy(model, row, n) for row, n in zip(prompts(), N_NEW, strict=True)]
    assert (found.path, found.reason) == ("cache", None)


def test_the_shipped_model_as_it_is_wrapped_here(untouched):
    model = basins.load_model("pocket-mini")
    rows = [torch.arange(start, start + 10) for start in (5, 300, 2000)]
    with untouched(model):
        found = continue_greedily(model, rows, 8)
    assert ids(found) == [plain_greedy(model, row, 8) for row in rows]
    assert (found.path, found.reason) == ("cache", None)
