"""The whole study: every experiment on one model and text, one folder, one analysis.

found = basins.study("pocket", out="runs/study")
print(found)
"""

from basins.studies.whole import Study, study

__all__ = ["Study", "study"]
