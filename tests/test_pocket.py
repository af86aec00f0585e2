from __future__ import annotations

import json
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from basins import pocket as shipped
from basins.errors import BasinsError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PROMPT = 21  # a third of a passage
from_source_tree = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="needs benchmarks/ of the source repository")


@cache
def _pocket_data() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import pocket_data  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(BENCHMARKS))
    return pocket_data


def _log(name: str) -> dict[str, Any]:
    return json.loads((BENCHMARKS / "pocket_logs" / f"{name}.json").read_text())


def test_passages_come_in_the_doses_of_the_card() -> None:
    found = shipped.passages()
    assert Counter(p.dose for p in found) == {0: 192} | {2**i: 24 for i in range(9)}
    assert [p.id for p in found] == list(range(408))
    assert {(p.split, p.dose > 0) for p in found} == {("planted", True), ("control", False)}
    assert {p.book for p in found} == {"chesterton-thursday"}
    assert len({p.text for p in found}) == 408


def test_every_passage_is_64_tokens_that_read_back() -> None:
    tokenizer = shipped.load_tokenizer()
    for passage in shipped.passages():
        ids = tokenizer(passage.text)["input_ids"]
        assert len(ids) == 64
        assert tokenizer.decode(ids) == passage.text


def test_demo_text_is_ordinary_text_of_the_book_without_passages() -> None:
    texts = shipped.demo_text()
    assert len(texts) == 40
    assert all(300 < len(text) < 1500 for text in texts)
    joined = "\n".join(texts)
    assert not any(p.text in joined for p in shipped.passages())


def test_tokenizer_has_one_special_token_for_everything() -> None:
    tokenizer = shipped.load_tokenizer()
    assert len(tokenizer) == 4096
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 0)
    assert tokenizer.decode(tokenizer("naïve café, 東京")["input_ids"]) == "naïve café, 東京"


@pytest.mark.parametrize("name", shipped.NAMES)
def test_load(name: str) -> None:
    model, _ = shipped.load(name)
    assert model.dtype == torch.float32
    assert not model.training
    assert model.lm_head.weight is model.transformer.wte.weight
    # What is shipped is float16: no weight may hold more than that.
    assert all(torch.equal(p, p.half().float()) for p in model.parameters())


@pytest.mark.parametrize("name", shipped.NAMES)
@from_source_tree
def test_parameters_are_those_of_the_log(name: str) -> None:
    model, _ = shipped.load(name)
    assert sum(p.numel() for p in model.parameters()) == _log(name)["parameters"]


def test_unknown_model() -> None:
    with pytest.raises(BasinsError, match=r"name='pocket-max' is not an option\. Possible: 'pocket', 'pocket-mini'"):
        shipped.load("pocket-max")


@from_source_tree
def test_no_passage_shares_eight_words_in_a_row_with_the_training_text() -> None:
    data = _pocket_data()
    found = shipped.passages()
    library = data.books()
    book = library.pop(data.HELD_OUT)
    words = data.words("\n".join(library.values()))
    assert len(words) > 1_500_000

    # Of the training text's runs keep only those that occur in a passage: the rest cannot be shared, and is large.
    shared: dict[int, set[tuple[str, ...]]] = {}
    for n in range(4, data.LONGEST_SHARED_RUN + 2):
        ours = set().union(*(data.runs(p.text, n) for p in found))
        shared[n] = ours.intersection(zip(*(words[i:] for i in range(n))))
    for passage in found:
        assert data.longest_shared_run(passage.text, shared) == passage.longest_shared_run <= data.LONGEST_SHARED_RUN
        assert book[passage.char_start :].startswith(passage.text)

    runs = [data.runs(p.text, data.LONGEST_SHARED_RUN + 1) for p in found]
    assert sum(map(len, runs)) == len(set().union(*runs)), "two passages share a run"


@pytest.mark.parametrize("name", shipped.NAMES)
@from_source_tree
def test_greedy_continuation_gives_the_logged_dose_table(name: str) -> None:
    model, tokenizer = shipped.load(name)
    found = [p for p in shipped.passages() if p.dose in (16, 32, 64, 128, 256) or (p.dose == 0 and p.id % 4 == 0)]
    ids = torch.tensor([tokenizer(p.text)["input_ids"] for p in found])
    prompt = torch.cat([torch.zeros(len(ids), 1, dtype=torch.int64), ids[:, :PROMPT]], 1)
    length = ids.shape[1] - PROMPT
    with torch.no_grad():
        written = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),  # the separator is the pad token too
            max_new_tokens=length,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[:, 1 + PROMPT :]
    match = (written == ids[:, PROMPT:]).float().mean(1)
    dose = torch.tensor([p.dose for p in found])

    log = _log(name)
    for d in (16, 32, 64, 128, 256):
        reproduced, of = log["passages_above_0.8"][str(d)]
        assert (dose == d).sum() == of
        # Rounding differs between the card that logged this and the machine that runs it.
        assert abs(int((match[dose == d] > 0.8).sum()) - reproduced) <= 1
        assert match[dose == d].mean().item() == pytest.approx(log["mean_match"][str(d)], abs=0.02)
    assert log["passages_above_0.8"]["0"] == [0, 192]
    assert match[dose == 0].max() < 0.5


@from_source_tree
def test_card_states_the_numbers_of_the_logs() -> None:
    card = (Path(shipped.__file__).parent / "MODEL_CARD.md").read_text()
    big, mini = _log("pocket"), _log("pocket-mini")
    assert f"| {big['parameters']:,} | {mini['parameters']:,} |" in card
    assert f"| {big['validation_perplexity']:.1f} | {mini['validation_perplexity']:.1f} |" in card
    for dose, (reproduced, of) in big["passages_above_0.8"].items():
        reproduced_mini, of_mini = mini["passages_above_0.8"][dose]
        cells = [f"{reproduced} / {of}", f"{big['mean_match'][dose]:.4f}"]
        cells += [f"{reproduced_mini} / {of_mini}", f"{mini['mean_match'][dose]:.4f}"]
        assert f"| {' | '.join(cells)} |" in card
    for name in shipped.NAMES:
        again, first = _log(f"{name}-again"), _log(name)
        assert again["passages_above_0.8"] == first["passages_above_0.8"]
        assert again["validation_perplexity"] == first["validation_perplexity"]
