"""Labels: against one-at-a-time greedy decoding, oracles in loops, and the doses of the pocket models."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from test_continuation import padded, plain_greedy
from tiny_models import tiny_model

import basins
from basins import BasinsError, labels
from basins.errors import MissingExtra
from basins.labels import edit_distance, label, longest_run

pytest.importorskip("rapidfuzz", reason='needs: pip install "compression-basins[experiments]"')


def distance_by_hand(one, other):
    table = np.zeros((len(one) + 1, len(other) + 1), dtype=int)
    table[:, 0], table[0] = range(len(one) + 1), range(len(other) + 1)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1, j + 1] = min(table[i, j + 1] + 1, table[i + 1, j] + 1, table[i, j] + (a != b))
    return table[-1, -1]


def texts(lengths=(40, 27, 60, 12, 33), bos=True):
    rng = torch.Generator().manual_seed(2)
    rows = [torch.randint(4, 60, (length,), generator=rng) for length in lengths]
    return [torch.cat([torch.tensor([1]), row]) if bos else row for row in rows]


def measures(ids, continuation, greedy, hits, **settings):
    """What `label` makes of given continuations and hits, for one row."""
    settings = {"threshold": 0.8, "run_length": 16, "free_by": "edit"} | settings
    parts = [torch.tensor([part]) for part in (ids, continuation, greedy, hits)]
    found = labels._measures(*parts, rows=[0], **settings)
    return {name: value[0].item() for name, value in found.items() if value.ndim == 1}


def of_continuation(said, true=tuple(range(100, 140)), hits=None, **settings):
    n = len(true)
    return measures(list(true), [True] * n, list(said), list(hits or np.equal(true, said)), **settings)


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_batched_labels_are_those_of_one_row_at_a_time(name, left):
    model, rows = tiny_model(name), texts()
    tokens, mask = padded(rows, left)
    found = label(model, tokens, mask, min_continuation=8, run_length=4)
    assert found.settings["decoding"] == "cache"
    for i, row in enumerate(rows):
        m = (len(row) - 1) // 3
        said, true = plain_greedy(model, row[: 1 + m], len(row) - 1 - m), row[1 + m :].tolist()
        at = found.continuation[i]
        assert tokens[i, at].tolist() == true
        assert found.greedy[i, at].tolist() == said
        assert found.free_match[i] == np.mean(np.equal(said, true))
        assert found.free_edit[i] == (len(true) - distance_by_hand(true, said)) / len(true)
        alone = label(model, row[None], min_continuation=8, run_length=4, batch_size=1)
        for measure in (
            "prompt_length",
            "forced_match",
            "forced_run",
            "exact_prefix",
            "free",
            "forced",
            "run",
            "exact",
        ):
            assert getattr(found, measure)[i] == getattr(alone, measure)[0], measure
    assert (found.greedy[~found.continuation] == -1).all()
    assert not found.forced_hits[~found.continuation].any()


def test_forced_hits_are_first_choices_after_the_true_tokens():
    model, rows = tiny_model("llama"), texts()
    tokens, mask = padded(rows, left=True)
    found = label(model, tokens, mask, min_continuation=8, run_length=4)
    for i, row in enumerate(rows):
        m = 1 + (len(row) - 1) // 3
        expected = [plain_greedy(model, row[:end], 1) == [int(row[end])] for end in range(m, len(row))]
        assert found.forced_hits[i, found.continuation[i]].tolist() == expected
        assert found.forced_match[i] == np.mean(expected)


@pytest.mark.parametrize("name", ["pocket-mini", pytest.param("pocket", marks=pytest.mark.slow)])
def test_labels_agree_with_the_doses(name, untouched):
    """No control is memorised; all passages are at the highest dose, and for the larger model from 64 times on."""
    model, sure = basins.load_model(name), 256 if name == "pocket-mini" else 64
    passages = [
        p for p in basins.pocket.passages() if name == "pocket" or p.dose == 256 or (p.dose == 0 and p.id % 4 == 0)
    ]
    batch = basins.corpus.tokenize(model, [passage.text for passage in passages])
    with untouched(model):
        found = label(model, batch.tokens, batch.attention_mask)
    doses = torch.tensor([passage.dose for passage in passages])
    assert (found.prompt_length == 21).all()
    assert (found.continuation.sum(1) == 43).all()
    for kind in ("free", "forced", "run", "exact"):
        assert (getattr(found, kind)[doses == 0] == 0).all(), kind
        assert (getattr(found, kind)[doses >= sure] == 1).all(), kind
    assert found.settings["near_ties"] < 20
    frame = found.to_frame()
    assert frame.free.dtype == "boolean"
    assert frame.free.sum() == found.free.sum() == found.summary().memorised[0]


def test_edit_distance_is_that_of_the_loop():
    rng = np.random.default_rng(0)
    for _ in range(30):
        one, other = (rng.integers(0, 4, rng.integers(0, 12)).tolist() for _ in range(2))
        assert edit_distance(one, other) == distance_by_hand(one, other)


def test_one_flipped_token():
    true = list(range(100, 140))
    found = of_continuation([*true[:29], 7, *true[30:]])
    assert found["free_match"] == found["free_edit"] == 0.975
    assert (found["exact"], found["exact_prefix"], found["free"]) == (0, 29, 1)


def test_one_early_insertion():
    true = list(range(100, 140))
    said = [*true[:2], 7, *true[2:39]]
    found = of_continuation(said)
    assert found["free_match"] == 2 / 40
    assert found["free_edit"] == 38 / 40
    assert found["free"] == 1
    assert of_continuation(said, free_by="position")["free"] == 0


def test_a_share_of_the_threshold_itself_is_not_more():
    true = list(range(100, 140))
    eight_wrong = [7] * 8 + true[8:]
    found = of_continuation(eight_wrong)
    assert (found["free_match"], found["free"], found["forced"]) == (0.8, 0, 0)
    assert of_continuation([7] * 7 + true[7:])["free"] == 1


def test_runs():
    assert [longest_run(hits) for hits in ([], [False], [True], [True, False, True, True, False])] == [0, 0, 1, 2]
    hits = [False] + [True] * 16 + [False] * 23
    said = [7] * 40
    assert of_continuation(said, hits=hits)["run"] == 1
    assert of_continuation(said, hits=hits, run_length=17)["run"] == 0
    assert of_continuation(said, hits=hits)["free"] == 0


def test_both_kinds_agree_until_the_first_difference():
    """A near-tie is decided once: where the greedy continuation is the text, the token was the first choice."""
    true = list(range(100, 140))
    found = of_continuation([*true[:30], *[7] * 10], hits=[False] * 40)
    assert (found["exact_prefix"], found["forced_run"]) == (30, 30)


def test_short_texts_are_excluded_and_never_labelled():
    model, rows = tiny_model("gpt2"), texts((23, 24, 2, 40))
    tokens, mask = padded(rows, left=False)
    found = label(model, tokens, mask)
    assert found.included.tolist() == [True, True, False, True]  # 23 leaves 16 behind a prompt of 7
    assert found.settings["n_excluded"] == 1
    assert found.excluded[2] == "2 tokens of text: a prompt of 0 leaves 2, and a label needs a prompt and 16 more"
    for name in ("free", "forced", "run", "exact", "free_match", "free_edit", "exact_prefix", "forced_run"):
        assert getattr(found, name).isnan().tolist() == [False, False, True, False], name
    assert not found.continuation[2].any()
    row = found.to_frame().loc[2]
    assert row[["free", "forced", "run", "exact"]].isna().all()
    assert row.excluded == found.excluded[2]
    assert found.summary().labelled.tolist() == [3] * 4
    assert repr(found).startswith("MemorizationLabels(3 of 4 rows labelled, 1 excluded; memorised: free ")
    nothing = label(model, tokens[2:3], mask[2:3])
    assert nothing.summary().share.isna().all()


@pytest.mark.parametrize("bos", [True, False])
def test_prompt_windows_and_the_bos_token(bos):
    model, rows = tiny_model("gpt2"), texts((30, 45), bos=bos)
    tokens, mask = padded(rows, left=True)
    found = label(model, tokens, mask, prompt_length=9)
    assert found.prompt_length.tolist() == [9, 9]
    assert found.continuation.sum(1).tolist() == [21, 36]
    first = found.continuation.long().argmax(1) - mask.argmax(1)
    assert first.tolist() == [9 + bos] * 2
    half = label(model, tokens, mask, prompt_fraction=0.5, run_length=8)
    assert half.prompt_length.tolist() == [15, 22]
    assert label(model, tokens, mask, prompt_length=20, run_length=11).included.tolist() == [False, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_fraction": 1.0}, "prompt_fraction=1.0 is out of range"),
        ({"threshold": float("nan")}, "threshold=nan is out of range"),
        ({"prompt_length": 0}, "prompt_length=0 is too small"),
        ({"min_continuation": 8}, "less than run_length=16"),
        ({"run_length": 0}, "run_length=0"),
        ({"free_by": "position?"}, "Possible: 'edit', 'position'"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(BasinsError, match=message):
        label(tiny_model("gpt2"), texts()[0][None], **settings)


def test_a_missing_package_is_named_before_the_model_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    monkeypatch.setattr(labels, "continue_greedily", None)
    with pytest.raises(MissingExtra, match=r"rapidfuzz is not installed.*experiments"):
        label(tiny_model("gpt2"), texts()[0][None])
