"""Batched, cached continuation is token for token that of each prompt alone without a cache."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ARCHITECTURES, D_VOCAB, N_CTX, tiny_model

import basins
from basins import BasinsError, kv_cache
from basins.continuation import NEAR_TIE, NEAR_TIE_IN_HALF, continue_greedily
from basins.kv_cache import has_user_hooks

LENGTHS, N_NEW = (3, 9, 9, 5, 12, 1), (20, 5, 7, 0, 11, 8)


def plain_greedy(model, prompt, n_new):
    """The reference: one sequence, one full forward pass a token, no cache."""
    row = [int(token) for token in prompt]
    with torch.no_grad():
        for _ in range(n_new):
            tokens = torch.tensor([row])
            logits = model(tokens, attention_mask=torch.ones_like(tokens), return_type="logits")
            row.append(int(logits[0, -1].argmax()))
    return row[len(prompt) :]


def prompts():
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(4, 60, (length,), generator=rng) for length in LENGTHS]


def padded(rows, left):
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for i, row in enumerate(rows):
        at = slice(tokens.shape[1] - len(row), None) if left else slice(0, len(row))
        tokens[i, at], mask[i, at] = row, 1
    return tokens, mask


def ids(found):
    return [row.tolist() for row in found.ids]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_continued_as_one_row_at_a_time(name, untouched):
    model = tiny_model(name)
    wanted = [plain_greedy(model, row, n) for row, n in zip(prompts(), N_NEW, strict=True)]
    with untouched(model):
        found = continue_greedily(model, prompts(), N_NEW)
    assert ids(found) == wanted
    # Mamba keeps a state and no keys and values: the check finds that what the cache gives is wrong.
    assert found.path == ("recompute" if name == "mamba" else "cache")
    assert (found.reason is not None) == (name == "mamba")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *[(name, torch.float32) for name in ARCHITECTURES if name != "mamba"],
        *[(name, torch.bfloat16) for name in ("gpt2", "llama", "gemma2", "bloom")],
    ],
)
def test_rounding_is_far_below_a_near_tie(name, dtype):
    """What batching and caching change in logits: an eighth of a near-tie at most, a half in bfloat16."""
    model, row = tiny_model(name, dtype), prompts()[4]
    alone = kv_cache.all_logits(model, row[None])[0].double()
    least = NEAR_TIE / 8 if dtype == torch.float32 else NEAR_TIE_IN_HALF / 2
    tolerance = least * torch.finfo(dtype).eps * alone.abs().amax(-1)
    with torch.no_grad(), kv_cache.cached(model, 5) as steps:
        for end in range(3, len(row) + 1):
            off = (steps(row.expand(5, -1), end).double() - alone[end - 1]).abs().max()
            assert off < tolerance[end - 1]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_neither_batches_nor_padding_change_a_token(name, left, batch_size):
    model = tiny_model(name)
    tokens, mask = padded(prompts(), left)
    found = continue_greedily(model, tokens, N_NEW, attention_mask=mask, batch_size=batch_size)
    assert ids(found) == [plain_greedy(model, row, n) for row, n in zip(prompts(), N_NEW, strict=True)]


def test_pocket(pocket_mini):
    texts = [passage.text for passage in basins.pocket.passages()[:8]]
    tokens = basins.corpus.tokenize(pocket_mini, texts).tokens
    found = continue_greedily(pocket_mini, tokens[:, :22], 12)
    assert ids(found) == [plain_greedy(pocket_mini, row[:22], 12) for row in tokens]
    assert found.path == "cache"


def test_what_the_cache_gets_wrong_is_found_and_recomputed(monkeypatch):
    """A cache lost on the way, as TransformerLens 4.3 loses that of transformers 5.24: new tokens stand alone."""

    def forgetful(model):
        return lambda new, end: kv_cache.all_logits(model, new)

    monkeypatch.setattr(kv_cache, "_bridge_step", forgetful)
    model = tiny_model("llama")
    found = continue_greedily(model, prompts(), N_NEW)
    assert ids(found) == [plain_greedy(model, row, n) for row, n in zip(prompts(), N_NEW, strict=True)]
    assert found.path == "recompute"
    assert str(found.reason).startswith("with its cache the model")


def test_a_cache_that_raises_is_done_without(monkeypatch, untouched):
    def broken(model):
        raise KeyError("no cache here")

    monkeypatch.setattr(kv_cache, "_bridge_step", broken)
    model = tiny_model("llama")
    with untouched(model):
        found = continue_greedily(model, prompts(), 4)
    assert found.path == "recompute"
    assert found.reason == "KeyError: 'no cache here'"
    assert ids(found) == [plain_greedy(model, row, 4) for row in prompts()]


def test_the_users_hooks_apply_also_those_that_look_at_positions():
    model = tiny_model("llama")
    before = ids(continue_greedily(model, prompts(), 8))

    def ablate_third(value, hook):
        value = value.clone()
        value[:, 2:3] = 0
        return value

    assert not has_user_hooks(model)
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", ablate_third)]):
        assert has_user_hooks(model)
        found = continue_greedily(model, prompts(), 8)
        wanted = [plain_greedy(model, row, 8) for row in prompts()]
    assert ids(found) == wanted != before
    assert (found.path, found.reason) == ("recompute", "the model has hooks")


def test_near_ties_are_decided_by_the_row_alone(monkeypatch):
    """Logits that rounding may order either way: here the batched ones are all wrong, by less than a near-tie."""
    model = tiny_model("llama")
    wanted = [plain_greedy(model, row, 6) for row in prompts()]
    real = kv_cache._bridge_step

    def noisy(model):
        step = real(model)

        def with_noise(new, end):
            logits = step(new, end)
            # All tokens are tied, and token 0 wins by the order of ids.
            return torch.zeros_like(logits) + logits.amax(-1, keepdim=True)

        return with_noise

    monkeypatch.setattr(kv_cache, "_bridge_step", noisy)
    monkeypatch.setattr("basins.continuation.LOGITS_OFF", float("inf"))
    found = continue_greedily(model, prompts(), 6)
    assert ids(found) == wanted
    assert (found.path, found.near_ties) == ("cache", 6 * len(LENGTHS))


def test_equal_logits_give_the_lowest_id():
    class Flat(torch.nn.Module):
        """Tokens 7 and 5 are always equally likely."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.cfg = type("Config", (), {"d_model": 1, "d_vocab": 9, "n_heads": 1, "device": "cpu"})()
            self.blocks = torch.nn.ModuleList([torch.nn.Linear(1, 1)])

        def forward(self, tokens, attention_mask, return_type, past_kv_cache=None):
            logits = torch.zeros(*tokens.shape, 9)
            logits[..., [5, 7]] = 1
            return logits

    assert ids(continue_greedily(Flat(), [[1, 2], [3]], 2)) == [[5, 5], [5, 5]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    model = tiny_model("llama", dtype)
    found = continue_greedily(model, prompts(), N_NEW)
    assert found.path == "cache"
    assert ids(found) == [plain_greedy(model, row, n) for row, n in zip(prompts(), N_NEW, strict=True)]


def test_modes_and_hooks_come_back(untouched):
    model = tiny_model("gpt2")
    with untouched(model), pytest.raises(BasinsError, match="more than the model's context"):
        continue_greedily(model, prompts(), N_CTX)


@pytest.mark.parametrize(
    ("given", "n_new", "message"),
    [
        ([], 3, "at least one prompt"),
        ("abc", 3, "list of rows of token ids"),
        ([[1], []], 3, "whole numbers"),
        ([[1], [2]], [3], "n_new has 1 numbers for 2 prompts"),
        ([[1]], -1, "n_new=-1 is too small"),
        ([[D_VOCAB]], 1, "not in the model's vocabulary"),
    ],
)
def test_bad_input(given, n_new, message):
    with pytest.raises(BasinsError, match=message):
        continue_greedily(tiny_model("gpt2"), given, n_new)


def test_logits_that_are_nan_are_refused():
    model = tiny_model("gpt2", seed=5)
    weight = model.blocks[0].attn.W_O
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(float("nan"))
        with pytest.raises(BasinsError, match="logits hold NaN"):
            continue_greedily(model, [[4, 5, 6]], 2)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
