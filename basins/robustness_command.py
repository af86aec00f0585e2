"""`basins experiment robustness`: parsing only, as in `cli.py`."""

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
    WeightDraws,
    carry_out,
    experiment,
    parse_numbers,
)


@experiment.command()
def robustness(
    ctx: typer.Context,
    model: Model = "pocket",
    second_model: SecondModel = "auto",
    input: Texts = None,
    limit: Limit = None,
    out: Out = None,
    measure: Annotated[
        str,
        typer.Option(help="The finding's measure: loss, log_frequency, position, or a .csv or .parquet table with "
                          "sequence, position, perhaps layer, and one column of values."),
    ] = "loss",
    layer: Annotated[int | None, typer.Option(help="The finding's layer. Unless given: where it is largest.")] = None,
    layers: Layers = None,
    max_length: MaxLength = 128,
    sample_rows: Annotated[int, typer.Option(help="Rows that are scored, spread over the texts.")] = 20,
    weight_draws: WeightDraws = 3,
    tested_tokens: Annotated[int, typer.Option(help="Tokens a layer with a p-value of their own.")] = 15,
    n_draws: Annotated[int, typer.Option(help="Transplanted scores for each of them.")] = 999,
    k: K = 15,
    n_resamples: Resamples = 200,
    n_permutations: Permutations = 1000,
    seed: Seed = 0,
    pictures: Pictures = True,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Does a finding survive the method's own choices, and do nulls show it too?

    \b
    basins experiment robustness
    basins experiment robustness --measure log_frequency --layer 3
    basins experiment robustness --model gpt2 --second-model gpt2-medium --input abstracts.csv --measure is_noun.csv
    """
    from basins.experiments.robustness_subject import MEASURES, load_measure

    carry_out(
        ctx,
        "robustness",
        out,
        model=model,
        second_model=second_model,
        texts=input,
        limit=limit,
        measure=measure if measure in MEASURES else load_measure(measure),
        layer=layer,
        layers=parse_numbers("--layers", layers),
        max_length=max_length,
        sample_rows=sample_rows,
        weight_draws=weight_draws,
        tested_tokens=tested_tokens,
        n_draws=n_draws,
        k=k,
        n_resamples=n_resamples,
        n_permutations=n_permutations,
        seed=seed,
    )
