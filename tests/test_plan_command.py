"""The plan of a call: what it adds up to, what the command prints, what it refuses, and that nothing is loaded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import basins
from basins import memory, planning
from basins.cli import app
from basins.errors import BasinsError
from basins.plan_command import in_time, parse_bytes

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "plan.py"


@pytest.fixture(autouse=True)
def _no_toy_call(monkeypatch):
    """What the libraries take has a test of its own."""
    monkeypatch.setattr(planning, "libraries_bytes", lambda: 100 * 2**20)


def run(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["plan", *(str(argument) for argument in arguments)])
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return re.sub(r"\s+", " ", result.output)


def test_it_prints_memory_disk_operations_and_time():
    printed = run("--model", "pocket-mini", "--tokens", 2048, "--k", 5)
    made = basins.plan("pocket-mini", 2048, k=5, rate=1e9)
    assert "pocket-mini: 4 blocks of width 128, 1,334,016 parameters" in printed
    assert f"peak of the process {memory.in_words(made.process_bytes)}" in printed
    assert "disk none" in printed
    assert f"{sum(made.operations.values()):.3g} in matrix products" in printed
    assert "measured on this device just now" in printed
    for moment in made.moments:
        assert f"{moment.stage} {memory.in_words(moment.device_bytes)}" in printed


def test_nothing_of_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr("basins.pocket.load", None)
    monkeypatch.setattr("basins.models.load_model", None)
    run("--model", "pocket", "--tokens", 512)


def test_a_gpu_that_is_not_here_has_a_stated_rate(monkeypatch):
    def absent(device):
        raise BasinsError("no such device")

    monkeypatch.setattr(planning, "parse_device", absent)
    printed = run("--tokens", 100_000, "--device", "cuda")
    assert "peak on the device" in printed
    assert "a stated rate: this device is not here" in printed
    made = basins.plan("pocket", 100_000, device="cuda")
    assert made.rate == planning.STATED_RATES["cuda"]
    assert made.seconds == pytest.approx(sum(made.operations.values()) / made.rate)
    assert made.host_bytes >= 2 * made.n_tokens * 256 * 4


def test_a_plan_adds_up():
    made = basins.plan("pocket-mini", 1000, length=100, layers=[0, -1], k=5, rate=2e9)
    assert (made.n_tokens, made.layers, made.device) == (1000, 2, "cuda" if torch.cuda.is_available() else "cpu")
    assert made.device_bytes == max(moment.device_bytes for moment in made.moments)
    assert made.device_bytes == int(sum(made.worst.device.values()))
    assert made.seconds == sum(made.operations.values()) / 2e9
    assert made.rate_source == "given"


def test_sequences_are_whole():
    assert basins.plan("pocket-mini", 129, length=128, rate=1.0).n_tokens == 256


def test_a_loaded_model_gives_the_plan_of_its_name(pocket_mini):
    named, loaded = (basins.plan(model, 1024, k=5, device="cpu", rate=1.0) for model in ("pocket-mini", pocket_mini))
    assert named.operations == loaded.operations
    assert named.device_bytes == pytest.approx(loaded.device_bytes, rel=0.001)


def test_a_budget_lowers_the_peak():
    # Long and few: what comes in pieces is most of it.
    free, bound = (basins.plan("pocket-mini", 1024, rate=1.0, memory_budget=b) for b in (None, 24 * 2**20))
    assert max(m.temporary for m in bound.moments) < max(m.temporary for m in free.moments)
    assert max(m.temporary for m in bound.moments) <= 24 * 2**20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", 0], "n_tokens=0 is too small"),
        (["--tokens", 100, "--length", 500], "length=500 is more than the context of pocket, 128 tokens"),
        (["--tokens", 100, "--k", 1], "k=1 is too small"),
        (["--tokens", 10, "--length", 10, "--k", 10], "k=10 needs at least 11 states and there are 10"),
        (["--tokens", 100, "--layers", "0,99"], "layer=99 is out of range"),
        (["--tokens", 100, "--memory-budget", "lots"], "is no amount of memory"),
        (["--tokens", 4096, "--memory-budget", "1KB"], "too small: the temporaries of 4,096 tokens"),
        (["--tokens", 100, "--device", "abacus"], "cannot be used on this machine"),
        (["--tokens", 100, "--model", "./nowhere"], "does not exist"),
        (["--tokens", 100, "--method", "guess"], "method"),
    ],
)
def test_what_cannot_be_planned(arguments, message):
    assert message in run(*arguments, status=2)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rate": 0}, "rate=0 is no number above 0"),
        ({"rate": "fast"}, "rate='fast' is no number above 0"),
        ({"dtype": "bfloat16"}, "this one has its own"),
    ],
)
def test_what_cannot_be_meant_is_refused(asked, message, pocket_mini):
    with pytest.raises(BasinsError, match=message):
        basins.plan(pocket_mini, 1000, **asked)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("1048576", 2**20), ("500MB", 500 * 2**20), ("8GiB", 2**33), ("1.5g", 3 * 2**29), (" 2 tb ", 2**41), (None, None)],
)
def test_amounts_of_memory(text, n_bytes):
    assert parse_bytes("--memory-budget", text) == n_bytes


@pytest.mark.parametrize(("seconds", "words"), [(0.5, "0.5 s"), (90, "90 s"), (600, "10 min"), (9000, "2.5 h")])
def test_times_in_words(seconds, words):
    assert in_time(seconds) == words


def test_a_rate_is_measured():
    rate, source = planning.measured_rate(torch.device("cpu"))
    assert source == "measured"
    assert 1e8 < rate < 1e14


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says what a process took")
@pytest.mark.parametrize("case", ["pocket:4096:rerun:2", "pocket:8192:lookup:2"])
def test_memory_is_right_within_a_quarter(case):
    """In a process of its own, as `benchmarks/plan.py` measures it."""
    found = subprocess.run([sys.executable, str(BENCHMARK), "--one", case], capture_output=True, text=True, check=True)
    row = json.loads(found.stdout.splitlines()[-1])
    assert 0.75 < row["agreement"] < 1.25, row
