"""From tokens to scores of all transitions: ours beside the obvious pipeline, in the same run.

A model of GPT-2 small's shape (12 blocks, width 768, random weights, 50,257 tokens), rows of 128 random tokens, k = 15.

* "basins": `score_tokens`: re-run scores and lookup scores of every token at every transition; float32, TF32, bfloat16.
* "basins, lookup alone": the same without re-running blocks.
* "per-token loop over FAISS": what one writes first: `run_with_cache`, an `IndexFlatL2` a layer, and a loop over tokens
  with NumPy's `var`, for lookup scores alone. It is run on `--loop-tokens` tokens, of which the row has the number.
* "floor": the bare matrix products that none can do without, by the device's own library: distances of all pairs, and
  for re-run scores the output projection and MLP of k rows a token (see rerun.py).

Not counted in the seconds, and stated beside them: loading the model, and the first call (compilation), on few tokens.
Agreement: largest difference of raw re-run scores, in nats, from those of the same model in float64 on `--checked`
tokens, and for lookup scores from the loop's; over tokens whose neighbours are the same, whose share `note` has.

    python benchmarks/end_to_end.py --device cuda --tokens 100000
    python benchmarks/end_to_end.py --tokens 1024 --layers 2 --d-model 128 --repeats 1    # on a CPU, in seconds
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measured import CSV, append, device_name, timed
from random_gpt2 import gpt2
from torch import Tensor

import basins
from basins.precision import matmul_precision
from basins.scores import BasinScores

# Few tokens, but enough for every kernel of the whole run to be compiled.
FIRST_TOKENS = 6144
ROWS_AT_ONCE = 2**15


def per_token_loop(model: Any, tokens: Tensor, k: int, eps: float = 1e-10) -> dict[str, np.ndarray]:
    """Lookup scores as one writes them first: a whole cache, FAISS, and a loop over tokens."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    n_layers, device = int(model.cfg.n_layers), next(model.parameters()).device
    streams: list[list[np.ndarray]] = [[] for _ in range(n_layers + 1)]
    with torch.no_grad():
        for rows in tokens.split(64):
            _, cache = model.run_with_cache(rows.to(device), names_filter=lambda name: "resid" in name)
            for layer in range(n_layers):
                streams[layer].append(cache[f"blocks.{layer}.hook_resid_pre"].flatten(0, 1).float().cpu().numpy())
            streams[-1].append(cache[f"blocks.{n_layers - 1}.hook_resid_post"].flatten(0, 1).float().cpu().numpy())
    states = [np.concatenate(parts) for parts in streams]
    scores = np.empty((n_layers, tokens.numel()))
    neighbors = np.empty((n_layers, tokens.numel(), k), dtype=np.int64)
    for layer in range(n_layers):
        index = faiss.IndexFlatL2(states[layer].shape[1])
        index.add(states[layer])
        _, found = index.search(states[layer], k + 1)
        for i in range(len(found)):
            ids = found[i][found[i] != i][:k]
            scores[layer, i] = -np.log(np.var(states[layer + 1][ids], axis=0).sum() + eps)
            neighbors[layer, i] = ids
    return {"values": scores, "ids": neighbors}


def floor(
    n: int, layers: int, d_model: int, rows: int, precision: str, search: torch.dtype, device: torch.device
) -> Callable[[], None]:
    """Distances of n states to each other in `search`, then `rows` rows through projection and MLP: `layers` times."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    shapes = ((d_model, d_model), (d_model, 4 * d_model), (4 * d_model, d_model))
    weights = [torch.randn(shape, device=device, dtype=dtype) for shape in shapes]
    piece = min(max(rows, 1), ROWS_AT_ONCE)
    inputs = [torch.randn(piece, weight.shape[0], device=device, dtype=dtype) for weight in weights]
    states = torch.randn(n, d_model, device=device, dtype=search)
    some = min(n, max(1, (2**30 if device.type == "cuda" else 2**24) // n))
    room = torch.empty(some, n, device=device, dtype=search)

    def run() -> None:
        for _ in range(layers):
            for part in states.split(some):
                torch.matmul(part, states.T, out=room[: len(part)])
            with matmul_precision("tf32" if precision == "tf32" else "float32", device, dtype):
                for _ in range(-(-rows // piece)):
                    for value, weight in zip(inputs, weights, strict=True):
                        value @ weight

    return run


def same_neighbors(found: Tensor, other: Tensor) -> Tensor:
    return (found.sort(-1).values == other.sort(-1).values).all(-1)


def difference(found: Tensor, other: Tensor, same: Tensor) -> tuple[float, str]:
    """The largest, over tokens with the same neighbours, and their share in words."""
    gap = (found.double() - other.double()).abs()[same]
    return float(gap.max()) if len(gap) else float("nan"), f"same neighbours {float(same.double().mean()):.4%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--loop-tokens", type=int, default=None, help="for the per-token loop; None: as many")
    parser.add_argument("--checked", type=int, default=2048, help="tokens compared with float64; 0: none")
    parser.add_argument("--pos", type=int, default=128)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--k", type=int, default=15)
    parser.add_argument("--precision", nargs="+", default=None, help="float32, tf32, bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without", nargs="*", default=[], help="implementations to leave out")
    parser.add_argument("--commit", default=None, help="where there is no git")
    parser.add_argument("--csv", type=Path, default=CSV)
    args = parser.parse_args()
    device = torch.device(args.device)
    precisions = args.precision or (["tf32", "float32"] if device.type == "cuda" else ["float32"])
    hf_model = gpt2(args.layers, args.d_model, args.vocabulary)
    in_float64 = copy.deepcopy(hf_model) if args.checked else None
    start = time.perf_counter()
    model = basins.load_model(hf_model, device=device)
    print(f"load {time.perf_counter() - start:.2f} s (weights made already)", flush=True)
    rows = -(-args.tokens // args.pos)
    tokens = torch.randint(args.vocabulary, (rows, args.pos), generator=torch.Generator().manual_seed(0))
    about = {
        "name": f"end to end, {args.layers} blocks of GPT-2 small's shape, rows of {args.pos}",
        "k": args.k,
        "d_model": args.d_model,
        "device": device_name(device),
    }

    def wanted(name: str) -> bool:
        return not any(left_out in name for left_out in args.without)

    def record(row: dict[str, Any], name: str, dtype: str, n: int) -> None:
        row |= about | {"implementation": name, "dtype": dtype, "tokens": n, "queries": n * args.layers}
        seconds = f"{row['seconds_p50']:9.3f} s ({row['seconds_p20']:.3f} to {row['seconds_p80']:.3f})"
        print(f"{name:36} {dtype:9} {n:8} {seconds}  {row.get('agreement')}  {row.get('note', '')}", flush=True)
        append([row], args.csv, args.commit)

    def sweep(method: str, precision: str, some: Tensor = tokens, of: Any = model) -> BasinScores:
        return basins.BasinScorer(of, k=args.k, method=method, precision=precision).score_tokens(some)

    exact, some = None, tokens[: -(-args.checked // args.pos)]
    if in_float64 is not None:
        exact = sweep("rerun", "float32", some, basins.load_model(in_float64, device=device, dtype="float64"))
    runs = [("rerun", precision) for precision in precisions] + [("lookup", "float32")]
    loop = None
    n_loop = min(args.loop_tokens or tokens.numel(), tokens.numel()) // args.pos * args.pos
    if wanted("per-token loop") and n_loop:
        loop_tokens = tokens[: n_loop // args.pos]
        begin = time.perf_counter()
        loop = per_token_loop(model, loop_tokens, args.k)
        row = dict.fromkeys(("seconds_p20", "seconds_p50", "seconds_p80"), time.perf_counter() - begin)
        record(row | {"repeats": 1, "note": "lookup scores alone"}, "per-token loop over FAISS", "float32", n_loop)
    for method, precision in runs:
        name = "basins" if method == "rerun" else "basins, lookup alone"
        if not wanted(name):
            continue
        begin = time.perf_counter()
        sweep(method, precision, tokens[: -(-FIRST_TOKENS // args.pos)])
        first = time.perf_counter() - begin
        row, scores = timed(lambda m=method, p=precision: sweep(m, p), args.repeats, device)
        note = [f"first call {first:.2f} s"]
        if method == "rerun" and exact is not None:
            found = sweep(method, precision, some)
            same = same_neighbors(found.neighbor_ids, exact.neighbor_ids)
            row["agreement"], share = difference(found.values, exact.values, same)
            gaps = [difference(getattr(found, s), getattr(exact, s), same)[0] for s in ("relative", "update")]
            note.append(f"{share}; relative {gaps[0]:.2g}, update {gaps[1]:.2g}; of {some.numel()} tokens")
        if loop is not None:
            ours = scores if n_loop == tokens.numel() else sweep(method, precision, tokens[: n_loop // args.pos])
            looked = ours.lookup if method == "rerun" else ours
            assert looked is not None
            shape = looked.values.shape
            same = same_neighbors(looked.neighbor_ids, torch.from_numpy(loop["ids"]).view(*shape, -1))
            gap, share = difference(looked.values, torch.from_numpy(loop["values"]).view(shape), same)
            row.setdefault("agreement", gap)
            note.append(f"lookup against the loop {gap:.2g}, {share}")
        record(row | {"note": "; ".join(note)}, name, precision, tokens.numel())
    for method, precision in runs:
        n_rows = tokens.numel() * args.k if method == "rerun" else 0
        name = "floor: products" + ("" if n_rows else ", lookup alone")
        if wanted("floor"):
            search = torch.float16 if device.type == "cuda" else torch.float32
            bare = floor(tokens.numel(), args.layers, args.d_model, n_rows, precision, search, device)
            row, _ = timed(bare, args.repeats, device)
            record(row, name, precision, tokens.numel())


if __name__ == "__main__":
    main()
