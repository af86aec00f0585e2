from __future__ import annotations

import gzip
import io
import re
import subprocess
import sys

import pandas as pd
import pytest
import torch
from made_scores import made_scores
from typer.testing import CliRunner

from basins import console, doctor, runs
from basins.cli import app
from basins.errors import BasinsError
from basins.selfcheck import CheckedPath

TEXTS = [
    "The man walked down the street and saw a large dog in front of the old house.",
    "It was the best of days, and nobody in the little town had slept at all that night.",
    "When the war was over they returned to the village, and the fields were green again.",
]


def basins(*arguments: object, status: int = 0) -> str:
    """Run a command; what it prints, on one line."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return re.sub(r"\s+", " ", result.output)


@pytest.fixture
def loaded(monkeypatch, pocket_mini):
    """`load_model` gives the model that is loaded already."""
    monkeypatch.setattr("basins.models.load_model", lambda *_, **__: pocket_mini)


def write(path, texts=TEXTS, column="text"):
    frame = pd.DataFrame({"id": range(len(texts)), column: texts})
    if path.name.endswith(".txt"):
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    elif path.name.endswith(".txt.gz"):
        path.write_bytes(gzip.compress("\n".join(texts).encode()))
    elif path.suffix == ".jsonl":
        path.write_text(frame.to_json(orient="records", lines=True), encoding="utf-8")
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.csv", "a.parquet"])
def test_every_format_is_scored(tmp_path, loaded, name):
    source = write(tmp_path / name)
    out = tmp_path / "run"
    printed = basins("score", "--model", "pocket-mini", "--input", source, "--out", out, "--layers", 1, "--no-pictures")
    run = runs.read_run(out)
    assert run.manifest["counts"]["texts"] == 3
    assert run.manifest["input"]["file"] == str(source)
    assert str(run.manifest["counts"]["tokens"]) in printed
    assert f"Run folder: {out}" in printed


def test_every_setting_reaches_the_run(tmp_path):
    source = write(tmp_path / "a.csv", column="abstract")
    out = tmp_path / "run"
    options = {
        "--column": "abstract",
        "--limit": 2,
        "--k": 5,
        "--neighbors": "cross_sequence",
        "--metric": "cosine",
        "--exclude-first": 1,
        "--index": "exact",
        "--layers": "0,2-3",
        "--max-length": 8,
        "--long-texts": "truncate",
        "--batch-size": 1,
        "--device": "cpu",
        "--dtype": "float64",
        "--seed": 3,
        "--shrink": 0.5,
    }
    flags = ["--normalize", "--include-self", "--no-pictures"]
    flat = [part for option in options.items() for part in option]
    basins("score", "--model", "pocket-mini", "--input", source, "--out", out, *flat, *flags)
    run = runs.read_run(out)
    settings = run.manifest["settings"]
    assert run.scores.layers == (0, 2, 3)
    assert run.scores.values.shape == (3, 2, 8)
    wanted = {
        "k": 5,
        "neighbors": "cross_sequence",
        "metric": "cosine",
        "exclude_first": 1,
        "index": "exact",
        "batch_size": 1,
        "seed": 3,
        "shrink": 0.5,
        "normalize": True,
        "include_self": True,
        "model_dtype": "float64",
        "device": "cpu",
    }
    assert {name: settings[name] for name in wanted} == wanted
    assert settings["tokenization"]["max_length"] == 8
    assert settings["tokenization"]["long_texts"] == "truncate"
    assert run.manifest["input"]["limit"] == 2


def test_bundled_text_needs_no_file_and_pictures_are_drawn(tmp_path, loaded):
    out = tmp_path / "run"
    options = ["--limit", 2, "--method", "lookup", "--long-texts", "split", "--layers", "-1"]
    printed = basins("score", "--model", "pocket-mini", "--input", "pocket-demo", "--out", out, *options)
    assert runs.read_run(out).manifest["input"]["name"] == "pocket-demo"
    assert (out / "layers.png").exists()
    assert (out / "tokens.html").exists()
    assert "Raw is not what the block does" in printed
    assert "No neighbour was re-run: their outputs were looked up." in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "jacobian"], "method='jacobian' is not an option. Possible: 'rerun', 'lookup'."),
        (["--k", "1"], "k=1 is too small: it must be at least 2"),
        (["--k", "500"], "k=500 needs at least 501 usable states"),
        (["--layers", "9"], "layer=9 is out of range: this model has 4 blocks, numbered 0 to 3."),
        (["--layers", "5-3"], "--layers '5-3' has a part '5-3' that is neither a number nor a range."),
        (["--max-length", "5"], "texts[0] has 21 tokens, more than max_length=5"),
        (["--long-texts", "drop"], "long_texts='drop' is not an option. Possible: 'error', 'truncate', 'split'."),
        (["--limit", "0"], "limit=0 leaves no text"),
        (["--dtype", "int8"], "dtype='int8' is not an option"),
        (["--top", "0"], "--top 0 is too small: it must be at least 1."),
        (["--model", "no/such/model.gguf"], "no/such/model.gguf"),
        (["--input", "missing.txt"], "There is no file missing.txt"),
        (["--input", "."], ". is a folder. Pass one file of it."),
    ],
)
def test_bad_input_ends_with_a_message_and_no_folder(tmp_path, options, message):
    source = write(tmp_path / "a.txt")
    given = {"--model": "pocket-mini", "--input": str(source), "--out": str(tmp_path / "run")}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    printed = basins("score", *[part for pair in given.items() for part in pair], status=2)
    assert message in printed
    assert printed.startswith("Error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_column_that_is_not_there_lists_those_that_are(tmp_path):
    source = write(tmp_path / "a.csv", column="abstract")
    printed = basins("score", "--model", "pocket-mini", "--input", source, "--out", tmp_path / "run", status=2)
    assert "has no column 'text'. It has: 'id', 'abstract'." in printed


def test_an_existing_folder_stops_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("basins.models.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    for command in (["demo"], ["score", "--model", "pocket", "--input", "pocket-demo"]):
        assert "exists already" in basins(*command, "--out", tmp_path, status=2)
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path):
    arguments = ["score", "--model", "pocket-mini", "--input", "missing.txt", "--out", str(tmp_path / "run"), "--debug"]
    assert isinstance(CliRunner().invoke(app, arguments).exception, BasinsError)


def test_ctrl_c_ends_with_130_and_no_folder(tmp_path, monkeypatch, loaded):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("basins.scorer.BasinScorer.score_texts", interrupt)
    source = write(tmp_path / "a.txt")
    printed = basins("score", "--model", "pocket-mini", "--input", source, "--out", tmp_path / "run", status=130)
    assert "Interrupted." in printed
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("command", ["demo", "score", "doctor"])
def test_help_shows_examples(command):
    printed = basins(command, "--help")
    assert printed.count(f"basins {command} ") >= 2
    assert "--debug" in printed


def test_help_of_all_names_the_commands():
    printed = basins("--help")
    assert all(f"basins {command}" in printed for command in ("demo", "score", "doctor"))


def test_help_is_light_and_the_module_is_the_command():
    code = "import sys, basins.cli; sys.exit(bool({'torch', 'matplotlib', 'faiss', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    printed = subprocess.run([sys.executable, "-m", "basins", "--help"], capture_output=True, text=True, check=True)
    assert printed.stdout.startswith("Usage: basins ")


def test_the_demo_prints_tables_and_leaves_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("basins.demo.PARAGRAPHS", 1)
    monkeypatch.setattr("basins.demo.PASSAGES", 1)
    monkeypatch.chdir(tmp_path)
    printed = basins("demo", "--model", "pocket-mini")
    assert "Run folder: runs/demo" in printed
    assert "Primary analysis, stated beforehand" in printed
    assert printed.count("Raw is not what the block does") == 3
    assert "Self-check: 4 blocks by the re-run core; each agrees with the model's own forward pass." in printed
    run = runs.read_run("runs/demo")
    assert run.scores.settings["neighbors"] == "cross_sequence"
    assert run.scores.settings["exclude_first"] == 1
    doses = pd.read_csv("runs/demo/doses.csv")
    assert doses["passages"].tolist() == [1] * 6
    assert doses["loss"].iloc[-1] < doses["loss"].iloc[0]
    assert set(pd.read_csv("runs/demo/extreme_tokens.csv")["layer"]) == {0, 1, 2, 3}
    assert "planted, dose 256" in (tmp_path / "runs/demo/tokens.html").read_text(encoding="utf-8")


def test_the_demo_has_two_models():
    assert "--model='gpt2' is not an option. Possible: 'pocket', 'pocket-mini'." in basins(
        "demo", "--model", "gpt2", status=2
    )


def test_the_doctor_checks_every_block(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(doctor, "EXTRAS", {"view": {"no_such_module": "matplotlib", "circuitsvis": "circuitsvis"}})
    printed = basins("doctor", "--model", "pocket-mini")
    assert "basins 0.1.0" in printed
    assert f"torch {torch.__version__}" in printed
    assert "cpu" in printed
    assert 'faiss-cpu", or pass index="exact"' in printed
    assert 'matplotlib missing: pip install "compression-basins[view]"' in printed
    assert re.search(r"circuitsvis \d", printed)
    assert all(f"{layer} core" in printed for layer in range(4))


def test_the_doctor_needs_no_tokenizer(tiny):
    model = tiny("gpt2")
    assert {checked.path for checked in doctor.check_replay(model).values()} == {"core"}


def test_refused_paths_are_told():
    paths = {2: CheckedPath("single_block", 0.25, {"packed": "it differs by 12 times what rounding allows"})}
    out = io.StringIO()
    console.Console(file=out, width=120).print(console.replay_table("odd", paths))
    assert "packed: it differs by 12 times what rounding allows" in out.getvalue()
    settings = {
        "method": "rerun",
        "replay": {"packed": 3, "single_block": 1},
        "replay_refused": {"2": paths[2].refused},
    }
    sentence = console.replay_sentence(settings)
    assert "3 blocks by packed replay, 1 blocks one call a neighbour" in sentence
    assert "Layer 2: packed was refused, it differs by 12 times" in sentence


def test_piped_output_is_plain_and_not_too_wide(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    shown = console.open_console()
    shown.print(console.layer_table(made_scores()))
    shown.print(console.token_table(console_tokens(), "relative"))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert max(len(line.rstrip()) for line in printed.splitlines()) <= console.PIPED_WIDTH
    assert "relative" in printed


def console_tokens():
    from basins.tables import extreme_tokens

    return extreme_tokens(made_scores(), 1)


def test_tokens_are_not_read_as_markup(capsys):
    scores = made_scores()
    frame = pd.DataFrame([{"layer": 0, "side": "most", "before": "[red]", "token": "[/b]", "after": "\n[x]"}]).assign(
        relative=1.0, update=1.0, raw=1.0, density=float("nan")
    )
    console.open_console().print(console.token_table(frame, "relative"))
    assert "[red]«[/b]»↵[x]" in capsys.readouterr().out
    assert scores.tokens is not None
