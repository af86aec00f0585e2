"""`Attribution`: the same places as scores, frame, text, saving and loading."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields

import pandas as pd
import pytest
import torch
from tiny_models import D_VOCAB

from basins import Attribution, BasinScorer, BasinsError
from basins.attribution import METHODS

MASK = torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [0] * 4 + [1] * 5])
TOKENS = torch.randint(4, D_VOCAB, (3, 9), generator=torch.Generator().manual_seed(0))
JOIN = ["layer", "sequence", "position", "token_id", "token"]


def options_of(method: str) -> dict:
    return {
        "attribution_patching": {"corrupted": TOKENS.flip(1)},
        "integrated_gradients": {"steps": 4, "baseline": "zero"},
    }.get(method, {})


@pytest.fixture(scope="module")
def found(tiny) -> Attribution:
    """Integrated gradients have every field; padding on both sides and a first position left out."""
    scorer = BasinScorer(tiny("gpt2"), exclude_first=1)
    return scorer.attribute(
        TOKENS, MASK, method="integrated_gradients", layers=[0, 2], steps=8, target="next_token", position=[3, 2, -2]
    )


def assert_equal(left: Attribution, right: Attribution) -> None:
    for field in fields(Attribution):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype, field.name
            assert a.numpy().tobytes() == b.numpy().tobytes(), field.name
        else:
            assert a == b, field.name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("exclude_first", [0, 2])
def test_the_same_tokens_have_values_as_have_scores(tiny, method, exclude_first):
    """One settings object, the same layers, masks and NaN; the frames join row by row."""
    scorer = BasinScorer(tiny("llama"), k=3, exclude_first=exclude_first)
    scores = scorer.score_tokens(TOKENS, MASK, layers=[0, -1])
    found = scorer.attribute(TOKENS, MASK, method=method, layers=[0, -1], **options_of(method))
    assert found.values.shape == scores.values.shape
    assert found.layers == scores.layers == (0, 2)
    assert torch.equal(found.values.isnan(), scores.values.isnan())
    assert found.values.isnan().any()
    assert torch.equal(found.real_tokens(), scores.real_tokens())
    for name in ("real_positions", "padding", "left_out_first", "exclude_first", "n_layers", "model_fingerprint"):
        assert found.settings[name] == scores.settings[name], name
    joined = scores.to_frame().merge(found.to_frame(), on=JOIN, validate="one_to_one")
    assert len(joined) == len(scores.to_frame()) == len(found.to_frame()) == 2 * int(MASK.sum())
    assert joined["raw"].isna().tolist() == joined[method].isna().tolist()


def test_frame_has_one_row_per_layer_and_real_token(found, tiny):
    frame = found.to_frame()
    assert list(frame.columns) == [*JOIN, "integrated_gradients"]
    rows = iter(frame.itertuples(index=False))
    for i, layer in enumerate((0, 2)):
        for b, p in MASK.nonzero().tolist():
            row = next(rows)
            assert (row.layer, row.sequence, row.position, row.token_id) == (layer, b, p, int(TOKENS[b, p]))
            assert row.token == tiny("gpt2").tokenizer.decode([row.token_id])
            value = float(found.values[i, b, p])
            assert row.integrated_gradients == value or (value != value and pd.isna(row.integrated_gradients))
    assert next(rows, None) is None


def test_round_trip(found, tmp_path):
    folder = found.save(tmp_path / "run" / "attribution")
    assert sorted(path.name for path in folder.iterdir()) == ["attribution.json", "attribution.safetensors"]
    loaded = Attribution.load(folder)
    assert_equal(loaded, found)
    pd.testing.assert_frame_equal(loaded.to_frame(), found.to_frame())
    loaded.save(tmp_path / "again")
    for name in ("attribution.json", "attribution.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    with pytest.raises(BasinsError, match=r"attribution exists already"):
        found.save(folder)
    (folder / "attribution.json").unlink()
    with pytest.raises(BasinsError, match=r"has no attribution.json: it was not written by Attribution.save"):
        Attribution.load(folder)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_round_trips(tiny, tmp_path, method):
    scorer = BasinScorer(tiny("gpt2", torch.float64), seed=3)
    found = scorer.attribute(TOKENS, MASK, method=method, **options_of(method))
    assert json.loads(json.dumps(found.settings)) == found.settings
    assert_equal(Attribution.load(found.save(tmp_path / "one")), found)
    again = scorer.attribute(TOKENS, MASK, method=method, **options_of(method))
    assert_equal(again, found)


def test_layers_and_gap(found):
    assert [found.layer_index(layer) for layer in (0, 2, -1, -3)] == [0, 1, 1, 0]
    with pytest.raises(BasinsError, match=r"layer=1 has no values. Those that have: 0, 2."):
        found.layer_index(1)
    torch.testing.assert_close(found.relative_gap, (found.completeness_gap / found.target_change).abs())
    assert found.relative_gap.shape == (2, 3)
    with pytest.raises(FrozenInstanceError):
        found.values = found.values


def test_prints_as_one_readable_block(found, tiny):
    text = repr(found)
    assert text == str(found)
    assert text.splitlines()[0] == (
        "Attribution: integrated_gradients, 17 of 20 tokens in 3 sequences, 2 of 3 layers, target='next_token', "
        "position=[3, 2, -2], baseline='mean', mean_of='the usable tokens of this call', steps=8"
    )
    assert text.splitlines()[1].split() == ["layer", "tokens", "min", "25%", "median", "75%", "max", "gap"]
    summary = found.summary().set_index("layer")
    assert summary["tokens"].tolist() == [17, 17]
    frame = found.to_frame()
    assert summary.loc[2, "75%"] == pytest.approx(frame[frame["layer"] == 2]["integrated_gradients"].quantile(0.75))
    plain = BasinScorer(tiny("gpt2")).attribute(TOKENS, method="attention")
    assert plain.relative_gap is plain.completeness_gap is plain.target_change is None
    assert "gap" not in plain.summary()
    one = BasinScorer(tiny("gpt2")).attribute(TOKENS, method="ablation", sample=1)
    assert str(one).startswith("Attribution: ablation, 1 of 27 tokens in 3 sequences")


def test_without_a_tokenizer_there_are_no_strings(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(tiny("gpt2"), "tokenizer", None)
    found = BasinScorer(tiny("gpt2")).attribute(TOKENS, method="attention")
    assert found.token_strings is None
    assert list(found.to_frame().columns) == ["layer", "sequence", "position", "token_id", "attention"]
    assert_equal(Attribution.load(found.save(tmp_path / "bare")), found)
