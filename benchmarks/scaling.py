"""How the sweep's seconds grow with tokens, k, width and depth: exponents, with intervals.

`score_tokens` of a model of GPT-2's shape with random weights, rows of 128 random tokens, re-run and lookup scores. One
quantity is changed at a time and the others stay at `--tokens-at`, k = 15, width 768 and `--depth` blocks. Beside it,
over tokens, `end_to_end.py`'s per-token loop over FAISS neighbours (lookup scores alone) up to `--most-loop-tokens`.

The exponent is the slope of a least-squares line through the logarithms of seconds and quantity, every repeat a point,
with a 95% interval by Student's t. Over tokens there is a second one from `--large` on, where fixed costs no longer
show: searching is quadratic in the tokens and re-running is linear, so it lies between 1 and 2. Depth and tokens cannot
do better than 1 in the re-run; k has exponent 1 in the output projection and MLP, which nothing can share; width has 2
there and 1 in the distances.

    python benchmarks/scaling.py --device cuda --precision tf32
    python benchmarks/scaling.py --most-tokens 2048 --tokens-at 512 --d-models 64 128 --d-model 64    # on a CPU
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from end_to_end import per_token_loop
from measured import CSV, append, device_name, timed
from random_gpt2 import gpt2

import basins

POS = 128
# So many that few of a million tokens are the same token at the same position, and so one state at layer 0.
VOCABULARY = 2**14
STEP = 4
# Two-sided 95% quantiles of Student's t by degrees of freedom; beyond the last, the normal one.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def exponent(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Slope of log seconds on log quantity, and the ends of its 95% interval."""
    x, y = (torch.tensor([math.log(point[i]) for point in points], dtype=torch.float64) for i in (0, 1))
    off = x - x.mean()
    slope = float((off * y).sum() / off.square().sum())
    free = len(points) - 2
    if free < 1:
        return slope, float("nan"), float("nan")
    left = y - y.mean() - slope * off
    error = float((left.square().sum() / free / off.square().sum()).sqrt())
    t = STUDENT[free - 1] if free <= len(STUDENT) else 1.96
    return slope, slope - t * error, slope + t * error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--least-tokens", type=int, default=1024)
    parser.add_argument("--most-tokens", type=int, default=2**20)
    parser.add_argument("--most-loop-tokens", type=int, default=2**14)
    parser.add_argument("--large", type=int, default=2**16)
    parser.add_argument("--tokens-at", type=int, default=2**14, help="while another quantity changes")
    parser.add_argument("--ks", type=int, nargs="+", default=[4, 8, 15, 30, 60])
    parser.add_argument("--d-models", type=int, nargs="+", default=[256, 512, 768, 1024, 2048])
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--k", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without", nargs="*", default=[], help="of tokens, k, width, depth, loop")
    parser.add_argument("--commit", default=None, help="where there is no git")
    parser.add_argument("--csv", type=Path, default=CSV)
    args = parser.parse_args()
    device = torch.device(args.device)
    drawn: dict[str, list[tuple[float, float]]] = {}

    def model_of(depth: int, d_model: int) -> Any:
        return basins.load_model(gpt2(depth, d_model, VOCABULARY), device=device)

    def tokens_of(n: int) -> torch.Tensor:
        return torch.randint(VOCABULARY, (-(-n // POS), POS), generator=torch.Generator().manual_seed(0))

    def sweep(model: Any, n: int, k: int) -> Callable[[], Any]:
        return lambda: basins.BasinScorer(model, k=k, precision=args.precision).score_tokens(tokens_of(n))

    def measure(axis: str, quantity: int, name: str, run: Callable[[], Any], about: dict[str, Any]) -> None:
        # Each after a run that does not count: kernels are compiled anew for some sizes.
        row, _ = timed(run, args.repeats, device)
        row |= {"name": f"scaling over {axis}", "implementation": name, "dtype": args.precision} | about
        row |= {"device": device_name(device), "queries": about["tokens"] * about["depth"]}
        row["note"] = f"{axis} {quantity}, {row.pop('depth')} blocks"
        drawn.setdefault(f"{name}, {axis}", []).extend((quantity, seconds) for seconds in row["all_seconds"])
        print(
            f"{axis:6} {quantity:8} {name:28} {row['seconds_p50']:9.3f} s  {row.get('peak_gb', 0):.2f} GB", flush=True
        )
        append([row], args.csv, args.commit)

    base = {"tokens": args.tokens_at, "k": args.k, "d_model": args.d_model, "depth": args.depth}
    model = model_of(args.depth, args.d_model)
    if "tokens" not in args.without:
        n = args.least_tokens
        while n <= args.most_tokens:
            about = base | {"tokens": n}
            measure("tokens", n, "basins", sweep(model, n, args.k), about)
            if n <= args.most_loop_tokens and "loop" not in args.without:
                loop = lambda n=n: per_token_loop(model, tokens_of(n), args.k)  # noqa: E731
                measure("tokens", n, "per-token loop over FAISS", loop, about)
            n *= STEP
    for k in args.ks if "k" not in args.without else ():
        measure("k", k, "basins", sweep(model, args.tokens_at, k), base | {"k": k})
    for d_model in args.d_models if "width" not in args.without else ():
        run = sweep(model_of(args.depth, d_model), args.tokens_at, args.k)
        measure("width", d_model, "basins", run, base | {"d_model": d_model})
    for depth in args.depths if "depth" not in args.without else ():
        run = sweep(model_of(depth, args.d_model), args.tokens_at, args.k)
        measure("depth", depth, "basins", run, base | {"depth": depth})
    fits = {}
    for name, points in drawn.items():
        fits[name] = points
        if name.endswith("tokens"):
            fits[f"{name} from {args.large:,}"] = [point for point in points if point[0] >= args.large]
    for name, points in fits.items():
        if len({quantity for quantity, _ in points}) < 2:
            continue
        slope, low, high = exponent(points)
        note = f"seconds ~ quantity^{slope:.2f} (95%: {low:.2f} to {high:.2f}), {len(points)} runs"
        print(f"{name:44} {note}", flush=True)
        about = {"name": "scaling, exponent", "implementation": name, "dtype": args.precision, "note": note}
        append([about | {"device": device_name(device)}], args.csv, args.commit)


if __name__ == "__main__":
    main()
