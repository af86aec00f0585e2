"""`basins study`: parsing only, as in `cli.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from basins.console import frame_table, open_console
from basins.experiment_commands import (
    Debug,
    K,
    Layers,
    Limit,
    MaxLength,
    Model,
    Pictures,
    SecondModel,
    Seed,
    Texts,
    command_line,
    parse_numbers,
)


def study(
    model: Model = "pocket",
    second_model: SecondModel = "auto",
    out: Annotated[Path, typer.Option(help="The folder; one that holds the same study is taken up again.")] = Path(
        "runs/study"
    ),
    input: Texts = None,
    limit: Limit = None,
    max_length: MaxLength = 128,
    parts: Annotated[str | None, typer.Option(help="Names of experiments, with commas between. Unless: all.")] = None,
    layers: Layers = None,
    k: K = 15,
    seed: Seed = 0,
    pictures: Pictures = True,
    debug: Debug = False,
) -> None:
    """All experiments on one model and text, and one analysis. Interrupted, the same command goes on where it was.

    \b
    basins study --model pocket --second-model pocket-mini --out runs/study
    basins study --model gpt2 --second-model gpt2-medium --input wikitext.txt --out runs/gpt2
    """
    wanted = parse_numbers("--layers", layers)
    console = open_console()
    from basins.studies import study as run
    from basins.studies.grades import RULES

    console.print(f"Stated before the run: {RULES}\n")
    found = run(
        model,
        second_model=None if second_model == "none" else second_model,
        out=out,
        texts=input,
        parts=[part.strip() for part in parts.split(",")] if parts else None,
        limit=limit,
        max_length=max_length,
        layers=wanted,
        k=k,
        seed=seed,
        pictures=pictures,
        command=command_line(),
        tell=lambda line: console.print(Text(line)),
    )
    console.print()
    console.print(frame_table("Everything that was tested", found.hypotheses))
    console.print(Text(f"{found.grade}: {found.why}\n"))
    console.print(f"{found.seconds:.0f} s.")
    console.print(Text(f"Read: {found.folder / 'analysis.md'}", style="bold"), soft_wrap=True)
