"""`basins experiment ...`: parsing only, as in `cli.py`."""

from __future__ import annotations

import importlib
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from basins.console import frame_table, open_console
from basins.errors import BasinsError

experiment = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Ask a question of a model: tables, figures, a verdict by thresholds stated before the run, and a reading.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Out = Annotated[Path | None, typer.Option(help="A new folder. Unless given: the first free of runs/EXPERIMENT, ...-2.")]
Model = Annotated[str, typer.Option(help='A hub id ("gpt2"), a folder, a .gguf file, "pocket" or "pocket-mini".')]


def _remember(ctx: typer.Context, value: bool) -> None:
    ctx.meta["debug"] = value


Debug = Annotated[bool, typer.Option("--debug", callback=_remember, help="Show the traceback of an error.")]
Pictures = Annotated[bool, typer.Option(help="Whether to draw figures and the token page.")]
SecondModel = Annotated[
    str, typer.Option(help='Of the replication; "auto" is pocket-mini for pocket and else none; or "none".')
]
Texts = Annotated[
    str | None,
    typer.Option(help="Texts: a .txt, .jsonl, .csv or .parquet file or a dataset. Unless given: the shipped book."),
]
Limit = Annotated[int | None, typer.Option(help="Only the first texts.")]
MaxLength = Annotated[int, typer.Option(help="Tokens a row; longer texts are cut.")]
Layers = Annotated[str | None, typer.Option(help="Transitions, as in 0,3-5,-1. Unless given: all.")]
K = Annotated[int, typer.Option("--k", "-k", help="Neighbours a token.")]
Resamples = Annotated[int, typer.Option(help="Of the intervals.")]
Permutations = Annotated[int, typer.Option(help="Of the tests.")]
NullRows = Annotated[int, typer.Option(help="Rows that are scored under every null; 0: no nulls.")]
WeightDraws = Annotated[int, typer.Option(help="Models with random weights.")]
Seed = Annotated[int, typer.Option(help="Of every random choice: the same seed gives the same tables.")]


def free_folder(folder: Path) -> Path:
    """The folder itself, or with the first number from 2 that is free."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def command_line() -> str:
    return shlex.join(["basins", *sys.argv[1:]])


def parse_numbers(option: str, text: str | None) -> list[int] | None:
    """ "0,3-5,-1" -> [0, 3, 4, 5, -1]."""
    if text is None:
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().rpartition("-")
        try:
            if dash and first:
                ends = range(int(first), int(last) + 1)
                if int(first) < 0 or not ends:
                    raise ValueError
                numbers += ends
            else:
                numbers.append(int(part))
        except ValueError:
            raise BasinsError(
                f"{option} {text!r} has a part {part.strip()!r} that is neither a number nor a range. Possible: "
                "numbers, negative ones from the end, and rising ranges such as 3-5, with commas between: 0,3-5,-1."
            ) from None
    return numbers


def carry_out(ctx: typer.Context, name: str, out: Path | None, *, second_model: str, **settings: Any) -> None:
    """Run an experiment, write its folder, print its end. Whatever can be refused is refused before it runs."""
    from basins.experiment_runs import ready, write

    pictures = ctx.params["pictures"]
    folder = ready(name, out or free_folder(Path("runs") / name), pictures)
    console = open_console()
    words = importlib.import_module(f"basins.experiments.{name}_words")
    console.print(Text(f"Stated before the run: {words.THRESHOLDS}\n"))
    start = time.monotonic()
    run = getattr(importlib.import_module("basins.experiments"), name)
    found = run(second_model=None if second_model == "none" else second_model, **settings)
    seconds = time.monotonic() - start
    write(found, folder, pictures=pictures, command=command_line(), seconds=round(seconds, 1))
    for title, frame in found.summary_tables().items():
        console.print(frame_table(title, frame))
    console.print(Text(f"{found.grade}: {found.reading}\n"))
    console.print(f"{seconds:.0f} s.")
    console.print(Text(f"Folder: {folder}", style="bold"), soft_wrap=True)


@experiment.command()
def importance(
    ctx: typer.Context,
    model: Model = "pocket",
    second_model: SecondModel = "auto",
    input: Texts = None,
    limit: Limit = None,
    out: Out = None,
    layers: Layers = None,
    methods: Annotated[str | None, typer.Option(help="Importance measures, with commas between. Unless: all.")] = None,
    max_length: MaxLength = 128,
    sample_rows: Annotated[int, typer.Option(help="Rows that integrated gradients and ablation are measured on.")] = 12,
    ablated: Annotated[int, typer.Option(help="Tokens that are ablated, each at every layer.")] = 160,
    steps: Annotated[int, typer.Option(help="Points on the path of integrated gradients.")] = 8,
    k: K = 15,
    n_resamples: Resamples = 300,
    n_permutations: Permutations = 2000,
    null_rows: NullRows = 20,
    weight_draws: WeightDraws = 3,
    seed: Seed = 0,
    pictures: Pictures = True,
    debug: Debug = False,
) -> None:
    """Do tokens that matter to the model sit where its blocks compress less?

    \b
    basins experiment importance
    basins experiment importance --model gpt2 --second-model gpt2-medium --input abstracts.csv --limit 100
    basins experiment importance --model model.gguf --limit 12 --layers 0,5,10,15,20,25,29
    """
    carry_out(
        ctx,
        "importance",
        out,
        model=model,
        second_model=second_model,
        texts=input,
        limit=limit,
        layers=parse_numbers("--layers", layers),
        methods=[method.strip() for method in methods.split(",")] if methods else None,
        max_length=max_length,
        sample_rows=sample_rows,
        ablated=ablated,
        steps=steps,
        k=k,
        n_resamples=n_resamples,
        n_permutations=n_permutations,
        null_rows=null_rows,
        weight_draws=weight_draws,
        seed=seed,
    )


@experiment.command()
def memorization(
    ctx: typer.Context,
    model: Model = "pocket",
    second_model: SecondModel = "auto",
    reference: Annotated[
        str, typer.Option(help='Whose loss is subtracted; "auto" is pocket-mini for pocket and else none; or "none".')
    ] = "auto",
    passages: Annotated[
        str | None,
        typer.Option(help='A .jsonl, .csv or .parquet file with text and group; "planted" or "natural".'),
    ] = None,
    plain: Annotated[str | None, typer.Option(help="Plain text (a file or .conllu) for one more comparison.")] = None,
    finetune: Annotated[bool, typer.Option("--finetune", help="Fine-tune copies on random halves of quotes.")] = False,
    dynamics: Annotated[bool, typer.Option("--dynamics", help="Fine-tune, and look on the way.")] = False,
    finetune_texts: Annotated[
        str | None, typer.Option(help="Passages to fine-tune on, a text file. Unless given: bundled quotes.")
    ] = None,
    n_seeds: Annotated[int, typer.Option(help="Draws of the halves; each is run with both halves.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Of the fine-tuning.")] = 1e-3,
    window: Annotated[int | None, typer.Option(help="Tokens of text a passage is cut to.")] = None,
    threshold: Annotated[float, typer.Option(help="Match above which a passage counts as memorised.")] = 0.8,
    layers: Layers = None,
    k: K = 15,
    n_resamples: Resamples = 200,
    n_permutations: Permutations = 500,
    null_passages: Annotated[int, typer.Option(help="Passages a side that are scored under every null; 0: none.")] = 24,
    weight_draws: WeightDraws = 3,
    out: Out = None,
    seed: Seed = 0,
    pictures: Pictures = True,
    debug: Debug = False,
) -> None:
    """Do memorised sequences compress differently, and does that say more than the loss already does?

    \b
    basins experiment memorization
    basins experiment memorization --model pocket-mini --finetune --dynamics
    basins experiment memorization --model model.gguf --plain en_ewt-ud-test.conllu
    """
    from basins.corpus import read_texts

    carry_out(
        ctx,
        "memorization",
        out,
        model=model,
        second_model=second_model,
        reference=None if reference == "none" else reference,
        passages=passages,
        plain=plain,
        finetune=finetune,
        dynamics=dynamics,
        finetune_texts=read_texts(finetune_texts) if finetune_texts is not None else None,
        n_seeds=n_seeds,
        learning_rate=learning_rate,
        window=window,
        threshold=threshold,
        layers=parse_numbers("--layers", layers),
        k=k,
        n_resamples=n_resamples,
        n_permutations=n_permutations,
        null_passages=null_passages,
        weight_draws=weight_draws,
        seed=seed,
    )
