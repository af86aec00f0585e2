"""What `basins demo` spends its time on: the sweep over its texts with the shipped model, stage by stage.

`--path packed` runs the same sweep without the re-run core. Seconds a stage are cumulative, by Python's own profiler,
in one run more that is not timed.

    OMP_NUM_THREADS=1 python benchmarks/demo_sweep.py
    OMP_NUM_THREADS=1 python benchmarks/demo_sweep.py --path packed

`--against` runs the sweep of an older commit of this repository in turn with this one's, each in processes of its own,
and says how much faster this one is and how far the scores differ. 5cde08f is where packed replay was whole and the
core was not there yet.

    OMP_NUM_THREADS=1 python benchmarks/demo_sweep.py --against 5cde08f
"""

from __future__ import annotations

import argparse
import cProfile
import io
import os
import pstats
import statistics
import subprocess
import sys
import tarfile
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
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


ROOT = Path(__file__).parents[1]
ROUNDS = 3
# Run under either version: what it imports is public in both.
SWEEP = """
import sys, time
import numpy as np
from basins import BasinScorer, demo, load_model, pocket
from basins.corpus import tokenize
model = load_model("pocket")
texts = pocket.demo_text()[: demo.PARAGRAPHS]
for dose in demo.DOSES:
    texts = [*texts, *[p.text for p in pocket.passages() if p.dose == dose][: demo.PASSAGES]]
batch = tokenize(model, texts, long_texts="split")
scorer = BasinScorer(model, **demo.ANALYSIS)
scores = scorer.score_texts(batch)
for _ in range(2):
    start = time.perf_counter()
    scorer.score_texts(batch)
    print("seconds", time.perf_counter() - start)
np.savez(sys.argv[1], relative=scores.relative.numpy(), raw=scores.values.numpy())
"""


def sweep_of(folder: Path, result: Path) -> list[float]:
    """Seconds of the sweep by the package in `folder`, in a process of its own; its scores go to `result`."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", SWEEP, str(result)], env=environment, cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    return [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("seconds")]


def against(commit: str) -> list[dict[str, Any]]:
    """A row for each version, in turn so that both see the same machine."""
    with tempfile.TemporaryDirectory() as place:
        older = Path(place) / "older"
        archive = subprocess.run(["git", "archive", commit, "basins"], cwd=ROOT, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(older, filter="data")
        folders = {f"commit {commit}": older, "this": ROOT}
        seconds: dict[str, list[float]] = {name: [] for name in folders}
        for _ in range(ROUNDS):
            for name, folder in folders.items():
                seconds[name] += sweep_of(folder, Path(place) / f"{name}.npz")
        scores = [np.load(Path(place) / f"{name}.npz") for name in folders]
    off = {name: float(np.nanmax(np.abs(scores[0][name] - scores[1][name]))) for name in ("relative", "raw")}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians[f"commit {commit}"] / medians["this"]
    note = f"{ratio:.2f} times as fast as {commit}; relative scores differ by at most {off['relative']:.1e} nats"
    print(f"{medians}\n{note}, raw by {off['raw']:.1e}")
    rows = []
    for name, values in seconds.items():
        low, high = np.quantile(values, [0.2, 0.8])
        row = {"implementation": name, "seconds_p20": low, "seconds_p50": medians[name], "seconds_p80": high}
        rows.append(row | {"repeats": len(values), "note": note if name == "this" else ""})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", choices=["core", "packed"], default="core")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", metavar="COMMIT")
    parser.add_argument("--csv", type=Path, default=CSV)
    args = parser.parse_args()
    if args.against:
        about = {"name": "sweep of basins demo, pocket", "k": demo.ANALYSIS["k"], "dtype": "float32"}
        about |= {"device": device_name(torch.device("cpu"))}
        append([about | row for row in against(args.against)], args.csv)
        return
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
