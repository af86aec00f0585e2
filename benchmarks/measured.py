"""What every benchmark shares: timing one thing several times, and a row of benchmarks/results.csv."""

from __future__ import annotations

import csv
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

CSV = Path(__file__).with_name("results.csv")
# `agreement` is with the reference that the script names; `peak_gb` is GPU memory that torch held.
COLUMNS = [
    *["name", "implementation", "tokens", "queries", "k", "d_model", "dtype", "seconds_p20", "seconds_p50"],
    *["seconds_p80", "repeats", "peak_gb", "agreement", "note", "device", "versions", "commit", "date"],
]
VERSIONED = ("torch", "triton", "faiss-gpu", "faiss-cpu", "scikit-learn", "numpy")


def timed(run: Callable[[], Any], repeats: int, device: torch.device, warm: bool = True) -> tuple[dict[str, Any], Any]:
    """Percentiles of `repeats` runs after one that is not counted (compilation, caches), and the last run's result.

    The row's `all_seconds` are for the caller; the CSV has no column for them.
    """
    result = run()
    seconds = []
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    quantiles = torch.tensor(seconds, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    row = dict(
        zip(("seconds_p20", "seconds_p50", "seconds_p80"), quantiles.tolist()), repeats=repeats, all_seconds=seconds
    )
    if device.type == "cuda":
        row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return row, result


def append(rows: list[dict[str, Any]], path: Path, commit: str | None = None) -> None:
    """Rows to the end of the CSV, each with the device, versions, commit and date."""
    if commit is None:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    about = {"versions": versions(), "commit": commit, "date": date.today().isoformat()}
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow({name: _short(value) for name, value in (row | about).items()})


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def versions() -> str:
    found = []
    for package in VERSIONED:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return "; ".join(found)
