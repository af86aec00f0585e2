"""`basins experiment linguistic`: parsing only, as in `cli.py`."""

from __future__ import annotations

from typing import Annotated

import typer

from basins.experiment_commands import (
    Debug,
    K,
    Layers,
    MaxLength,
    Model,
    NullRows,
    Out,
    Pictures,
    Resamples,
    SecondModel,
    Seed,
    WeightDraws,
    carry_out,
    experiment,
    parse_numbers,
)


@experiment.command()
def linguistic(
    ctx: typer.Context,
    model: Model = "pocket",
    second_model: SecondModel = "auto",
    input: Annotated[
        str | None,
        typer.Option(
            help='Gold tags: a .conllu file, or "ptb" (NLTK\'s treebank sample). Tagged by NLTK: any file or dataset '
            "of texts. Unless given: the shipped book and its tags."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first texts (documents, in a treebank).")] = None,
    out: Out = None,
    layers: Layers = None,
    pieces: Annotated[
        str, typer.Option(help="Which token stands for a word of several: first, last or every.")
    ] = "first",
    max_length: MaxLength = 128,
    k: K = 15,
    n_resamples: Resamples = 300,
    null_rows: NullRows = 20,
    weight_draws: WeightDraws = 3,
    seed: Seed = 0,
    pictures: Pictures = True,
    debug: Debug = False,
) -> None:
    """Do a model's blocks compress parts of speech differently?

    \b
    basins experiment linguistic
    basins experiment linguistic --model gpt2 --second-model gpt2-medium --input en_ewt-ud-test.conllu
    basins experiment linguistic --input ptb --limit 20 --pieces last
    """
    carry_out(
        ctx,
        "linguistic",
        out,
        model=model,
        second_model=second_model,
        texts=input,
        limit=limit,
        layers=parse_numbers("--layers", layers),
        pieces=pieces,
        max_length=max_length,
        k=k,
        n_resamples=n_resamples,
        null_rows=null_rows,
        weight_draws=weight_draws,
        seed=seed,
    )
