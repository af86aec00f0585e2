"""Single tokens: how sure a score is, and whether other tokens' directions would give it too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from basins.experiments.frames import where
from basins.experiments.robustness_subject import Subject
from basins.scores import BasinScores
from basins.stats import corrected_p
from basins.token_nulls import token_tests

if TYPE_CHECKING:
    import pandas as pd


CORRECTION = "benjamini-hochberg"


def token_table(
    of: Subject, default: BasinScores, layers: tuple[int, ...], n_tokens: int, n_draws: int
) -> pd.DataFrame:
    """A row a tested token: score, jackknife error, its transplanted null, p, and p corrected within the layer.

    p is two-sided (`basins.token_nulls.two_sided`); the correction is Benjamini and Hochberg's over the tokens tested
    at the layer. Sequences are numbered as in the whole text.
    """
    import pandas as pd

    tokens, mask = of.tokens, of.mask
    options: dict[str, Any] = {"layers": layers, "n_tokens": n_tokens, "n_draws": n_draws}
    found = token_tests(of.model, tokens, mask, default, seed=of.statistics["seed"], **options)
    n_pos = tokens.shape[1]
    quantiles = found.null.nanquantile(found.null.new_tensor([0.025, 0.5, 0.975]), dim=1)
    frame = pd.DataFrame(
        {
            "layer": found.layer.numpy(),
            "sequence": of.pick[found.token // n_pos].numpy(),
            "position": (found.token % n_pos).numpy(),
            "relative": found.relative.numpy(),
            "se": found.se.numpy(),
            "null_low": quantiles[0].numpy(),
            "null_median": quantiles[1].numpy(),
            "null_high": quantiles[2].numpy(),
            "n_draws": found.n_draws.numpy(),
            "p": found.p.numpy(),
        }
    )
    return frame.assign(p_corrected=frame.groupby("layer")["p"].transform(lambda p: corrected_p(p, CORRECTION)))


def noise_share(tests: pd.DataFrame, frame: pd.DataFrame, layer: int) -> float:
    """Mean squared jackknife error of the tested tokens over the variance of all relative scores at the layer."""
    scored = where(frame, layer=layer, used=True)["relative"]
    errors = where(tests, layer=layer)["se"]
    return float((errors**2).mean() / scored.var(ddof=0))
