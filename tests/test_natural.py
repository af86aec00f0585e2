"""The bundled passages are what they claim: counted, licensed, of the stated length, without shared runs of words."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from basins import natural
from basins.errors import BasinsError

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("BASINS_SHARED_DATA", ROOT.parent / "shared" / "data"))
PLAIN = ("wikitext",)
EVERY = natural.passages()
BY_ID = {passage.id: passage for passage in EVERY}


def runs(text: str, n: int = 8) -> set[tuple[str, ...]]:
    found = re.findall(r"\w+", text.lower())
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def n_words(passage: natural.Natural) -> int:
    return len(passage.text.split())


def test_counts_and_no_duplicates():
    assert Counter(passage.kind for passage in EVERY) == {"famous": 58, "novel": 58, "wikitext": 60}
    assert len(BY_ID) == len({" ".join(passage.text.split()) for passage in EVERY}) == len(EVERY)
    assert all(passage.id.startswith(f"{passage.kind}-") for passage in EVERY)


def test_kinds_are_chosen_by_name():
    chosen = natural.passages("wikitext", "famous")
    assert chosen == [passage for passage in EVERY if passage.kind in ("wikitext", "famous")]
    with pytest.raises(BasinsError, match=r"kind='plain' is not an option\. Possible: 'famous', 'novel', 'wikitext'"):
        natural.passages("plain")


def test_every_famous_passage_has_one_control_of_its_kind_and_length():
    famous = natural.passages("famous")
    controls = natural.passages("novel")
    assert [control.match for control in controls] == [passage.id for passage in famous]
    assert not any(passage.match for passage in EVERY if passage.kind != "novel")
    for control in controls:
        matched = BY_ID[control.match]
        assert control.group == matched.group
        assert control.title == f"control for: {matched.title}"
        assert 0.8 < n_words(control) / n_words(matched) < 1.25


def test_no_control_shares_a_run_of_eight_words_with_its_famous_passage():
    without_runs = {passage.id for passage in EVERY if not runs(passage.text)}
    assert without_runs == {"famous-58", "novel-58"}  # pi in one string
    for control in natural.passages("novel"):
        assert not runs(control.text) & runs(BY_ID[control.match].text)


def test_lengths():
    short = {passage.id for passage in natural.passages("famous", "novel") if not 56 <= n_words(passage) <= 121}
    assert short == {"famous-14", "novel-14", "famous-58", "novel-58"}  # the pledge, and pi in one string
    assert all(70 <= n_words(passage) <= 100 for passage in natural.passages("wikitext"))


def test_plain_passages_share_no_run_of_eight_words_with_any_passage():
    words = {passage.id: runs(passage.text) for passage in EVERY}
    plain = {passage.id for passage in natural.passages(*PLAIN)}
    assert not any(words[a] & words[b] for a, b in combinations(words, 2) if {a, b} & plain)


def test_plain_passages_are_clean_text():
    for passage in natural.passages(*PLAIN):
        assert passage.text == " ".join(passage.text.split())
        assert not re.search(r"@|<unk>|http|www\.|^=", passage.text)
        assert passage.text.rstrip("\"')")[-1] in ".!?"
    wikitext = [passage.text for passage in natural.passages("wikitext")]
    assert not any(re.search(r" [,.;:?!)]|\( | '(s|t)\b", text) or text.count('"') % 2 for text in wikitext)


def test_every_passage_has_a_source_and_a_licence():
    assert all(passage.title and passage.source and passage.group for passage in EVERY)
    assert {passage.licence for passage in natural.passages("wikitext")} == {"CC BY-SA 3.0"}
    assert {passage.licence for passage in natural.passages("novel")} == {"CC0-1.0"}
    allowed = ("public domain", "CC0-1.0", "MIT", "BSD-3-Clause", "Apache-2.0", "GPL-3.0")
    assert all(passage.licence.startswith(allowed) for passage in natural.passages("famous"))
    # Only verbatim copies of the whole document may be given away, so extracts of the GPL's preamble are not here.
    assert not any("preamble" in passage.title for passage in EVERY if "GPL" in passage.title)


def test_the_licence_file_names_every_source():
    licences = (Path(natural.__file__).parent / "LICENCES.md").read_text(encoding="utf-8")
    for passage in natural.passages("famous"):
        assert passage.source.split(" ")[0] in licences, passage.source
    for needed in ("https://creativecommons.org/licenses/by-sa/3.0/", "https://en.wikipedia.org"):
        assert needed in licences


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the source texts in {DATA} (or in $BASINS_SHARED_DATA)")
def test_the_script_writes_the_same_bytes(tmp_path):
    out = tmp_path / "passages.jsonl"
    command = [sys.executable, str(ROOT / "benchmarks" / "natural_data.py"), "--data", str(DATA), "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert out.read_bytes() == natural.FILE.read_bytes()
