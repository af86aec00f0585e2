from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from basins import pocket as shipped
from basins.errors import BasinsError, MissingExtra
from basins.texts import read_texts

TEXTS = ["Call me Ishmael.", ' Some "years", ago; never mind\u2028how long', "NA", "東京 is naïve 🙂"]


def _write(path: Path, texts: list[Any], column: str = "text") -> Path:
    if path.name.endswith(".txt"):
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    elif path.name.endswith(".txt.gz"):
        path.write_bytes(gzip.compress("\n".join(texts).encode()))
    elif path.name.endswith(".jsonl"):
        path.write_text("".join(json.dumps({"id": i, column: t}) + "\n" for i, t in enumerate(texts)), encoding="utf-8")
    elif path.name.endswith(".parquet"):
        pd.DataFrame({"id": range(len(texts)), column: texts}).to_parquet(path)
    else:
        pd.DataFrame({"id": range(len(texts)), column: texts}).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.csv", "a.csv.gz", "a.parquet", "A.CSV"])
def test_every_file_gives_back_the_same_texts(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / name, TEXTS)
    assert read_texts(path) == TEXTS
    assert read_texts(str(path), limit=2) == TEXTS[:2]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_another_column(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / name, TEXTS, column="body")
    assert read_texts(path, column="body") == TEXTS
    with pytest.raises(
        BasinsError, match=r"has no column 'text'\. It has: 'id', 'body'\. Pass column= with the one that"
    ):
        read_texts(path)


def test_txt_skips_blank_lines_and_strips_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeff one \r\n\r\n  \ntwo".encode())
    assert read_texts(tmp_path / "a.txt") == [" one ", "two"]


def test_a_list_and_the_bundled_texts() -> None:
    assert read_texts(TEXTS) == TEXTS
    assert read_texts("pocket-demo", limit=3) == shipped.demo_text()[:3]
    assert read_texts("planted") == [p.text for p in shipped.passages()]


# --- what does not read, and the words it says ------------------------------------------------------------------------


def test_missing_file() -> None:
    for source in ("nowhere.txt", "nowhere.csv.gz", "./nowhere", "~/nowhere", Path("nowhere")):
        with pytest.raises(
            BasinsError, match=r"There is no file .*nowhere.* \(looked from /.*\)\. Is the path spelt right\?"
        ):
            read_texts(source)


def test_folder_and_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(BasinsError, match=r" is a folder\. Pass one file of it\. Possible: a file \(\.txt, \.jsonl, "):
        read_texts(tmp_path)
    (tmp_path / "a.tsv").touch()
    with pytest.raises(
        BasinsError, match=r"a\.tsv has the suffix '\.tsv', which is not read\. Possible: a file \(\.txt"
    ):
        read_texts(tmp_path / "a.tsv")


def test_source_of_another_type() -> None:
    with pytest.raises(BasinsError, match=r"The source of texts is a int\. Possible: a file "):
        read_texts(3)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(BasinsError, match=rf"{name} holds no text"):
        read_texts(tmp_path / name)


def test_no_rows(tmp_path: Path) -> None:
    for path in (_write(tmp_path / "a.csv", []), _write(tmp_path / "a.parquet", [])):
        with pytest.raises(BasinsError, match=r"holds no text\."):
            read_texts(path)
    with pytest.raises(BasinsError, match=r"The list of texts holds no text\."):
        read_texts([])


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
@pytest.mark.parametrize(("text", "words"), [("", "is empty"), (" \n", r"is empty \(white space only\)")])
def test_empty_text(tmp_path: Path, name: str, text: str, words: str) -> None:
    path = _write(tmp_path / name, ["one", text])
    with pytest.raises(
        BasinsError, match=rf"{name}, row 1 \(the first is 0\), column 'text' {words}: there is nothing"
    ):
        read_texts(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_cell_that_is_not_a_string(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / name, [5, 6])
    with pytest.raises(BasinsError, match=r"row 0 \(the first is 0\), column 'text' is not a string but a int \(5\)\."):
        read_texts(path)


def test_null_in_parquet(tmp_path: Path) -> None:
    with pytest.raises(BasinsError, match=r"row 1 .* is not a string but a NoneType \(None\)"):
        read_texts(_write(tmp_path / "a.parquet", ["one", None]))


def test_texts_of_a_list() -> None:
    with pytest.raises(BasinsError, match=r"texts\[1\] is not a string but a bytes \(b'two'\)"):
        read_texts(["one", b"two"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(BasinsError, match=r"texts\[0\] is empty: there is nothing to score\. Leave it out\."):
        read_texts([""])


@pytest.mark.parametrize("limit", [0, -1])
def test_limit(limit: int) -> None:
    with pytest.raises(
        BasinsError, match=rf"limit={limit} leaves no text\. Possible: 1 or more, or None for all texts\."
    ):
        read_texts(["one"], limit=limit)


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin1"))
    with pytest.raises(BasinsError, match=r"latin\.txt is not UTF-8 text"):
        read_texts(tmp_path / "latin.txt")
    (tmp_path / "latin.csv").write_bytes("text\ncaf\xe9\n".encode("latin1"))
    with pytest.raises(BasinsError, match=r"latin\.csv is not UTF-8 text"):
        read_texts(tmp_path / "latin.csv")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": \n')
    with pytest.raises(
        BasinsError, match=r"a\.jsonl, line 2 is not JSON \(.*\)\. A \.jsonl file holds one object a line\."
    ):
        read_texts(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('"one"\n')
    with pytest.raises(BasinsError, match=r"b\.jsonl, line 1 is a str, not an object with a field 'text'\."):
        read_texts(tmp_path / "b.jsonl")
    (tmp_path / "c.csv").write_text('text\n"one\n')
    with pytest.raises(BasinsError, match=r"c\.csv is not well-formed CSV"):
        read_texts(tmp_path / "c.csv")
    (tmp_path / "d.parquet").write_bytes(b"not parquet")
    with pytest.raises(BasinsError, match=r"d\.parquet is not a parquet file"):
        read_texts(tmp_path / "d.parquet")
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress(b"one\n" * 1000)[:-20])
    with pytest.raises(BasinsError, match=r"e\.txt\.gz is not a whole gzip file"):
        read_texts(tmp_path / "e.txt.gz")


# --- Hugging Face datasets --------------------------------------------------------------------------------------------


def _play_hub(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any]) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> Any:
        calls.append((name, config, split, streaming))
        return answer()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_dataset_with_config_split_and_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_dict({"text": ["one", "", "two", " \n", "three"]})
    calls = _play_hub(monkeypatch, lambda: rows)
    assert read_texts("owner/name") == ["one", "two", "three"]
    assert read_texts("owner/name:config:test", limit=2) == ["one", "two"]
    assert read_texts("name::test", limit=1) == ["one"]
    assert calls == [
        ("owner/name", None, "train", False),
        ("owner/name", "config", "test", True),
        ("name", None, "test", True),
    ]


def test_dataset_whose_connection_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Any:
        yield {"text": "one"}
        raise ConnectionError("reset by peer")

    _play_hub(monkeypatch, rows)
    assert read_texts("owner/name", limit=1) == ["one"]
    with pytest.raises(BasinsError, match=r"could not be read: ConnectionError: reset by peer Without a network"):
        read_texts("owner/name", limit=2)


def test_dataset_without_the_column(monkeypatch: pytest.MonkeyPatch) -> None:
    _play_hub(monkeypatch, lambda: datasets.Dataset.from_dict({"body": ["one"]}))
    with pytest.raises(BasinsError, match=r"owner/name has no column 'text'\. It has: 'body'\."):
        read_texts("owner/name")


def test_dataset_while_offline() -> None:
    message = (
        r"'owner/name' is not a file here, and as a Hugging Face dataset it could not be read: .* Without a network, "
        r"or with HF_HUB_OFFLINE set, only datasets in the local cache load: download it once while online"
    )
    with pytest.raises(BasinsError, match=message):
        read_texts("owner/name")


def test_datasets_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(
        MissingExtra, match=r'datasets is not installed; .*pip install "compression-basins\[experiments\]"'
    ):
        read_texts("owner/name")
