from __future__ import annotations

import pytest
import torch
from made_scores import made_scores

from basins import demo, pocket
from basins.errors import BasinsError


def test_the_demo_is_large_enough_and_states_its_analysis():
    passages = [passage for dose in demo.DOSES for passage in demo._of_dose(dose)]
    assert len(passages) == len(demo.DOSES) * demo.PASSAGES
    tokenizer = pocket.load_tokenizer()
    texts = [*pocket.demo_text()[: demo.PARAGRAPHS], *(passage.text for passage in passages)]
    assert sum(len(ids) for ids in tokenizer(texts)["input_ids"]) >= 2000
    assert demo.ANALYSIS["neighbors"] == "cross_sequence"
    assert demo.ANALYSIS["exclude_first"] == 1
    assert demo.ANALYSIS["method"] == "rerun"


def test_doses_are_compared_with_the_controls_layer_by_layer():
    scores = made_scores(n_layers=3, batch=len(demo.DOSES), pos=30)
    doses = torch.tensor(demo.DOSES)
    losses = torch.arange(float(len(doses)))[:, None].expand(-1, 30)
    frame = demo.dose_table(scores, doses, losses)
    assert frame["dose"].tolist() == list(demo.DOSES)
    assert frame["loss"].tolist() == [float(i) for i in range(len(doses))]
    assert frame.loc[0, ["relative", "update", "raw", "density"]].tolist() == [0, 0, 0, 0]
    by_layer = demo.dose_by_layer(scores, doses)
    difference = (by_layer.loc[3] - by_layer.loc[0])[["layer 1", "layer 2"]].mean()
    assert frame.loc[3, "relative"] == pytest.approx(difference, abs=1e-6)


def test_only_models_with_planted_passages_have_a_demo():
    with pytest.raises(BasinsError, match=r"model='gpt2' is not an option\. Possible: 'pocket', 'pocket-mini'"):
        demo.run_demo("gpt2")
