"""Variances and scores against the loop, and `BasinScores`: frame, summary, text, saving and loading."""

from __future__ import annotations

import errno
import json
import math
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import reference
import safetensors.torch
import torch

from basins import BasinScorer, BasinScores, BasinsError
from basins.scores import floor_value, raw_score, relative_score, update_score, variance

TENSORS = [
    field.name for field in fields(BasinScores) if field.name not in ("layers", "token_strings", "settings", "lookup")
]
MASK = torch.tensor([[1] * 12, [1] * 9 + [0] * 3])


@pytest.fixture(scope="module")
def scores(pocket_mini):
    """Two sequences, the second padded; the first position left out, so that there are NaN of both kinds."""
    tokens = pocket_mini.to_tokens(
        ["Call me Ishmael. Some years ago, never mind how long", "It is not down in any map; true"]
    )
    return BasinScorer(pocket_mini, k=4, exclude_first=1).score_tokens(tokens[:, :12], MASK, layers=[0, 2, 3])


def assert_equal(left: BasinScores, right: BasinScores) -> None:
    for name in TENSORS:
        a, b = getattr(left, name), getattr(right, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype, name
            assert a.numpy().tobytes() == b.numpy().tobytes(), name
    assert left.layers == right.layers
    assert left.token_strings == right.token_strings
    assert left.settings == right.settings
    assert (left.lookup is None) == (right.lookup is None)
    if left.lookup is not None:
        assert_equal(left.lookup, right.lookup)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 22_000.0])
def test_variance_is_the_loop(offset, dtype):
    states = torch.randn(5, 15, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states = (states + offset).to(dtype)
    expected = torch.tensor([reference.variance(row.numpy()) for row in states], dtype=torch.float64)
    torch.testing.assert_close(variance(states).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("k", [2, 3, 7, 15])
@pytest.mark.parametrize("value", [0.1, 1e-3, 22_000.7, 1e30])
def test_variance_of_equal_states_is_exactly_zero(value, k):
    """A mean of k equal numbers is not always that number: 15 times 0.1 over 15 is off by a rounding."""
    assert bool((variance(torch.full((k, 4), value)) == 0).all())


def test_scores_of_variances():
    eps = 1e-10
    var_in, var_out = torch.tensor([0.0, 0.0, 1.0, 4.0]), torch.tensor([0.0, 2.0, 0.0, 1.0])
    floor = floor_value(eps)
    assert floor == pytest.approx(23.0259, abs=1e-4)
    assert raw_score(var_out, eps).tolist() == pytest.approx([floor, -math.log(2), floor, 0], abs=1e-5)
    assert update_score(var_out, eps).tolist() == raw_score(var_out, eps).tolist()
    relative = relative_score(var_in, var_out, eps)
    assert relative[:2].isnan().all()
    assert relative[2:].tolist() == pytest.approx([floor, math.log(4)], abs=1e-5)


def test_scores_are_functions_of_the_variances(scores):
    for part in (scores, scores.lookup):
        assert part.raw is part.values
        scored = part.values.isfinite()
        np.testing.assert_allclose(part.values[scored], -np.log(part.var_out[scored]), rtol=1e-5)
        np.testing.assert_allclose(
            part.relative[scored], (part.var_in / part.var_out).log()[scored], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(part.update[scored], -np.log(part.var_update[scored]), rtol=1e-5)
        np.testing.assert_allclose(part.density[scored], -np.log(part.var_in[scored]), rtol=1e-5)


def test_what_is_not_scored_is_nan_everywhere(scores):
    scored = MASK.bool()
    scored[:, 0] = False
    for part in (scores, scores.lookup):
        for name in ("values", "relative", "update", "var_in", "var_out", "var_update"):
            assert torch.equal(getattr(part, name).isfinite(), scored.expand(3, -1, -1)), name
    assert torch.equal(scores.neighbor_ids[..., 0] >= 0, scored.expand(3, -1, -1))
    assert torch.equal(scores.neighbor_distances.isfinite().all(-1), scored.expand(3, -1, -1))
    assert torch.equal(scores.n_distinct > 0, scored.expand(3, -1, -1))
    assert torch.equal(scores.same_token_share.isfinite(), scored.expand(3, -1, -1))


def test_shapes_dtypes_and_order(scores):
    assert scores.layers == (0, 2, 3)
    assert scores.values.shape == (3, 2, 12)
    assert scores.neighbor_ids.shape == scores.neighbor_distances.shape == (3, 2, 12, 4)
    assert scores.neighbor_ids.dtype == scores.n_distinct.dtype == scores.tokens.dtype == torch.int64
    assert scores.values.dtype == torch.float32
    finite = scores.neighbor_distances[scores.neighbor_distances.isfinite().all(-1)]
    assert bool((finite.diff(dim=-1) >= 0).all()), "nearest first"
    assert scores.lookup.lookup is None
    assert scores.lookup.settings["method"] == "lookup"


def test_results_are_frozen(scores):
    with pytest.raises(FrozenInstanceError):
        scores.values = scores.relative


def test_frame_has_one_row_per_layer_and_real_token(scores, pocket_mini):
    frame = scores.to_frame()
    assert len(frame) == 3 * int(MASK.sum())
    assert frame.groupby("layer").size().to_dict() == {0: 21, 2: 21, 3: 21}
    assert not frame.duplicated(["layer", "sequence", "position"]).any()
    columns = {
        "raw": "values",
        "relative": "relative",
        "update": "update",
        "var_in": "var_in",
        "n_distinct": "n_distinct",
    }
    for i, layer in enumerate(scores.layers):
        for b, p in MASK.nonzero().tolist():
            row = frame[(frame["layer"] == layer) & (frame["sequence"] == b) & (frame["position"] == p)].iloc[0]
            for column, name in columns.items():
                expected = float(getattr(scores, name)[i, b, p])
                assert row[column] == expected or (math.isnan(row[column]) and math.isnan(expected))
            assert row["token_id"] == int(scores.tokens[b, p])
            assert row["token"] == pocket_mini.tokenizer.decode([row["token_id"]])
            lookup = float(scores.lookup.relative[i, b, p])
            assert row["lookup_relative"] == lookup or math.isnan(lookup)
    unscored = frame[frame["position"] == 0]
    assert unscored["raw"].isna().all()
    assert len(unscored) == 6


def test_summary_leaves_out_and_counts_tokens_with_few_distinct_states(scores):
    n_distinct = scores.n_distinct.clone()
    n_distinct[1, 0, 1:4] = 2
    odd = replace(scores, n_distinct=n_distinct)
    summary = odd.summary().set_index("layer")
    assert summary["tokens"].tolist() == [19, 19, 19]
    assert summary["duplicates"].to_dict() == {0: 0, 2: 3, 3: 0}
    left = odd.to_frame().query("layer == 2 and n_distinct >= 3")
    assert summary.loc[2, "raw"] == pytest.approx(left["raw"].median())
    assert summary.loc[2, "lookup_relative"] == pytest.approx(left["lookup_relative"].median())
    rho = left[["raw", "density"]].corr("spearman").loc["raw", "density"]
    assert summary.loc[2, "rho(raw, density)"] == pytest.approx(rho)


def test_layer_index(scores):
    assert [scores.layer_index(layer) for layer in (0, 2, 3, -1, -2, -4)] == [0, 1, 2, 2, 1, 0]
    for layer in (1, -3, 4, -5, 7):
        with pytest.raises(BasinsError, match=rf"layer={layer} was not scored. Scored: 0, 2, 3."):
            scores.layer_index(layer)


def test_prints_as_one_readable_block(scores):
    text = repr(scores)
    assert text == str(scores)
    assert text.startswith("BasinScores: 19 of 21 tokens in 2 sequences, transitions 0, 2, 3, k=4, rerun, same_layer")
    assert "rho(raw, density)" in text
    assert "tensor(" not in text


@pytest.mark.parametrize("change", ["nothing scored", "all duplicates", "no lookup", "one token"])
def test_prints_odd_results(scores, change):
    nan = torch.full_like(scores.values, math.nan)
    odd = {
        "nothing scored": replace(scores, values=nan, relative=nan, update=nan, n_distinct=0 * scores.n_distinct),
        "all duplicates": replace(scores, relative=nan, n_distinct=scores.n_distinct.clamp(max=1)),
        "no lookup": replace(scores, lookup=None),
        "one token": replace(scores, n_distinct=torch.zeros_like(scores.n_distinct).index_fill(2, torch.tensor(3), 3)),
    }[change]
    assert repr(odd).startswith("BasinScores: ")
    assert isinstance(odd.summary(), pd.DataFrame)
    assert len(odd.to_frame()) == len(odd.layers) * 21


def test_round_trip(scores, tmp_path):
    folder = scores.save(tmp_path / "run" / "scores")
    assert folder == tmp_path / "run" / "scores"
    assert sorted(path.name for path in folder.iterdir()) == ["scores.json", "scores.safetensors"]
    loaded = BasinScores.load(folder)
    assert bool(loaded.values.isnan().any())
    assert_equal(loaded, scores)
    pd.testing.assert_frame_equal(loaded.to_frame(), scores.to_frame())
    loaded.save(tmp_path / "again")
    for name in ("scores.json", "scores.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_round_trip_of_a_bare_lookup(pocket_mini, tmp_path):
    """No tokens, no strings, no lookup beside it, float64."""
    tokens = pocket_mini.to_tokens("Call me Ishmael. Some years ago")
    _, cache = pocket_mini.run_with_cache(tokens)
    bare = BasinScorer(pocket_mini, k=3, method="lookup", dtype="float64").score(cache)
    assert bare.tokens is bare.token_strings is bare.lookup is bare.same_token_share is None
    assert "token" not in bare.to_frame()
    assert_equal(BasinScores.load(bare.save(tmp_path / "bare")), bare)
    assert bare.values.dtype == torch.float64


def test_settings_are_plain_json(scores):
    assert json.loads(json.dumps(scores.settings)) == scores.settings


def test_an_existing_folder_is_not_touched(scores, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(
        BasinsError, match=r"run exists already. Nothing was written; choose another folder or remove it"
    ):
        scores.save(tmp_path / "run")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["mine.txt"]


def _disk_full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def _interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["tensors", "texts", "renaming"])
def test_a_full_disk_leaves_nothing(scores, tmp_path, monkeypatch, where):
    targets = {"tensors": (safetensors.torch, "save_file"), "texts": (Path, "write_text"), "renaming": (Path, "rename")}
    monkeypatch.setattr(*targets[where], _disk_full)
    with pytest.raises(BasinsError, match=r"scores could not be written .*No space left on device.* Nothing is left"):
        scores.save(tmp_path / "scores")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(scores, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_text", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        scores.save(tmp_path / "scores")
    assert list(tmp_path.iterdir()) == []


def test_loading_what_is_not_a_result(scores, tmp_path):
    with pytest.raises(BasinsError, match=r"nowhere has no scores.safetensors: it was not written by BasinScores.save"):
        BasinScores.load(tmp_path / "nowhere")
    folder = scores.save(tmp_path / "scores")
    (folder / "scores.json").unlink()
    with pytest.raises(BasinsError, match=r"has no scores.json"):
        BasinScores.load(folder)
