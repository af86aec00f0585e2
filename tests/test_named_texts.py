"""Datasets by name: what is read of a local copy, what is known of each text, what an error says."""

from __future__ import annotations

import json
from collections import Counter

import datasets
import pytest
from real_texts import nltk_with_data, real

from basins import pocket as shipped
from basins.conllu import read_conllu
from basins.corpus import read_labelled, read_texts
from basins.errors import BasinsError
from basins.named_texts import NAMED, how_to_get, parse, wikitext_joined
from basins.runs import describe_input
from basins.tagged_texts import read_tagged

WIKI = """
 = Robert Boulter =

 Robert Boulter is an English film , television and theatre actor . He had a guest @-@ starring role .

 = = Career = =

 He ( then 21 ) said " no " to $ 1 @,@ 000 @.@ 5 and didn 't go .
 = = = 2000 to 2005 = = =

 = Second =
 x = y
"""
PARAGRAPHS = [
    "Robert Boulter is an English film, television and theatre actor. He had a guest-starring role.",
    'He (then 21) said "no" to $ 1,000.5 and didn\'t go.',
    "x = y",
]


def test_wikitext_is_read_as_paragraphs_with_titles(tmp_path):
    path = tmp_path / "test.txt"
    path.write_text(WIKI, encoding="utf-8")
    for source in (f"wikitext:{path}", f"wikitext-2:{tmp_path}", f"wikitext-103:{path}"):
        texts, known = read_labelled(source)
        assert texts == PARAGRAPHS == read_texts(source)
        assert [row["title"] for row in known] == ["Robert Boulter", "Robert Boulter", "Second"]
    assert wikitext_joined("a ( b ) ' s , c") == "a (b) ' s, c"


def test_sentiment_rides_along(tmp_path):
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nit 's a\tb charming film \t1\ndull\t0\n", encoding="utf-8")
    texts, known = read_labelled(f"sst2:{tmp_path}")
    assert texts == ["it 's a\tb charming film ", "dull"]
    assert known == [{"label": 1, "sentiment": "positive"}, {"label": 0, "sentiment": "negative"}]
    assert read_texts(f"sst2:{tmp_path / 'dev.tsv'}", limit=1) == texts[:1]
    (tmp_path / "dev.tsv").write_text("fine\t1\nno label\n")
    with pytest.raises(BasinsError, match=r"line 2 is not text, tab, 0 or 1 \('no label'\)\..*licence: none stated"):
        read_texts(f"sst2:{tmp_path}")


def test_shakespeare(tmp_path):
    (tmp_path / "input.txt").write_text("First Citizen:\nBefore we proceed,\nhear me.\n\nAll:\nSpeak, speak.\n")
    texts, known = read_labelled(f"shakespeare:{tmp_path}")
    assert texts == ["Before we proceed,\nhear me.", "Speak, speak."]
    assert [row["speaker"] for row in known] == ["First Citizen", "All"]
    quote = {"text": "But, soft!", "play": "Romeo and Juliet", "speaker": "ROMEO", "line": 1}
    (tmp_path / "quotes.json").write_text(json.dumps([quote]))
    assert read_labelled(f"shakespeare:{tmp_path / 'quotes.json'}") == (
        ["But, soft!"], [{"speaker": "ROMEO", "play": "Romeo and Juliet"}])  # fmt: skip
    bundled, known = read_labelled("shakespeare")
    assert len(bundled) == 100
    assert all(row["speaker"] and row["play"] for row in known)


def test_what_ships_needs_nothing():
    texts, known = read_labelled("planted")
    assert texts == [passage.text for passage in shipped.passages()] == read_texts("planted")
    assert [row["dose"] for row in known] == [passage.dose for passage in shipped.passages()]
    assert read_labelled("pocket-demo", limit=2) == (shipped.demo_text()[:2], [{}, {}])
    with pytest.raises(BasinsError, match="'planted' ships with basins and has no other copy"):
        read_texts("planted:some/file.txt")


def test_other_sources_have_empty_metadata(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert read_labelled(tmp_path / "a.txt") == (["one", "two"], [{}, {}])
    assert read_labelled(["one"]) == (["one"], [{}])


def test_treebanks_are_texts_too(tmp_path):
    word = "\t".join(["1", "Go", "_", "VERB", *["_"] * 6])
    path = tmp_path / "en_ewt-ud-test.conllu"
    path.write_text(f"# newdoc id = a\n{word}\n\n{word}\n\n# newdoc id = b\n{word}\n\n")
    assert read_labelled(f"ud-ewt:{tmp_path}") == (
        ["Go Go", "Go"], [{"document": "a", "sentences": 2}, {"document": "b", "sentences": 1}])  # fmt: skip
    assert read_tagged(f"ud-ewt:{tmp_path}").texts == read_conllu(path).texts
    for read in (read_texts, read_tagged):
        with pytest.raises(BasinsError, match=r"'ud-ewt' does not ship.*licence: CC BY-SA 4\.0.*\"ud-ewt:FILE\""):
            read("ud-ewt")


@pytest.mark.parametrize("name", [name for name, named in NAMED.items() if named.files and name != "ptb"])
def test_a_missing_copy_says_what_to_do(tmp_path, name):
    for path, what in ((tmp_path / "missing.txt", "does not exist"), (tmp_path, "is a folder without such a file")):
        with pytest.raises(BasinsError) as error:
            read_texts(f"{name}:{path}")
        message = str(error.value)
        assert what in message
        assert f"licence: {NAMED[name].licence}" in message
        assert f'"{name}:FILE"' in message
        assert all(other in message for other in NAMED)


def test_every_name_states_its_licence():
    assert {"wikitext", "wikitext-2", "ptb", "ud-ewt", "sst2", "shakespeare", "planted"} <= NAMED.keys()
    for name, named in NAMED.items():
        assert named.licence, name
        assert named.licence in how_to_get(name)


def test_hub_by_name(monkeypatch):
    calls = []

    def load_dataset(name, config, split, streaming):
        calls.append((name, config, split, streaming))
        if name == "stanfordnlp/sst2":
            return datasets.Dataset.from_dict({"sentence": ["fine ", "dull"], "label": [1, 0]})
        return datasets.Dataset.from_dict({"text": WIKI.split("\n")})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_labelled("sst2", limit=1) == (["fine"], [{"label": 1, "sentiment": "positive"}])
    assert read_texts("wikitext") == read_texts("wikitext-2") == PARAGRAPHS
    # Another configuration, the way any dataset is called: lines as they are.
    assert read_texts("wikitext:wikitext-2-raw-v1:train", limit=1) == [" = Robert Boulter ="]
    assert calls == [
        ("stanfordnlp/sst2", None, "validation", True),
        ("Salesforce/wikitext", "wikitext-103-raw-v1", "test", False),
        ("Salesforce/wikitext", "wikitext-2-raw-v1", "test", False),
        ("wikitext", "wikitext-2-raw-v1", "train", True),
    ]

    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(BasinsError, match=r"no route.*licence: none stated.*\"sst2:FILE\" \(dev\.tsv"):
        read_texts("sst2")


def test_which_sources_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse("sst2") == ("sst2", None)
    assert parse("sst2:x.tsv")[0] == parse("sst2:./x")[0] == parse("sst2:a/b")[0] == "sst2"
    assert parse("wikitext:wikitext-2-raw-v1:test") is None
    assert parse("owner/sst2") is None
    assert parse("sst2:") is None
    (tmp_path / "copy").mkdir()
    assert parse("sst2:copy")[0] == "sst2"


def test_local_copies_of_the_real_ones():
    texts, known = read_labelled(f"sst2:{real('sst2')}")
    assert Counter(row["label"] for row in known) == {1: 444, 0: 428}
    assert len(read_texts(f"sst2:{real('sst2/train.tsv')}")) == 6_920
    texts, known = read_labelled(f"wikitext:{real('wikitext-103')}")
    assert len({row["title"] for row in known}) == 60
    assert not any(mark in text for text in texts for mark in ("@-@", "@,@", "@.@", " , ", " . \n"))
    assert not any(text.startswith("= ") and text.endswith(" =") for text in texts)
    assert len(read_texts(f"wikitext-2:{real('wikitext-2')}")) == len(texts)
    assert len(read_texts(f"ud-ewt:{real('ud-english-ewt')}")) == 316
    assert len(read_texts(f"shakespeare:{real('shakespeare/quotes.json')}")) == 65
    assert len(read_texts(f"shakespeare:{real('shakespeare')}")) > 7_000


def test_a_copy_of_nltk_data(monkeypatch):
    nltk = nltk_with_data()
    before = [path for path in nltk.data.path if path != str(real("nltk_data").resolve())]
    monkeypatch.setattr(nltk.data, "path", before)
    assert read_tagged(f"ptb:{real('nltk_data')}", limit=1).gold
    assert nltk.data.path == before
    with pytest.raises(BasinsError, match="is no folder of NLTK's data"):
        read_tagged(f"ptb:{real('sst2')}")


def test_a_run_records_the_licence(tmp_path):
    (tmp_path / "dev.tsv").write_text("fine\t1\n")
    found = describe_input(f"sst2:{tmp_path}")
    assert found["name"] == "sst2"
    assert found["licence"] == NAMED["sst2"].licence
    assert found["bytes"] == 7
    assert describe_input("planted") == {"name": "planted", "licence": "public domain"}
