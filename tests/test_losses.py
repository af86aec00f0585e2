from __future__ import annotations

import pytest
import torch

from basins import corpus
from basins.losses import token_losses


def test_losses_are_those_of_the_model(pocket_mini):
    batch = corpus.tokenize(pocket_mini, ["The sea was calm.", "A horse"])
    losses = token_losses(pocket_mini, batch.tokens, batch.attention_mask)
    assert torch.equal(losses.isnan(), (batch.attention_mask == 0) | (torch.arange(losses.shape[1]) == 0))
    with torch.no_grad():
        alone = pocket_mini(batch.tokens[1:, : int(batch.attention_mask[1].sum())])[0].log_softmax(-1)
    wanted = [-float(alone[i, token]) for i, token in enumerate(batch.tokens[1, 1 : len(alone)].tolist())]
    assert losses[1, 1 : len(alone)].tolist() == pytest.approx(wanted, abs=1e-4)
