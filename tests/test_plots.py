from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from made_scores import made_scores

from basins import plots
from basins.errors import BasinsError, MissingExtra


def texts(figure) -> str:
    import matplotlib.text

    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def curves(axes) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def test_the_curves_are_the_medians_of_the_kept_tokens():
    scores = made_scores(n_layers=4, batch=6, pos=40)
    few = scores.n_distinct.clone()
    few[2, 0, 5] = 2
    scores = replace(scores, n_distinct=few)
    figure = plots.plot_layers(scores)
    wanted = scores.summary()
    for axes, name in zip(figure.axes, ("relative", "update", "raw"), strict=True):
        at, median = curves(axes)["re-run"]
        assert at == [0, 1, 2, 3]
        assert median == pytest.approx(wanted[name].tolist(), rel=1e-5)
    assert curves(figure.axes[2])["density before the block"][1] == pytest.approx(wanted["density"].tolist(), rel=1e-5)


def test_axes_say_what_they_show_in_nats():
    figure = plots.plot_layers(made_scores())
    assert all("(nats)" in axes.get_ylabel() for axes in figure.axes)
    assert figure.axes[-1].get_xlabel() == "layer (transition L to L+1)"
    assert "density" in figure.axes[2].get_title(loc="left")
    assert figure.get_figwidth() == pytest.approx(3.4)
    assert plots.plot_layers(made_scores(), wide=True).get_figwidth() == pytest.approx(10)


def test_what_is_left_out_is_counted():
    scores = made_scores()
    assert "left out: 2 first positions, 0 with fewer than 3 distinct states" in texts(
        plots.plot_layers(scores)
    ).replace("\n", " ")
    few = scores.n_distinct.clone()
    few[1, 0, 3:6] = 2
    assert "up to 3 with fewer than 3 distinct states" in texts(
        plots.plot_layers(replace(scores, n_distinct=few))
    ).replace("\n", " ")


def test_rerun_and_lookup_stand_side_by_side_where_both_are_known():
    assert {"re-run", "lookup"} <= set(curves(plots.plot_layers(made_scores()).axes[0]))
    assert set(curves(plots.plot_layers(made_scores(lookup=False)).axes[0])) == {"re-run"}
    assert set(curves(plots.plot_layers(made_scores(lookup=False, method="lookup")).axes[0])) == {"lookup"}


def test_curves_differ_by_more_than_color():
    lines = plots.plot_layers(made_scores()).axes[2].get_lines()
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == len(lines) == 3


def test_a_first_layer_far_off_is_given_in_words():
    scores = made_scores(n_layers=4)
    relative = scores.relative.clone()
    relative[0] -= 100
    figure = plots.plot_layers(replace(scores, relative=relative))
    assert curves(figure.axes[0])["re-run"][0] == [1, 2, 3]
    assert curves(figure.axes[1])["re-run"][0] == [0, 1, 2, 3]
    median = float(relative[0][scores.n_distinct[0] >= 3].quantile(0.5))
    assert f"off scale, layer 0: re-run {median:.1f}".replace(" -", f" {plots.MINUS}") in texts(figure)


def test_layers_can_be_chosen_and_may_have_gaps():
    figure = plots.plot_layers(made_scores(n_layers=5), layers=[0, 2, -1])
    assert curves(figure.axes[0])["re-run"][0] == [0, 2, 4]
    assert curves(plots.plot_layers(made_scores(), layers=1).axes[0])["re-run"][0] == [1]
    with pytest.raises(BasinsError, match=r"layer=9 was not scored\. Scored: 0, 1, 2"):
        plots.plot_layers(made_scores(), layers=9)
    with pytest.raises(BasinsError, match="layers is empty"):
        plots.plot_layers(made_scores(), layers=[])


def test_a_layer_without_a_kept_token_leaves_a_gap_and_no_error():
    scores = made_scores()
    few = scores.n_distinct.clone()
    few[1] = 1
    figure = plots.plot_layers(replace(scores, n_distinct=few))
    assert torch.tensor(curves(figure.axes[0])["re-run"][1]).isnan().tolist() == [False, True, False]
    figure.canvas.draw()


def test_scatter_shows_each_kept_token_once_and_says_rho():
    scores = made_scores(n_layers=2, batch=4, pos=30)
    figure = plots.plot_scatter(scores, 1)
    kept = int((scores.n_distinct[1] >= 3).sum())
    assert [len(axes.collections[0].get_offsets()) for axes in figure.axes] == [kept, kept]
    rho = scores.summary()["rho(raw, density)"][1]
    assert f"{plots.RHO} = {rho:.2f}" in figure.axes[0].get_title(loc="left")
    assert len(plots.plot_scatter(made_scores(lookup=False), -1).axes) == 1


def test_figures_show_themselves_in_notebooks_without_pyplot():
    loaded = "matplotlib.pyplot" in sys.modules
    assert plots.plot_layers(made_scores())._repr_png_().startswith(b"\x89PNG")
    assert ("matplotlib.pyplot" in sys.modules) == loaded


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_figures_are_saved_by_suffix(tmp_path, suffix):
    assert plots.save(plots.plot_layers(made_scores()), tmp_path / f"layers.{suffix}").stat().st_size > 5_000


def test_without_matplotlib_the_install_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r'matplotlib is not installed.*pip install "compression-basins\[view\]"'):
        plots.plot_layers(made_scores())


def test_results_plot_themselves():
    assert len(made_scores().plot_layers(wide=True).axes) == 3
