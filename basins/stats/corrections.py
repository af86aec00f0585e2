"""Correction across everything that one experiment looked at."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from basins.errors import BasinsError, MissingExtra, choose
from basins.stats.result import Statistic

METHODS = {"holm": "Holm", "benjamini-hochberg": "Benjamini-Hochberg"}
_STATSMODELS = {"holm": "holm", "benjamini-hochberg": "fdr_bh"}


def correct(results: Iterable[Statistic], method: str = "holm") -> list[Statistic]:
    """The same results in the same order, each with its corrected p.

    "holm" bounds the chance of any false discovery, "benjamini-hochberg" their expected share (for independent or
    positively dependent tests). Hand over everything looked at, not only what came out small. A result without p stays
    as it is and does not count. A permutation test cannot give p below 1 / (1 + n_permutations): for m tests let
    n_permutations be well above m / alpha. Results corrected before (max-T over layers) raise.
    """
    results = list(results)
    choose("method", method, METHODS)
    before = [result.name for result in results if not math.isnan(result.p_corrected)]
    if before:
        raise BasinsError(
            f"{len(before)} results are corrected already ({before[0]}, ...). Correct all raw results of an "
            "experiment in one call; dataclasses.replace(result, p_corrected=math.nan) takes a correction off."
        )
    tested = [result.p for result in results if not math.isnan(result.p)]
    note = f"{METHODS[method]} over {len(tested)}"
    return [
        result if math.isnan(result.p) else dataclasses.replace(result, p_corrected=float(p), correction=note)
        for result, p in zip(results, corrected_p([result.p for result in results], method), strict=True)
    ]


def corrected_p(p: Iterable[float], method: str = "holm") -> Float64[ndarray, "test"]:
    """The corrected p in the same order, by the same methods as `correct`; NaN stays NaN and does not count."""
    choose("method", method, METHODS)
    found = np.array(list(p), dtype=np.float64)
    tested = ~np.isnan(found)
    if not tested.any():
        return found
    try:
        from statsmodels.stats.multitest import multipletests
    except ImportError:
        raise MissingExtra("statsmodels", "experiments") from None
    found[tested] = multipletests(found[tested], method=_STATSMODELS[method])[1]
    return found
