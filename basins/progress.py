"""A progress bar for work that takes longer than a second; silent when nobody watches."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

QUIET_SECONDS = 1.0
REDRAW_SECONDS = 0.25
_in_notebook: list[Progress] = []


@contextmanager
def progress(task: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield `advance(n)`. The bar goes to standard error, appears after one second and is removed at the end."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # In a notebook rich draws by catching all output in a widget for a moment. From a thread of its own it would catch
    # what the user prints as well, and two bars would catch each other: there one bar is drawn, and from `advance`.
    bar = Progress(*columns, console=console, transient=True, auto_refresh=not console.is_jupyter)
    task_id = bar.add_task(task, total=total)
    start, drawn, shown = time.monotonic(), 0.0, False
    # rich draws in a notebook only with the help of ipywidgets.
    watched = console.is_terminal or (console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)

    def advance(n: int = 1) -> None:
        nonlocal shown, drawn
        bar.update(task_id, advance=n)
        now = time.monotonic()
        if watched and not shown and not _in_notebook and now - start > QUIET_SECONDS:
            if console.is_jupyter:
                _in_notebook.append(bar)
            bar.start()
            shown, drawn = True, now
        elif shown and console.is_jupyter and now - drawn > REDRAW_SECONDS:
            bar.refresh()
            drawn = now

    try:
        yield advance
    finally:
        if shown:
            bar.stop()
        if bar in _in_notebook:
            _in_notebook.remove(bar)
