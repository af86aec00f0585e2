"""Re-running one block for every query's neighbours: the core in three precisions, and the ways it replaces.

The seventh block of a model of GPT-2 small's shape (width 768, 12 heads; random weights; later blocks are left out),
sequences of 128 tokens, every query's real nearest neighbours (k = 15). Timed is what a scorer does at one transition
once neighbours are known: states and neighbour ids in, three variances a query and the next layer out.

The floor. A query has k patched rows. Each needs, at width d and T positions, in multiply-adds:
query, key and value 3 d^2 (once per state, so 1/k of that a row), attention T d for scores and T d for the mixture,
output projection d^2, MLP 8 d^2. With two operations each, d = 768, T = 128, k = 15:
15 (18 d^2 + 4 T d) + 6 d^2 = 168.7 million operations a query, 159.3 million of them in the output projection and MLP,
which nothing can share: their input differs for every pair of query and neighbour.
Bytes: the variances read k d floats of input and write k d of output, 92 kB a query in float32.
So 500,000 queries/s are 84 TFLOP/s and 200,000 are 34 TFLOP/s, and the "floor" rows are the output projection's and
MLP's matrix products alone on the device at hand, in its own libraries.

Agreement is the largest absolute error of the raw score, in nats, against the same model in float64 (packed replay) on
some of the sequences; `note` has those of the relative and the update score, and queries a second.

    python benchmarks/rerun.py --device cuda
    python benchmarks/rerun.py --sequences 2 --pos 32 --repeats 1 --slow-queries 4    # on a CPU, in a minute
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from measured import CSV, append, device_name, timed
from random_gpt2 import gpt2
from torch import Tensor

import basins
from basins.block_calls import record_calls
from basins.lens import as_found
from basins.neighbors import find_neighbors, table_of
from basins.scores import raw_score, relative_score, update_score
from basins.selfcheck import CheckedPath, check_paths
from basins.settings import PRECISIONS, ScorerSettings
from basins.sources import Chunk, record_chunks
from basins.transition import Bank, rerun_variances

LAYER = 6
CHECKED = 4  # sequences that are compared with float64


@dataclass
class OneLayer:
    """What `rerun_variances` asks of a source, for one layer's states and one path."""

    held: Tensor
    chunks: list[Chunk]
    path: str
    paths: dict[int, CheckedPath] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.paths = {LAYER: CheckedPath(self.path, 0.0, {})}

    def states(self, layer: int) -> Tensor:
        return self.held

    def outputs(self, layer: int) -> None:
        return None


def floor(rows: int, d_model: int, precision: str, device: torch.device) -> Callable[[], None]:
    """Output projection and MLP of every patched row, as bare products."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    shapes = ((d_model, d_model), (d_model, 4 * d_model), (4 * d_model, d_model))
    weights = [torch.randn(shape, device=device, dtype=dtype) for shape in shapes]
    piece = min(rows, 2**15)
    inputs = [torch.randn(piece, weight.shape[0], device=device, dtype=dtype) for weight in weights]

    def run() -> None:
        for _ in range(-(-rows // piece)):
            for states, weight in zip(inputs, weights, strict=True):
                states @ weight

    return run


def scores(variances: dict[str, Tensor]) -> dict[str, Tensor]:
    var_in, var_out, var_update = (variances[name].double() for name in ("var_in", "var_out", "var_update"))
    return {
        "raw": raw_score(var_out, 1e-10),
        "relative": relative_score(var_in, var_out, 1e-10),
        "update": update_score(var_update, 1e-10),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--pos", type=int, default=128)
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--k", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slow-queries", type=int, default=256, help="for the paths that run once per neighbour")
    parser.add_argument("--without", nargs="*", default=[], help="implementations to leave out")
    parser.add_argument("--commit", default=None, help="where there is no git")
    parser.add_argument("--csv", type=Path, default=CSV)
    args = parser.parse_args()
    device = torch.device(args.device)
    hf_model = gpt2(LAYER + 1, args.d_model, vocabulary=1000)
    in_float64 = copy.deepcopy(hf_model)
    model = basins.load_model(hf_model, device=device)
    tokens = torch.randint(1000, (args.sequences, args.pos), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    settings = ScorerSettings(k=args.k, neighbors="cross_sequence", index="exact")
    with as_found(model):
        pieces: list[Tensor] = []
        chunks = record_chunks(model, tokens, mask, (LAYER,), None, (LAYER,), lambda rows, s: pieces.append(s[LAYER]))
        states = torch.cat(pieces)
        calls, _ = record_calls(model, tokens[:1], mask[:1], [LAYER])
        chosen = check_paths(model, calls, {LAYER: states[:1]}, mask[:1], 0)[LAYER]
    assert chosen.path == "core", chosen
    flat, table = states.flatten(0, 1), table_of(mask, None, 0)
    ids = find_neighbors(flat, table, flat, table, settings, same=True).ids

    def variances(path: str, precision: str, n_queries: int | None = None) -> dict[str, Tensor]:
        asked = ScorerSettings(k=args.k, neighbors="cross_sequence", precision=precision)
        some, some_chunks = ids, chunks
        if n_queries is not None:
            # The slow paths: the first sequences' queries only, a sequence at a time.
            some = ids.clone()
            some[n_queries:] = -1
            asked_for = -(-n_queries // args.pos)
            some_chunks = record_chunks(model, tokens[:asked_for], mask[:asked_for], (LAYER,), 1)
        with as_found(model):
            source = OneLayer(states, some_chunks, path)
            bank = Bank(flat, None, table, same=True)
            return rerun_variances(model, LAYER, source, bank, some, asked, torch.empty_like(states))  # type: ignore[arg-type]

    def in_steps(path: str, precision: str) -> dict[str, Tensor]:
        """Without the kernel."""
        with mock.patch("basins.patched_attention.has_kernel", return_value=False):
            return variances(path, precision)

    reference = exact_scores(in_float64, device, tokens, mask, states, ids, args.k)
    n_queries = states.shape[0] * args.pos
    about = {
        "name": "re-run, a block of GPT-2 small's shape",
        "tokens": n_queries,
        "k": args.k,
        "d_model": args.d_model,
        "device": device_name(device),
    }
    precisions = PRECISIONS if device.type == "cuda" else ("float32", "bfloat16")
    plan: list[tuple[str, str, int, Callable[[], Any]]] = []
    for precision in precisions:
        plan.append(("core", precision, n_queries, lambda p=precision: variances("core", p)))
    if device.type == "cuda":
        for precision in precisions:
            plan.append(("core, attention in steps", precision, n_queries, lambda p=precision: in_steps("core", p)))
    for precision in precisions[:2]:
        plan.append(("packed replay", precision, n_queries, lambda p=precision: variances("packed", p)))
    slow = min(args.slow_queries, n_queries)
    plan.append(("one block per neighbour", "float32", slow, lambda: variances("single_block", "float32", slow)))
    few = max(1, slow // 8)
    plan.append(("plain patching through hooks", "float32", few, lambda: variances("full_model", "float32", few)))
    for precision in precisions:
        bare = floor(n_queries * args.k, args.d_model, precision, device)
        plan.append(("floor: output projection and MLP", precision, n_queries, bare))
    for name, precision, queries, run in plan:
        if any(left_out in name for left_out in args.without):
            continue
        tf32 = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32 or (name.startswith("floor") and precision == "tf32")
        row, found = timed(run, args.repeats if queries == n_queries else 1, device)
        torch.backends.cuda.matmul.allow_tf32 = tf32
        note = f"{queries / row['seconds_p50']:.6g} queries/s"
        if found is not None:
            errors = {}
            for score, value in scores(found).items():
                end = min(queries, len(reference[score]))
                errors[score] = float((value[:end] - reference[score][:end]).abs().max())
            row["agreement"] = errors["raw"]
            note += f"; error relative {errors['relative']:.2g}, update {errors['update']:.2g}"
        row |= about | {"queries": queries, "implementation": name, "dtype": precision, "note": note}
        print(f"{name:34} {precision:9} {row['seconds_p50']:9.4f} s  {row.get('agreement')}  {note}", flush=True)
        append([row], args.csv, args.commit)


def exact_scores(
    hf_model: Any, device: torch.device, tokens: Tensor, mask: Tensor, states: Tensor, ids: Tensor, k: int
) -> dict[str, Tensor]:
    """The first sequences' scores by the same model in float64, from the same states and neighbours."""
    model = basins.load_model(hf_model, device=device, dtype="float64")
    some = min(CHECKED, len(tokens))
    with as_found(model):
        chunks = record_chunks(model, tokens[:some], mask[:some], (LAYER,), 1)
        source = OneLayer(states[:some].double(), chunks, "packed")
        settings = ScorerSettings(k=k, neighbors="cross_sequence", dtype="float64")
        bank = Bank(states.double().flatten(0, 1), None, table_of(mask, None, 0), same=False)
        own = ids[: some * tokens.shape[1]]
        room = torch.empty_like(source.held)
        return scores(rerun_variances(model, LAYER, source, bank, own, settings, room))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
