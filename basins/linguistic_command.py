"""`basins experiment linguistic`: parsing only, as in `cli.py`."""

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
    max_length: Annotated[int, typer.Option(help="Tokens a row; longer texts are cut.")] = 128,
    k: K = 15,
    n_resamples: Resamples = 300,
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
    remember(ctx, debug)
    from basins.experiment_runs import ready

    folder = ready("linguistic", out or free_folder(Path("runs/linguistic")), pictures)
    wanted = parse_numbers("--layers", layers)
    console = open_console()
    from basins.experiments import linguistic as run
    from basins.experiments.linguistic_words import THRESHOLDS

    console.print(f"Stated before the run: {THRESHOLDS}\n")
    start = time.monotonic()
    found = run(
        model,
        second_model=None if second_model == "none" else second_model,
        texts=input,
        limit=limit,
        layers=wanted,
        pieces=pieces,
        max_length=max_length,
        k=k,
        n_resamples=n_resamples,
        seed=seed,
    )
    seconds = time.monotonic() - start
    from basins.experiment_runs import write

    write(found, folder, pictures=pictures, command=command_line(), seconds=round(seconds, 1))
    print_end(found, seconds, folder)
