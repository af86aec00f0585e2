"""A progress bar for work that takes longer than a second; silent when nobody watches."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

QUIET_SECONDS = 1.0


@contextmanager
def progress(task: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield `advance(n)`. The bar goes to standard error, appears after one second and is removed at the end."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task_id = bar.add_task(task, total=total)
    start, shown = time.monotonic(), False
    # rich draws in a notebook only with the help of ipywidgets.
    watched = console.is_terminal or (console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)

    def advance(n: int = 1) -> None:
        nonlocal shown
        bar.update(task_id, advance=n)
        if watched and not shown and time.monotonic() - start > QUIET_SECONDS:
            bar.start()
            shown = True

    try:
        yield advance
    finally:
        if shown:
            bar.stop()
