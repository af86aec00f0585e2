"""Exact k nearest neighbours: ours beside FAISS, torch and scikit-learn on the same states in the same run.

    python benchmarks/neighbors.py                                       # CPU, 10,000 x 768, k = 15
    python benchmarks/neighbors.py --device cuda --tokens 100000 --k 16  # one GPU
    python benchmarks/neighbors.py --device cuda --tokens 1000000 --queries 100000 --k 16

All but "basins" search by Euclidean distance for k + 1 and count the query itself; "basins" leaves it out as its rules
say. Each implementation gets the states where it wants them (FAISS on a GPU: on the GPU). Agreement: the share of 256
queries' neighbours that are among the k nearest by distances in float64. The floor is the matrix product alone, in
bfloat16 and float16. States: "normal" (independent, the hardest to tell apart), "residual" (most of the variance in few
directions, one dimension far from 0, every 128th state of a hundred times the norm). Rows go to benchmarks/results.csv.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measured import CSV, append, device_name, timed

from basins.neighbors import find_neighbors, table_of
from basins.settings import ScorerSettings

SEQUENCE = 128
CHECKED = 256


def states_of(kind: str, n: int, d: int, device: torch.device) -> torch.Tensor:
    torch.manual_seed(0)
    states = torch.randn(n, d, device=device)
    if kind == "residual":
        states *= torch.arange(1, d + 1, device=device) ** -0.5
        states[:, d // 3] += 3
        states[::SEQUENCE] *= 100
    return states


def search(args: argparse.Namespace, bank: torch.Tensor, rule: str, index: str) -> Callable[[], Any]:
    """The search of the scorer, with the bank as its own queries or with its first states as queries from elsewhere."""
    # Every token id about a hundred times.
    tokens = torch.randint(0, max(1, len(bank) // 100), (1, len(bank)), generator=torch.Generator().manual_seed(1))
    bank_table = table_of(torch.ones_like(tokens), tokens, 0).to(bank.device)
    bank_table.sequence.copy_(torch.arange(len(bank)) // SEQUENCE)
    query, table, same = bank, bank_table, True
    if args.queries:
        query, same = bank[: args.queries].clone(), False
        table = table_of(torch.ones(1, len(query), dtype=torch.long), tokens[:, : len(query)], 0).to(bank.device)
    settings = ScorerSettings(k=args.k, index=index, neighbors=rule)
    return lambda: find_neighbors(query, table, bank, bank_table, settings, same)


def torch_topk(query: torch.Tensor, bank: torch.Tensor, k: int) -> Callable[[], Any]:
    """Squared distances by one float32 product a chunk, then topk."""

    def run() -> torch.Tensor:
        norms = bank.square().sum(1)
        rows = max(1, 2**28 // len(bank)) if bank.is_cuda else 512
        found = [(norms - 2 * (some @ bank.T)).topk(k, dim=1, largest=False).indices for some in query.split(rows)]
        return torch.cat(found)

    return run


def faiss_flat(query: torch.Tensor, bank: torch.Tensor, k: int) -> Callable[[], Any]:
    import faiss

    if not bank.is_cuda:
        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatL2(bank.shape[1])
        index.add(bank.numpy())
        return lambda: torch.from_numpy(index.search(query.numpy(), k)[1])
    import faiss.contrib.torch_utils  # the index takes and gives tensors on the GPU

    resources = faiss.StandardGpuResources()
    index = faiss.GpuIndexFlatL2(resources, bank.shape[1])
    index.add(bank)
    # `resources` is used by the index but not kept alive by it.
    return lambda keep=resources: index.search(query, k)[1]


def scikit_learn(query: torch.Tensor, bank: torch.Tensor, k: int) -> Callable[[], Any]:
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=k, algorithm="brute", n_jobs=torch.get_num_threads()).fit(bank.numpy())
    return lambda: torch.from_numpy(index.kneighbors(query.numpy(), return_distance=False))


def product(query: torch.Tensor, bank: torch.Tensor, dtype: torch.dtype) -> Callable[[], Any]:
    low, low_bank = query.to(dtype), bank.to(dtype)
    rows = min(len(query), max(1, 2**30 // len(bank)))
    room = torch.empty(rows, len(bank), dtype=dtype, device=bank.device)

    def run() -> None:
        for some in low.split(rows):
            torch.matmul(some, low_bank.T, out=room[: len(some)])

    return run


def agreement(found: torch.Tensor, query: torch.Tensor, bank: torch.Tensor, k: int, leave_out: bool) -> float:
    """Share of the found neighbours that are no farther than the k-th by float64, on some queries."""
    some = torch.linspace(0, len(query) - 1, CHECKED).long().to(query.device)
    hits = []
    for i in some.split(16):
        far = (query[i].double()[:, None] - bank[found[i].to(bank.device)].double()).norm(dim=2)
        true = torch.cdist(query[i].double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist")
        if leave_out:
            true[torch.arange(len(i)), i] = float("inf")
        kth = true.topk(k, dim=1, largest=False).values[:, -1:]
        hits.append(far <= kth * (1 + 1e-6))
    return float(torch.cat(hits).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=0, help="from elsewhere; 0: the bank's own states")
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--k", type=int, default=15)
    parser.add_argument("--states", choices=["normal", "residual"], default="normal")
    parser.add_argument("--rules", nargs="+", default=["same_layer", "cross_sequence"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without", nargs="*", default=[], help="implementations to leave out")
    parser.add_argument("--commit", default=None, help="where there is no git")
    parser.add_argument("--csv", type=Path, default=CSV)
    args = parser.parse_args()
    device = torch.device(args.device)
    bank = states_of(args.states, args.tokens, args.d_model, device)
    query = bank[: args.queries] if args.queries else bank
    k = args.k + (not args.queries)
    about = {
        "name": f"neighbors, {args.states} states" + (", bank of its own" if args.queries else ""),
        "tokens": len(bank),
        "queries": len(query),
        "k": args.k,
        "d_model": args.d_model,
        "device": device_name(device),
    }
    plan: dict[str, tuple[str, Callable[[], Callable[[], Any]]]] = {}
    for rule in args.rules if not args.queries else ["same_layer"]:
        plan[f"basins auto, {rule}"] = "float32", lambda rule=rule: search(args, bank, rule, "auto")
    if device.type == "cuda":
        plan["basins exact, same_layer"] = "float32", lambda: search(args, bank, "same_layer", "exact")
        plan["floor: product in bfloat16"] = "bfloat16", lambda: product(query, bank, torch.bfloat16)
        plan["floor: product in float16"] = "float16", lambda: product(query, bank, torch.float16)
    else:
        plan["scikit-learn brute force"] = "float32", lambda: scikit_learn(query, bank, k)
        plan["floor: product in float32"] = "float32", lambda: product(query, bank, torch.float32)
    if importlib.util.find_spec("faiss"):
        plan["FAISS flat"] = "float32", lambda: faiss_flat(query, bank, k)
    plan["torch product and topk"] = "float32", lambda: torch_topk(query, bank, k)
    for name, (dtype, make) in plan.items():
        if any(left_out in name for left_out in args.without):
            continue
        row, found = timed(make(), args.repeats, device)
        row |= about | {"implementation": name, "dtype": dtype}
        if hasattr(found, "report"):
            row["note"] = "; ".join(f"{key} {value}" for key, value in found.report.items())
            found = found.ids
        if found is not None and "cross_sequence" not in name and "same_token" not in name:
            wanted = args.k if "basins" in name else k
            row["agreement"] = agreement(found, query, bank, wanted, "basins" in name and not args.queries)
        line = f"{name:32} {row['seconds_p50']:10.4f} s  agreement {row.get('agreement')}  {row.get('note', '')}"
        print(line, flush=True)
        append([row], args.csv, args.commit)


if __name__ == "__main__":
    main()
