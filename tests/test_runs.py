from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from made_scores import made_scores

from basins import runs
from basins.errors import BasinsError, MissingExtra
from basins.runs import check_run_folder, describe_input, read_run, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    above = tmp_path_factory.mktemp("runs")
    source = above / "texts.txt"
    source.write_text("one\ntwo\n")
    return write_run(
        above / "deep" / "run",
        made_scores(),
        source=describe_input(source),
        command="basins score --input texts.txt",
        seconds=1.5,
        tables={"doses": pd.DataFrame({"dose": [1, 2]})},
    )


def test_a_run_folder_holds_numbers_and_pictures(folder):
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "run.json",
        "scores.parquet",
        "scores/scores.safetensors",
        "scores/scores.json",
        "layers.png",
        "layers.pdf",
        "tokens.html",
        "doses.csv",
    }
    assert set(read_run(folder).manifest["files"]) == files - {"run.json"}
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


def test_run_json_says_what_the_numbers_depend_on(folder):
    manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert manifest["settings"]["k"] == 4
    assert manifest["settings"]["neighbors"] == "cross_sequence"
    assert manifest["model_fingerprint"] == "f00"
    assert manifest["seed"] == 7
    assert set(manifest["versions"]) == {"basins", "torch"}
    assert manifest["command"] == "basins score --input texts.txt"
    assert manifest["counts"] == {
        "texts": 1,
        "sequences": 2,
        "tokens": 19,
        "scored_at_each_layer": {"0": 17, "1": 17, "2": 17},
    }
    assert pd.Timestamp(manifest["date"]).tzinfo is not None
    assert manifest["input"]["sha256"] == hashlib.sha256(b"one\ntwo\n").hexdigest()
    assert manifest["input"]["bytes"] == 8
    assert "real_positions" not in manifest["settings"]


def test_the_table_names_the_text_of_each_token(folder):
    frame = pd.read_parquet(folder / "scores.parquet")
    assert len(frame) == 3 * 19
    assert list(frame.columns[:4]) == ["layer", "sequence", "text_id", "position"]
    assert set(frame["text_id"]) == {0}
    pd.testing.assert_frame_equal(frame.drop(columns="text_id"), made_scores().to_frame(), check_dtype=False)


def test_the_scores_come_back_as_they_were(folder):
    run, scores = read_run(folder), made_scores()
    assert torch.equal(run.scores.relative, scores.relative) or torch.allclose(
        run.scores.relative, scores.relative, equal_nan=True
    )
    assert run.scores.settings["real_positions"] == scores.settings["real_positions"]
    assert run.scores.token_strings == scores.token_strings
    assert "made" not in repr(run.folder)
    assert repr(run).startswith(f"Run({folder}, ")


def test_scores_of_a_cache_have_no_texts(tmp_path):
    scores = made_scores(tokenization="made by the caller")
    write_run(tmp_path / "run", scores, pictures=False)
    assert read_run(tmp_path / "run").manifest["counts"]["texts"] is None
    assert "text_id" not in pd.read_parquet(tmp_path / "run" / "scores.parquet")


def test_an_existing_folder_is_an_error_and_stays(tmp_path):
    (tmp_path / "run").mkdir()
    for call in (lambda: check_run_folder(tmp_path / "run"), lambda: write_run(tmp_path / "run", made_scores())):
        with pytest.raises(BasinsError, match=r"run exists already\. Nothing was written; choose another folder"):
            call()
    assert list((tmp_path / "run").iterdir()) == []
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BasinsError, match="exists already"):
        check_run_folder(tmp_path / "broken")


def test_a_folder_below_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BasinsError, match=r"cannot be made: .*file is a file"):
        check_run_folder(tmp_path / "file" / "run")


def _full(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "writer",
    [
        "basins.scores.BasinScores.save",
        "pandas.DataFrame.to_parquet",
        "basins.plots.save",
        "basins.tokens_view.save_html",
        "pathlib.Path.write_text",
        "pathlib.Path.rename",
    ],
)
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, writer):
    scores = made_scores()
    monkeypatch.setattr(writer, _full)
    with pytest.raises(
        BasinsError, match=r"run could not be written \(.*No space left.*Nothing is left under that name"
    ):
        write_run(tmp_path / "run", scores)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_inside_safetensors_leaves_nothing(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(BasinsError, match="could not be written"):
        write_run(tmp_path / "run", made_scores())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), RuntimeError("other")])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, stop):
    def interrupt(*_, **__):
        raise stop

    monkeypatch.setattr(runs.plots, "save", interrupt)
    with pytest.raises(type(stop)):
        write_run(tmp_path / "run", made_scores())
    assert list(tmp_path.iterdir()) == []


def test_missing_pictures_packages_are_found_before_the_work(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "circuitsvis" else found(name))
    with pytest.raises(MissingExtra, match=r'pip install "compression-basins\[view\]"'):
        check_run_folder(tmp_path / "run")
    write_run(check_run_folder(tmp_path / "run", pictures=False), made_scores(), pictures=False)
    assert not (tmp_path / "run" / "layers.png").exists()


def test_other_folders_are_no_runs(tmp_path):
    with pytest.raises(BasinsError, match=r"has no run\.json: it is not a run folder"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(BasinsError, match=r"run\.json is damaged"):
        read_run(tmp_path)


def test_a_dataset_is_described_by_its_name(tmp_path):
    assert describe_input("owner/name") == {"name": "owner/name"}
    assert describe_input("pocket-demo") == {"name": "pocket-demo", "licence": "public domain"}


def test_results_without_some_settings_are_written_too(tmp_path):
    scores = made_scores()
    bare = replace(scores, settings={k: scores.settings[k] for k in ("k", "method", "neighbors", "eps")}, lookup=None)
    assert read_run(write_run(tmp_path / "run", bare)).manifest["model"] is None
