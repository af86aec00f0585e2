"""`basins experiment layers`: parsing only, as in `cli.py`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from basins.console import open_console
from basins.experiment_commands import (
    Debug,
    K,
    Layers,
    Model,
    Out,
    Permutations,
    Pictures,
    Resamples,
    SecondModel,
    Seed,
    command_line,
    experiment,
    free_folder,
    parse_numbers,
    print_end,
    remember,
)


@experiment.command()
def layers(
    ctx: typer.Context,
    model: Model = "pocket",
    second_model: SecondModel = "auto",
    input: Annotated[
        str | None,
        typer.Option(help="Texts: a .txt, .jsonl, .csv or .parquet file or a dataset. Unless given: the shipped book."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first texts.")] = None,
    layers: Layers = None,
    max_length: Annotated[int, typer.Option(help="Tokens a row; longer texts are cut.")] = 128,
    sample: Annotated[int, typer.Option(help="Tokens whose neighbours meet in each other's contexts.")] = 48,
    null_rows: Annotated[int, typer.Option(help="Rows that the untrained model is scored on; 0: none.")] = 12,
    k: K = 15,
    n_resamples: Resamples = 200,
    n_permutations: Permutations = 1000,
    out: Out = None,
    seed: Seed = 0,
    pictures: Pictures = True,
    debug: Debug = False,
) -> None:
    """What do blocks do to neighbourhoods from layer to layer, apart from how dense they are?

    \b
    basins experiment layers
    basins experiment layers --model gpt2 --second-model gpt2-medium --input abstracts.csv --limit 100
    basins experiment layers --model model.gguf --limit 12 --layers 0,5,10,15,20,25,29 --sample 32
    """
    remember(ctx, debug)
    from basins.experiment_runs import ready

    folder = ready("layers", out or free_folder(Path("runs/layers")), pictures)
    wanted = parse_numbers("--layers", layers)
    console = open_console()
    from basins.experiments import layers as run
    from basins.experiments.layers_words import THRESHOLDS

    console.print(f"Stated before the run: {THRESHOLDS}\n", markup=False)
    start = time.monotonic()
    found = run(
        model,
        second_model=None if second_model == "none" else second_model,
        texts=input,
        limit=limit,
        layers=wanted,
        max_length=max_length,
        sample=sample,
        null_rows=null_rows,
        k=k,
        n_resamples=n_resamples,
        n_permutations=n_permutations,
        seed=seed,
    )
    seconds = time.monotonic() - start
    from basins.experiment_runs import write

    write(found, folder, pictures=pictures, command=command_line(), seconds=round(seconds, 1))
    print_end(found, seconds, folder)
