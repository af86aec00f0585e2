"""What every experiment states before it runs: its primary analysis, and which results deserve which words."""

from __future__ import annotations

from typing import Any

# Relative re-run score; neighbours from other sequences only; the first position (an attention sink whose norm can be a
# hundred times the others') left out of queries and bank; tokens after a prefix seen before are left out.
SCORER: dict[str, Any] = {"k": 15, "method": "rerun", "neighbors": "cross_sequence", "exclude_first": 1}
PRIMARY = "relative"


def in_words(analysis: dict[str, Any]) -> str:
    """The analysis as a figure's note says it."""
    neighbors = {"cross_sequence": "neighbours from other sequences"}.get(analysis["neighbors"], analysis["neighbors"])
    first = f"first {analysis['exclude_first']} position left out" if analysis["exclude_first"] else "all positions"
    return f"{analysis['method']}, k = {analysis['k']}, {neighbors}, {first}"


# name of a score -> where it stands in a frame of BasinScores. The first shows what the block does; raw scores mostly
# repeat the density before it, which therefore stands beside them.
SCORES = {
    "relative": "relative",
    "update": "update",
    "raw": "raw",
    "relative, lookup": "lookup_relative",
    "update, lookup": "lookup_update",
    "raw, lookup": "lookup_raw",
}

GRADES = ("strong", "moderate", "exploratory", "none")
STRONG_R, STRONG_P = 0.4, 0.01
MODERATE_R, MODERATE_P = 0.2, 0.05
THRESHOLDS = (
    f"strong: |r| > {STRONG_R} with corrected p < {STRONG_P} on both models, in the same direction and in both halves "
    f"of the text; moderate: |r| > {MODERATE_R} with corrected p < {MODERATE_P} on the first model and in the same "
    f"direction in both halves; exploratory: corrected p < {MODERATE_P} but smaller, or not the same in both halves; "
    "none: nothing survives correction. r is the rank correlation that is left when the confounds are removed."
)

# Red flags: what speaks against a finding, named the same way in every experiment.
NOISY, NOTHING, NOT_REPLICATED = "too noisy", "nothing survives correction", "does not replicate"
BY_PLACE, BY_DENSITY = "explained by frequency or position", "explained by density"
IN_NULL = "a null shows it too"
# An interval this wide cannot tell a moderate effect from none, nor from a strong one.
WIDE = 2 * MODERATE_R
