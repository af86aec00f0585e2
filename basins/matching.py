"""Pairs of labelled and unlabelled sequences with nearly the same value of one column, such as the loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from basins.errors import BasinsError


@dataclass(frozen=True)
class Matched:
    """`pairs`: (labelled row, unlabelled row). `caliper`: the largest difference allowed, in the column's unit.

    `difference_before` and `difference_after`: means of the labelled less the unlabelled, over the column's standard
    deviation among all rows.
    """

    pairs: Int64[ndarray, "pair 2"]
    caliper: float
    n_unmatched_labelled: int
    n_unmatched_unlabelled: int
    difference_before: float
    difference_after: float


def match(column: Float64[ndarray, "row"], labels: Bool[ndarray, "row"], caliper: float = 0.2) -> Matched:
    """One to one, without replacement, closest pairs first; ties to the lower rows. Nothing is random.

    `caliper` is in standard deviations of the column (0.2 of them is usual: Austin 2011); rows without a partner within
    it stay out and are counted.
    """
    if not caliper > 0:
        raise BasinsError(f"caliper={caliper} must be positive: the largest difference, in standard deviations.")
    labelled, unlabelled = np.flatnonzero(labels), np.flatnonzero(~labels)
    spread = float(column.std()) if len(column) else 0.0
    gaps = np.abs(column[labelled][:, None] - column[unlabelled][None])
    first, second = np.nonzero(gaps <= caliper * spread)
    order = np.argsort(gaps[first, second], kind="stable")
    taken, pairs = np.zeros(len(column), dtype=bool), []
    for i, j in zip(labelled[first[order]], unlabelled[second[order]]):
        if not taken[i] and not taken[j]:
            taken[[i, j]] = True
            pairs.append((i, j))
    found = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)

    def difference(with_label: ndarray, without: ndarray) -> float:
        if not len(with_label) or not len(without) or spread == 0:
            return float("nan")
        return float(column[with_label].mean() - column[without].mean()) / spread

    return Matched(
        found,
        caliper * spread,
        len(labelled) - len(found),
        len(unlabelled) - len(found),
        difference(labelled, unlabelled),
        difference(found[:, 0], found[:, 1]),
    )
