"""Scores by looking neighbours' outputs up, on a CPU: ours beside a loop over tokens with NumPy's `var`.

30,000 states of width 768 and as many outputs, k = 15. In the same run:

* neighbours given: FAISS's, the same for all. "basins" computes the raw, relative and update score of every token;
  "loop, three scores" the same, a token at a time; "loop, raw score alone" what the first publication had.
* search included: "basins" is `BasinScorer(method="lookup").score(cache)`, with checks, counts of distinct states and
  the result put together; "loop" is FAISS's IndexFlatL2 and the loop.
* floors: reading every neighbour's two states once; and the search's matrix product alone, in float32.

Agreement: largest difference from the loop in float64, in nats, over tokens with the same neighbours.

    OMP_NUM_THREADS=2 python benchmarks/lookup.py
    python benchmarks/lookup.py --tokens 2000 --repeats 1    # in seconds
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from end_to_end import same_neighbors
from measured import CSV, append, device_name, timed
from neighbors import states_of
from random_gpt2 import gpt2
from torch import Tensor

import basins
from basins.neighbor_variances import neighbor_variances
from basins.scores import raw_score, relative_score, update_score

POS = 100
EPS = 1e-10
READ_AT_ONCE = 16


def loop(states: np.ndarray, outputs: np.ndarray, ids: np.ndarray, all_three: bool) -> np.ndarray:
    """A token at a time: the raw score, and with `all_three` the relative and the update score."""
    found = np.full((3, len(ids)), np.nan)
    for i, some in enumerate(ids):
        after = outputs[some]
        var_out = after.var(axis=0).sum()
        found[0, i] = -np.log(var_out + EPS)
        if all_three:
            before = states[some]
            var_in = before.var(axis=0).sum()
            found[1, i] = np.log((var_in + EPS) / (var_out + EPS))
            found[2, i] = -np.log((after - before).var(axis=0).sum() + EPS)
    return found


def faiss_ids(states: np.ndarray, k: int) -> np.ndarray:
    """The k nearest but the token itself."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(states.shape[1])
    index.add(states)
    _, found = index.search(states, k + 1)
    itself = found == np.arange(len(found))[:, None]
    itself[~itself.any(1), -1] = True  # one of more than k copies is as good as another
    return found[~itself].reshape(len(found), k)


def ours(states: Tensor, outputs: Tensor, ids: Tensor) -> np.ndarray:
    var_in, var_out, var_update = neighbor_variances(states, outputs, ids.shape[1], ids, ids)
    scores = raw_score(var_out, EPS), relative_score(var_in, var_out, EPS), update_score(var_update, EPS)
    return torch.stack(scores).double().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=30_000)
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--k", type=int, default=15)
    parser.add_argument("--states", choices=["normal", "residual"], default="residual")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--search-repeats", type=int, default=1)
    parser.add_argument("--without", nargs="*", default=[], help="implementations to leave out")
    parser.add_argument("--commit", default=None, help="where there is no git")
    parser.add_argument("--csv", type=Path, default=CSV)
    args = parser.parse_args()
    device, n = torch.device("cpu"), args.tokens // POS * POS
    states = states_of(args.states, n, args.d_model, device)
    outputs = states + states.std() * torch.randn(n, args.d_model, generator=torch.Generator().manual_seed(2))
    x, y = states.numpy(), outputs.numpy()
    ids = faiss_ids(x, args.k)
    exact = loop(x.astype(np.float64), y.astype(np.float64), ids, all_three=True)
    model = basins.load_model(gpt2(1, args.d_model, 100))
    shape = (n // POS, POS, args.d_model)
    cache = {"blocks.0.hook_resid_pre": states.view(shape), "blocks.0.hook_resid_post": outputs.view(shape)}
    given = torch.from_numpy(ids)

    def scored() -> basins.BasinScores:
        return basins.BasinScorer(model, k=args.k, method="lookup").score(cache)

    def read() -> None:
        room = torch.empty(READ_AT_ONCE * args.k, args.d_model)
        for some in given.flatten().split(len(room)):
            for source in (states, outputs):
                torch.index_select(source, 0, some, out=room[: len(some)])

    def product() -> None:
        for some in states.split(512):
            some @ states.T

    plan: list[tuple[str, int, Callable[[], Any]]] = [
        ("neighbours given: basins", args.repeats, lambda: ours(states, outputs, given)),
        ("neighbours given: loop, three scores", args.repeats, lambda: loop(x, y, ids, True)),
        ("neighbours given: loop, raw score alone", args.repeats, lambda: loop(x, y, ids, False)),
        ("neighbours given: floor, states read once", args.repeats, read),
        ("search included: basins", args.search_repeats, scored),
        ("search included: loop, three scores", args.search_repeats, lambda: loop(x, y, faiss_ids(x, args.k), True)),
        ("search included: floor, product", args.search_repeats, product),
    ]
    for name, repeats, run in plan:
        if any(left_out in name for left_out in args.without):
            continue
        row, found = timed(run, repeats, device)
        if isinstance(found, basins.BasinScores):
            same = same_neighbors(found.neighbor_ids[0].flatten(0, 1), given).numpy()
            row["note"] = f"same neighbours {same.mean():.4%}"
            found = torch.stack([found.values, found.relative, found.update]).view(3, -1).double().numpy()
            row["agreement"] = float(np.abs(found - exact)[:, same].max())
        elif isinstance(found, np.ndarray):
            row["agreement"] = float(np.nanmax(np.abs(found - exact)))
        row |= {"name": f"lookup, {args.states} states", "implementation": name, "tokens": n, "queries": n}
        row |= {"k": args.k, "d_model": args.d_model, "dtype": "float32", "device": device_name(device)}
        spread = f"{row['seconds_p50']:8.3f} s ({row['seconds_p20']:.3f} to {row['seconds_p80']:.3f})"
        print(f"{name:44} {spread}  {row.get('agreement')}  {row.get('note', '')}", flush=True)
        append([row], args.csv, args.commit)


if __name__ == "__main__":
    main()
