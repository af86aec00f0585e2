"""The command line: parsing only. What the commands do is in the package, how it looks in `console.py`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.text import Text
from typer.core import TyperGroup

from basins import layers_command, linguistic_command, robustness_command  # noqa: F401  (each adds its command)
from basins.console import (
    dose_tables,
    layer_table,
    open_console,
    pair_table,
    replay_sentence,
    replay_table,
    token_table,
)
from basins.errors import BasinsError, choose
from basins.experiment_commands import Debug, Model, command_line, experiment, free_folder, parse_numbers
from basins.plan_command import MemoryBudget, parse_bytes, plan
from basins.study_command import study

DEMO_FOLDER = Path("runs/demo")


class _Commands(TyperGroup):
    """Bad input ends with a message, not a traceback: exit status 2; Ctrl-C: 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BasinsError as error:
            if ctx.meta.get("debug"):
                raise
            _end(f"Error: {error}", 2)
        except KeyboardInterrupt:
            _end("Interrupted. A run folder is written as a whole or not at all.", 130)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _end(message: str, status: int) -> NoReturn:
    open_console(stderr=True).print(Text(message))
    raise typer.Exit(status)


Device = Annotated[str | None, typer.Option(help='"cpu", "cuda", "mps"; a GPU is taken if there is one.')]
Dtype = Annotated[str | None, typer.Option(help="Of the model: float32, float16, bfloat16, float64.")]
Top = Annotated[int, typer.Option(help="How many most and least compressed tokens a layer to print.")]
Pictures = Annotated[bool, typer.Option(help="Whether to write layers.png, layers.pdf and tokens.html.")]


@app.callback()
def main() -> None:
    """Where does a language model collapse distinctions? Compression scores for every token at every layer.

    \b
    basins demo                                            shipped model, bundled text, no network
    basins score --model gpt2 --input my.txt --out runs/my
    basins experiment importance                           tables, figures and a verdict
    basins study                                           all experiments, one analysis
    basins plan --model gpt2 --tokens 100000               memory, operations and time, before anything runs
    basins doctor                                          what is installed, and does re-running work
    """
    # Threads that spin while they wait slow everything down tenfold on a machine that does other work too. Has to be
    # said before PyTorch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


app.add_typer(experiment, name="experiment")
app.command()(study)
app.command()(plan)


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="A new run folder. Unless given: the first free of runs/demo, runs/demo-2, ...")
    ] = None,
    model: Annotated[str, typer.Option(help='"pocket" or "pocket-mini".')] = "pocket",
    top: Top = 2,
    pictures: Pictures = True,
    debug: Debug = False,
) -> None:
    """Score real text and planted passages with the shipped model. Needs no network; about half a minute.

    \b
    basins demo
    basins demo --model pocket-mini --out runs/mini
    """
    from basins import pocket
    from basins.runs import check_run_folder, write_run

    choose("--model", model, pocket.NAMES)
    _at_least_one("--top", top)
    folder = check_run_folder(out or free_folder(DEMO_FOLDER), pictures)
    console = open_console()
    console.print(f"Scoring a held-out book and planted passages with {model}: about half a minute.")
    from basins.demo import run_demo
    from basins.tables import extreme_tokens

    start = time.monotonic()
    found = run_demo(model)
    seconds = time.monotonic() - start
    tokens = extreme_tokens(found.scores, top)
    write_run(
        folder,
        found.scores,
        source={"name": "pocket-demo and planted passages, shipped with basins"},
        command=command_line(),
        seconds=round(seconds, 2),
        tables={"doses": found.doses, "dose_by_layer": found.dose_by_layer, "extreme_tokens": tokens},
        names=found.names,
        pictures=pictures,
    )
    console.print(
        "Primary analysis, stated beforehand: relative score by re-running the block, neighbours from other sequences "
        "only, first position left out.\n"
    )
    for table in (
        layer_table(found.scores),
        token_table(tokens, "relative"),
        *dose_tables(found.doses, found.dose_by_layer),
    ):
        console.print(table)
    _print_end(found.scores, folder, seconds)


@app.command()
def score(
    model: Model,
    input: Annotated[
        str,
        typer.Option(
            help="A .txt (one document a line), .jsonl, .csv or .parquet file, a Hugging Face dataset "
            '("name", "name:config", "name:config:split"), or a name known here ("wikitext", "sst2", "planted", ...; '
            '"sst2:FILE" is a local copy).'
        ),
    ],
    out: Annotated[Path, typer.Option(help="A new run folder.")],
    column: Annotated[
        str, typer.Option(help="The field with the text, in .jsonl, .csv, .parquet and datasets.")
    ] = "text",
    limit: Annotated[int | None, typer.Option(help="Score only the first texts.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="Neighbours a token.")] = 15,
    method: Annotated[str, typer.Option(help="rerun or lookup.")] = "rerun",
    neighbors: Annotated[str, typer.Option(help="same_layer, cross_sequence or same_token.")] = "same_layer",
    metric: Annotated[str, typer.Option(help="euclidean or cosine.")] = "euclidean",
    normalize: Annotated[bool, typer.Option(help="Compare unit vectors.")] = False,
    include_self: Annotated[bool, typer.Option(help="Count a token among its own neighbours.")] = False,
    exclude_first: Annotated[int, typer.Option(help="Leave the first n positions out, everywhere.")] = 0,
    shrink: Annotated[float, typer.Option(help="Move neighbours towards the token first: 1 not at all.")] = 1.0,
    index: Annotated[str, typer.Option(help="auto, exact, half, faiss or faiss-ivf (approximate).")] = "auto",
    layers: Annotated[str | None, typer.Option(help="Transitions, as in 0,3-5,-1. Unless given: all.")] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens a sequence; unless given, the model's context.")
    ] = None,
    long_texts: Annotated[str, typer.Option(help="A longer text: error, truncate, or split into windows.")] = "error",
    batch_size: Annotated[int | None, typer.Option(help="Sequences a forward pass; planned unless given.")] = None,
    memory_budget: MemoryBudget = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    top: Top = 1,
    pictures: Pictures = True,
    debug: Debug = False,
) -> None:
    """Score the texts of a file or dataset, and write a run folder.

    \b
    basins score --model pocket --input pocket-demo --long-texts split --out runs/book
    basins score --model gpt2 --input abstracts.csv --column abstract --limit 200 --out runs/abstracts
    basins score --model model.gguf --input notes.txt --layers 0,3-5,-1 --neighbors cross_sequence --out runs/notes
    """
    from basins.runs import check_run_folder, describe_input, write_run
    from basins.settings import ScorerSettings

    # Whatever can be wrong is looked at before the model is loaded.
    settings = ScorerSettings(
        k=k,
        method=method,
        neighbors=neighbors,
        metric=metric,
        normalize=normalize,
        include_self=include_self,
        exclude_first=exclude_first,
        shrink=shrink,
        index=index,
        batch_size=batch_size,
        memory_budget=parse_bytes("--memory-budget", memory_budget),
        seed=seed,
    )
    wanted = parse_numbers("--layers", layers)
    _at_least_one("--top", top)
    folder = check_run_folder(out, pictures)
    from basins.corpus import read_texts, tokenize

    texts = read_texts(input, column=column, limit=limit)
    from basins.models import load_model
    from basins.scorer import BasinScorer
    from basins.tables import extreme_tokens

    scorer = BasinScorer(load_model(model, device=device, dtype=dtype), **settings.as_dict())
    batch = tokenize(scorer.model, texts, max_length=max_length, long_texts=long_texts)
    start = time.monotonic()
    scores = scorer.score_texts(batch, layers=wanted)
    seconds = time.monotonic() - start
    source = describe_input(input) | {"column": column, "limit": limit}
    write_run(folder, scores, source=source, command=command_line(), seconds=round(seconds, 2), pictures=pictures)
    console = open_console()
    console.print(layer_table(scores))
    console.print(token_table(extreme_tokens(scores, top), "relative"))
    _print_end(scores, folder, seconds)


@app.command()
def doctor(model: Model = "pocket", device: Device = None, dtype: Dtype = None, debug: Debug = False) -> None:
    """What is installed, and whether re-running holds for a model.

    \b
    basins doctor
    basins doctor --model gpt2 --device cuda
    """
    from basins import doctor as examine
    from basins.models import load_model

    console = open_console()
    console.print(pair_table("Versions", examine.installed().items()))
    console.print(pair_table("Devices", examine.devices().items()))
    console.print(pair_table("FAISS", [("build", examine.faiss_build())]))
    console.print(pair_table("Extras", examine.extras().items()))
    loaded = load_model(model, device=device, dtype=dtype)
    console.print(replay_table(model, examine.check_replay(loaded)))


def _at_least_one(option: str, value: int) -> None:
    if value < 1:
        raise BasinsError(f"{option} {value} is too small: it must be at least 1.")


def _print_end(scores: Any, folder: Path, seconds: float) -> None:
    console = open_console()
    tokens = int(scores.real_tokens().sum())
    console.print(replay_sentence(scores.settings))
    if scores.settings["unscored"]:
        console.print(f"{scores.settings['unscored']:,} tokens have too few possible neighbours and no score.")
    console.print(f"{tokens:,} tokens at {len(scores.layers)} layers in {seconds:.0f} s.")
    console.print(Text(f"Run folder: {folder}", style="bold"), soft_wrap=True)
