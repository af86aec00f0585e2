from __future__ import annotations

import numpy as np
import pytest
import torch
from test_continuation import padded
from tiny_models import tiny_model

from basins import BasinsError, corpus, losses
from basins.losses import next_tokens, token_losses


def test_losses_are_those_of_the_model(pocket_mini):
    batch = corpus.tokenize(pocket_mini, ["The sea was calm.", "A horse"])
    found = token_losses(pocket_mini, batch.tokens, batch.attention_mask)
    assert torch.equal(found.isnan(), (batch.attention_mask == 0) | (torch.arange(found.shape[1]) == 0))
    with torch.no_grad():
        alone = pocket_mini(batch.tokens[1:, : int(batch.attention_mask[1].sum())])[0].log_softmax(-1)
    wanted = [-float(alone[i, token]) for i, token in enumerate(batch.tokens[1, 1 : len(alone)].tolist())]
    assert found[1, 1 : len(alone)].tolist() == pytest.approx(wanted, abs=1e-4)


FIELDS = ("loss", "hit", "mean_log_prob", "std_log_prob")


def by_hand(model, row):
    """NumPy, float64, one token at a time: loss, hit, E[ln p] and the standard deviation of ln p under p."""
    tokens = torch.tensor([row])
    with torch.no_grad():
        logits = model(tokens, attention_mask=torch.ones_like(tokens), return_type="logits")[0].double().numpy()
    found = []
    for before, token in zip(logits, row[1:], strict=False):
        log_p = before - before.max() - np.log(np.exp(before - before.max()).sum())
        mean = sum(np.exp(x) * x for x in log_p)
        variance = sum(np.exp(x) * (x - mean) ** 2 for x in log_p)
        found.append((-log_p[token], float(np.argmax(before) == token), mean, variance**0.5))
    return np.array(found)


@pytest.mark.parametrize("batch_size", [None, 1, 2])
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "mamba"])
def test_next_tokens_are_those_computed_by_hand(name, left, batch_size, untouched):
    model = tiny_model(name)
    if name == "mamba" and left:
        pytest.skip("its state runs through padding on the left")
    rng = torch.Generator().manual_seed(1)
    rows = [torch.randint(4, 60, (length,), generator=rng) for length in (7, 12, 1, 2)]
    tokens, mask = padded(rows, left)
    with untouched(model):
        found = next_tokens(model, tokens, mask, batch_size)
    for i, row in enumerate(rows):
        at = mask[i].nonzero()[:, 0]
        actual = torch.stack([getattr(found, field)[i].double() for field in FIELDS], -1)
        if len(row) > 1:
            expected = torch.tensor(by_hand(model, row.tolist()))
            torch.testing.assert_close(actual[at[1:]], expected, rtol=1e-4, atol=1e-4)
        others = torch.ones(tokens.shape[1], dtype=torch.bool)
        others[at[1:]] = False
        assert actual[others][:, [0, 2, 3]].isnan().all()
        assert not found.hit[i, others].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_values_are_float32_or_better(dtype):
    found = next_tokens(tiny_model("llama", dtype), torch.arange(4, 20)[None])
    assert found.loss.dtype == torch.promote_types(dtype, torch.float32)
    assert found.hit.dtype == torch.bool
    # The negative entropy is between that of a fair choice and that of a sure one.
    assert (found.mean_log_prob[:, 1:] <= 0).all()
    assert (found.mean_log_prob[:, 1:] >= -np.log(64) - 1e-6).all()


def test_distributions_of_known_shape(monkeypatch):
    """Fair, sure, two tokens ruled out, and p = (1/4, 3/4); also when only one position fits at once."""
    inf = float("inf")
    logits = torch.tensor([[0.0] * 4, [99.0, -inf, -inf, -inf], [0.0, 0.0, -inf, -inf], [0.0, np.log(3), -inf, -inf]])
    expected = {
        "loss": [np.log(4), inf, np.log(2), np.log(4 / 3)],
        "hit": [1, 0, 0, 1],
        "mean_log_prob": [-np.log(4), 0, -np.log(2), -np.log(4) + 0.75 * np.log(3)],
        "std_log_prob": [0, 0, 0, np.log(3) * (3 / 16) ** 0.5],
    }
    for at_once in (losses.POSITIONS_AT_ONCE, 1):
        monkeypatch.setattr(losses, "POSITIONS_AT_ONCE", at_once)
        found = losses._distributions(logits, torch.tensor([0, 1, 1, 1]))
        for field in FIELDS:
            assert found[field].tolist() == pytest.approx(expected[field], abs=1e-6), field


@pytest.mark.parametrize(
    ("tokens", "batch_size", "message"),
    [(None, None, "tokens is None"), (torch.ones(1, 3).long(), 0, "batch_size=0"), (torch.ones(1, 65).long(), 1, "65")],
)
def test_bad_input(tokens, batch_size, message):
    with pytest.raises(BasinsError, match=message):
        next_tokens(tiny_model("gpt2"), tokens, None, batch_size)


def test_one_token_has_no_prediction():
    found = next_tokens(tiny_model("gpt2"), torch.tensor([[5]]))
    assert found.loss.isnan().all()
    assert not found.hit.any()
