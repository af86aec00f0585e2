"""Progress shows on a terminal, for work longer than a second, and leaves nothing behind."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

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
