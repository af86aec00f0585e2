"""The linguistic experiment on tags that are not what it is made for: it says why, and what it still can say."""

from __future__ import annotations

import pytest

pytest.importorskip("scipy.stats")
pytest.importorskip("statsmodels.api")

from test_linguistic import SMALL

from basins.experiments import linguistic
from basins.experiments.linguistic_tables import FUNCTION, NOUN, TAGS
from basins.tagged_texts import read_tagged
from basins.words import TaggedText


@pytest.mark.parametrize("names", [("NN", "VBD", "IN"), ("PERSON", "PLACE", "OTHER")])
def test_tags_of_another_tagset_are_tested_and_contrasts_say_why_they_are_not(pocket_mini, names):
    texts = []
    for text in read_tagged("pocket-demo", 10).texts:
        tags = tuple(names[i % 3] for i in range(len(text.tags)))
        texts.append(TaggedText(text.text, text.spans, tags, text.sentences))
    found = linguistic(pocket_mini, texts=texts, null_rows=4, weight_draws=1, **SMALL | {"limit": None})
    assert set(found.contrasts["reason"]) == {"a kind of words has fewer than 10 tokens"}
    rows = found.verdicts.set_index("name")
    assert rows["r"].isna().tolist() == [name in (FUNCTION, NOUN) for name in rows.index]
    assert "too few words to say anything" in found.reading
    # Tags that go round and round have nothing to do with anything.
    assert rows.loc[TAGS, "r"] < 0.2


@pytest.mark.parametrize("null_rows", [0, 4])
def test_one_tag_alone_is_not_compared(pocket_mini, null_rows):
    texts = []
    for text in read_tagged("pocket-demo", 10).texts:
        texts.append(TaggedText(text.text, text.spans, ("NOUN",) * len(text.tags), text.sentences))
    asked = SMALL | {"limit": None}
    found = linguistic(pocket_mini, texts=texts, null_rows=null_rows, weight_draws=1, **asked)
    assert set(found.tests_of_tags["reason"]) == {"there are not two tags with enough tokens"}
    assert found.grade == "none"
    assert found.verdicts["r"].isna().all()
