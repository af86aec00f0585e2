"""Do memorised sequences compress differently, and does that say more than the loss already does?"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basins.experiments import memorization_tables as tables
from basins.experiments.finding import Finding
from basins.experiments.loaded import NamedModel, about_model, load_models
from basins.experiments.memorization_measures import Measured, depths, measure
from basins.experiments.memorization_nulls import under_nulls
from basins.experiments.memorization_passages import WINDOW, Passages, from_file, natural, planted, with_plain
from basins.experiments.memorization_training import train
from basins.experiments.memorization_words import THRESHOLDS, read_out, verdicts
from basins.experiments.null_verdicts import in_words as null_words
from basins.experiments.null_verdicts import judge_all
from basins.experiments.primary import SCORER, in_words
from basins.experiments.score_store import ScoreStore
from basins.experiments.under_nulls import check_null_sizes
from basins.lens import check_layers
from basins.scorer import BasinScorer
from basins.settings import versions, whole
from basins.stats.sample import LEAST_RESAMPLES

if TYPE_CHECKING:
    import pandas as pd

QUESTION = "Do memorised sequences compress differently, and does that say more than the loss already does?"
POCKETS = ("pocket", "pocket-mini")


@dataclass(frozen=True, repr=False, kw_only=True)
class Memorization(Finding):
    """What the experiment found. Every table is tidy and has a column `model`; absent parts are empty tables.

    `labels`: a row a passage: group, dose, all kinds of labels, loss. `doses`: labels and means by dose.
    `dose_response`: rank correlation of dose with every measure at every layer. `tests`: each contrast in each measure
    and layer: r, difference, g, AUROC, TPR. `baselines`: the AUROCs of `tests` that have no layer. `added`: what
    compression adds to the loss. `blind`: what words alone tell. `spans`: tokens inside memorised spans. `nulls`: a
    row for each contrast and null, at the layer of the contrast's grade. `recited`, `effect`, `by_exposures`,
    `dynamics`: controlled fine-tuning. Measures point upwards: higher is what is expected of memorised text.
    """

    labels: pd.DataFrame
    doses: pd.DataFrame
    dose_response: pd.DataFrame
    tests: pd.DataFrame
    baselines: pd.DataFrame
    added: pd.DataFrame
    blind: pd.DataFrame
    spans: pd.DataFrame
    nulls: pd.DataFrame
    recited: pd.DataFrame
    effect: pd.DataFrame
    by_exposures: pd.DataFrame
    dynamics: pd.DataFrame
    matrices: Mapping[str, pd.DataFrame] = field(repr=False)

    def summary_tables(self) -> dict[str, pd.DataFrame]:
        """Title -> the tables that a terminal shows."""
        return importlib.import_module("basins.experiments.memorization_summary").summary_tables(self)


def memorization(
    model: Any = "pocket",
    *,
    second_model: Any = "auto",
    reference: Any = "auto",
    passages: str | Path | Passages | None = None,
    plain: str | Path | None = None,
    finetune: bool = False,
    dynamics: bool = False,
    finetune_texts: list[str] | None = None,
    n_seeds: int = 1,
    learning_rate: float = 1e-3,
    window: int | None = None,
    threshold: float = 0.8,
    layers: Any = None,
    k: int = SCORER["k"],
    n_resamples: int = 200,
    n_permutations: int = 500,
    null_passages: int = 24,
    weight_draws: int = 3,
    seed: int = 0,
    store: ScoreStore | None = None,
) -> Memorization:
    """Label passages by what the model reproduces, and compare their compression with that of others.

    Primary: the mean relative re-run score of a passage's continuation, against the group. Beside it stand update and
    raw scores, lookup, density, distances, intrinsic dimension, norms, and the loss baselines.

    Args:
        model: a loaded TransformerLens model, or a name, folder or file for `basins.load_model`.
        second_model: of the replication; None for none; "auto": pocket-mini for pocket, else none.
        reference: whose loss on the same text is subtracted; "auto": pocket-mini for pocket, else none.
        passages: None: the planted passages for the pocket models, famous and novel ones for others; a file with text,
            group and perhaps dose and source; "planted" or "natural". plain: a file of plain text (or CoNLL-U) for
            one more comparison.
        finetune: fine-tune copies of the first model on random halves of ~100 quotes (or of `finetune_texts`), for
            `n_seeds` seeds, and compare before and after. dynamics: the same, looked at on the way.
        window: tokens of text in a passage; longer ones are cut, the first third is the prompt. None: 64 for planted
            passages, 96 for others.
        threshold: of the match fraction, above which a passage counts as memorised.
        layers: transitions of the first model; None: all.
        n_resamples, n_permutations: of the intervals, and of the tests within passages.
        null_passages, weight_draws: passages on each side of a contrast that are scored under every null, and models
            with random weights; 0 passages: no nulls.
        seed: of every random choice. The same seed gives the same tables.
        store: scores that other experiments have computed already.
    """
    whole("n_seeds", n_seeds, 1, "each is run with both halves.")
    check_null_sizes(null_passages, weight_draws, "null_passages")
    whole("n_resamples", n_resamples, LEAST_RESAMPLES, "fewer give no interval.")
    chosen = _passages(model.name if isinstance(model, NamedModel) else model, passages)
    if plain is not None:
        chosen = with_plain(chosen, plain, seed=seed)
    size = window if window is not None else WINDOW.get(chosen.kind, WINDOW["natural"])
    whole("window", size, 24, "a third is the prompt, and a continuation needs at least 16 tokens.")
    loaded = load_models(model, second_model)
    analysis: dict[str, Any] = SCORER | {"k": k, "seed": seed}
    parts: dict[str, list[pd.DataFrame]] = {}
    measured: dict[str, Measured] = {}
    about: dict[str, Any] = {}
    for number, (name, one) in enumerate(loaded.items()):
        scorer = BasinScorer(one, **analysis)
        wanted = check_layers(one, layers if number == 0 else None)
        other = _reference(reference, name, loaded)
        options = {"window": size, "layers": wanted, "reference": other, "threshold": threshold, "store": store}
        found = measure(scorer, chosen, **options)
        measured[name] = found
        for table, frame in _analyse(found, chosen, wanted, n_resamples, n_permutations, seed).items():
            parts.setdefault(table, []).append(frame.assign(model=name))
        about[name] = _about(found, wanted)
    nulls = None
    if null_passages:
        name, first = next(iter(loaded.items()))
        options = {"window": size, "analysis": analysis, "n": null_passages, "draws": weight_draws, "seed": seed}
        nulls = partial(under_nulls, first, chosen, measured[name], **options, store=store)
    trained = None
    if finetune or dynamics:
        first = next(iter(loaded.values()))
        options = {"n_seeds": n_seeds, "learning_rate": learning_rate, "dynamics": dynamics, "seed": seed}
        wanted = check_layers(first, layers)
        trained = train(first, analysis, texts=finetune_texts, layers=wanted, **options)
    return _result(chosen, parts, measured, about, trained, nulls, {
        "experiment": "memorization", "question": QUESTION, "passages": f"{len(chosen)} {chosen.kind} passages",
        "about": chosen.about, "primary": f"mean relative re-run score of the continuation ({in_words(analysis)})",
        "thresholds": THRESHOLDS, "window": size, "prompt": size // 3, "threshold": threshold, "seed": seed,
        "n_resamples": n_resamples, "n_permutations": n_permutations, "null_passages": null_passages,
        "weight_draws": weight_draws, "versions": versions(),
    })  # fmt: skip


def _passages(model: Any, given: Any) -> Passages:
    if isinstance(given, Passages):
        return given
    if given is None:
        given = "planted" if isinstance(model, str) and model in POCKETS else "natural"
    if given in ("planted", "natural"):
        return planted() if given == "planted" else natural()
    return from_file(given)


def _reference(reference: Any, name: str, loaded: dict[str, Any]) -> Any:
    if isinstance(reference, str) and reference == "auto":
        if name != "pocket":
            return None
        return loaded.get("pocket-mini") or next(iter(load_models("pocket-mini", None).values()))
    if reference is None:
        return None
    return next(iter(load_models(reference, None).values()))


def _analyse(
    found: Measured, chosen: Passages, layers: tuple[int, ...], n_resamples: int, n_permutations: int, seed: int
) -> dict[str, Any]:
    options = {"n_resamples": n_resamples, "seed": seed}
    compared = tables.tests(found.matrix, found.passages, chosen.contrasts, **options)
    frames = {
        "labels": found.passages,
        "tests": compared,
        "baselines": compared[compared["layer"].isna()].drop(columns=["layer", "measure"]),
        "added": tables.added_table(tables.adds(found, chosen.contrasts, layers, **options)),
        "blind": tables.blindly(found, chosen.contrasts, **options),
        "spans": tables.spans(found, n_permutations=n_permutations, **options),
    }
    if chosen.dose is not None:
        frames["doses"] = tables.doses(found.passages, found.matrix, layers)
        frames["dose_response"] = tables.dose_response(found.passages, found.matrix, seed)
    return frames


def _about(found: Measured, layers: tuple[int, ...]) -> dict[str, Any]:
    labels = found.labels.settings
    return about_model(found.scores) | {
        "tokens_scored": int(found.scores.values[0].isfinite().sum()),
        "excluded": int(labels["n_excluded"]),
        "decoding": labels.get("decoding"),
        "depths_of_regressions": depths(layers),
    }


def _result(
    chosen: Passages, parts: dict[str, list[Any]], measured: dict[str, Measured], about: dict[str, Any], trained: Any,
    nulls: Callable[[Any], tuple[Any, Any, Any]] | None, settings: dict[str, Any],
) -> Memorization:  # fmt: skip
    import pandas as pd

    names = ("labels", "doses", "dose_response", "tests", "baselines", "added", "blind", "spans")
    found = {name: pd.concat(parts[name], ignore_index=True) if name in parts else pd.DataFrame() for name in names}
    found["verdicts"] = verdicts(found["tests"], found["added"], found["blind"], list(measured))
    found["nulls"] = pd.DataFrame()
    if nulls is not None:
        found["verdicts"], found["nulls"] = judge_all(found["verdicts"], "r", *nulls(found["verdicts"]))
    settings |= {"models": about, "compared": list(chosen.contrasts)}
    fine = ("recited", "effect", "by_exposures", "dynamics")
    found |= {name: pd.DataFrame() if trained is None else getattr(trained, name) for name in fine}
    settings["finetuning"] = None if trained is None else trained.settings
    reading = " ".join(filter(None, [read_out(found, settings), null_words(found["verdicts"])]))
    grade = str(found["verdicts"]["grade"].iloc[0])
    return Memorization(
        **found,
        matrices={name: one.matrix for name, one in measured.items()},
        tokens={name: one.tokens for name, one in measured.items()},
        scores={name: one.scores for name, one in measured.items()},
        reading=reading,
        grade=grade,
        settings=settings,
    )
