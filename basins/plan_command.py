"""`basins plan`: parsing, and what `planning.plan` found as tables."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from basins.console import number_table, open_console, pair_table
from basins.errors import BasinsError
from basins.experiment_commands import Debug, K, Layers, Model, parse_numbers

if TYPE_CHECKING:
    from basins.planning import Plan

MemoryBudget = Annotated[str | None, typer.Option(help="For temporaries, and for states in memory: 500MB, 8GiB, ...")]
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def plan(
    tokens: Annotated[int, typer.Option(help="All tokens that will be scored.")],
    model: Model = "pocket",
    k: K = 15,
    length: Annotated[int, typer.Option(help="Tokens of one sequence.")] = 128,
    layers: Layers = None,
    method: Annotated[str, typer.Option(help="rerun or lookup.")] = "rerun",
    device: Annotated[
        str | None, typer.Option(help='"cpu", "cuda", "mps", here or not; a GPU is taken if there is one.')
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the model: float32, float16, bfloat16, float64.")] = None,
    precision: Annotated[str, typer.Option(help="Of re-run products: float32, tf32 (GPUs) or bfloat16.")] = "float32",
    index: Annotated[str, typer.Option(help="auto, exact, half, faiss or faiss-ivf.")] = "auto",
    batch_size: Annotated[int | None, typer.Option(help="Sequences a forward pass; planned unless given.")] = None,
    memory_budget: MemoryBudget = None,
    debug: Debug = False,
) -> None:
    """What scoring will take, before anything runs: peak memory, disk, operations, and an estimate of time.

    \b
    basins plan --model pocket --tokens 16384
    basins plan --model gpt2 --tokens 100000 --k 15 --device cuda
    basins plan --model model.gguf --tokens 20000 --method lookup --memory-budget 2GiB
    """
    from basins.planning import plan as make_plan

    made = make_plan(
        model,
        tokens,
        length=length,
        layers=parse_numbers("--layers", layers),
        device=device,
        dtype=dtype,
        k=k,
        method=method,
        precision=precision,
        index=index,
        batch_size=batch_size,
        memory_budget=parse_bytes("--memory-budget", memory_budget),
    )
    _show(made)


def parse_bytes(option: str, text: str | None) -> int | None:
    """ "500MB", "8GiB", "8g" or "1048576": units are powers of 1,024."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", text.lower())
    if not found or (n_bytes := int(float(found[1]) * UNITS[found[2]])) < 1:
        raise BasinsError(f"{option} {text!r} is no amount of memory. Possible: 500MB, 8GiB, 8g, 1048576 (bytes).")
    return n_bytes


def _show(made: Plan) -> None:
    from basins.memory import in_words

    console = open_console()
    shape, on_cpu = made.shape, made.device.startswith("cpu")
    about = [
        ("model", f"{shape.name}: {shape.n_layers} blocks of width {shape.d_model}, {shape.n_parameters:,} parameters"),
        ("call", f"{made.n_tokens:,} tokens in sequences of {made.length}, {made.layers} layers, k={made.settings.k}"),
        ("how", f"{made.settings.method} on {made.device}, {made.sequences_at_once} sequences at once"),
    ]
    console.print(pair_table("Plan", about))
    if on_cpu:
        peak = [
            ("peak of the process", in_words(made.process_bytes)),
            ("of that, libraries", f"{in_words(made.libraries_bytes)} (resident here now)"),
        ]
    else:
        peak = [("peak on the device", in_words(made.device_bytes)), ("main memory", in_words(made.process_bytes))]
    total = sum(made.operations.values())
    rows = [
        *peak,
        ("worst moment", made.worst.stage),
        ("disk", in_words(made.disk_bytes) if made.disk_bytes else "none"),
        ("operations", f"{total:.3g} in matrix products"),
        ("time", f"about {in_time(made.seconds)} at {made.rate / 1e12:.3g} TFLOP/s, {RATES[made.rate_source]}"),
    ]
    console.print(pair_table("What it takes", rows))
    console.print(number_table("Memory at the worst moment", [(n, in_words(b)) for n, b in made.worst.device.items()]))
    console.print(number_table("Memory by stage", [(m.stage, in_words(m.device_bytes)) for m in made.moments]))
    shares = [(stage, f"{count:.3g}", in_time(count / made.rate)) for stage, count in made.operations.items()]
    console.print(number_table("Operations by stage", shares))
    console.print(Text(CAPTION, style="dim"))


RATES = {
    "measured": "measured on this device just now",
    "stated": "a stated rate: this device is not here",
    "given": "as given",
}
CAPTION = (
    "Time is that of matrix products alone, at the rate of one large product: norms, softmax, sorting and variances "
    "come on top, so take it as the least. Nothing of the model was loaded but its configuration."
)


def in_time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
