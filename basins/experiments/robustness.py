"""Does a finding survive the method's own choices, and do nulls show it too?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from basins.errors import BasinsError
from basins.experiments.finding import Finding
from basins.experiments.frames import where
from basins.experiments.loaded import load_models
from basins.experiments.null_verdicts import judge_nulls
from basins.experiments.primary import PRIMARY, SCORER, in_words
from basins.experiments.robustness_replica import about, replica, replicated
from basins.experiments.robustness_subject import read_measure, subject
from basins.experiments.robustness_tokens import noise_share, token_table
from basins.experiments.robustness_variations import DEFAULT, vary
from basins.experiments.robustness_words import THRESHOLDS, read_out, verdict
from basins.experiments.score_store import ScoreStore
from basins.experiments.sequences import sequences
from basins.experiments.token_columns import KEY, join
from basins.experiments.under_nulls import effects_under_nulls
from basins.lens import check_layers
from basins.settings import versions, whole
from basins.stats.sample import LEAST_RESAMPLES

if TYPE_CHECKING:
    import pandas as pd

QUESTION = "Does a finding survive the method's own choices, and do nulls show it too?"
# What is left in to see what its removal takes.
REMOVED = {"density": ("density",), "frequency and position": ("log_frequency", "position", "position_bend")}


@dataclass(frozen=True, repr=False, kw_only=True)
class Robustness(Finding):
    """What the experiment found. Every table is tidy; `reading` says it in a paragraph.

    `effects`: the finding (rank correlation of each score with the measure, confounds removed) by default and under
    every variation; rows of kind "default", "setting", "text" and "left in" (a confound that is not removed).
    `agreement`: Spearman's rho of token scores with the default's, a row a variation and layer. `nulls`: a row a null
    at the finding's layer. `null_effects`, `spreads`: each null at every layer, and how far relative scores spread.
    `token_tests`: tokens against 999 transplanted scores, with their jackknife error. `curve`: the finding across
    layers. `verdicts`: one row.
    """

    effects: pd.DataFrame
    agreement: pd.DataFrame
    nulls: pd.DataFrame
    null_effects: pd.DataFrame
    spreads: pd.DataFrame
    token_tests: pd.DataFrame
    curve: pd.DataFrame

    def summary_tables(self) -> dict[str, pd.DataFrame]:
        """Title -> the tables that a terminal shows."""
        row, judged = self.verdicts.iloc[0], cast("Any", self.verdicts)
        name = next(iter(self.settings["models"]))
        varied = where(self.effects, model=name, layer=row["layer"], score=PRIMARY)
        agreement: Any = where(self.agreement, model=name)
        ranks = agreement.groupby("variation", sort=False)[["relative", "update", "raw"]].median()
        shown = varied[["variation", "effect", "low", "high"]].merge(
            ranks.reset_index(), how="left", on="variation", validate="many_to_one"
        )
        under_null = ["null", "effect", "low", "high", "spread_of_default", "rho_raw_density", "shows"]
        columns = ["name", "grade", "layer", "r", "low", "high", "p_corrected", "second_model", "flags"]
        return {
            "The finding": judged[columns],
            "Under every variation: effect, and median rank correlation of token scores with the default's": shown,
            "Under every null": cast("Any", self.nulls)[under_null],
        }


def robustness(
    model: Any = "pocket",
    *,
    second_model: Any = "auto",
    texts: list[str] | str | None = None,
    limit: int | None = None,
    measure: str | pd.DataFrame = "loss",
    layer: int | None = None,
    layers: Any = None,
    max_length: int = 128,
    sample_rows: int | None = 20,
    weight_draws: int = 3,
    tested_tokens: int = 15,
    n_draws: int = 999,
    k: int = SCORER["k"],
    n_resamples: int = 200,
    n_permutations: int = 1000,
    seed: int = 0,
    store: ScoreStore | None = None,
) -> Robustness:
    """One finding under every choice of the method, under nulls, on other text and on a second model.

    The finding is the rank correlation of the relative re-run score with `measure` at `layer`, the other confounds
    removed. Variations change one setting at a time and are run at three layers (the finding's, and two at a quarter
    and three quarters of the depth); nulls at all `layers`. See `basins.nulls` for the nulls.

    Args:
        model: a loaded TransformerLens model, or a name, folder or file for `basins.load_model`.
        second_model: the model of the replication, None for none; "auto": pocket-mini for pocket, else none.
        texts: a list of texts, or what `basins.corpus.read_texts` takes; None: the held-out book shipped with basins.
        limit: only so many of the texts.
        measure: "loss", "log_frequency", "position", or a frame with sequence, position, perhaps layer, and one column
            of values of any name (0/1 for a contrast). Sequences are numbered as in
            `basins.experiments.sequences.sequences(model, texts, max_length, limit)`.
        layer: the finding's transition; None: the one with the largest effect by default.
        layers: transitions of the first model; None: all.
        max_length: tokens in a row; longer texts are cut into several.
        sample_rows: rows that are scored, spread over the texts; None: all. The others are the "other text".
        weight_draws: models with random weights.
        tested_tokens, n_draws: tokens a layer that get a p-value, and transplanted scores for each.
        k: neighbours a token.
        n_resamples, n_permutations: of the intervals, and of the tests.
        seed: of every random choice. The same seed gives the same tables.
        store: scores computed before, or None.

    Raises BasinsError where the texts are too few, or a setting is off.
    """
    for name, value, least in (("weight_draws", weight_draws, 1), ("tested_tokens", tested_tokens, 1)):
        whole(name, value, least, "it sizes a null.")
    whole("n_draws", n_draws, 39, "with fewer draws no two-sided p-value is below 0.05.")
    whole("n_resamples", n_resamples, LEAST_RESAMPLES, "fewer give no interval.")
    if sample_rows is not None:
        whole("sample_rows", sample_rows, 4, "neighbours come from other sequences.")
    compared = read_measure(measure)
    loaded = load_models(model, second_model)
    store = store or ScoreStore()
    analysis: dict[str, Any] = SCORER | {"k": k, "seed": seed}
    statistics: dict[str, Any] = {"n_resamples": n_resamples, "n_permutations": n_permutations, "seed": seed}
    name, first = next(iter(loaded.items()))
    rows = sequences(first, texts, max_length, limit)
    wanted = check_layers(first, layers)
    everything = torch.arange(len(rows.batch))
    pick = everything if sample_rows is None else rows.sample(sample_rows, seed)
    of = subject(first, rows, pick, wanted, compared, analysis, statistics, store)
    default = of.score()
    frame = of.frame(default)
    effects = of.effects(frame)
    at = _layer(effects, first, layer)
    row: dict[str, Any] = where(effects, layer=at, score=PRIMARY).iloc[0].to_dict()
    few = _few_layers(wanted, at)
    agreement, varied = vary(of, default, few)
    null_effects, spreads = effects_under_nulls(of, default, weight_draws, of.effects)
    tests = token_table(of, default, few, tested_tokens, n_draws)
    left_in = {
        said: of.effects(frame, [at], [c for c in compared.confounds if c not in out]) for said, out in REMOVED.items()
    }
    parts = [effects.assign(model=name, variation=DEFAULT, kind="default"), varied.assign(model=name)]
    parts += [part.assign(model=name, variation=f"{said} left in", kind="left in") for said, part in left_in.items()]
    frames, scores = {name: _with_tests(frame, tests)}, {name: default}
    models = {name: about(of)}
    second: pd.DataFrame | None = None
    for other, one in list(loaded.items())[1:]:
        again = replica(of, one, texts, max_length, limit, sample_rows)
        models[other] = {"not_run": again} if isinstance(again, str) else about(again)
        if isinstance(again, str):
            continue
        scores[other] = again.score()
        frames[other] = again.frame(scores[other])
        second, said = replicated(again, frames[other])
        parts.append(said.assign(model=other))
    import pandas as pd

    noise = noise_share(tests, frame, at)
    tables: dict[str, Any] = {
        "effects": _front(pd.concat(parts, ignore_index=True), "model", "variation", "kind"),
        "agreement": _front(agreement.assign(model=name), "model"),
        "nulls": judge_nulls(where(null_effects, score=PRIMARY), spreads, row["effect"], at),
        "null_effects": null_effects,
        "spreads": spreads,
        "token_tests": tests,
    }
    removed = {said: where(part, score=PRIMARY).iloc[0].to_dict() for said, part in left_in.items()}
    at_layer = where(varied, layer=at, score=PRIMARY)
    hypothesis = f"relative score and {compared.name}"
    judged = verdict(hypothesis, row, at_layer, tables["nulls"], removed, noise, second)
    settings = {
        "experiment": "robustness",
        "question": QUESTION,
        "primary": f"{PRIMARY} re-run score ({in_words(analysis)})",
        "thresholds": THRESHOLDS,
        "curve": f"rank correlation of the relative score with {compared.name}, confounds removed",
        "measure": compared.name,
        "confounds": compared.confounds,
        "layer": at,
        "layer_chosen": layer is None,
        "varied_layers": list(few),
        "max_length": max_length,
        "limit": limit,
        "sample_rows": sample_rows,
        "weight_draws": weight_draws,
        "tested_tokens": tested_tokens,
        "n_draws": n_draws,
        "noise_share": noise,
        **statistics,
        "models": models,
        "versions": versions(),
    }
    reading = read_out(tables, judged, settings, noise)
    curve = _curve(tables["effects"], null_effects, name)
    return Robustness(
        **tables,
        curve=curve,
        verdicts=judged,
        tokens=frames,
        scores=scores,
        reading=reading,
        grade=judged["grade"].iloc[0],
        settings=settings,
    )


def _layer(effects: Any, model: Any, layer: int | None) -> int:
    """The finding's layer: the one given, or where the relative score's effect is largest."""
    if layer is not None:
        chosen = check_layers(model, layer)[0]
        if chosen in set(effects["layer"]):
            return chosen
        raise BasinsError(
            f"layer={layer} has no effect to defend: it is not among `layers`, or fewer than half of its tokens can be "
            f"compared. Possible: {', '.join(str(one) for one in effects['layer'].unique())}."
        )
    sizes = where(effects, score=PRIMARY).set_index("layer")["effect"].abs().dropna()
    if sizes.empty:
        raise BasinsError("no layer has an effect: the measure or the scores are constant, or confounds explain them.")
    return int(sizes.idxmax())


def _few_layers(layers: tuple[int, ...], at: int) -> tuple[int, ...]:
    return tuple(sorted({at, layers[len(layers) // 4], layers[3 * len(layers) // 4]}))


def _with_tests(frame: Any, tests: Any) -> Any:
    """The tokens with what was tested of some of them."""
    return join(frame, tests[[*KEY, "se", "null_median", "p", "p_corrected"]])


def _front(frame: Any, *first: str) -> Any:
    return frame[[*first, *[name for name in frame if name not in first]]]


def _curve(effects: Any, null_effects: Any, name: str) -> pd.DataFrame:
    """The finding across layers, of both models and under every null; of random weights the range over the draws."""
    import pandas as pd

    own = where(effects, kind="default", score=PRIMARY)
    columns = ["model", "layer", "line", "estimate", "low", "high"]
    parts = [own.assign(line="relative", estimate=own["effect"])[columns]]
    for null, rows in where(null_effects, score=PRIMARY).groupby("null", sort=False):
        grouped = rows.groupby("layer")
        several = rows["draw"].max() > 0
        low, high = ("effect", "effect") if several else ("low", "high")
        line = pd.DataFrame({"estimate": grouped["effect"].median(), "low": grouped[low].min()})
        line = line.assign(high=grouped[high].max(), line=null, model=name).reset_index()
        parts.append(line[columns])
    return pd.concat(parts, ignore_index=True)
