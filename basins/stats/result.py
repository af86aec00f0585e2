"""What every statistic returns: one frozen object that prints as one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

NO_INTERVAL = (math.nan, math.nan)


@dataclass(frozen=True)
class Statistic:
    """One number with what is needed to judge it.

    `n_tokens` counts the tokens used (those with a value in every column), `n_clusters` the sequences they come from;
    where tokens were declared independent (`clusters=None`) every token is its own cluster. `effect_size` is Cohen's d
    and `prevalence` the share of tokens with the label, for statistics of two groups. `details` holds what belongs to
    one statistic only, such as quartile means. `reason` says why the estimate, the interval or p is NaN.
    """

    name: str
    method: str
    estimate: float
    interval: tuple[float, float]
    n_tokens: int
    n_clusters: int
    p: float = math.nan
    p_corrected: float = math.nan
    correction: str = ""
    confidence: float = 0.95
    effect_size: float = math.nan
    prevalence: float = math.nan
    details: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""

    def to_dict(self) -> dict[str, str | int | float]:
        """One row of a table."""
        row: dict[str, str | int | float] = {"name": self.name, "method": self.method, "estimate": self.estimate}
        row |= {"low": self.interval[0], "high": self.interval[1], "confidence": self.confidence}
        row |= {"n_tokens": self.n_tokens, "n_clusters": self.n_clusters, "p": self.p, "p_corrected": self.p_corrected}
        row |= {"correction": self.correction, "effect_size": self.effect_size, "prevalence": self.prevalence}
        return row | dict(self.details) | {"reason": self.reason}

    def __str__(self) -> str:
        parts = [f"{self.estimate:.4g}"]
        if not math.isnan(self.interval[0]):
            parts[0] += f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"
        parts.append(f"{self.n_tokens:,} tokens in {self.n_clusters:,} clusters")
        if not math.isnan(self.p):
            parts.append(f"p = {self.p:.3g}")
        if not math.isnan(self.p_corrected):
            parts.append(f"corrected p = {self.p_corrected:.3g} ({self.correction})")
        if not math.isnan(self.prevalence):
            parts.append(f"d = {self.effect_size:.3g} at prevalence {self.prevalence:.2%}")
        parts += [f"{key} = {value:.4g}" for key, value in self.details.items()]
        if self.reason:
            parts.append(f"because {self.reason}")
        return f"{self.name}: {', '.join(parts)} ({self.method})"
