"""Min-K%, Min-K%++, zlib and reference losses against loops written from the papers' formulas."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch

from basins.aggregates import wide
from basins.baselines import (
    loss_baselines,
    mean_loss,
    min_k,
    min_k_plus_plus,
    per_byte,
    total_loss,
    zlib_bytes,
    zlib_ratio,
)
from basins.errors import BasinsError

BATCH, POS, VOCAB = 5, 23, 11
TEXTS = ["the sea the sea the sea the sea", "", "É, naïve — 1,2", "a" * 300, "Quick brown foxes jump."]


def logits() -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities of every token, the tokens that came)."""
    rng = torch.Generator().manual_seed(1)
    return (3 * torch.randn(BATCH, POS, VOCAB, generator=rng)).log_softmax(-1), torch.randint(
        VOCAB, (BATCH, POS), generator=rng
    )


def columns() -> dict[str, torch.Tensor]:
    """Loss and the moments of log p, NaN at position 0, at left padding of row 1 and right padding of row 2."""
    log_p, came = logits()
    mean = (log_p.exp() * log_p).sum(-1)
    std = ((log_p.exp() * log_p.square()).sum(-1) - mean.square()).clamp_min(0).sqrt()
    found = {"loss": -log_p.gather(-1, came[..., None])[..., 0], "mean_log_prob": mean, "std_log_prob": std}
    for column in found.values():
        column[:, 0] = float("nan")
        column[1, :5] = float("nan")
        column[2, 17:] = float("nan")
    return found


def continuation() -> torch.Tensor:
    """The last two thirds; three tokens of row 3 and none of row 4."""
    where = torch.zeros(BATCH, POS, dtype=torch.bool)
    where[:, 8:] = True
    where[3, 11:], where[4] = False, False
    return where


def kept(row: int) -> list[int]:
    loss, where = columns()["loss"], continuation()
    return [p for p in range(POS) if bool(where[row, p]) and not math.isnan(float(loss[row, p]))]


def lowest_share(values: list[float], share: float) -> float:
    if not values:
        return math.nan
    n = max(1, int(len(values) * share))
    return float(np.mean(sorted(values)[:n]))


@pytest.mark.parametrize("share", [0.05, 0.2, 0.3, 1.0])
def test_min_k_agrees_with_its_paper(share):
    log_p, came = logits()
    found = min_k(columns()["loss"], continuation(), share)
    for row in range(BATCH):
        values = [float(log_p[row, p, came[row, p]]) for p in kept(row)]
        assert float(found[row]) == pytest.approx(lowest_share(values, share), rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.3, 1.0])
def test_min_k_plus_plus_agrees_with_its_paper(share):
    log_p, came = logits()
    found = min_k_plus_plus(**columns(), where=continuation(), share=share)
    for row in range(BATCH):
        values = []
        for p in kept(row):
            logs = [float(value) for value in log_p[row, p]]
            mu = sum(math.exp(value) * value for value in logs)
            sigma = math.sqrt(sum(math.exp(value) * (value - mu) ** 2 for value in logs))
            values.append((logs[int(came[row, p])] - mu) / sigma)
        assert float(found[row]) == pytest.approx(lowest_share(values, share), rel=1e-4, nan_ok=True)


@pytest.mark.parametrize(("n", "taken"), [(1, 1), (4, 1), (5, 1), (9, 1), (10, 2), (14, 2), (15, 3), (35, 7)])
def test_a_fifth_of_n_tokens(n, taken):
    """int(n * 0.2), at least 1: with losses 1, 2, 4, ... the mean says how many were taken."""
    loss = 2.0 ** torch.arange(n)[None]
    found = min_k(loss, torch.ones(1, n, dtype=torch.bool), 0.2)
    assert -float(found[0]) == pytest.approx(sum(2.0 ** (n - 1 - i) for i in range(taken)) / taken)


def test_a_certain_token_is_standardised_to_zero():
    """A distribution with one possible token: log p = mu = sigma = 0."""
    zeros = torch.zeros(1, 6)
    assert float(min_k_plus_plus(zeros, zeros, zeros, torch.ones(1, 6, dtype=torch.bool))[0]) == 0.0


@pytest.mark.parametrize("level", [-1, 1, 9])
def test_zlib_agrees_with_its_paper(level):
    loss, where = columns()["loss"], continuation()
    total = zlib_ratio(loss, where, TEXTS, level)
    mean = zlib_ratio(loss, where, TEXTS, level, total=False)
    for row, text in enumerate(TEXTS):
        losses = [float(loss[row, p]) for p in kept(row)]
        size = len(zlib.compress(bytes(text, "utf-8"), level))
        if not losses:
            assert math.isnan(float(total[row]))
            assert math.isnan(float(mean[row]))
            continue
        assert float(total[row]) == pytest.approx(sum(losses) / size, rel=1e-6)
        perplexity = math.exp(sum(losses) / len(losses))
        assert float(mean[row]) == pytest.approx(math.log(perplexity) / size, rel=1e-6)
    assert zlib_bytes(["x" * 1000])[0] < 30


def test_what_is_not_counted_does_not_matter():
    found = columns()
    where = continuation()
    one = min_k_plus_plus(**found, where=where)
    for column in found.values():
        column[~where] = 1e9
    again = min_k_plus_plus(**found, where=where)
    assert torch.equal(one.nan_to_num(nan=7.0), again.nan_to_num(nan=7.0))


def test_the_table_reads_in_one_direction():
    found, where = columns(), continuation()
    frame = loss_baselines(found.pop("loss"), where, **found, texts=TEXTS, reference_loss=columns()["loss"] + 1)
    matrix = wide(frame)
    assert list(matrix.columns) == list(dict.fromkeys(frame["measure"])) == list(dict.fromkeys(frame["name"]))
    assert frame["layer"].isna().all()
    assert set(matrix.columns) == {
        *["loss", "perplexity", "min_k", "min_k_plus_plus", "zlib", "zlib_mean"],
        *["reference_difference", "reference_ratio"],
    }
    assert matrix.loc[4].isna().all()
    loss = mean_loss(columns()["loss"], where)[:4].numpy()
    rows = matrix.loc[:3]
    np.testing.assert_allclose(rows["loss"], -loss)
    np.testing.assert_allclose(rows["perplexity"], -np.exp(loss))
    np.testing.assert_allclose(rows["reference_difference"], np.ones(4), rtol=1e-6)
    np.testing.assert_allclose(rows["reference_ratio"], -loss / (loss + 1), rtol=1e-6)
    assert frame[frame["measure"] == "loss"]["n_tokens"].tolist() == [len(kept(row)) for row in range(BATCH)]
    assert frame[frame["measure"] == "loss"]["left_out"].tolist() == [0, 0, 6, 0, 0]
    # A model that knows the text better is higher everywhere.
    better = wide(loss_baselines(columns()["loss"] - 0.5, where, texts=TEXTS, reference_loss=columns()["loss"] + 1))
    assert (better.loc[:3] > rows[better.columns]).all(axis=None)


def test_models_with_other_tokenizers_are_compared_per_byte():
    """Half as many tokens of twice the loss are the same text at the same loss."""
    loss, where = columns()["loss"][:1], continuation()[:1]
    texts = ["naïve"]
    assert per_byte(torch.tensor([12.0]), texts).tolist() == [2.0]
    same = wide(loss_baselines(loss, where, texts=texts, reference_total=total_loss(loss, where)))
    assert float(same["reference_difference"][0]) == 0
    assert float(same["reference_ratio"][0]) == -1
    worse = wide(loss_baselines(loss, where, texts=texts, reference_total=total_loss(loss, where) + 12))
    assert float(worse["reference_difference"][0]) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda loss, where: min_k(loss, where[:2]), r"where is torch.bool of shape \[2, 23\]"),
        (lambda loss, where: min_k(loss, where.long()), "where torch.bool"),
        (lambda loss, where: min_k(loss, where, 20), r"share=20 is out of range: it must lie in \(0, 1\]"),
        (lambda loss, where: zlib_ratio(loss, where, TEXTS[:3]), "3 texts were given for 5 sequences"),
        (lambda loss, where: loss_baselines(loss, where, mean_log_prob=loss), "needs both"),
        (lambda loss, where: loss_baselines(loss, where, reference_loss=loss.nan_to_num()), "same tokens and mask"),
        (lambda loss, where: loss_baselines(loss, where, reference_total=loss[:, 9]), "needs texts"),
        (
            lambda loss, where: loss_baselines(loss, where, reference_loss=loss, reference_total=loss[:, 9]),
            "not both",
        ),
        (lambda loss, where: min_k_plus_plus(loss, loss[:3], loss, where), "mean_log_prob has shape"),
    ],
)
def test_bad_input_says_what_is_possible(call, message):
    with pytest.raises(BasinsError, match=message):
        call(columns()["loss"], continuation())
