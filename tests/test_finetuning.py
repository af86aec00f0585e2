"""Fine-tuning: the copy learns what it was shown, as often as planned, and the original notices nothing."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from tiny_models import ARCHITECTURES, N_CTX, tiny_hf_model, tiny_model, tiny_tokenizer

import basins
from basins import BasinsError
from basins.finetuning import finetune, schedule
from basins.model_copy import independent_copy

TOKENS = torch.randint(3, 64, (5, 12), generator=torch.Generator().manual_seed(3))
MASK = torch.ones_like(TOKENS)
MASK[1, 8:] = 0
MASK[3, 10:] = 0


def weights(model) -> bytes:
    return b"".join(p.detach().numpy().tobytes() for _, p in sorted(model.named_parameters()))


def last(*args, **options):
    *_, checkpoint = finetune(*args, **options)
    return checkpoint


@pytest.mark.parametrize("exposures", [(1, 4, 16, 64), (3, 7, 0, 10), (5,), (1, 1, 1)])
def test_every_passage_is_shown_exactly_as_often_as_planned(exposures):
    plan = schedule(exposures, seed=1)
    assert len(plan) == max(exposures)
    assert Counter(torch.cat(plan).tolist()) == Counter({p: n for p, n in enumerate(exposures) if n})
    assert all(len(epoch) == len(epoch.unique()) for epoch in plan)


def test_exposures_are_spread_over_the_whole_training():
    plan = schedule((4, 64), seed=0)
    shown = [number for number, epoch in enumerate(plan) if 0 in epoch]
    assert [number // 16 for number in shown] == [0, 1, 2, 3]


def test_the_seed_decides_the_order():
    assert all(torch.equal(a, b) for a, b in zip(schedule([6] * 9, 2), schedule([6] * 9, 2)))
    assert not all(torch.equal(a, b) for a, b in zip(schedule([6] * 9, 2), schedule([6] * 9, 3)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_copy_learns_and_the_original_is_untouched(name, untouched):
    model = tiny_model(name)
    with torch.no_grad():
        before = model(TOKENS, attention_mask=MASK)
    with untouched(model):
        checkpoint = last(model, TOKENS, MASK, exposures=4, learning_rate=3e-3, batch_size=2, checkpoints=(1, 4))
        with torch.no_grad():
            after = checkpoint.model(TOKENS, attention_mask=MASK)
            assert torch.equal(model(TOKENS, attention_mask=MASK), before)
    assert not torch.allclose(before, after, atol=1e-3)
    own = {p.data_ptr() for p in model.parameters()}
    assert not own & {p.data_ptr() for p in checkpoint.model.parameters()}
    assert checkpoint.loss < last(model, TOKENS, MASK, exposures=1, learning_rate=3e-3, batch_size=2).loss


def test_one_step_is_the_step_of_plain_transformers():
    """Against AdamW on the transformers model itself, with the loss written as a loop over real tokens."""
    hf = tiny_hf_model("llama")
    ours = last(tiny_model("llama"), TOKENS, MASK, exposures=2, learning_rate=1e-3, batch_size=5, weight_decay=0.1)
    optimizer = torch.optim.AdamW(hf.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(2):  # one batch holds all, so the order matters only up to rounding
        logits = hf(TOKENS, attention_mask=MASK).logits
        losses = [
            -logits[b, p].log_softmax(-1)[TOKENS[b, p + 1]] for b in range(5) for p in range(11) if MASK[b, p + 1]
        ]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        expected = hf(TOKENS, attention_mask=MASK).logits
        actual = ours.model(TOKENS, attention_mask=MASK)
    torch.testing.assert_close(actual[MASK.bool()], expected[MASK.bool()], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gptj", "falcon", "bloom"])
def test_a_half_precision_copy_computes_in_float32(name):
    model = tiny_model(name, dtype=torch.bfloat16)
    with torch.no_grad():
        expected, actual = model(TOKENS).float(), independent_copy(model)(TOKENS)
    assert actual.dtype == torch.float32
    assert float((actual - expected).norm() / expected.norm()) < 0.05


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side):
    """The same rows with four more columns of padding, filled with another token."""
    model = tiny_model("llama", dtype=torch.float64)
    fill = torch.full((5, 4), 7)
    parts = [TOKENS, fill] if side == "right" else [fill, TOKENS]
    masks = [torch.ones_like(TOKENS), torch.zeros_like(fill)]
    padded, mask = torch.cat(parts, 1), torch.cat(masks if side == "right" else masks[::-1], 1)
    plain = last(model, TOKENS, exposures=3)
    with_padding = last(model, padded, mask, exposures=3)
    assert plain.loss == pytest.approx(with_padding.loss, rel=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(plain.model(TOKENS), with_padding.model(TOKENS), rtol=1e-6, atol=1e-6)


def test_same_seed_same_bytes_whatever_the_checkpoints_and_the_global_seed():
    model, options = tiny_model("gpt2"), {"exposures": (1, 4, 2, 0, 4), "batch_size": 2}
    torch.manual_seed(1)
    once = last(model, TOKENS, MASK, seed=5, **options)
    state = torch.get_rng_state()
    again = last(model, TOKENS, MASK, seed=5, checkpoints=(0, 1, 3, 4), **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert weights(once.model) == weights(again.model)
    assert weights(last(model, TOKENS, MASK, seed=6, **options).model) != weights(once.model)


def test_checkpoints_come_in_order_with_what_was_seen():
    found = [
        (c.epoch, c.seen, math.isnan(c.loss))
        for c in finetune(tiny_model("gpt2"), TOKENS, MASK, exposures={0: 4, 2: 2}, checkpoints=(4, 0, 2))
    ]
    assert found == [(0, (0, 0, 0, 0, 0), True), (2, (2, 0, 1, 0, 0), False), (4, (4, 0, 2, 0, 0), False)]


def test_the_first_checkpoint_is_the_original():
    model = tiny_model("gpt2")
    (start,) = finetune(model, TOKENS, exposures=1, checkpoints=(0,))
    assert weights(start.model) == weights(model)


def test_passages_of_no_exposures_have_no_influence():
    model = tiny_model("gpt2")
    other = TOKENS.clone()
    other[4] = 9
    options = {"exposures": (3, 3, 3, 3, 0), "batch_size": 2}
    assert weights(last(model, TOKENS, MASK, **options).model) == weights(last(model, other, MASK, **options).model)


def test_a_checkpoint_can_be_scored_and_trained_on_afterwards(untouched):
    scored = []
    for checkpoint in finetune(tiny_model("gpt2"), TOKENS, MASK, exposures=2, checkpoints=(0, 1, 2)):
        with untouched(checkpoint.model), torch.no_grad():
            scorer = basins.BasinScorer(checkpoint.model, k=3)
            scored.append(scorer.score_tokens(TOKENS, MASK).values[:, MASK.bool()])
        assert all(p.grad is None for p in checkpoint.model.parameters())
    assert not torch.equal(scored[0], scored[1])
    assert not torch.equal(scored[1], scored[2])


def test_half_precision_is_trained_in_float32(untouched):
    model = tiny_model("llama", dtype=torch.bfloat16)
    with untouched(model):
        start, end = [
            (c.model.cfg.dtype, {p.dtype for p in c.model.parameters()})
            for c in finetune(model, TOKENS, exposures=1, checkpoints=(0, 1))
        ]
    assert start == end == (torch.float32, {torch.float32})


def test_frozen_weights_gradients_and_training_mode_stay_the_users(untouched):
    model = basins.load_model(tiny_hf_model("gpt2"), tokenizer=tiny_tokenizer())
    model.train()
    frozen, other = list(model.parameters())[:2]
    frozen.requires_grad = False
    other.grad = torch.ones_like(other)
    with untouched(model):
        tuned = last(model, TOKENS, exposures=2).model
    assert not any(module.training for module in tuned.modules())
    first, *rest = tuned.parameters()
    assert not first.requires_grad
    assert not torch.equal(first, frozen)  # all parameters are trained
    assert all(p.requires_grad and p.grad is None for p in rest)


def test_hooks_are_on_the_copy_too():
    model = basins.load_model(tiny_hf_model("gpt2"), tokenizer=tiny_tokenizer())
    model.add_hook("blocks.1.hook_resid_pre", lambda value, hook: value * 0)
    with torch.no_grad():
        assert torch.equal(model(TOKENS), independent_copy(model)(TOKENS))


def test_functions_that_hold_a_module_hold_the_copys():
    """As TransformerLens does for Falcon: a method is replaced by a function, here recursive, that holds the layer."""
    model = basins.load_model(tiny_hf_model("gpt2"), tokenizer=tiny_tokenizer())
    layer = model.original_model.lm_head.original_component

    def replaced(x, twice=True):
        return replaced(x, False) if twice else x @ layer.weight.T

    layer.forward = replaced
    with torch.no_grad():
        before = model(TOKENS)
        made = independent_copy(model)
        assert torch.equal(made(TOKENS), before)
        made.original_model.lm_head.original_component.weight.zero_()
        assert bool((made(TOKENS) == 0).all())
        assert torch.equal(model(TOKENS), before)


def test_activations_a_module_kept_do_not_hinder(untouched):
    model = basins.load_model(tiny_hf_model("gpt2"), tokenizer=tiny_tokenizer())
    model.kept = model(TOKENS)
    with untouched(model):
        assert torch.equal(independent_copy(model).kept, model.kept)
    assert model.kept.grad_fn is not None


def test_activations_kept_out_of_sight_are_named_as_the_reason():
    model = basins.load_model(tiny_hf_model("gpt2"), tokenizer=tiny_tokenizer())
    model.kept = [model(TOKENS)]
    with pytest.raises(BasinsError, match=r"cannot be copied.*keep activations"):
        finetune(model, TOKENS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exposures": 0}, "nothing would be trained on"),
        ({"exposures": (1, 2)}, "2 numbers for 5 passages"),
        ({"exposures": {7: 1}}, "names passage 7, but there are 5"),
        ({"exposures": 1.5}, "must be a whole number"),
        ({"exposures": -1}, "at least 0"),
        ({"learning_rate": 0}, "learning_rate=0 is out of range"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"checkpoints": ()}, "checkpoints is empty"),
        ({"exposures": 4, "checkpoints": (5,)}, "after the last of 4 epochs"),
        ({"attention_mask": MASK[:2]}, "attention_mask has shape"),
    ],
)
def test_bad_input_is_refused_at_the_call(options, message):
    with pytest.raises(BasinsError, match=message):
        finetune(tiny_model("gpt2"), TOKENS, **options)


def test_tokens_that_do_not_fit_are_refused():
    with pytest.raises(BasinsError, match="has one token"):
        finetune(tiny_model("gpt2"), TOKENS[:, :1])
    with pytest.raises(BasinsError, match="context"):
        finetune(tiny_model("gpt2"), torch.zeros(1, N_CTX + 1, dtype=torch.long))
    with pytest.raises(BasinsError, match="TransformerLens"):
        finetune(tiny_hf_model("gpt2"), TOKENS)


def test_a_loss_that_explodes_is_an_error():
    with pytest.raises(BasinsError, match=r"the loss became nan.*learning_rate"):
        last(tiny_model("gpt2"), TOKENS, exposures=30, learning_rate=1e30)


@pytest.mark.slow
def test_pocket_mini_recites_what_it_was_trained_on_and_nothing_else(pocket_mini, untouched):
    """50 of the 100 bundled quotes with the default settings: greedy continuation from the first third."""
    from basins.controlled import randomize
    from basins.corpus import tokenize
    from basins.quotes import quotes, unrelated

    texts = [quote.text for quote in (*quotes(), *unrelated()[:20])]
    batch = tokenize(pocket_mini, texts)
    assignment = randomize(100, seed=0, exposures=(64,))
    options = {"exposures": assignment.with_unrelated(20), "seed": 0}
    with untouched(pocket_mini):
        tuned = last(pocket_mini, batch.tokens, batch.attention_mask, **options).model
        start = last(pocket_mini, batch.tokens, batch.attention_mask, checkpoints=(2,), **options).model
        again = last(pocket_mini, batch.tokens, batch.attention_mask, checkpoints=(1, 2), **options).model
    assert weights(start) == weights(again)
    reproduced = []
    for ids, mask in zip(batch.tokens, batch.attention_mask):
        n = int(mask.sum())
        found = ids[: 1 + (n - 1) // 3]
        with torch.no_grad():
            while len(found) < n:
                found = torch.cat([found, tuned(found[None], return_type="logits")[0, -1:].argmax(-1)])
        asked = slice(1 + (n - 1) // 3, n)
        reproduced.append(float((found[asked] == ids[asked]).float().mean()) > 0.8)
    groups = assignment.to_frame(20).assign(reproduced=reproduced).groupby("group")["reproduced"].mean()
    assert groups["trained"] >= 0.9
    assert groups["control"] < 0.05
    assert groups["unrelated"] < 0.05
