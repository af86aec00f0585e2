"""Models built so that the token which matters is known: every method must rank it first."""

from __future__ import annotations

import pytest
import torch
from copying_model import D_VOCAB, copying_model

from basins import BasinScorer
from basins.attribution import METHODS

LENGTH, PADDING = 9, 3


def made_batch(places: list[int], causes: list[int], padding: str) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Rows of random other tokens with `causes[i]` at `places[i]`, followed by its successor; and its columns."""
    rng = torch.Generator().manual_seed(0)
    rows = []
    for place, cause in zip(places, causes, strict=True):
        others = torch.tensor([t for t in range(3, D_VOCAB) if t not in (cause, cause + 1)])
        row = others[torch.randint(len(others), (LENGTH,), generator=rng)]
        row[place], row[place + 1 :] = cause, cause + 1
        rows.append(row)
    tokens, mask = torch.stack(rows), torch.ones(len(rows), LENGTH, dtype=torch.long)
    pad = {"none": (0, 0), "left": (PADDING, 0), "right": (0, PADDING)}[padding]
    tokens, mask = (torch.nn.functional.pad(part, pad) for part in (tokens, mask))
    return tokens, mask, [place + pad[0] for place in places]


def assert_first(model, method: str, tokens, mask, columns: list[int]) -> None:
    options = {}
    if method == "attribution_patching":
        others = torch.randint(3, D_VOCAB, tokens.shape, generator=torch.Generator().manual_seed(1))
        options["corrupted"] = torch.where(others == tokens, (others - 2) % (D_VOCAB - 3) + 3, others)
    values = BasinScorer(model).attribute(tokens, mask, method=method, **options).values[0]
    assert torch.equal(values.isnan(), mask == 0)
    strength = values.abs().nan_to_num(-1)
    assert strength.argmax(1).tolist() == columns
    best, second = strength.topk(2).values.T
    assert (best > 1.3 * second).all(), (best, second)


def assert_predicts(model, tokens, mask, columns: list[int]) -> None:
    """The premise: from its place on, the model predicts the successor of the token that matters."""
    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=[], return_type="logits", attention_mask=mask)
    for row, column in enumerate(columns):
        after = mask[row].bool() & (torch.arange(tokens.shape[1]) >= column)
        assert (logits[row, after].argmax(-1) == tokens[row, column] + 1).all()


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("method", METHODS)
def test_a_head_that_copies_from_one_position(method, padding):
    tokens, mask, columns = made_batch([2, 2, 2], [3, 5, 8], padding)
    model = copying_model(source=2)  # positions count from the first real token
    assert_predicts(model, tokens, mask, columns)
    assert_first(model, method, tokens, mask, columns)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("method", METHODS)
def test_one_token_causes_the_target(method, padding):
    tokens, mask, columns = made_batch([1, 3, 5], [6, 6, 6], padding)
    model = copying_model(cause=6)
    assert_predicts(model, tokens, mask, columns)
    assert_first(model, method, tokens, mask, columns)


@pytest.mark.parametrize("method", [name for name in METHODS if "target" in METHODS[name]])
def test_the_target_is_what_the_copied_token_says(method):
    """Tokens before the cause move its successor's logit by a twentieth of what the cause does, at most."""
    tokens, mask, columns = made_batch([3], [6], "none")
    model, options = copying_model(cause=6), {}
    if method == "attribution_patching":
        options["corrupted"] = torch.full_like(tokens, 9)
    values = BasinScorer(model).attribute(tokens, mask, method=method, target=7, **options).values[0, 0]
    assert int(values.abs().argmax()) == columns[0]
    before = values.abs()[: columns[0]]
    assert (before < 0.05 * values.abs()[columns[0]]).all()
