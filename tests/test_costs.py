"""Costs against what real runs do: operations that PyTorch counts, bytes of real results, sizes of real pieces."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_models import D_VOCAB
from torch.utils.flop_counter import FlopCounterMode

from basins import costs, transition
from basins.costs import Job
from basins.memory import Budget
from basins.moments import moments
from basins.operations import operations
from basins.scorer import BasinScorer
from basins.settings import ScorerSettings
from basins.shapes import shape_of

CPU = torch.device("cpu")


def tokens_of(n_sequences, length):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(4, D_VOCAB, (n_sequences, length), generator=generator)


def job_of(model, n_sequences, length, **options):
    own = {name: options.pop(name) for name in ("budget", "device", "n_scored", "first", "last") if name in options}
    device = own.pop("device", CPU)
    return Job(shape_of(model), n_sequences, length, ScorerSettings(**options), device, own.pop("budget", None), **own)


@pytest.mark.parametrize("method", ["rerun", "lookup"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "qwen3"])
def test_operations_are_those_that_torch_counts(name, method, tiny):
    model, options = tiny(name), {"k": 4, "method": method, "index": "exact"}
    with FlopCounterMode(display=False) as counter:
        BasinScorer(model, **options).score_tokens(tokens_of(8, 24))
    predicted = sum(operations(job_of(model, 8, 24, **options)).values())
    # The counter sees a few small products more: rotary tables, and candidates that are searched again.
    assert predicted == pytest.approx(counter.get_total_flops(), rel=0.05)


@pytest.mark.parametrize("layers", [[0], [1], [1, 2], [0, 2]])
def test_operations_of_some_layers_are_those_that_torch_counts(layers, tiny):
    model, options = tiny("llama"), {"k": 4, "index": "exact"}
    with FlopCounterMode(display=False) as counter:
        BasinScorer(model, **options).score_tokens(tokens_of(8, 24), layers=layers)
    job = job_of(model, 8, 24, first=layers[0], last=layers[-1], n_scored=len(layers), **options)
    assert sum(operations(job).values()) == pytest.approx(counter.get_total_flops(), rel=0.06)


@pytest.mark.parametrize("stage", ["search", "patched"])
def test_operations_grow_as_they_must(stage, tiny):
    model = tiny("gpt2")
    one, two = (operations(job_of(model, n, 32, k=4)) for n in (8, 16))
    name = {"search": "nearest neighbours", "patched": "neighbours through the block"}[stage]
    assert two[name] / one[name] == pytest.approx({"search": 4, "patched": 2}[stage], rel=0.02)


@pytest.mark.parametrize("method", ["rerun", "lookup"])
def test_results_take_what_they_are_said_to(method, tiny):
    model = tiny("gpt2")
    kept = []

    def seen(measured, *rest):
        for one in measured.values():
            tensors = [one.neighbors.ids, one.neighbors.distances, one.n_distinct, *one.variances.values()]
            tensors += [] if one.same_token_share is None else [one.same_token_share]
            tensors += list((one.lookup or {}).values())
            kept.extend(t.numel() * t.element_size() for t in tensors)
        return assemble(measured, *rest)

    from basins import scorer

    assemble = scorer.assemble
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer, "assemble", seen)
        BasinScorer(model, k=4, method=method).score_tokens(tokens_of(8, 24))
    assert sum(costs.results(job_of(model, 8, 24, k=4, method=method)).values()) == sum(kept)


def test_what_is_projected_ahead_is_as_large_as_said(tiny, monkeypatch):
    for name in ("gpt2", "llama", "gpt_neox"):
        model, found = tiny(name), []
        project = transition.project_ahead

        def seen(*arguments, project=project, found=found):
            found.append(project(*arguments))
            return found[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transition, "project_ahead", seen)
            BasinScorer(model, k=4).score_tokens(tokens_of(8, 24))
        parts = [part for part in vars(found[0]).values() if part is not None]
        job = job_of(model, 8, 24, k=4)
        assert job.projects_ahead
        assert costs.ahead(job)["projected, joined"] == sum(part.numel() * part.element_size() for part in parts), name


@pytest.mark.parametrize("budget", [None, 2**21, 2**19])
def test_sizes_of_pieces_are_those_of_a_run(budget, tiny, monkeypatch):
    model = tiny("gpt2")
    groups, contexts = [], []
    replay = transition.Replay

    class Seen(replay):
        def outputs(self, patches, *rest):
            groups.append(patches.shape[0] * patches.shape[1])
            contexts.append(len(self.states))
            return super().outputs(patches, *rest)

    monkeypatch.setattr(transition, "Replay", Seen)
    BasinScorer(model, k=4, memory_budget=budget).score_tokens(tokens_of(8, 24))
    job = job_of(model, 8, 24, k=4, budget=Budget(budget or 2**32))
    assert max(groups) == job.patched_at_once
    assert max(contexts) == job.sequences_at_once


def test_a_smaller_budget_never_takes_more(tiny):
    job = job_of(tiny("gpt2"), 64, 64, k=15)
    peaks = []
    for n_bytes in (2**32, 2**26, 2**22, 2**18):
        found = moments(dataclasses.replace(job, budget=Budget(n_bytes)))
        peaks.append(max(moment.temporary for moment in found))
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < peaks[0]


def test_states_beyond_their_budget_are_on_disk(tiny):
    job = job_of(tiny("gpt2"), 64, 64)
    assert costs.disk_bytes(job) == 0
    small = dataclasses.replace(job, states_budget=1)
    assert costs.disk_bytes(small) == 2 * 64 * 64 * 32 * 4
    assert max(m.device_bytes for m in moments(small)) < max(m.device_bytes for m in moments(job))


def test_on_a_gpu_results_stay_there_and_states_do_not(tiny):
    job = job_of(tiny("gpt2"), 64, 64, device=torch.device("cuda"))
    at_search = next(moment for moment in moments(job) if moment.stage.startswith("search"))
    assert at_search.device["copies of layer L"] == 2 * job.states_bytes
    assert at_search.host == {"layer L": job.states_bytes}
    assert at_search.device["neighbours"] > 0


def test_half_search_has_keys_instead_of_scores(tiny):
    job = dataclasses.replace(job_of(tiny("gpt2"), 64, 128, device=torch.device("cuda")), half=True)
    names = {name for _, tensors in costs.search(job) for name in tensors}
    assert "keys" in names
    assert "scores" not in names


def test_packed_replay_costs_more_than_the_core(tiny):
    job = job_of(tiny("gpt2"), 8, 24, k=4)
    unknown = dataclasses.replace(job, shape=dataclasses.replace(job.shape, block="NewBlock"))
    assert job.core
    assert not unknown.core
    stage = "neighbours through the block"
    assert operations(unknown)[stage] > operations(job)[stage]


@pytest.mark.parametrize("scored", [1, 2])
def test_layers_between_are_passed_through(scored, tiny):
    model = tiny("gpt2")
    job = job_of(model, 8, 24, k=4, n_scored=scored, first=0, last=scored - 1)
    assert operations(job)["nearest neighbours"] == scored * 2 * 192**2 * 33
    assert operations(job)["next layers"] == pytest.approx(scored / 3 * operations(job_of(model, 8, 24))["next layers"])
