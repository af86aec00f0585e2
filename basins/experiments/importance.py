"""Do tokens that matter to the model sit where its blocks compress less?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from basins.experiments import importance_tables as tables
from basins.experiments.finding import Finding
from basins.experiments.importance_measures import SIGNED, check_methods, measure
from basins.experiments.importance_words import THRESHOLDS, read_out, verdicts
from basins.experiments.loaded import about_model, load_models
from basins.experiments.null_verdicts import in_words as null_words
from basins.experiments.null_verdicts import judge_all
from basins.experiments.primary import PRIMARY, SCORER, SCORES, in_words
from basins.experiments.score_store import ScoreStore
from basins.experiments.sequences import Sequences, sequences
from basins.experiments.text_sample import TextSample
from basins.experiments.token_columns import CONFOUNDS, KEY, column_frame, join, score_frame, token_facts
from basins.experiments.under_nulls import check_null_sizes, effects_under_nulls
from basins.lens import check_layers
from basins.scorer import BasinScorer
from basins.scores import BasinScores
from basins.settings import versions, whole
from basins.stats.sample import LEAST_RESAMPLES

if TYPE_CHECKING:
    import pandas as pd

# Of a half only the sign and the p count, so its intervals are rough.
FOR_HALVES = {"n_resamples": 100}
# Of a null only the effect and its interval count, not the p.
FOR_NULLS = {"n_permutations": 100}
QUESTION = "Do tokens that matter to the model sit where its blocks compress less?"


@dataclass(frozen=True, repr=False, kw_only=True)
class Importance(Finding):
    """What the experiment found. Every table is tidy; `reading` says it in a paragraph, also when it is nothing.

    `correlations`: a row for each model, part (all, half 1, half 2), layer, score and method: Spearman's rho and the
    rank correlation left when the confounds are removed (`partial`), each with its interval; `p` by rotating sequences,
    `p_corrected` by max-T over everything of the model, `q` by Benjamini-Hochberg. `quartiles`: mean relative score in
    the quarters of importance. `agreement`: each method against ablation. `nulls`: a row for each method and null, at
    the layer of the method's grade. `verdicts`: a row a method. `tokens`: for each model all columns, joined on (layer,
    sequence, position).
    """

    correlations: pd.DataFrame
    quartiles: pd.DataFrame
    agreement: pd.DataFrame
    nulls: pd.DataFrame

    def mean_agreement(self) -> pd.DataFrame:
        """Each method's rank correlation with ablation, averaged over layers: a row for each model and method."""
        table: Any = self.agreement
        return table.groupby(["model", "method"], sort=False)[["rho", "rho_signed"]].mean().reset_index()

    def summary_tables(self) -> dict[str, pd.DataFrame]:
        """Title -> the tables that a terminal shows."""
        verdicts: Any = self.verdicts
        interval = [f"{low:.2f} to {high:.2f}" for low, high in zip(verdicts["low"], verdicts["high"], strict=True)]
        shown = verdicts.assign(interval=interval, compressed=verdicts["direction"].str.split().str[0])
        columns = ["method", "grade", "layer", "partial", "interval", "p_corrected", "halves", "second_model"]
        columns += [name for name in ("nulls",) if name in shown]
        title = "Each measure at the layer of its grade: rank correlation with the relative score, confounds removed"
        tables = {title: shown[[*columns, "compressed"]]}
        if len(self.agreement):
            tables["Each measure against ablation: rank correlation, mean over layers"] = self.mean_agreement()
        return tables


def importance(
    model: Any = "pocket",
    *,
    second_model: Any = "auto",
    texts: list[str] | str | None = None,
    limit: int | None = None,
    layers: Any = None,
    methods: list[str] | None = None,
    max_length: int = 128,
    sample_rows: int = 12,
    ablated: int = 160,
    steps: int = 8,
    k: int = SCORER["k"],
    n_resamples: int = 300,
    n_permutations: int = 2000,
    null_rows: int = 20,
    weight_draws: int = 3,
    seed: int = 0,
    store: ScoreStore | None = None,
) -> Importance:
    """Compression scores against every importance measure, at every layer.

    Primary: the relative re-run score against each measure, as rank correlation with the confounds removed (density
    before the block, position, token frequency, the token's loss, its state's norm). Secondary: update and raw scores,
    and all three by lookup. The other analyses are in the tables of `Importance`.

    Args:
        model: a loaded TransformerLens model, or a name, folder or file for `basins.load_model`.
        second_model: the model of the replication, None for none; "auto": pocket-mini for pocket, else none. Without
            one no result is called strong.
        texts: a list of texts, or what `basins.corpus.read_texts` takes; None: the held-out book shipped with basins.
        limit: only so many of the texts.
        layers: transitions, of the first model; None: all.
        methods: importance measures; None: all of `basins.attribution.METHODS`.
        max_length: tokens in a row; longer texts are cut into several.
        sample_rows, ablated, steps: integrated gradients take `steps` points on `sample_rows` rows, of which `ablated`
            tokens are ablated; in models of more than 12 layers at 8 of them.
        k: neighbours a token.
        n_resamples, n_permutations: of the intervals, and of the tests.
        null_rows, weight_draws: rows that are scored under every null, and models with random weights; 0 rows: no
            nulls.
        seed: of every random choice. The same seed gives the same tables.
        store: scores that other experiments have computed already.

    Raises BasinsError where the texts are too few, or a setting is off.
    """
    for name, value, least in (("sample_rows", sample_rows, 4), ("ablated", ablated, 8), ("steps", steps, 1)):
        whole(name, value, least, "it sizes the sample that costly methods are measured on.")
    check_null_sizes(null_rows, weight_draws)
    whole("n_resamples", n_resamples, LEAST_RESAMPLES, "fewer give no interval.")
    chosen = check_methods(methods)
    loaded = load_models(model, second_model)
    store = store or ScoreStore()
    frames: dict[str, pd.DataFrame] = {}
    scores: dict[str, BasinScores] = {}
    about: dict[str, Any] = {}
    parts: list[pd.DataFrame] = []
    quartiles: list[pd.DataFrame] = []
    agreement: list[pd.DataFrame] = []
    analysis: dict[str, Any] = SCORER | {"k": k, "seed": seed}
    statistics: dict[str, Any] = {"n_resamples": n_resamples, "n_permutations": n_permutations, "seed": seed}
    under: tuple[Any, Any, Any] | None = None
    for number, (name, one) in enumerate(loaded.items()):
        rows = sequences(one, texts, max_length, limit)
        wanted = check_layers(one, layers if number == 0 else None)
        scorer = BasinScorer(one, **analysis)
        scores[name] = store.score_batch(scorer, rows.batch, wanted)
        facts = token_facts(one, rows, wanted)
        frame = score_frame(scores[name], facts)
        sample = rows.sample(sample_rows, seed)
        found, said = measure(scorer, rows, chosen, wanted, rows=sample, ablated=ablated, steps=steps)
        for method, (values, at, on) in found.items():
            frame = join(frame, column_frame(values, method, at, on))
        frames[name] = frame
        here, left_out = tables.correlations(frame, chosen, statistics)
        parts.append(here.assign(model=name, part="all"))
        for part, half in enumerate(rows.halves(seed), 1):
            rescored = _rescored(store, scorer, rows, half, facts, frame[[*KEY, *chosen]])
            halved, _ = tables.correlations(rescored, chosen, statistics | FOR_HALVES, (PRIMARY,))
            parts.append(halved.assign(model=name, part=f"half {part}"))
        if number == 0 and null_rows:
            # The rows of costly methods are among them: a sample of more rows holds those of fewer.
            pick = rows.sample(max(null_rows, sample_rows), seed)
            known = facts.merge(frame[[*KEY, *chosen]], on=KEY, how="left", validate="one_to_one")
            of = TextSample(model=one, rows=rows, pick=pick, layers=wanted, facts=known, analysis=analysis, seed=seed,
                store=store)  # fmt: skip
            under = _under_nulls(of, chosen, statistics | FOR_NULLS, weight_draws)
        quartiles.append(tables.quartiles(frame, chosen, seed).assign(model=name))
        agreement.append(tables.agreement(frame, chosen, seed).assign(model=name))
        about[name] = _about(scores[name], rows, left_out) | said
    import pandas as pd

    correlations: Any = pd.concat(parts, ignore_index=True)
    correlations = correlations[["model", "part", *[c for c in correlations if c not in ("model", "part")]]]
    judged = verdicts(correlations, chosen, list(loaded))
    judged, nulls = judge_all(judged, "partial", *under) if under is not None else (judged, pd.DataFrame())
    settings = {
        "experiment": "importance",
        "question": QUESTION,
        "primary": f"{PRIMARY} re-run score ({in_words(analysis)})",
        "thresholds": THRESHOLDS,
        "confounds": CONFOUNDS,
        "signed_methods_compared_by_size": [method for method in SIGNED if method in chosen],
        "methods": chosen,
        "max_length": max_length,
        "limit": limit,
        "sample_rows": sample_rows,
        "ablated": ablated,
        "steps": steps,
        "null_rows": null_rows,
        "weight_draws": weight_draws,
        **statistics,
        "models": about,
        "versions": versions(),
    }
    merged = {
        "quartiles": pd.concat(quartiles, ignore_index=True),
        "agreement": pd.concat(agreement, ignore_index=True),
        "nulls": nulls,
    }
    said = [read_out(correlations, merged["agreement"], judged, settings), null_words(judged)]
    reading = " ".join(filter(None, said))
    grade = judged["grade"].iloc[0] if len(judged) else "none"
    return Importance(
        correlations=correlations,
        **merged,
        verdicts=judged,
        tokens=frames,
        scores=scores,
        reading=reading,
        grade=grade,
        settings=settings,
    )


def _under_nulls(
    of: TextSample, chosen: list[str], statistics: dict[str, Any], draws: int
) -> tuple[Any, pd.DataFrame, pd.DataFrame]:
    """The primary correlations of a sample of the rows, scored on its own: (as they are, under nulls, spreads)."""
    default = of.score()

    def effects(frame: Any) -> Any:
        found, _ = tables.correlations(frame, chosen, statistics, (PRIMARY,))
        named = {"method": "name", "partial": "effect", "partial_low": "low", "partial_high": "high"}
        return found.rename(columns=named)[["name", "layer", "effect", "low", "high", "n_tokens"]]

    return effects(of.frame(default)), *effects_under_nulls(of, default, draws, effects)


def _rescored(
    store: ScoreStore, scorer: BasinScorer, rows: Sequences, half: Any, facts: pd.DataFrame, measured: Any
) -> Any:
    """One half of the text scored on its own: its neighbours, and so its scores, owe nothing to the other half."""
    layers = tuple(int(layer) for layer in facts["layer"].unique())
    scores = store.score(scorer, rows.tokens[half], rows.mask[half], layers)
    return join(score_frame(scores, facts, half), measured)


def _about(scores: BasinScores, rows: Sequences, left_out: dict[str, list[int]]) -> dict[str, Any]:
    return about_model(scores) | {
        "sequences": len(rows.batch),
        "clusters": int(rows.cluster.unique().numel()),
        "cluster": rows.unit,
        "tokens": int(rows.mask.sum()),
        "repeated_prefix_tokens": int(rows.repeated.sum()),
        "layers_left_out": left_out,
        "scores": list(SCORES),
    }
