"""Words with tags: CoNLL-U, NLTK's treebank and tagger, the shipped tags."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_texts import nltk_with_data, real

from basins import pocket as shipped_files
from basins.conllu import read_conllu
from basins.errors import BasinsError
from basins.nltk_words import require, tag_texts, treebank
from basins.tagged_texts import read_tagged, shipped
from basins.words import Tagged, TaggedText, is_function, joined, place

FORMS = ["do", "n't", "naïve", "e\u0301", "🙂", "New York", "...", "zum", '"', "a|b"]


def line(number: str, form: str, upos: str = "X", misc: str = "_") -> str:
    return "\t".join([number, form, "_", upos, "_", "_", "_", "_", "_", misc])


def write(path: Path, *sentences: list[str]) -> Path:
    path.write_text("".join("\n".join(lines) + "\n\n" for lines in sentences), encoding="utf-8")
    return path


def words_of(text: TaggedText) -> list[str]:
    return [text.word(i) for i in range(len(text))]


def test_multiword_tokens_empty_nodes_and_spaces(tmp_path):
    first = [
        "# newdoc id = one",
        "# text = I don't go zum Bahnhof!",
        *[line("1", "I", "PRON"), line("2-3", "don't"), line("2", "do", "AUX"), line("3", "n't", "PART")],
        *[line("4", "go", "VERB"), line("4.1", "gone", "VERB"), line("5-6", "zum"), line("5", "zu", "ADP")],
        *[line("6", "dem", "DET"), line("7", "Bahnhof", "NOUN", "SpaceAfter=No"), line("8", "!", "PUNCT")],
    ]
    second = ["# text = (So)", line("1", "(", "PUNCT", "SpaceAfter=No"), line("2", "So", "ADV", "x=y|SpaceAfter=No"),
              line("3", ")", "PUNCT", "SpaceAfter=No")]  # fmt: skip
    third = ["# newpar", line("1", "Go", "VERB", "SpaceAfter=No"), line("2", ".", "PUNCT")]
    fourth = ["# newdoc id = two", line("1", "Stop", "VERB")]
    found = read_conllu(write(tmp_path / "a.conllu", first, second, third, fourth))
    assert [text.name for text in found.texts] == ["one", "two"]
    text = found.texts[0]
    assert text.text == "I don't go zum Bahnhof! (So)\nGo."
    assert words_of(text) == ["I", "do", "n't", "go", "zum", "Bahnhof", "!", "(", "So", ")", "Go", "."]
    assert text.tags[:6] == ("PRON", "AUX", "PART", "VERB", "ADP+DET", "NOUN")
    assert text.sentences == (0,) * 7 + (1,) * 3 + (2,) * 2
    assert found.counts == {"empty_nodes": 1, "fused_words": 1}
    assert found.gold
    assert (found.n_sentences, found.n_words) == (4, 13)
    # No space after the second sentence where its last word says so.
    glued = read_conllu(write(tmp_path / "b.conllu", second, fourth[1:]))
    assert glued.texts[0].text == "(So)Stop"


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.sampled_from(FORMS), st.booleans()), min_size=1, max_size=6), min_size=1, max_size=4)
)
def test_whatever_is_written_is_read(tmp_path_factory, sentences):
    blocks = [
        [line(str(i), form, f"T{i}", "_" if space else "SpaceAfter=No") for i, (form, space) in enumerate(words, 1)]
        for words in sentences
    ]
    found = read_conllu(write(tmp_path_factory.mktemp("ud") / "a.conllu", *blocks)).texts[0]
    assert words_of(found) == [form for words in sentences for form, _ in words]
    expected = "".join(form + " " * space for words in sentences for form, space in words)
    assert found.text == (expected[:-1] if sentences[-1][-1][1] else expected)
    assert found.sentences == tuple(i for i, words in enumerate(sentences) for _ in words)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["# text = Go on", line("1", "Go"), line("2", "off")], r"line 1: the word 'off' does not stand"),
        (["1 Go"], "has 1 fields; CoNLL-U has 10, with tabs between"),
        (["# only a comment"], "holds no sentence"),
        ([line("1", "Go"), line("x", "on")], r"line 1: a word has the id 'x'"),
        ([line("1-x", "Go")], r"line 1: a word has the id 'x'"),
        ([line("1.1", "Go")], r"line 1: a sentence has no word with characters"),
    ],
)
def test_bad_files_are_explained(tmp_path, lines, message):
    with pytest.raises(BasinsError, match=message):
        read_conllu(write(tmp_path / "a.conllu", lines))
    with pytest.raises(BasinsError, match="There is no file"):
        read_conllu(tmp_path / "missing.conllu")


def test_gold_characters_are_the_gold_forms():
    """Each word of the real treebank, against its form column."""
    path = real("ud-english-ewt/en_ewt-ud-dev.conllu")
    rows = [row.split("\t") for row in path.read_text(encoding="utf-8").splitlines() if row[:1].isdigit()]
    rows = [row for row in rows if row[0].isdigit()]
    found = read_conllu(path)
    assert [word for text in found.texts for word in words_of(text)] == [row[1] for row in rows]
    assert [tag for text in found.texts for tag in text.tags] == [row[3] for row in rows]
    texts = [
        row.removeprefix("# text = ") for row in path.read_text(encoding="utf-8").splitlines() if row[:8] == "# text ="
    ]
    assert found.n_sentences == len(texts) == 2_001
    everything = "\n".join(text.text for text in found.texts)
    assert all(text.strip() in everything for text in texts)


def test_the_treebank_reads_as_text():
    nltk_with_data()
    found = treebank(limit=12)
    text = found.texts[3].text
    assert "the funds' investments lengthened by a day to 41 days, the longest" in text
    everything = " ".join(text.text for text in found.texts)
    for mark in ("-LRB-", "``", "''", "*T*", " ,", " .", " n't", "( ", "$ "):
        assert mark not in everything, mark
    assert found.counts["traces"] > 100
    assert "made available by NLTK for non-commercial use" in found.licence
    assert {"NOUN", "VERB", ".", "PRT"} <= set(Counter(tag for text in found.texts for tag in text.tags))


def test_the_tagger_gives_characters_of_any_text():
    nltk_with_data()
    texts = [
        "He  said:\t\"I can't, won't\" (gonna go…). 🙂 Naïve e\u0301tudes cost $3.50!",
        "``Old'' and “new” quotes''.",
        "x",
    ]
    found = tag_texts(texts, "odd", "own")
    assert not found.gold
    for text, tagged in zip(texts, found.texts):
        assert tagged.text == text
        left = list(text)
        for start, stop in tagged.spans:
            left[start:stop] = " " * (stop - start)
        assert not "".join(left).strip(), "every character that is not white space is in a word"
    first = found.texts[0]
    assert words_of(first)[:7] == ["He", "said", ":", '"', "I", "ca", "n't"]
    assert first.tags[:3] == ("PRON", "VERB", ".")
    assert max(first.sentences) >= 1


def test_the_shipped_tags_are_what_the_committed_command_makes():
    nltk_with_data()
    path = Path(__file__).parents[1] / "benchmarks" / "tags_data.py"
    spec = importlib.util.spec_from_file_location("tags_data", path)
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    found = shipped()
    assert found.texts == tag_texts(shipped_files.demo_text(), "demo", "").texts
    assert "".join(map(maker.line, found.texts)) == (shipped_files.FILES / "demo_tags.jsonl").read_text(
        encoding="ascii"
    )


def test_shipped_tags_cover_the_shipped_book(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)  # needs none
    found = read_tagged()
    assert [text.text for text in found.texts] == shipped_files.demo_text()
    for text in found.texts:
        outside = set(range(len(text.text))) - {c for span in text.spans for c in range(*span)}
        assert all(text.text[c].isspace() for c in outside)
    assert found.n_words == 4_252
    assert not found.gold


def test_missing_data_of_nltk_names_package_and_command(monkeypatch):
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [])
    asked = []

    def offline(package, **_):
        asked.append(package)
        raise OSError("no route")

    monkeypatch.setattr(nltk, "download", offline)
    with pytest.raises(BasinsError, match=r"'treebank' is missing.*no route.*python -m nltk\.downloader treebank"):
        treebank()
    with pytest.raises(BasinsError, match=r"'punkt_tab' is missing.*taggers|tokenizers/punkt_tab/english"):
        tag_texts(["Go."], "x", "y")
    assert asked == ["treebank", "punkt_tab"]
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(BasinsError, match=r'nltk is not installed; it comes with the "experiments" extra'):
        require("treebank")


def test_missing_data_is_downloaded(monkeypatch, tmp_path):
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])

    def online(package, **_):
        (tmp_path / "corpora" / package).mkdir(parents=True)

    monkeypatch.setattr(nltk, "download", online)
    require("treebank")


def test_sources_by_name(tmp_path):
    own = TaggedText("Go on", ((0, 2), (3, 5)), ("VERB", "PRT"), (0, 0))
    assert read_tagged([own, own], limit=1).texts == (own,)
    one = Tagged((own,), "n", "t", True, "l")
    assert read_tagged(one) == one
    path = write(tmp_path / "a.conllu", [line("1", "Go", "VERB")])
    assert read_tagged(path).texts == read_tagged(f"ud-ewt:{path}").texts
    with pytest.raises(BasinsError, match="limit=0 leaves no text"):
        read_tagged(limit=0)
    nltk_with_data()
    (tmp_path / "a.txt").write_text("The dog ran away.\nIt sleeps.\n")
    found = read_tagged(tmp_path / "a.txt")
    assert [text.tags for text in found.texts] == [("DET", "NOUN", "VERB", "ADV", "."), ("PRON", "VERB", ".")]
    assert read_tagged(["The dog ran away."]).texts == found.texts[:1]


def test_classes_of_words():
    assert [is_function(tag) for tag in ("DET", "NOUN", "PUNCT", "NUM", "ADP+DET", "AUX+VERB", "CONJ")] == [
        True, False, None, None, True, None, True]  # fmt: skip


@pytest.mark.parametrize(
    ("spans", "sentences", "message"),
    [
        (((0, 2), (1, 3)), (0, 0), "word 1 has characters 1 to 3"),
        (((0, 2), (2, 2)), (0, 0), "are not empty"),
        (((0, 2), (3, 9)), (0, 0), "within the text's 5 characters"),
        (((0, 2), (3, 5)), (1, 0), "sentence numbers fall"),
        (((0, 2),), (0, 0), "1 spans, 1 tags and 2 sentence numbers"),
    ],
)
def test_words_that_cannot_be(spans, sentences, message):
    with pytest.raises(BasinsError, match=message):
        TaggedText("Go on", spans, ("X",) * len(spans), sentences)


def test_joined_texts_keep_their_words():
    one = TaggedText("Go on.", ((0, 2), (3, 5), (5, 6)), ("A", "B", "C"), (0, 0, 1))
    found = joined([one, one], ["\n"], "both")
    assert words_of(found) == words_of(one) * 2
    assert found.sentences == (0, 0, 1, 2, 2, 3)
    with pytest.raises(BasinsError, match="here: the word 'off' does not stand"):
        list(place("Go on", ["Go", "off"], where="here: "))
