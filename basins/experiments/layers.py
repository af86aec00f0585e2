"""What do a model's blocks do to neighbourhoods from layer to layer, apart from how dense they are?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from basins.experiments import layers_tables as tables
from basins.experiments.finding import Finding
from basins.experiments.layers_sample import measure_sample
from basins.experiments.layers_trends import depth_trend, sign_flips, signed_ranks, without_density
from basins.experiments.layers_words import THRESHOLDS, curves, read_out, verdicts
from basins.experiments.loaded import about_model, load_models
from basins.experiments.primary import PRIMARY, SCORER, in_words
from basins.experiments.score_store import ScoreStore
from basins.experiments.sequences import Sequences, sequences
from basins.experiments.token_columns import align, score_frame, token_facts
from basins.experiments.under_nulls import RANDOM, check_null_sizes
from basins.lens import check_layers
from basins.random_weights import random_weights
from basins.scorer import BasinScorer
from basins.scores import BasinScores
from basins.settings import versions, whole
from basins.sinks import sinks
from basins.stats.sample import LEAST_RESAMPLES

if TYPE_CHECKING:
    import pandas as pd

QUESTION = "What do a model's blocks do to neighbourhoods from layer to layer, apart from how dense they are?"
TABLES = ("profile", "correlations", "dimension", "overlap", "shares", "local", "sinks", "trends", "differences")


@dataclass(frozen=True, repr=False, kw_only=True)
class Layers(Finding):
    """What the experiment found: tidy tables with a column `model`; `random weights` is the first model, untrained.

    `profile`: mean, median and spread of scores and variances. `correlations`: of each score with density, neighbour
    distance and intrinsic dimension before the block. `dimension`: of each layer. `overlap`: of neighbourhoods between
    consecutive layers, and of re-run with lookup. `shares`: state, context and interaction (`basins.decomposition`).
    `local`: relative score against radius (`basins.local_limit`). `sinks`: attention sinks and massive activations.
    `trends`: scores along depth. `differences`: re-run less lookup. `curve`: mean relative scores, for a summary.
    """

    profile: pd.DataFrame
    correlations: pd.DataFrame
    dimension: pd.DataFrame
    overlap: pd.DataFrame
    shares: pd.DataFrame
    local: pd.DataFrame
    sinks: pd.DataFrame
    trends: pd.DataFrame
    differences: pd.DataFrame
    curve: pd.DataFrame

    def summary_tables(self) -> dict[str, pd.DataFrame]:
        """Title -> the tables that a terminal shows."""
        import pandas as pd

        first = next(iter(self.scores))
        wide: Any = self.profile[self.profile["model"] == first]
        wide = wide.pivot_table(index="layer", columns="quantity", values="mean", sort=False)
        shown = [PRIMARY, "relative, lookup", "update", "raw", "density"]
        shares: Any = self.shares[self.shares["model"] == first]
        shares = shares.pivot_table(index="layer", columns="part", values="share", sort=False)
        per_layer = pd.concat([wide[[name for name in shown if name in wide]], shares], axis=1).reset_index()
        verdicts: Any = self.verdicts
        columns = ["name", "grade", "layer", "r", "low", "high", "p_corrected", "second_model", "flags"]
        return {
            "Hypotheses": verdicts[columns],
            f"Layers of {first}: mean scores (nats), and shares of the variance of crossed outputs": per_layer,
        }


def layers(
    model: Any = "pocket",
    *,
    second_model: Any = "auto",
    texts: list[str] | str | None = None,
    limit: int | None = None,
    layers: Any = None,
    max_length: int = 128,
    sample: int = 48,
    null_rows: int = 12,
    k: int = SCORER["k"],
    n_resamples: int = 200,
    n_permutations: int = 1000,
    seed: int = 0,
    store: ScoreStore | None = None,
) -> Layers:
    """Profiles of scores, density, intrinsic dimension and neighbourhoods across a model's layers.

    Primary: the relative re-run score, which sets the block apart from the density before it. See `Layers`.

    Args:
        model: a loaded TransformerLens model, or a name, folder or file for `basins.load_model`.
        second_model: the model of the replication, None for none; "auto": pocket-mini for pocket, else none.
        texts: a list of texts, or what `basins.corpus.read_texts` takes; None: the held-out book shipped with basins.
        limit: only so many of the texts.
        layers: transitions, of the first model; None: all.
        max_length: tokens in a row; longer texts are cut into several.
        sample: tokens whose neighbours are put into each other's contexts, and moved towards them.
        null_rows: rows that the first model with random weights is scored on; 0: no such null.
        k: neighbours a token.
        n_resamples, n_permutations: of the intervals, and of the tests.
        seed: of every random choice. The same seed gives the same tables.
        store: scores that were computed before; None: none were.

    Raises BasinsError where the texts are too few, or a setting is off.
    """
    whole("sample", sample, 8, "it counts the tokens that costly measures are taken of.")
    check_null_sizes(null_rows, 1)
    whole("n_resamples", n_resamples, LEAST_RESAMPLES, "fewer give no interval.")
    loaded, store = load_models(model, second_model), store or ScoreStore()
    analysis: dict[str, Any] = SCORER | {"k": k, "seed": seed}
    statistics: dict[str, Any] = {"n_resamples": n_resamples, "n_permutations": n_permutations, "seed": seed}
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    frames: dict[str, pd.DataFrame] = {}
    scores: dict[str, BasinScores] = {}
    about: dict[str, Any] = {}
    for number, (name, one) in enumerate(loaded.items()):
        rows = sequences(one, texts, max_length, limit)
        wanted = check_layers(one, layers if number == 0 else None)
        scorer = BasinScorer(one, **analysis)
        scores[name] = store.score_batch(scorer, rows.batch, wanted)
        frames[name] = tables.with_dimension(score_frame(scores[name], token_facts(one, rows, wanted)), scores[name])
        measured = [_tables(scores[name], frames[name], statistics), _sampled(scorer, rows, wanted, sample, statistics)]
        measured.append({"sinks": sinks(one, rows.tokens, rows.mask, wanted)})
        for table, frame in ((table, frame) for found in measured for table, frame in found.items()):
            parts[table].append(frame.assign(model=name))
        if number == 0 and null_rows:
            for table, frame in _untrained(one, rows, wanted, analysis, null_rows, statistics, store).items():
                parts[table].append(frame.assign(model=RANDOM))
        about[name] = _about(scores[name], rows)
    import pandas as pd

    whole_tables: dict[str, Any] = {name: pd.concat(some, ignore_index=True) for name, some in parts.items()}
    settings = {
        "experiment": "layers",
        "question": QUESTION,
        "primary": f"{PRIMARY} re-run score ({in_words(analysis)})",
        "thresholds": THRESHOLDS,
        "curve": "mean relative score (nats)",
        "max_length": max_length,
        "limit": limit,
        "sample": sample,
        "null_rows": null_rows,
        **statistics,
        "models": about,
        "versions": versions(),
    }
    judged = verdicts(whole_tables, list(loaded), RANDOM)
    reading = read_out(whole_tables, judged, settings)
    curve = curves(whole_tables["profile"])
    return Layers(verdicts=judged, **whole_tables, curve=curve, tokens=frames, scores=scores, reading=reading,
        grade=str(judged["grade"].iloc[0]), settings=settings,
    )  # fmt: skip


def _tables(scores: BasinScores, frame: pd.DataFrame, statistics: dict[str, Any]) -> dict[str, Any]:
    """What follows from one scoring alone."""
    n_resamples, n_permutations, seed = (statistics[name] for name in ("n_resamples", "n_permutations", "seed"))
    return {
        "profile": tables.profile(frame, n_resamples, seed),
        "correlations": tables.correlations(frame, statistics),
        "dimension": tables.dimensions(scores, frame, n_resamples, seed),
        "overlap": tables.overlaps(scores, frame, n_resamples, seed),
        "trends": _trends(frame, statistics),
        "differences": _differences(frame, n_resamples, n_permutations, seed),
    }


def _trends(frame: pd.DataFrame, statistics: dict[str, Any]) -> pd.DataFrame:
    """One row a quantity: its trend along depth, and that of the relative score with density taken out."""
    import pandas as pd

    rows = []
    for quantity in (PRIMARY, "relative, lookup", "update", "density"):
        aligned = align(frame, [quantity, "density"])
        values = aligned.columns[quantity]
        rows.append({"quantity": quantity} | depth_trend(values, aligned.cluster, **statistics))
        if quantity == PRIMARY and len(values):
            left = without_density(values, aligned.columns["density"])
            rows.append({"quantity": f"{PRIMARY}, density out"} | depth_trend(left, aligned.cluster, **statistics))
    return pd.DataFrame(rows)


def _differences(frame: pd.DataFrame, n_resamples: int, n_permutations: int, seed: int) -> pd.DataFrame:
    """One row a layer: re-run less lookup relative score, as matched-pairs rank-biserial correlation and mean."""
    import pandas as pd

    aligned = align(frame, [tables.CONTEXTS])
    if not aligned.layers:
        return pd.DataFrame()
    values, cluster = aligned.columns[tables.CONTEXTS], aligned.cluster
    p, corrected = sign_flips(values, cluster, n_permutations, seed)
    rows = []
    for place, layer in enumerate(aligned.layers):
        found = signed_ranks(values[place], cluster, n_resamples=n_resamples, seed=seed)
        row = {"layer": layer, "mean": float(values[place].mean()), "n_tokens": values.shape[1]}
        rows.append(row | found | {"p": float(p[place]), "p_corrected": float(corrected[place])})
    return pd.DataFrame(rows)


def _sampled(
    scorer: BasinScorer, rows: Sequences, wanted: tuple[int, ...], sample: int, statistics: dict[str, Any]
) -> dict[str, Any]:
    found = measure_sample(scorer, rows, wanted, sample)
    n_resamples, seed = statistics["n_resamples"], statistics["seed"]
    after = tables.sampled_overlaps(found.after, found.cluster, scorer.settings.k, n_resamples, seed)
    shares = found.decomposition.shares(clusters=rows.cluster, n_resamples=n_resamples)
    local = found.local_limit.summary()
    return {"shares": shares, "local": local, "overlap": after}


def _untrained(
    model: Any, rows: Sequences, wanted: tuple[int, ...], analysis: dict[str, Any], n: int, statistics: Any, store: Any
) -> dict[str, Any]:
    """The same tables of some rows in a model of the same architecture that has learnt nothing."""
    some = rows.only(rows.sample(n, statistics["seed"]))
    null = random_weights(model, statistics["seed"])
    scores = store.score_batch(BasinScorer(null, **analysis), some.batch, wanted)
    frame = score_frame(scores, token_facts(null, some, wanted))
    few = statistics | {"n_resamples": min(100, statistics["n_resamples"])}
    return _tables(scores, tables.with_dimension(frame, scores), few)


def _about(scores: BasinScores, rows: Sequences) -> dict[str, Any]:
    return about_model(scores) | {
        "sequences": len(rows.batch),
        "clusters": int(rows.cluster.unique().numel()),
        "cluster": rows.unit,
        "tokens": int(rows.mask.sum()),
        "repeated_prefix_tokens": int(rows.repeated.sum()),
    }
