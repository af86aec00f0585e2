"""Columns of one experiment -> the tokens that have a value in all of them, and the sequence of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from basins.errors import BasinsError, MissingExtra
from basins.stats.result import NO_INTERVAL, Statistic

LEAST_RESAMPLES = 100
MIN_CLUSTERS = 5  # a spread over fewer resampled sequences is not worth printing


def scipy_stats() -> ModuleType:
    """`scipy.stats`, loaded at first use; MissingExtra where it is not installed."""
    try:
        from scipy import stats
    except ImportError:
        raise MissingExtra("scipy", "experiments") from None
    return stats


def array(name: str, values: Any) -> ndarray:
    """A tensor (of any dtype and device), list or array as a NumPy array of any shape."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    found = np.asarray(values)
    if found.dtype.kind == "O" and all(isinstance(value, str) for value in found.flat):  # a column of a DataFrame
        found = found.astype(str)
    if found.dtype.kind not in "bifuU":
        raise BasinsError(f"{name} holds {found.dtype}; numbers, booleans or labels are possible.")
    return found


@dataclass(frozen=True)
class Sample:
    """Tokens with a value in every column. `reason` is not empty where no statistic can be computed from them."""

    names: tuple[str, ...]
    columns: Float64[ndarray, "column token"]
    cluster: Int64[ndarray, "token"]  # 0 .. n_clusters - 1
    n_clusters: int
    independent: bool
    kept: Int64[ndarray, "token"]  # place of each token in the flattened input
    reason: str

    @property
    def n_tokens(self) -> int:
        return self.columns.shape[1]

    @property
    def dependence(self) -> str:
        return "tokens taken as independent" if self.independent else "clustered by sequence"

    def found(self, name: str, method: str, estimate: float, interval: tuple[float, float], **rest: Any) -> Statistic:
        """A result with the sample's counts."""
        low, high = interval
        return Statistic(name, method, estimate, (float(low), float(high)), self.n_tokens, self.n_clusters, **rest)

    def nothing(self, name: str, method: str, confidence: float, reason: str = "") -> Statistic:
        """The NaN result with its reason."""
        return self.found(name, method, math.nan, NO_INTERVAL, confidence=confidence, reason=reason or self.reason)


def gather(columns: Mapping[str, Any], clusters: Any, *, minimum: int = 4, constant: tuple[str, ...] = ()) -> Sample:
    """Drops tokens with NaN in any column (not scored) and looks at what is left.

    `clusters` holds the sequence of each token, in the shape of the columns; None declares tokens independent.
    Columns in `constant` may be constant. Columns of different shapes raise: they are joined, never cut.
    """
    arrays = {name: array(name, values) for name, values in columns.items()}
    if clusters is not None:
        arrays["clusters"] = array("clusters", clusters)
    shapes = {name: found.shape for name, found in arrays.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise BasinsError(f"Columns differ in shape: {listed}. Join them on (sequence, position) first.")
    ids = arrays.pop("clusters", None)
    if ids is not None and ids.dtype.kind == "f" and np.isnan(ids).any():
        raise BasinsError("clusters holds NaN; pass the number of its sequence for every token.")
    texts = [name for name, found in arrays.items() if found.dtype.kind == "U"]
    if texts:
        raise BasinsError(f"{texts[0]} holds text; it must hold a number or a boolean for every token.")
    stacked = np.stack([found.ravel().astype(np.float64) for found in arrays.values()])
    kept = np.flatnonzero(~np.isnan(stacked).any(0))
    stacked = stacked[:, kept]
    if ids is None:
        cluster, n_clusters = np.arange(len(kept)), len(kept)
    else:
        found, cluster = np.unique(ids.ravel()[kept], return_inverse=True)
        n_clusters = len(found)
    checked = tuple(name for name in arrays if name not in constant)
    reason = _reason(tuple(arrays), stacked, minimum, checked)
    return Sample(tuple(arrays), stacked, cluster.astype(np.int64), n_clusters, ids is None, kept, reason)


def _reason(names: tuple[str, ...], columns: ndarray, minimum: int, checked: tuple[str, ...]) -> str:
    if columns.shape[1] < minimum:
        return f"{columns.shape[1]} tokens have a value in every column and at least {minimum} are needed"
    for name, column in zip(names, columns):
        if np.isinf(column).any():
            return f"{name} holds infinite values"
        if name in checked and _is_constant(column):
            return f"{name} is constant"
    return ""


def _is_constant(column: ndarray) -> bool:
    return bool(np.ptp(column) <= 1e-13 * np.abs(column).max())


def standardized(columns: Float64[ndarray, "column token"]) -> Float64[ndarray, "column token"]:
    """Columns with mean 0 and standard deviation 1; all 0 where a column is constant up to rounding."""
    result = np.zeros_like(columns)
    for number, column in enumerate(columns):
        if not _is_constant(column):
            result[number] = (column - column.mean()) / column.std()
    return result


def check_confidence(confidence: float, n_resamples: int) -> None:
    if not 0 < confidence < 1:
        raise BasinsError(f"confidence={confidence} is not between 0 and 1. The usual value is 0.95.")
    if n_resamples < LEAST_RESAMPLES:
        raise BasinsError(
            f"{n_resamples} resamples are too few for an interval or a p-value; pass at least {LEAST_RESAMPLES}."
        )
