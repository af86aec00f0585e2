"""Statistics for tokens: effect sizes, intervals that know sequences, permutation tests, corrections.

Tokens of one sequence are not independent, so every function asks for `clusters` (the sequence of each token) and says
in its result how many there were. Input is one column a quantity (tensors, arrays or lists of the same shape); NaN
marks a token without a value, which is left out. Input from which nothing follows (constant, too small) gives a NaN
result with its reason; input that cannot be meant (different shapes, unknown options) raises BasinsError.

    >>> r = spearman(scores.relative[3], attribution.values[3], clusters=sequence)
    >>> print(correct([r, ...], "holm")[0])
"""

from basins.stats.corrections import correct, corrected_p
from basins.stats.correlations import partial, pearson, semipartial, spearman
from basins.stats.detection import auroc, tpr_at_fpr
from basins.stats.grid import Cell, correlation_grid
from basins.stats.many_groups import anova, icc, kruskal
from basins.stats.means import mean
from basins.stats.permutation import max_t, permutation_test
from basins.stats.result import Statistic
from basins.stats.two_groups import cohens_d, d_needed, mann_whitney, point_biserial, quartile_contrast, welch

__all__ = [
    "Statistic",
    "mean",
    "pearson",
    "spearman",
    "partial",
    "semipartial",
    "correlation_grid",
    "Cell",
    "permutation_test",
    "max_t",
    "welch",
    "mann_whitney",
    "point_biserial",
    "quartile_contrast",
    "cohens_d",
    "d_needed",
    "anova",
    "kruskal",
    "icc",
    "auroc",
    "tpr_at_fpr",
    "correct",
    "corrected_p",
]
