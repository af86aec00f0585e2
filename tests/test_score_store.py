"""A store hands out what was scored before, and nothing else."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_model

import basins
from basins.errors import BasinsError
from basins.experiments.score_store import ScoreStore


def scorer(model, **settings) -> basins.BasinScorer:
    return basins.BasinScorer(model, **({"k": 3} | settings))


TOKENS = torch.randint(3, 60, (3, 11), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(TOKENS)
MASK[1, 8:] = 0


def test_the_same_question_is_answered_once_and_again_in_another_run(tmp_path):
    store = ScoreStore(tmp_path)
    model = tiny_model("gpt2")
    first = store.score(scorer(model), TOKENS, MASK)
    again = store.score(scorer(model, batch_size=1), TOKENS, MASK)  # another object; batch_size has no effect
    assert again is first
    assert (store.computed, store.found) == (1, 1)
    later = ScoreStore(tmp_path)
    loaded = later.score(scorer(tiny_model("gpt2")), TOKENS, MASK)
    assert (later.computed, later.found) == (0, 1)
    assert torch.equal(loaded.relative.nan_to_num(99), first.relative.nan_to_num(99))
    assert loaded.lookup is not None
    assert loaded.settings == first.settings
    assert torch.equal(loaded.neighbor_ids, first.neighbor_ids)


def test_anything_that_changes_a_score_is_another_question(tmp_path):
    store, model = ScoreStore(), tiny_model("gpt2")
    store.score(scorer(model), TOKENS, MASK)
    store.score(scorer(model, k=4), TOKENS, MASK)
    store.score(scorer(model), TOKENS, torch.ones_like(MASK))
    store.score(scorer(model), TOKENS + 1, MASK)
    store.score(scorer(model), TOKENS, MASK, layers=[0])
    store.score(scorer(tiny_model("gpt2", seed=1)), TOKENS, MASK)
    with torch.no_grad():  # one number of one weight
        weight = next(iter(model.parameters()))
        before = weight.clone()
        weight.view(-1)[0] += 0.5
        store.score(scorer(model), TOKENS, MASK)
        weight.copy_(before)
    assert (store.computed, store.found) == (7, 0)


def test_hooked_models_are_not_remembered_and_fitted_scorers_refused(tmp_path):
    store, model = ScoreStore(tmp_path), tiny_model("gpt2")
    model.run_with_cache(TOKENS)  # transformers and TransformerLens leave hooks of their own behind
    plain = store.score(scorer(model), TOKENS, MASK)
    hooks = [
        lambda: model.blocks[0].register_forward_hook(lambda module, args, output: None).remove,
        lambda: model.add_hook("blocks.0.hook_in", lambda value, hook: value) or model.reset_hooks,
    ]
    for add in hooks:
        remove = add()
        try:
            store.score(scorer(model), TOKENS, MASK)
            assert (store.computed, store.found) == (1, 0)
        finally:
            remove()
    assert store.score(scorer(model), TOKENS, MASK) is plain
    fitted = scorer(model).fit(basins.corpus.TokenBatch(TOKENS, MASK, torch.zeros(3, 11, 2).long(), (0, 1, 2), {}))
    with pytest.raises(BasinsError, match="fitted"):
        store.score(fitted, TOKENS, MASK)
