"""Do a model's blocks treat parts of speech differently?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basins.errors import BasinsError
from basins.experiments import linguistic_tables as tables
from basins.experiments.finding import Finding
from basins.experiments.frames import where
from basins.experiments.linguistic_tokens import (
    CONFOUNDS,
    LEAST,
    full_layers,
    mark,
    tagged_rows,
    with_words,
    word_frame,
)
from basins.experiments.linguistic_words import THRESHOLDS, effects, read_out, verdicts
from basins.experiments.loaded import about_model, load_models
from basins.experiments.null_verdicts import flagged, judge_all
from basins.experiments.null_verdicts import in_words as null_words
from basins.experiments.primary import PRIMARY, SCORER, SCORES, in_words
from basins.experiments.score_store import ScoreStore
from basins.experiments.text_sample import TextSample
from basins.experiments.token_columns import score_frame, token_facts
from basins.experiments.under_nulls import check_null_sizes, effects_under_nulls
from basins.lens import check_layers
from basins.scorer import BasinScorer
from basins.scores import BasinScores
from basins.settings import versions, whole
from basins.stats.sample import LEAST_RESAMPLES
from basins.tagged_texts import read_tagged
from basins.words import CONTENT, FUNCTION, NOUNS, PUNCTUATION, VERBS, Tagged, TaggedText, describe

if TYPE_CHECKING:
    import pandas as pd

QUESTION = "Do a model's blocks compress parts of speech differently?"


@dataclass(frozen=True, repr=False, kw_only=True)
class Linguistic(Finding):
    """What the experiment found. Every table is tidy; `reading` says it in a paragraph, also when it is nothing.

    `means`: count, mean and interval of every score for each model, layer and tag. `tests_of_tags`: ANOVA,
    Kruskal-Wallis, and what tags explain beyond the confounds. `contrasts`: function against content words and nouns
    against verbs, before and after the confounds. `effects`: both in units of correlation. `nulls`: a row for each
    hypothesis and null, at the layer of the hypothesis's grade. `verdicts`: a row a hypothesis. `alignment`: what
    became of tokens and words. `curve`: the primary effects across layers. `tokens`: for each model all columns of
    every (layer, sequence, position); `tested` marks those that take part.
    """

    means: pd.DataFrame
    tests_of_tags: pd.DataFrame
    contrasts: pd.DataFrame
    effects: pd.DataFrame
    alignment: pd.DataFrame
    nulls: pd.DataFrame
    curve: pd.DataFrame

    def summary_tables(self) -> dict[str, pd.DataFrame]:
        """Title -> the tables that a terminal shows."""
        judged: Any = self.verdicts
        counts = self.alignment.set_index("model").T.rename_axis(index="tokens and words", columns=None)
        interval = [f"{low:.2f} to {high:.2f}" for low, high in zip(judged["low"], judged["high"], strict=True)]
        columns = [
            "name",
            "grade",
            "layer",
            "r_plain",
            "r_density",
            "r",
            "interval",
            "p_corrected",
            "second_model",
            "flags",
        ]
        title = "Each hypothesis at the layer of its grade: correlation with the relative score, confounds removed"
        return {title: judged.assign(interval=interval)[columns], "Tokens and words": counts.reset_index()}


def linguistic(
    model: Any = "pocket",
    *,
    second_model: Any = "auto",
    texts: Tagged | Sequence[TaggedText] | Sequence[str] | str | Path | None = None,
    limit: int | None = None,
    layers: Any = None,
    pieces: str = "first",
    max_length: int = 128,
    k: int = SCORER["k"],
    n_resamples: int = 300,
    null_rows: int = 20,
    weight_draws: int = 3,
    seed: int = 0,
    store: ScoreStore | None = None,
) -> Linguistic:
    """Compression scores by part of speech, at every layer.

    Primary: the relative re-run score of function against content words, nouns against verbs, and all tags at once,
    with density before the block, token frequency, position, word length and number of pieces removed; errors and
    intervals know sentences. Secondary: update and raw scores, all three by lookup, and the density itself.

    Args:
        model: a loaded TransformerLens model, or a name, folder or file for `basins.load_model`.
        second_model: the model of the replication, None for none; "auto": pocket-mini for pocket, else none. Without
            one no result is called strong.
        texts: what `basins.tagged_texts.read_tagged` takes: a .conllu file, "ptb", any texts (tagged by NLTK), tagged
            texts of your own; None: the shipped book with the tags shipped beside it.
        limit: only so many of the texts (documents, in a treebank).
        layers: transitions, of the first model; None: all.
        pieces: which token stands for a word of several: "first", "last" or "every" (see `basins.alignment`).
        max_length: tokens in a row; longer texts are cut into several.
        k: neighbours a token.
        n_resamples: of the intervals and permutations of the primary score; the others have 100.
        null_rows, weight_draws: rows that are scored under every null, and models with random weights; 0 rows: no
            nulls.
        seed: of every random choice. The same seed gives the same tables.
        store: scores that other experiments computed; None: a new one.

    Raises BasinsError where the texts are too few, NLTK's data is missing, or a setting is off.
    """
    import pandas as pd

    check_null_sizes(null_rows, weight_draws)
    whole("n_resamples", n_resamples, LEAST_RESAMPLES, "fewer give no interval.")
    tagged = read_tagged("pocket-demo" if texts is None else texts, limit)
    store = store or ScoreStore()
    loaded = load_models(model, second_model)
    analysis: dict[str, Any] = SCORER | {"k": k, "seed": seed}
    frames: dict[str, pd.DataFrame] = {}
    scores: dict[str, BasinScores] = {}
    about: dict[str, Any] = {}
    parts: dict[str, list[pd.DataFrame]] = {"means": [], "tests": [], "contrasts": [], "alignment": []}
    samples: list[TextSample] = []
    for number, (name, one) in enumerate(loaded.items()):
        rows, alignment = tagged_rows(one, tagged, max_length, pieces)
        wanted = check_layers(one, layers if number == 0 else None)
        scorer = BasinScorer(one, **analysis)
        scores[name] = store.score_batch(scorer, rows.batch, wanted)
        facts = with_words(token_facts(one, rows, wanted), word_frame(rows, alignment, tagged))
        frames[name], few = mark(score_frame(scores[name], facts))
        kept, left_out = full_layers(frames[name])
        if not kept:
            raise BasinsError(
                f"No tag has {LEAST} tokens ({', '.join(f'{tag}: {n}' for tag, n in [*few.items()][:5])}, ...). Give "
                "more text, or coarser tags."
            )
        if number == 0 and null_rows:
            pick = rows.sample(null_rows, seed)
            samples = [TextSample(model=one, rows=rows, pick=pick, layers=wanted, facts=facts, analysis=analysis,
                seed=seed, store=store)]  # fmt: skip
        tests = tables.tag_tests(frames[name], kept, n_resamples, seed)
        pairs = tables.contrasts(frames[name], kept, n_resamples, seed)
        tests, pairs = tables.corrected(tests, pairs)
        made = {"means": tables.means(frames[name], kept), "tests": tests, "contrasts": pairs}
        made["alignment"] = pd.DataFrame([alignment.counts])
        for part, table in made.items():
            table.insert(0, "model", name)
            parts[part].append(table)
        about[name] = _about(scores[name], frames[name]) | {"tags_left_out": few, "layers_left_out": left_out}
    merged = {part: pd.concat(some, ignore_index=True) for part, some in parts.items()}
    effect = effects(merged["tests"], merged["contrasts"])
    judged, nulls = verdicts(effect, {name: about[name]["n_layers"] for name in loaded}), pd.DataFrame()
    for of in samples if judged["layer"].notna().any() else ():
        judged, nulls = judge_all(judged, "r", *_under_nulls(of, judged, weight_draws))
        judged["flags"] = flagged(judged)
    settings = {
        "experiment": "linguistic",
        "question": QUESTION,
        "primary": f"{PRIMARY} re-run score ({in_words(analysis)}), words without punctuation",
        "thresholds": THRESHOLDS,
        "confounds": CONFOUNDS,
        "function_words": FUNCTION,
        "content_words": CONTENT,
        "nouns": NOUNS,
        "verbs": VERBS,
        "punctuation": PUNCTUATION,
        "least_tokens_a_tag": LEAST,
        "pieces": pieces,
        "text": describe(tagged),
        "max_length": max_length,
        "limit": limit,
        "n_resamples": n_resamples,
        "null_rows": null_rows,
        "weight_draws": weight_draws,
        "seed": seed,
        "curve": "correlation with the relative score, confounds removed",
        "models": about,
        "versions": versions(),
    }
    found = {"verdicts": judged, "effects": effect, "tests_of_tags": merged["tests"], "contrasts": merged["contrasts"]}
    curve = where(effect, primary=True).rename(columns={"name": "line", "r": "estimate"})
    return Linguistic(
        means=merged["means"],
        alignment=merged["alignment"],
        nulls=nulls,
        curve=curve[["model", "layer", "line", "estimate", "low", "high"]].reset_index(drop=True),
        tokens=frames,
        scores=scores,
        reading=" ".join(filter(None, [read_out(found, settings), null_words(judged)])),
        grade=judged["grade"].iloc[0],
        settings=settings,
        **found,
    )


def _under_nulls(of: TextSample, judged: pd.DataFrame, draws: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The primary effects of a sample of the rows at the layers of `judged`: (as they are, under nulls, spreads)."""
    default = of.score()
    layers = [int(layer) for layer in sorted(judged["layer"].dropna().unique())]

    def effects_of(frame: Any) -> Any:
        marked, _ = mark(frame)
        tests = tables.tag_tests(marked, layers, tables.ROUGH, of.seed, (PRIMARY,))
        pairs = tables.contrasts(marked, layers, tables.ROUGH, of.seed, (PRIMARY,))
        found = effects(tests.assign(model=""), pairs.assign(model="")).rename(columns={"r": "effect"})
        return found[["name", "layer", "effect", "low", "high", "n_tokens"]]

    return effects_of(of.frame(default)), *effects_under_nulls(of, default, draws, effects_of)


def _about(scores: BasinScores, frame: Any) -> dict[str, Any]:
    tested = frame[frame["tested"]].drop_duplicates(["sequence", "position"])
    return about_model(scores) | {
        "sequences": int(frame["sequence"].nunique()),
        "tokens": len(frame.drop_duplicates(["sequence", "position"])),
        "tested_tokens": len(tested),
        "tested_sentences": int(tested["cluster"].nunique()),
        "tags": {str(tag): int(n) for tag, n in tested["tag"].value_counts().items()},
        "scores": [name for name in SCORES if name in frame],
    }
