"""What `basins demo` spends its time on: the sweep over its texts with the shipped model, stage by stage.

`--path packed` runs the same sweep without the re-run core. Seconds a stage are cumulative, by Python's own profiler,
in one run more that is not timed.

    OMP_NUM_THREADS=1 python benchmarks/demo_sweep.py
    OMP_NUM_THREADS=1 python benchmarks/demo_sweep.py --path packed
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
from measured import CSV, append, device_name, timed

from basins import BasinScorer, demo, pocket
from basins.corpus import tokenize
from basins.models import load_model

STAGES = {
    ("core.py", "push"): "blocks re-run by the core",
    ("rerun.py", "packed_replay"): "blocks re-run by packed replay",
    ("patched_attention.py", "attend"): "of that, attention",
    ("sources.py", "record_chunks"): "recording how the model calls its blocks",
    ("neighbors.py", "find_neighbors"): "finding neighbours",
    ("selfcheck.py", "paths"): "self-check",
    ("rerun.py", "run_context"): "next layers",
    ("distinct.py", "count_distinct"): "counting distinct states",
    ("neighbor_variances.py", "neighbor_variances"): "variances",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", choices=["core", "packed"], default="core")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--csv", type=Path, default=CSV)
    args = parser.parse_args()
    model = load_model("pocket")
    passages = [passage for dose in demo.DOSES for passage in pocket.passages() if passage.dose == dose]
    by_dose = {dose: [p.text for p in passages if p.dose == dose][: demo.PASSAGES] for dose in demo.DOSES}
    texts = [*pocket.demo_text()[: demo.PARAGRAPHS], *(text for some in by_dose.values() for text in some)]
    batch = tokenize(model, texts, long_texts="split")
    without = mock.patch("basins.selfcheck.has_known_parts", return_value=False)
    with without if args.path == "packed" else nullcontext():
        scorer = BasinScorer(model, **demo.ANALYSIS)
        row, scores = timed(lambda: scorer.score_texts(batch), args.repeats, torch.device("cpu"))
        profiler = cProfile.Profile()
        profiler.runcall(scorer.score_texts, batch)
    assert scores.settings["replay"] == {args.path: 8}, scores.settings["replay_refused"]
    print(f"{row['seconds_p50']:.2f} s")
    spent = {
        STAGES[Path(file).name, function]: cumulative
        for (file, _, function), (_, _, _, cumulative, _) in pstats.Stats(profiler).stats.items()  # type: ignore[attr-defined]
        if (Path(file).name, function) in STAGES
    }
    for stage, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"  {seconds:6.2f} s  {stage}")
    row |= {
        "name": "sweep of basins demo, pocket",
        "implementation": args.path,
        "tokens": int(batch.attention_mask.sum()),
        "queries": int(scores.values[0].isfinite().sum()) * len(scores.layers),
        "k": demo.ANALYSIS["k"],
        "d_model": int(model.cfg.d_model),
        "dtype": "float32",
        "device": device_name(torch.device("cpu")),
    }
    append([row], args.csv)


if __name__ == "__main__":
    main()
