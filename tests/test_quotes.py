"""The bundled passages are what they claim: from their sources, of similar length, and without shared runs of words."""

from __future__ import annotations

import gzip
import re
from itertools import combinations
from pathlib import Path

import pytest

from basins import pocket
from basins.quotes import quotes, unrelated

TEXTS = Path(__file__).parents[1] / "benchmarks" / "pocket_text"


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def runs(text: str, n: int = 8) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def test_numbers_lengths_and_licences():
    assert len(quotes()) == 100
    assert len(unrelated()) == 50
    for quote in (*quotes(), *unrelated()):
        assert 32 <= len(words(quote.text)) <= 44
        assert quote.licence == "public domain"
        assert quote.text == quote.text.strip()
        assert quote.text.rstrip("\"'")[-1] in ".!?"
    assert all(quote.speaker and quote.author == "William Shakespeare" for quote in quotes())
    assert len({quote.work for quote in quotes()}) == 9


def test_no_two_share_a_run_of_eight_words():
    every = [runs(quote.text) for quote in (*quotes(), *unrelated())]
    assert not any(a & b for a, b in combinations(every, 2))


def test_unrelated_passages_share_none_with_the_pocket_models_passages():
    planted = {run for passage in pocket.passages() for run in runs(passage.text)}
    demo = {run for text in pocket.demo_text() for run in runs(text)}
    assert not any(runs(quote.text) & (planted | demo) for quote in unrelated())


def test_they_fit_the_pocket_models_context():
    tokenizer = pocket.load_tokenizer()
    assert max(len(tokenizer(q.text)["input_ids"]) for q in (*quotes(), *unrelated())) < pocket.CONTEXT


@pytest.mark.skipif(not TEXTS.is_dir(), reason="the source texts come with the repository only")
def test_they_stand_in_their_sources_each_quote_in_another_speech():
    plays = gzip.decompress((TEXTS / "shakespeare-tiny.txt.gz").read_bytes()).decode()
    speeches = set()
    for quote in quotes():
        assert plays[quote.char_start :].startswith(quote.text)
        speech = plays.rindex("\n\n", 0, quote.char_start) + 2
        assert plays[speech:].startswith(f"{quote.speaker}:\n")
        speeches.add(speech)
    assert len(speeches) == 100
    novel = gzip.decompress((TEXTS / "chesterton-thursday.txt.gz").read_bytes()).decode()
    flat = " ".join(novel.split())
    assert all(quote.text in flat for quote in unrelated())
