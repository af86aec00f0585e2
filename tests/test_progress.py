"""Progress shows on a terminal, for work longer than a second, and leaves nothing behind."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console
from rich.live import Live, _RefreshThread

from basins import progress as module


def run(monkeypatch, terminal: bool, quiet_seconds: float) -> str:
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=80)
    monkeypatch.setattr(module, "Console", lambda stderr: console)
    monkeypatch.setattr(module, "QUIET_SECONDS", quiet_seconds)
    with module.progress("scoring", 3) as advance:
        for _ in range(3):
            advance(1)
    return written.getvalue()


def test_shows_the_task_on_a_terminal(monkeypatch):
    assert "scoring" in run(monkeypatch, terminal=True, quiet_seconds=-1)


def test_silent_for_work_shorter_than_a_second(monkeypatch):
    assert run(monkeypatch, terminal=True, quiet_seconds=60) == ""


def test_silent_where_nobody_watches(monkeypatch):
    assert run(monkeypatch, terminal=False, quiet_seconds=-1) == ""


def test_the_bar_is_taken_away_after_an_exception(monkeypatch):
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=80)
    monkeypatch.setattr(module, "Console", lambda stderr: console)
    monkeypatch.setattr(module, "QUIET_SECONDS", -1)
    with pytest.raises(KeyboardInterrupt), module.progress("scoring", 3) as advance:
        advance(1)
        raise KeyboardInterrupt
    assert console._live_stack == []


def test_in_a_notebook_the_caller_draws_one_bar(monkeypatch):
    """rich catches all output while it draws there: from a thread, also another bar's and the user's."""
    pytest.importorskip("ipywidgets")
    drawn = []
    monkeypatch.setattr(module, "Console", lambda stderr: Console(force_jupyter=True, width=80))
    monkeypatch.setattr(module, "QUIET_SECONDS", -1)
    monkeypatch.setattr(module, "REDRAW_SECONDS", -1)
    monkeypatch.setattr("rich.jupyter.display", lambda *shown: None)  # there is no kernel to show it
    monkeypatch.setattr(Live, "refresh", lambda self: drawn.append((self, threading.current_thread())))
    with module.progress("outer", 3) as outer:
        outer(1)
        with module.progress("inner", 2) as inner:
            inner(1)
            inner(1)
            assert not [thread for thread in threading.enumerate() if isinstance(thread, _RefreshThread)]
        outer(1)
    with module.progress("next", 1) as after:
        after(1)
    bars, threads = zip(*drawn, strict=True)
    # The outer one when it appears and at its second step, the inner one never, the next one when it appears.
    assert bars[0] is bars[1]
    assert len(set(bars)) == 2
    assert set(threads) == {threading.main_thread()}
