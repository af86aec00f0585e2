"""What re-running a block adds to looking cached outputs up, layer by layer: the table of the README.

    python benchmarks/rerun_against_lookup.py                     # pocket, bundled held-out text, 2,048 tokens
    python benchmarks/rerun_against_lookup.py --model MODEL.gguf --tokens 1024

Prints rank correlations over tokens and appends them to benchmarks/rerun_against_lookup.csv. Primary analysis of the
design: neighbours from other sequences, first position left out, k = 15; tokens with fewer than 3 distinct states among
themselves and their neighbours are left out.
"""

from __future__ import annotations

import argparse
import subprocess
from datetime import date
from pathlib import Path

import pandas as pd

import basins
from basins.scores import LEAST_DISTINCT

CSV = Path(__file__).with_suffix(".csv")
WINDOW = 128


def measure(model_source: str, n_tokens: int) -> pd.DataFrame:
    model = basins.load_model(model_source)
    batch = basins.corpus.tokenize(model, basins.pocket.demo_text(), max_length=WINDOW, long_texts="split")
    rows = n_tokens // WINDOW
    full = (batch.attention_mask.sum(1) == WINDOW).nonzero()[:rows, 0]
    scorer = basins.BasinScorer(model, neighbors="cross_sequence", exclude_first=1)
    scores = scorer.score_tokens(batch.tokens[full], batch.attention_mask[full])
    frame = scores.to_frame()
    frame = frame[(frame.n_distinct >= LEAST_DISTINCT) & frame.relative.notna()]

    def row(part: pd.DataFrame) -> pd.Series:
        rho = part[["raw", "relative", "update", "density", "lookup_raw", "lookup_relative", "lookup_update"]]
        rho = rho.corr("spearman")
        return pd.Series(
            {
                "tokens": len(part),
                "raw, density": rho.loc["raw", "density"],
                "raw, lookup raw": rho.loc["raw", "lookup_raw"],
                "relative, density": rho.loc["relative", "density"],
                "relative, lookup relative": rho.loc["relative", "lookup_relative"],
                "update, lookup update": rho.loc["update", "lookup_update"],
                "mean D": (part.relative - part.lookup_relative).mean(),
            }
        )

    table = frame.groupby("layer").apply(row, include_groups=False).reset_index()
    table["tokens"] = table.tokens.astype(int)
    name = Path(model_source).stem if model_source.endswith(".gguf") else model_source
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    about = {"model": name, "k": scorer.settings.k, "date": date.today().isoformat(), "commit": commit}
    return table.assign(**about, torch=scores.settings["versions"]["torch"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--tokens", type=int, default=2048)
    args = parser.parse_args()
    table = measure(args.model, args.tokens)
    print(table.iloc[:, :8].round(2).to_string(index=False))
    table.to_csv(CSV, mode="a", header=not CSV.exists(), index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
