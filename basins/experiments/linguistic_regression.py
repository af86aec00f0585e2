"""What a tag says about a score beyond the confounds: least squares with errors that know sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from basins.errors import MissingExtra
from basins.stats.correlations import left_over
from basins.stats.resampling import bootstrap_covariances, shifted_percentiles
from basins.stats.sample import gather, standardized

LEAST_CLUSTERS = 10


@dataclass(frozen=True)
class Fit:
    """Ordinary least squares of a score on the tested columns and the confounds.

    `wald`, `p_wald`: Wald's test that all q tested columns have coefficient 0, errors clustered (Liang and Zeger 1986,
    with statsmodels' correction for few clusters), F with q and `clusters - 1` degrees. With several columns that finds
    too much unless there are many more clusters than columns: `p` is of wald (clusters - q) / (clusters - 1) with q and
    `clusters - q` degrees, Hotelling's T squared (see Pustejovsky and Tipton 2018), the same where q is 1.

    `partial`: the share of what the confounds leave that the tested columns explain (partial eta squared), which is
    above 0 also where they explain nothing; `epsilon`: the same from mean squares, about 0 there (epsilon squared,
    Kelley 1935). `coefficient` and `error`: of the only tested column, in nats; NaN where there are several.
    """

    n_tokens: int
    n_clusters: int
    coefficient: float = math.nan
    error: float = math.nan
    wald: float = math.nan
    p_wald: float = math.nan
    p: float = math.nan
    partial: float = math.nan
    epsilon: float = math.nan
    reason: str = ""


def regress(
    y: Float[ndarray, "token"],
    tested: Float[ndarray, "token tested"],
    confounds: Mapping[str, Float[ndarray, "token"]],
    clusters: Int[ndarray, "token"],
    absorbed: int = 0,
) -> Fit:
    """The fit, by statsmodels. Confounds that are constant are left out.

    `absorbed`: means that were subtracted from the columns before, which use up degrees of freedom (see `within`).
    """
    try:
        import statsmodels.api as sm
    except ImportError:
        raise MissingExtra("statsmodels", "experiments") from None
    from scipy import stats

    n, groups, several = len(y), np.unique(clusters), tested.shape[1]
    kept = [column for column in map(np.asarray, confounds.values()) if np.ptp(column) > 0]
    given = [np.ones(n), *((column - column.mean()) / column.std() for column in kept)]
    design = np.column_stack([tested, *given])
    # As many beyond the tested columns as a single one has at the least.
    if len(groups) - several < LEAST_CLUSTERS - 1 or n - absorbed <= 2 * design.shape[1]:
        reason = f"{n} tokens in {len(groups)} sentences are too few for {design.shape[1]} coefficients"
        return Fit(n, len(groups), reason=reason)
    if np.linalg.matrix_rank(design) < np.linalg.matrix_rank(np.column_stack(given)) + several:
        return Fit(n, len(groups), reason="the confounds explain the tags wholly")
    full: Any = sm.OLS(y, design).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    reduced: Any = sm.OLS(y, np.column_stack(given)).fit()
    if not reduced.ssr > 1e-12 * float(((y - y.mean()) ** 2).sum()):
        return Fit(n, len(groups), reason="the confounds explain the score wholly")
    test = full.f_test(np.eye(several, design.shape[1]))
    wald, left = float(np.squeeze(test.fvalue)), len(groups) - several
    degrees = (reduced.df_resid - absorbed) / (full.df_resid - absorbed)
    return Fit(
        n,
        len(groups),
        coefficient=math.nan if several > 1 else float(full.params[0]),
        error=math.nan if several > 1 else float(full.bse[0]),
        wald=wald,
        p_wald=float(np.squeeze(test.pvalue)),
        p=float(stats.f.sf(wald * left / (len(groups) - 1), several, left)),
        partial=float((reduced.ssr - full.ssr) / reduced.ssr),
        epsilon=float(1 - full.ssr / reduced.ssr * degrees),
    )


def partial_eta_interval(
    y: Float[ndarray, "token"],
    tested: Float[ndarray, "token tested"],
    confounds: Mapping[str, Float[ndarray, "token"]],
    clusters: Int[ndarray, "token"],
    n_resamples: int,
    seed: int,
) -> tuple[float, float, float]:
    """Partial eta squared with its interval: sentences resampled, percentiles less their bias.

    The same number as `Fit.partial`, from covariances instead of a fit, so that resampling costs next to nothing.
    """
    dummies = {f"tested {i}": column for i, column in enumerate(tested.T)}
    columns = {"score": y, **dummies, **confounds}
    sample = gather(columns, clusters, minimum=len(columns) + 3, constant=tuple(columns)[1:])
    if sample.reason:
        return math.nan, math.nan, math.nan
    unit = standardized(sample.columns)
    estimate = float(_partial_eta((unit @ unit.T / sample.n_tokens)[None], tested.shape[1])[0])
    resamples = _partial_eta(bootstrap_covariances(sample, False, n_resamples, seed), tested.shape[1])
    (low, high), _ = shifted_percentiles(estimate, resamples, sample, 0.95)
    return estimate, low, high


def _partial_eta(covariance: Float[ndarray, "resample column column"], n_tested: int) -> Float[ndarray, "resample"]:
    given = [0, *range(1 + n_tested, covariance.shape[-1])]
    reduced = left_over(covariance[:, given][:, :, given], 1)[:, 0, 0] if len(given) > 1 else 1.0
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - left_over(covariance, 1)[:, 0, 0] / reduced


def within(values: Float[ndarray, "token ..."], groups: Int[ndarray, "token"]) -> Float[ndarray, "token ..."]:
    """Each value less the mean of its group: what is left when every group has a level of its own."""
    _, code = np.unique(groups, return_inverse=True)
    flat = values.reshape(len(values), -1)
    sums = np.stack([np.bincount(code, weights=column) for column in flat.T], axis=1)
    return (flat - (sums / np.bincount(code)[:, None])[code]).reshape(values.shape)


def dummies(tags: ndarray) -> Float[ndarray, "token tested"]:
    """A column for every tag but the first, 1 where a token has it."""
    return (tags[:, None] == np.unique(tags.astype(str))[None, 1:]).astype(np.float64)
