"""`basins experiment layers`: parsing only, as in `cli.py`."""

from __future__ import annotations

from typing import Annotated

import typer

from basins.experiment_commands import (
    Debug,
    K,
    Layers,
    Limit,
    MaxLength,
    Model,
    Out,
    Permutations,
    Pictures,
    Resamples,
    SecondModel,
    Seed,
    Texts,
    carry_out,
    experiment,
    parse_numbers,
)


@experiment.command()
def layers(
    ctx: typer.Context,
    model: Model = "pocket",
    second_model: SecondModel = "auto",
    input: Texts = None,
    limit: Limit = None,
    layers: Layers = None,
    max_length: MaxLength = 128,
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
    carry_out(
        ctx,
        "layers",
        out,
        model=model,
        second_model=second_model,
        texts=input,
        limit=limit,
        layers=parse_numbers("--layers", layers),
        max_length=max_length,
        sample=sample,
        null_rows=null_rows,
        k=k,
        n_resamples=n_resamples,
        n_permutations=n_permutations,
        seed=seed,
    )
