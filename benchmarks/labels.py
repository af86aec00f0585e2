"""How much faster 200 passages are labelled in batches with the key-value cache than one at a time.

    OMP_NUM_THREADS=2 python benchmarks/labels.py

The first 200 planted passages of `pocket`, its default prompt (a third) and continuation (43 tokens). Every way ends
with the same measures, forced pass included; they differ in how rows are run:

* batched: `basins.labels.label`, as a user calls it (checks against the slow way included);
* one, no cache: one row at a time, one full forward pass a token, the plain way that defines what is right;
* one, cache: one row at a time with the key-value cache, the best fair baseline.

The three take turns in every repeat. Prints and appends medians to benchmarks/labels.csv. "speed-up" is a way's median
over that of batched; "agreement" the share of rows with all tokens and measures equal to those of batched. On a busy
machine seconds mean little ("load before" says): compare CPU seconds with one thread there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch

import basins
from basins import continuation, labels
from basins.continuation import Continuations
from basins.kv_cache import all_logits
from basins.labels import MemorizationLabels, label
from basins.settings import versions

CSV = Path(__file__).with_suffix(".csv")
MEASURES = ["free_match", "free_edit", "exact_prefix", "forced_match", "forced_run", "free", "forced", "run", "exact"]


def plain(model: Any, prompts: Any, n_new: Any, batch_size: int | None = None) -> Continuations:
    """One row at a time, one full forward pass a token."""
    rows = []
    with torch.no_grad():
        for prompt, count in zip(prompts, n_new, strict=True):
            row = prompt
            for _ in range(count):
                row = torch.cat([row, all_logits(model, row[None])[0, -1].argmax()[None]])
            rows.append(row[len(prompt) :])
    return Continuations(tuple(rows), "recompute", None, 0)


def unchecked(model: Any, prompts: Any, n_new: Any, batch_size: int | None = None) -> Continuations:
    """One row at a time with the cache, without the checks that `continue_greedily` adds."""
    rows = []
    with torch.no_grad():
        for prompt, count in zip(prompts, n_new, strict=True):
            row = prompt
            with continuation.cached(model, 1) as steps:
                for _ in range(count):
                    row = torch.cat([row, steps(row[None], len(row))[0].argmax()[None]])
            rows.append(row[len(prompt) :])
    return Continuations(tuple(rows), "cache", None, 0)


def one_at_a_time(model: Any, tokens: Any, mask: Any, continue_row: Callable[..., Continuations]) -> MemorizationLabels:
    """`label` with another way of continuing, its forced pass one row at a time."""
    batched = labels.continue_greedily
    try:
        labels.continue_greedily = continue_row
        return label(model, tokens, mask, batch_size=1)
    finally:
        labels.continue_greedily = batched


def measure(model_name: str, n_passages: int, repeats: int) -> pd.DataFrame:
    model = basins.load_model(model_name)
    texts = [passage.text for passage in basins.pocket.passages()[:n_passages]]
    batch = basins.corpus.tokenize(model, texts)
    tokens, mask = batch.tokens, batch.attention_mask
    ways: dict[str, Callable[[], MemorizationLabels]] = {
        "batched": lambda: label(model, tokens, mask),
        "one, no cache": lambda: one_at_a_time(model, tokens, mask, plain),
        "one, cache": lambda: one_at_a_time(model, tokens, mask, unchecked),
    }
    label(model, tokens[:2], mask[:2])  # what is loaded at first use
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    cpu_seconds: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, MemorizationLabels] = {}
    load = os.getloadavg()[0]
    for _ in range(repeats):
        for way, run in ways.items():
            start, cpu = time.perf_counter(), time.process_time()
            found[way] = run()
            seconds[way].append(time.perf_counter() - start)
            cpu_seconds[way].append(time.process_time() - cpu)
            print(f"{way}: {seconds[way][-1]:.2f} s, {cpu_seconds[way][-1]:.2f} s of CPU", flush=True)
    batched = found["batched"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    rows = []
    for way, result in found.items():
        same = (result.greedy == batched.greedy).all(1) & (result.forced_hits == batched.forced_hits).all(1)
        for name in MEASURES:
            same &= getattr(result, name) == getattr(batched, name)
        rows.append(
            {
                "model": model_name,
                "way": way,
                "passages": n_passages,
                "seconds": round(median(seconds[way]), 3),
                "CPU seconds": round(median(cpu_seconds[way]), 3),
                "fastest": round(min(seconds[way]), 3),
                "speed-up": round(median(seconds[way]) / median(seconds["batched"]), 2),
                "agreement": float(same.double().mean()),
                "repeats": repeats,
                "threads": torch.get_num_threads(),
                "load before": round(load, 2),
                "torch": versions()["torch"],
                "transformer-lens": versions()["transformer-lens"],
                "transformers": versions()["transformers"],
                "commit": commit,
                "date": date.today().isoformat(),
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--passages", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    table = measure(args.model, args.passages, args.repeats)
    print(table.iloc[:, :11].to_string(index=False))
    table.to_csv(CSV, mode="a", header=not CSV.exists(), index=False)


if __name__ == "__main__":
    main()
