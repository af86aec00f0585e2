"""Budgets bound sizes and change no result; memory that runs out is met by one halving and one retry."""

from __future__ import annotations

import importlib

import pytest
import torch
from tiny_models import D_VOCAB, tiny_model

import basins
from basins import memory, transition
from basins.activations import embed_all_layers
from basins.errors import BasinsError
from basins.memory import Budget, default_budget, fitted, in_words, is_out_of_memory, within
from basins.scorer import BasinScorer

TOKENS = torch.arange(72).reshape(6, 12).mul(7).remainder(D_VOCAB - 4) + 4
CPU = torch.device("cpu")
ERRORS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes."),
    MemoryError(),
]


def equal(found, expected):
    for name in ("values", "relative", "update", "neighbor_ids", "neighbor_distances", "n_distinct"):
        got, wanted = getattr(found, name), getattr(expected, name)
        assert torch.equal(got.nan_to_num(-1) if got.is_floating_point() else got, wanted.nan_to_num(-1)), name


def close(found, expected):
    assert torch.equal(found.neighbor_ids, expected.neighbor_ids)
    for name in ("values", "relative", "update"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4, equal_nan=True)


class Failing:
    """Raises the error at its first `times` calls, from call number `at` on."""

    def __init__(self, function, error, times, at=0):
        self.function, self.error, self.calls = function, error, 0
        self.failing = range(at, at + times)

    def __call__(self, *arguments, **options):
        self.calls += 1
        if self.calls - 1 in self.failing:
            raise self.error
        return self.function(*arguments, **options)


def test_tuned_sizes_without_and_within_a_budget():
    assert fitted(1000, 4) == 1000
    with within(Budget(10**9)):
        assert fitted(1000, 4) == 1000
    with within(Budget(8000)):
        assert fitted(1000, 4) == 250  # an eighth of the budget
        assert fitted(1000, 4, share=0.5) == 1000
        with within(Budget(8)):
            assert fitted(1000, 4) == 1
        assert fitted(1000, 4) == 250
    assert fitted(1000, 4) == 1000


def test_a_halving_halves_tuned_sizes_too():
    budget = Budget(10**9).halved()
    assert budget == Budget(5 * 10**8, 1)
    with within(budget):
        assert fitted(1000, 4) == 500
    with within(Budget(8000).halved()):
        assert fitted(1000, 4) == 125


def test_the_default_is_half_of_what_is_free_and_at_most_four_gib(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 2**30)
    assert default_budget(CPU) == 2**29
    monkeypatch.setattr(memory, "available_memory", lambda: 2**40)
    assert default_budget(CPU) == 4 * 2**30


def test_available_memory_is_that_of_the_system():
    psutil = pytest.importorskip("psutil")
    assert memory.available_memory() == pytest.approx(psutil.virtual_memory().available, rel=0.2)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:12])
def test_what_means_that_memory_ran_out(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ValueError("out of memory"), KeyError("x")])
def test_what_does_not(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("n_bytes", "words"), [(3, "3 bytes"), (1536, "1.50 KiB"), (3 * 2**20, "3.00 MiB"), (2**31, "2.00 GiB")]
)
def test_bytes_in_words(n_bytes, words):
    assert in_words(n_bytes) == words


@pytest.mark.parametrize("method", ["rerun", "lookup"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "gpt_neox"])
def test_scores_do_not_depend_on_the_budget(name, method, tiny):
    model = tiny(name)
    expected = BasinScorer(model, k=3, method=method).score_tokens(TOKENS)
    with pytest.raises(BasinsError) as refused:
        BasinScorer(model, k=3, method=method, memory_budget=10).score_tokens(TOKENS)
    least = int(str(refused.value).partition("Pass at least ")[2].split()[0])
    for budget in (least, 4 * least):
        close(BasinScorer(model, k=3, method=method, memory_budget=budget).score_tokens(TOKENS), expected)


def test_a_budget_makes_pieces_smaller(tiny, monkeypatch):
    sizes = []
    monkeypatch.setattr(transition, "fitted", lambda *of: sizes.append(fitted(*of)) or sizes[-1])
    BasinScorer(tiny("gpt2"), k=3, memory_budget=2**19).score_tokens(TOKENS)
    assert sizes
    assert max(sizes) == 2**19 // 8 // transition.PATCH_BYTES


def test_too_small_a_budget_says_what_is_needed(tiny):
    with pytest.raises(
        BasinsError, match=r"memory_budget=10 bytes .* too small: the temporaries of 72 tokens .*at least"
    ):
        BasinScorer(tiny("gpt2"), k=3, memory_budget=10).score_tokens(TOKENS)
    with pytest.raises(BasinsError, match="counts bytes"):
        BasinScorer(tiny("gpt2"), k=3, memory_budget=0)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:12])
@pytest.mark.parametrize("where", ["find_neighbors", "rerun_variances", "count_distinct", "project_ahead"])
def test_one_failure_is_retried_with_equal_results(where, error, tiny, monkeypatch, untouched):
    model = tiny("gpt2")
    # One sequence at a time either way: other batches round differently.
    expected = BasinScorer(model, k=3, batch_size=1).score_tokens(TOKENS)
    assert expected.settings["memory_halved_at"] == []
    failing = Failing(getattr(transition, where), error, times=1, at=1)
    monkeypatch.setattr(transition, where, failing)
    with untouched(model):
        found = BasinScorer(model, k=3, batch_size=1).score_tokens(TOKENS)
    assert failing.calls == model.cfg.n_layers + 1
    assert found.settings["memory_halved_at"] == [1]
    equal(found, expected)


def test_a_failure_halfway_through_a_layer_leaves_nothing_behind(tiny, monkeypatch):
    """The second chunk's re-run fails when the first has written its part of the next layer already."""
    model = tiny("gpt2")
    expected = BasinScorer(model, k=3).score_tokens(TOKENS)
    push = Failing(transition.neighbor_variances, MemoryError(), times=1, at=3)
    monkeypatch.setattr(transition, "neighbor_variances", push)
    found = BasinScorer(model, k=3, batch_size=2).score_tokens(TOKENS)
    assert found.settings["memory_halved_at"] == [0]
    close(found, expected)


def test_a_failure_between_scored_layers_is_retried(tiny, monkeypatch):
    from basins import sources

    model = tiny("gpt2")
    expected = BasinScorer(model, k=3, batch_size=2).score_tokens(TOKENS, layers=[0, 2])
    monkeypatch.setattr(sources, "run_context", Failing(sources.run_context, MemoryError(), times=1, at=1))
    found = BasinScorer(model, k=3, batch_size=2).score_tokens(TOKENS, layers=[0, 2])
    assert found.settings["memory_halved_at"] == [2]
    close(found, expected)


def test_a_cache_is_retried_too(tiny, monkeypatch):
    model = tiny("gpt2")
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
    expected = BasinScorer(model, k=3, batch_size=1).score(cache)
    monkeypatch.setattr(transition, "find_neighbors", Failing(transition.find_neighbors, MemoryError(), times=1))
    found = BasinScorer(model, k=3, batch_size=1).score(cache)
    assert found.settings["memory_halved_at"] == [0]
    equal(found, expected)


def test_a_retry_takes_half_as_many_sequences_at_once(tiny, monkeypatch):
    batches = []
    replay = transition.Replay

    def seen(model, path, call, states, *rest):
        batches.append(len(states))
        return replay(model, path, call, states, *rest)

    monkeypatch.setattr(transition, "Replay", seen)
    monkeypatch.setattr(transition, "project_ahead", Failing(transition.project_ahead, MemoryError(), times=1))
    BasinScorer(tiny("gpt2"), k=3, batch_size=6).score_tokens(TOKENS, layers=[0])
    assert batches == [3, 3]


def test_a_second_failure_says_what_was_asked_for_and_what_helps(tiny, monkeypatch, untouched):
    model = tiny("gpt2")
    error = RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 12345 bytes.")
    monkeypatch.setattr(transition, "count_distinct", Failing(transition.count_distinct, error, times=2, at=1))
    with untouched(model), pytest.raises(BasinsError) as refused:
        BasinScorer(model, k=3).score_tokens(TOKENS)
    message = str(refused.value)
    assert message.startswith("memory ran out at layer 1, and again with half the budget")
    assert "12345 bytes" in message
    assert "fewer texts" in message
    assert "basins plan" in message


def test_other_errors_are_not_retried(monkeypatch):
    model = tiny_model("gpt2")
    failing = Failing(transition.find_neighbors, RuntimeError("size mismatch"), times=1)
    monkeypatch.setattr(transition, "find_neighbors", failing)
    with pytest.raises(RuntimeError, match="size mismatch"):
        BasinScorer(model, k=3).score_tokens(TOKENS)
    assert failing.calls == 1


def test_the_budget_ends_with_the_call(tiny):
    BasinScorer(tiny("gpt2"), k=3, memory_budget=2**19).score_tokens(TOKENS)
    assert fitted(1000, 10**9) == 1000


@pytest.mark.parametrize("place", ["shared_calls.record_calls", "selfcheck.restart_layers"])
@pytest.mark.parametrize("way", ["tokens", "cache"])
def test_memory_that_runs_out_before_the_first_layer_is_met_too(place, way, monkeypatch):
    model = tiny_model("gpt2")
    _, cache = model.run_with_cache(TOKENS)

    def scored():
        scorer = BasinScorer(model, k=3)
        return scorer.score_tokens(TOKENS) if way == "tokens" else scorer.score(cache, TOKENS)

    expected = scored()
    module, name = place.split(".")
    original = getattr(importlib.import_module(f"basins.{module}"), name)
    monkeypatch.setattr(f"basins.{place}", Failing(original, ERRORS[0], 1))
    found = scored()
    assert found.settings["memory_halved_at"] == [0]
    close(found, expected)
    monkeypatch.setattr(f"basins.{place}", Failing(original, ERRORS[1], 99))
    with pytest.raises(BasinsError, match="memory ran out at layer 0, and again"):
        scored()


def test_memory_that_runs_out_while_a_bank_is_embedded_is_met_too(pocket_mini, monkeypatch):
    texts = basins.pocket.demo_text()[:4]

    def scored():
        scorer = BasinScorer(pocket_mini, k=3).fit(texts, long_texts="truncate")
        return scorer.score_texts(texts, long_texts="truncate")

    expected = scored()
    monkeypatch.setattr("basins.scorer.embed_all_layers", Failing(embed_all_layers, ERRORS[0], 1))
    close(scored(), expected)


@pytest.mark.parametrize("given", ["2GiB", -1, True, 1.5])
def test_a_calls_own_budget_is_checked(given):
    with pytest.raises(BasinsError, match="memory_budget"):
        BasinScorer(tiny_model("gpt2"), k=3).score_tokens(TOKENS, memory_budget=given)
