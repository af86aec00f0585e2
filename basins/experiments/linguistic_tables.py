"""The linguistic experiment's tables: means by tag, tests of all tags at once, contrasts of two kinds of words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from basins.experiments.frames import where
from basins.experiments.linguistic_regression import dummies, partial_eta_interval, regress, within
from basins.experiments.linguistic_tokens import CONFOUNDS, LEAST
from basins.experiments.primary import PRIMARY, SCORES
from basins.stats import anova, corrected_p, kruskal, partial, point_biserial
from basins.stats.result import Statistic
from basins.words import NOUNS, VERBS, is_function

if TYPE_CHECKING:
    import pandas as pd

FUNCTION, NOUN, TAGS = "function vs content words", "noun vs verb", "tags at all"
HYPOTHESES = (FUNCTION, NOUN, TAGS)
OF_TAGS = (
    *("eta_squared", "eta_low", "eta_high", "epsilon_squared", "f", "p_f", "p_permuted", "rank_eta_squared", "h"),
    *("p_h", "p_h_permuted", "partial_eta_squared", "partial_low", "partial_high", "wald", "p_wald", "p"),
    *("p_corrected", "partial_epsilon_squared", "density_epsilon_squared"),
    *("within_token", "within_token_p", "within_token_n"),
)
OF_CONTRASTS = (
    *("mean_one", "mean_other", "same_token_one", "same_token_other", "d", "r_plain", "p_plain", "r_density", "r"),
    *("low", "high", "difference", "error", "t", "p", "p_corrected"),
)
ROUGH = 100  # resamples of what is secondary


def outcomes(frame: pd.DataFrame) -> list[str]:
    """The scores that were computed, the primary one first, and the density, which is what the raw one mostly says."""
    return [*[name for name in SCORES if name in frame], "density"]


def confounds_of(score: str) -> tuple[str, ...]:
    return tuple(name for name in CONFOUNDS if name != score)


def label_of(hypothesis: str, tags: ndarray) -> ndarray:
    """1 for function words (nouns), 0 for content words (verbs), NaN for what is neither."""
    kinds: dict[str, float] = {}
    for tag in np.unique(tags.astype(str)):
        if hypothesis == NOUN:
            kinds[tag] = 1.0 if tag in NOUNS else 0.0 if tag in VERBS else math.nan
        else:
            function = is_function(tag)
            kinds[tag] = math.nan if function is None else float(function)
    return np.array([kinds[tag] for tag in tags.astype(str)])


def means(frame: pd.DataFrame, layers: list[int]) -> pd.DataFrame:
    """Mean of every score for every tag at every layer; the interval knows sentences (clustered standard error)."""
    import pandas as pd
    from scipy.stats import t as student

    rows = []
    for layer in layers:
        here = where(frame, layer=layer, described=True)
        for score in outcomes(frame):
            scored = here[here[score].notna()]
            for tag, part in scored.groupby("tag"):
                values = part[score].to_numpy(np.float64)
                mean = float(values.mean())
                sums = part.assign(off=values - mean).groupby("cluster")["off"].sum().to_numpy()
                n, n_sentences = len(values), len(sums)
                error = (
                    math.sqrt((sums**2).sum() * n_sentences / (n_sentences - 1)) / n if n_sentences > 1 else math.nan
                )
                half = error * float(student.ppf(0.975, max(1, n_sentences - 1)))
                row: dict[str, Any] = {"layer": layer, "score": score, "tag": tag, "tested": bool(part["tested"].any())}
                row |= {
                    "n_tokens": n,
                    "n_sentences": n_sentences,
                    "mean": mean,
                    "low": mean - half,
                    "high": mean + half,
                }
                rows.append(row | {"sd": float(values.std(ddof=1)) if n > 1 else math.nan})
    return pd.DataFrame(rows)


def tag_tests(
    frame: pd.DataFrame, layers: list[int], n_resamples: int, seed: int, scores: tuple[str, ...] | None = None
) -> pd.DataFrame:
    """One row a layer and score: do tags differ at all?

    `eta_squared` and `rank_eta_squared`: one-way ANOVA and Kruskal-Wallis without confounds, F, H and their p as if
    tokens were independent, and p with tags permuted within sentences. `partial_eta_squared` and its interval,
    `wald`, `p_wald`, `p`: what tags explain beyond the confounds, and its test with errors clustered by sentence (see
    `Fit`; p is the one that holds with few sentences). `epsilon_squared`, `density_epsilon_squared`,
    `partial_epsilon_squared`: what is explained without confounds, beyond density, beyond all, less what as many tags
    would by chance. `within_token` (epsilon squared, too): within each token id, that is among occurrences of one token
    with different tags: what no list of tokens could say. `scores`: only these; None: all.
    """
    import pandas as pd

    rows = []
    for layer in layers:
        for score in scores or outcomes(frame):
            here = where(frame, layer=layer, tested=True)
            here = here[here[score].notna()]
            y = here[score].to_numpy(np.float64)
            tags, clusters = here["tag"].to_numpy().astype(str), here["cluster"].to_numpy()
            rough = n_resamples if score == PRIMARY else ROUGH
            row: dict[str, Any] = {"layer": layer, "score": score, "primary": score == PRIMARY}
            row |= {"n_tokens": len(y), "n_sentences": len(np.unique(clusters)), "n_tags": len(np.unique(tags))}
            if row["n_tags"] < 2:
                nothing = dict.fromkeys(OF_TAGS, math.nan)
                rows.append(row | nothing | {"reason": "there are not two tags with enough tokens"})
                continue
            options: dict[str, Any] = {"clusters": clusters, "n_resamples": rough, "seed": seed}
            row |= _plain(anova(y, tags, **options), kruskal(y, tags, **options), row)
            given = {name: here[name].to_numpy(np.float64) for name in confounds_of(score)}
            columns = dummies(tags)
            fit = regress(y, columns, given, clusters)
            _, low, high = partial_eta_interval(y, columns, given, clusters, rough, seed)
            row |= {"partial_eta_squared": fit.partial, "partial_low": low, "partial_high": high}
            row |= {"wald": fit.wald, "p_wald": fit.p_wald, "p": fit.p, "p_corrected": math.nan}
            row |= {"partial_epsilon_squared": fit.epsilon}
            density = {"density": given["density"]} if "density" in given else {}
            row["density_epsilon_squared"] = regress(y, columns, density, clusters).epsilon if density else math.nan
            row |= _within_token(y, columns, given, here["token_id"].to_numpy(), clusters)
            rows.append(row | {"reason": fit.reason})
    return pd.DataFrame(rows)


def _plain(of_values: Statistic, of_ranks: Statistic, row: dict[str, Any]) -> dict[str, float]:
    from scipy import stats

    n, groups, eta, rank = row["n_tokens"], row["n_tags"], of_values.estimate, of_ranks.estimate
    f = (eta / (groups - 1)) / ((1 - eta) / (n - groups)) if n > groups else math.nan
    h = rank * (n - 1)
    found = {"eta_squared": eta, "eta_low": of_values.interval[0], "eta_high": of_values.interval[1]}
    found |= {"epsilon_squared": 1 - (1 - eta) * (n - 1) / (n - groups) if n > groups else math.nan}
    found |= {"f": f, "p_f": float(stats.f.sf(f, groups - 1, n - groups)), "p_permuted": of_values.p}
    found |= {"rank_eta_squared": rank, "h": h, "p_h": float(stats.chi2.sf(h, groups - 1))}
    return found | {"p_h_permuted": of_ranks.p}


def _within_token(y: ndarray, columns: ndarray, given: dict[str, ndarray], ids: ndarray, clusters: ndarray) -> dict:
    """Among tokens whose id comes with several tags only: one with a single tag says nothing here."""
    varied = np.abs(within(columns, ids)).sum(1) > 1e-9
    several = np.isin(ids, np.unique(ids[varied]))
    none = {"within_token": math.nan, "within_token_p": math.nan, "within_token_n": int(several.sum())}
    if several.sum() < 3 * LEAST:
        return none
    ids, clusters = ids[several], clusters[several]
    left = within(columns[several], ids)
    rank = np.linalg.matrix_rank(left)
    basis = np.linalg.svd(left, full_matrices=False)[0][:, :rank]
    confounds = {name: within(value[several], ids) for name, value in given.items()}
    confounds = {name: value for name, value in confounds.items() if np.abs(value).max() > 1e-9}
    fit = regress(within(y[several], ids), basis, confounds, clusters, absorbed=len(np.unique(ids)) - 1)
    return none | {"within_token": fit.epsilon, "within_token_p": fit.p}


def contrasts(
    frame: pd.DataFrame, layers: list[int], n_resamples: int, seed: int, scores: tuple[str, ...] | None = None
) -> pd.DataFrame:
    """One row a layer, score and contrast of two kinds of words; a positive r says that the first kind scores higher.

    `r_plain`: point-biserial. `r_density`: density alone removed. `r`: all confounds removed, with its interval
    (sentences resampled); `difference` (nats), `error`, `t`, `p`: the same as a regression, errors clustered by
    sentence.
    With density among the confounds raw and relative give the same r, because relative = raw - density.
    `r_rank`: of ranks. `r_same_token`: with the share of neighbours that are the same token removed as well. `scores`:
    only these; None: all.
    """
    import pandas as pd

    rows = []
    for layer in layers:
        tested = where(frame, layer=layer, tested=True)
        for hypothesis in (FUNCTION, NOUN):
            label = label_of(hypothesis, tested["tag"].to_numpy())
            for score in scores or outcomes(frame):
                kept = ~np.isnan(label) & tested[score].notna().to_numpy()
                row: dict[str, Any] = {"layer": layer, "score": score, "primary": score == PRIMARY, "name": hypothesis}
                rows.append(row | _contrast(tested[kept], label[kept], score, n_resamples, seed))
    return pd.DataFrame(rows)


def _contrast(here: Any, label: ndarray, score: str, n_resamples: int, seed: int) -> dict[str, Any]:
    y, clusters = here[score].to_numpy(np.float64), here["cluster"].to_numpy()
    one = label == 1
    found: dict[str, Any] = {"n_one": int(one.sum()), "n_other": int((~one).sum()), "n_tokens": len(y)}
    found |= {"n_sentences": len(np.unique(clusters))}
    share = here["same_token_share"].to_numpy() if "same_token_share" in here else np.full(len(y), math.nan)
    if min(found["n_one"], found["n_other"]) < LEAST:
        nothing = dict.fromkeys(OF_CONTRASTS, math.nan)
        return found | nothing | {"reason": f"a kind of words has fewer than {LEAST} tokens"}
    found |= {"mean_one": float(y[one].mean()), "mean_other": float(y[~one].mean())}
    found |= {"same_token_one": float(share[one].mean()), "same_token_other": float(share[~one].mean())}
    given = {name: here[name].to_numpy(np.float64) for name in confounds_of(score)}
    rough: dict[str, Any] = {"clusters": clusters, "n_resamples": ROUGH, "seed": seed}
    plain = point_biserial(y, label, **rough)
    found |= {"d": plain.effect_size, "r_plain": plain.estimate, "p_plain": plain.p}
    density = {"density": given["density"]} if "density" in given else {}
    found["r_density"] = partial(label, y, density, **rough).estimate if density else math.nan
    whole = partial(label, y, given, clusters=clusters, n_resamples=n_resamples, seed=seed)
    found |= {"r": whole.estimate, "low": whole.interval[0], "high": whole.interval[1]}
    fit = regress(y, label[:, None], given, clusters)
    found |= {
        "difference": fit.coefficient,
        "error": fit.error,
        "t": fit.coefficient / fit.error,
        "p": fit.p,
        "p_corrected": math.nan,
    }
    if score == PRIMARY:
        found["r_rank"] = partial(label, y, given, rank=True, **rough).estimate
        if not np.isnan(share).any():
            found["r_same_token"] = partial(label, y, given | {"same token": share}, **rough).estimate
    return found | {"reason": fit.reason or whole.reason}


def corrected(tags: pd.DataFrame, pairs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables with `p_corrected`: Holm over all layers and hypotheses of the primary score, and over everything
    else (layers, hypotheses, other scores) apart."""
    tags, pairs = tags.copy(), pairs.copy()
    for primary in (True, False):
        places = [(table, i) for table in (tags, pairs) for i in table.index[table["primary"] == primary]]
        for (table, i), p in zip(places, corrected_p(table.loc[i, "p"] for table, i in places), strict=True):
            table.loc[i, "p_corrected"] = p
    return tags, pairs
