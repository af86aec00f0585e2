from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from made_scores import WORDS, made_scores

from basins import tokens_view
from basins.errors import BasinsError, MissingExtra
from basins.tokens_view import save_html, show


class Page(HTMLParser):
    """Elements and where they load from; text outside of scripts."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.loaded: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset", "action")]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data
        self.text += data


def props(script: str) -> list[dict]:
    """What each view hands to circuitsvis."""
    found = re.findall(r"CircuitsVis\.render\('[^']+', CircuitsVis\.ColoredTokensMulti, (\{.*?\})\);", script)
    return [json.loads(one) for one in found]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "tokens.html"
    assert save_html(made_scores(), path, names={0: "first <of> all"}) == path
    return path.read_text(encoding="utf-8")


def test_the_page_loads_nothing(page):
    parsed = Page(page)
    assert not parsed.loaded
    assert "link" not in parsed.elements
    assert not re.search(r"""(import|from)\s*\(?["']https?:""", page)
    assert not re.search(r"""url\(["']?https?:""", page)
    assert "sourceMappingURL" not in page


def test_the_script_is_inlined_once_a_page(page, tmp_path):
    assert page.count("var CircuitsVis=") == 1
    assert len(props(page)) == 2
    many = save_html(made_scores(batch=12), tmp_path / "many.html")
    assert many.stat().st_size < 1.1 * len(page)


def test_scripts_end_where_they_should(page):
    parsed = Page(page)
    assert parsed.elements.count("script") == 2
    assert parsed.scripts[1].rstrip().endswith("}")
    assert page.rstrip().endswith("</html>")


def test_tokens_are_text_and_never_markup(page):
    assert {"b"}.isdisjoint(Page(page).elements)
    assert "&lt;b&gt;bold&lt;/b&gt;" in props(page)[0]["tokens"]
    assert " &amp;amp;" in props(page)[0]["tokens"]
    assert "first &lt;of&gt; all" in page
    notebook = show(made_scores())._repr_html_()
    assert Page(notebook).elements.count("script") == 1
    assert "b" not in Page(notebook).elements


def test_a_view_holds_the_real_tokens_of_its_sequence():
    view = show(made_scores(), sequence=1)
    assert len(view.tokens) == 9
    assert view.values.shape == (9, 3)
    assert view.labels == ("layer 0", "layer 1", "layer 2")
    assert show(made_scores(), sequence=-1).sequence == 1
    assert "↵\n" in show(made_scores()).tokens
    assert "∅" in show(made_scores()).tokens


def test_values_are_distances_from_the_median_in_half_interquartile_ranges():
    scores = made_scores(batch=4, pos=50)
    for name in ("relative", "update", "raw"):
        values = tokens_view.centred(scores, name)
        low, median, high = values.flatten(1).nanquantile(torch.tensor([0.25, 0.5, 0.75]).double(), dim=1)
        assert torch.allclose(median, torch.zeros(3).double(), atol=1e-6)
        assert torch.allclose(high - low, torch.full((3,), 2.0).double(), atol=1e-5)
        plain = getattr(scores, name)[1, 2]
        assert torch.equal(values[1, 2].argsort(), plain.double().argsort())
    assert torch.equal(
        tokens_view.centred(scores, "raw", lookup=True).isnan(), tokens_view.centred(scores, "raw").isnan()
    )


def test_a_layer_whose_scores_are_all_equal_is_white():
    scores = made_scores()
    values = tokens_view.centred(replace(scores, relative=torch.ones_like(scores.relative)), "relative")
    assert set(values[~values.isnan()].tolist()) == {0.0}


def test_what_is_not_scored_is_nan_and_looks_so():
    scores = made_scores()
    few = scores.n_distinct.clone()
    few[0, 0, 3] = 2
    view = show(replace(scores, n_distinct=few), score="raw")
    assert view.values[:, 0].isnan().nonzero()[:, 0].tolist() == [0, 3]
    assert view.values[:, 1].isnan().nonzero()[:, 0].tolist() == [0]
    assert view._repr_html_().count('class="unscored"') == 2
    assert '"values": [[NaN, NaN, NaN], [' in view._repr_html_()


def test_layers_score_and_lookup_are_chosen():
    scores = made_scores()
    assert show(scores, layer=-1).labels == ("layer 2",)
    assert show(scores, layer=[2, 0]).labels == ("layer 2", "layer 0")
    assert torch.equal(show(scores, layer=2).values[1:, 0], show(scores).values[1:, 2])
    assert "how alike the block writes" in show(scores, score="update").caption
    assert "mostly repeats how dense" in show(scores, score="raw").caption
    assert "own contexts" in show(scores, lookup=True).caption


def test_without_strings_ids_are_shown_and_without_ids_positions():
    assert show(made_scores(strings=False), sequence=1).tokens[:3] == (" 0", " 1", " 2")
    assert show(made_scores(strings=False, batch=1), sequence=0).tokens[-1] == f" {len(WORDS) - 1}"
    assert show(made_scores(ids=False, pos=14)).tokens[-1] == " 13"


def test_a_long_result_is_cut_to_a_page_and_the_page_says_so(tmp_path):
    scores = made_scores(n_layers=1, batch=8, pos=1000)
    page = save_html(scores, tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(props(page)) == 5
    assert "3 of 8 sequences are not on this page" in page
    assert len(props(save_html(scores, tmp_path / "page.html", [7]).read_text(encoding="utf-8"))) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence": 2}, r"sequence=2 is out of range: there are 2 sequences, numbered 0 to 1"),
        ({"layer": 9}, r"layer=9 was not scored\. Scored: 0, 1, 2"),
        ({"layer": []}, r"layer is empty"),
        ({"score": "values"}, r"score='values' is not an option\. Possible: 'relative', 'update', 'raw'"),
    ],
)
def test_bad_input_is_explained(options, message):
    with pytest.raises(BasinsError, match=message):
        show(made_scores(), **options)


def test_lookup_that_is_not_there_is_explained():
    with pytest.raises(
        BasinsError, match=r"lookup=True shows the neighbours' cached outputs, and this result has none"
    ):
        show(made_scores(lookup=False), lookup=True)


def test_without_circuitsvis_the_install_command_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "circuitsvis", None)
    with pytest.raises(MissingExtra, match=r'circuitsvis is not installed.*pip install "compression-basins\[view\]"'):
        show(made_scores())
    with pytest.raises(MissingExtra):
        save_html(made_scores(), tmp_path / "page.html")


def test_a_failed_page_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokens_view.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_html(made_scores(), path)
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["page.html"]


def test_results_show_themselves():
    assert repr(made_scores().show(1, layer=0)) == "TokenView(sequence 1, 9 tokens, layer 0)"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_draws_the_page(page, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000", "--dump-dom"]
    drawn = subprocess.run(["chromium", *options, path.as_uri()], capture_output=True, text=True, timeout=120).stdout
    body = re.sub(r"<script.*?</script>", "", drawn, flags=re.DOTALL)
    assert body.count('class="colored-tokens"') == 2
    assert "&lt;b&gt;bold&lt;/b&gt;" in body
    assert 'class="still"' not in body
    assert "background-color: rgba(0, 0, 0, 0)" in body  # the mark by which STYLE finds tokens without a score
