from __future__ import annotations

import json
import sys

import pytest

from basins.errors import BasinsError
from basins.experiment_commands import command_line, free_folder, parse_numbers


def test_the_demo_takes_the_next_free_folder(tmp_path):
    assert free_folder(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert free_folder(tmp_path / "demo") == tmp_path / "demo-3"


@pytest.mark.parametrize(
    ("text", "layers"),
    [("0,3-5,-1", [0, 3, 4, 5, -1]), ("7", [7]), ("-1", [-1]), (" 1 , 2-2", [1, 2]), (None, None)],
)
def test_layers_are_numbers_and_ranges(text, layers):
    assert parse_numbers("--layers", text) == layers


@pytest.mark.parametrize("text", ["", "a", "1,,2", "3-", "-3--1", "5-3", "1-2-3", "1.5"])
def test_other_layers_are_explained(text):
    with pytest.raises(BasinsError, match="neither a number nor a range"):
        parse_numbers("--layers", text)


def test_the_command_line_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["basins", "score", "--input", "a b.txt"])
    assert command_line() == "basins score --input 'a b.txt'"
    assert json.dumps(command_line())
