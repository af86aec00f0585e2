"""Files, lists and datasets -> a list of texts, and what is known of each."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from basins import named_texts
from basins.errors import BasinsError
from basins.hub_rows import hub_rows

SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet")
POSSIBLE = (
    f"a file ({', '.join(SUFFIXES)}; all but parquet also with .gz), a list of strings, a Hugging Face dataset "
    f'("name", "name:config" or "name:config:split"), or one of {", ".join(map(repr, named_texts.NAMED))}, each also '
    'as "NAME:FILE" for a local copy'
)


def read_texts(source: str | Path | list[str], column: str = "text", limit: int | None = None) -> list[str]:
    """The texts of `source`, in its order; at most the first `limit`.

    `source`: a .txt file (UTF-8, one document a line), .jsonl (one object a line), .csv, .parquet, any but the last
    also gzipped (.txt.gz); a list of strings; a dataset with a name of its own (`basins.named_texts.NAMED`: "wikitext",
    "wikitext-2", "ptb", "ud-ewt", "sst2", "shakespeare", and "planted" and "pocket-demo", which ship with basins), or a
    local copy of it as "sst2:FILE"; any other Hugging Face dataset as "name", "name:config" or "name:config:split"
    (split "train" unless said; with a `limit`, only that much is downloaded).
    `column`: the field with the text, in .jsonl, .csv, .parquet and datasets.

    Blank lines of a .txt and blank rows of a dataset separate documents and are skipped. Anywhere else an empty text is
    a BasinsError, as are a missing file, an unknown suffix, a missing column (the ones there are get listed), a cell
    that is not a string and a source without any text. Texts are not stripped: scored is what the file says.
    """
    if limit is not None and limit < 1:
        raise BasinsError(f"limit={limit} leaves no text. Possible: 1 or more, or None for all texts.")
    if isinstance(source, list | tuple):
        texts = check_texts(source, "texts[{}]")
    elif not isinstance(source, str | Path):
        raise BasinsError(f"The source of texts is a {type(source).__name__}. Possible: {POSSIBLE}.")
    elif isinstance(source, str) and (named := named_texts.parse(source)):
        texts = (text for text, _ in _named(source, *named, limit))
    elif _is_file(source):
        texts = _file_texts(Path(source).expanduser(), column)
    else:
        texts = _dataset_texts(str(source), column, limit)
    found = list(islice(texts, limit))
    if not found:
        raise BasinsError(f"{source or 'The list of texts'} holds no text.")
    return found


def read_labelled(
    source: str | Path | list[str], column: str = "text", limit: int | None = None
) -> tuple[list[str], list[dict[str, Any]]]:
    """The texts of `read_texts`, and what is known of each: for "sst2" its label (0, 1) and sentiment, for "wikitext"
    the article's title, for "ptb" and "ud-ewt" file or document, for "shakespeare" speaker and play, for "planted" its
    dose. Nothing is known of the texts of other sources: their dicts are empty.
    """
    named = named_texts.parse(source) if isinstance(source, str) else None
    if named is None or (limit is not None and limit < 1):
        texts = read_texts(source, column, limit)
        return texts, [{} for _ in texts]
    found = list(islice(_named(str(source), *named, limit), limit))
    if not found:
        raise BasinsError(f"{source} holds no text.")
    return [text for text, _ in found], [known for _, known in found]


def _named(source: str, name: str, path: Path | None, limit: int | None) -> Iterator[named_texts.Row]:
    rows = named_texts.rows(name, path, limit is not None)
    try:
        for number, (text, known) in enumerate(rows):
            yield from ((checked, known) for checked in check_texts([text], f"{source}, text {number}"))
    except UnicodeDecodeError as error:
        raise BasinsError(f"{path} is not UTF-8 text ({error}). Convert it, for example with iconv.") from error


def check_texts(texts: Iterable[Any], place: str) -> Iterator[str]:
    """The texts one by one; a BasinsError that names the place (`place` with its number) of one that is no text."""
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise BasinsError(f"{place.format(number)} is not a string but a {type(text).__name__} ({text!r:.40}).")
        if not text.strip():
            blank = " (white space only)" if text else ""
            raise BasinsError(f"{place.format(number)} is empty{blank}: there is nothing to score. Leave it out.")
        yield text


def _is_file(source: str | Path) -> bool:
    """Whether `source` names a readable file; BasinsError if it names a file that is missing or of another kind."""
    path = Path(source).expanduser()
    suffix = _suffix(path)
    if path.is_dir():
        raise BasinsError(f"{source} is a folder. Pass one file of it. Possible: {POSSIBLE}.")
    if path.is_file():
        if suffix not in SUFFIXES:
            raise BasinsError(f"{source} has the suffix {suffix!r}, which is not read. Possible: {POSSIBLE}.")
        return True
    # A dataset is called "owner/name": what has a suffix, or is written as only a path is, was meant to be a file.
    if isinstance(source, Path) or suffix in SUFFIXES or str(source).startswith((".", "/", "~")):
        raise BasinsError(f"There is no file {source} (looked from {Path.cwd()}). Is the path spelt right?")
    return False


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _file_texts(path: Path, column: str) -> Iterator[str]:
    read = {".txt": _txt, ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[_suffix(path)]
    try:
        yield from read(path, column)
    except UnicodeDecodeError as error:
        raise BasinsError(f"{path} is not UTF-8 text ({error}). Convert it, for example with iconv.") from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise BasinsError(f"{path} is not a whole gzip file ({error}). Is the download complete?") from error


def _open(path: Path) -> Any:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline=None)


def _txt(path: Path, column: str) -> Iterator[str]:
    with _open(path) as lines:
        yield from (text for line in lines if (text := line.rstrip("\n")).strip())


def _jsonl(path: Path, column: str) -> Iterator[str]:
    def cells() -> Iterator[Any]:
        with _open(path) as lines:
            for number, line in enumerate(lines, 1):
                place = f"{path}, line {number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise BasinsError(
                        f"{place} is not JSON ({error}). A .jsonl file holds one object a line."
                    ) from error
                if not isinstance(row, dict):
                    raise BasinsError(f"{place} is a {type(row).__name__}, not an object with a field {column!r}.")
                if column not in row:
                    raise BasinsError(_no_column(place, column, row))
                yield row[column]

    yield from check_texts(cells(), f"{path}, row {{}} (the first is 0), column {column!r}")


def _csv(path: Path, column: str) -> Iterator[str]:
    import pandas as pd

    # keep_default_na: a document "NA" or "null" is a text.
    reading: dict[str, Any] = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
    try:
        columns = list(pd.read_csv(path, nrows=0, **reading).columns)
        if column not in columns:
            raise BasinsError(_no_column(str(path), column, columns))
        reader: Any = pd.read_csv(path, usecols=[column], chunksize=10_000, **reading)
        with reader as chunks:
            cells = (text for chunk in chunks for text in chunk[column])
            yield from check_texts(cells, f"{path}, row {{}} (the first is 0), column {column!r}")
    except pd.errors.EmptyDataError as error:
        raise BasinsError(f"{path} holds no text: it is empty.") from error
    except pd.errors.ParserError as error:
        raise BasinsError(f"{path} is not well-formed CSV ({error}).") from error


def _parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise BasinsError(_no_column(str(path), column, file.schema_arrow.names))
            cells = (cell for batch in file.iter_batches(columns=[column]) for cell in batch.column(0).to_pylist())
            yield from check_texts(cells, f"{path}, row {{}} (the first is 0), column {column!r}")
    except pa.ArrowInvalid as error:
        raise BasinsError(f"{path} is not a parquet file ({error}).") from error


def _dataset_texts(source: str, column: str, limit: int | None) -> Iterator[str]:
    name, config, split = [*source.split(":"), "", ""][:3]

    def documents() -> Iterator[Any]:
        for row in hub_rows(name, config, split or "train", limit is not None, f"Possible: {POSSIBLE}."):
            if column not in row:
                raise BasinsError(_no_column(source, column, row))
            if not isinstance(row[column], str) or row[column].strip():
                yield row[column]

    yield from check_texts(documents(), f"{source}, text {{}} (the first is 0)")


def _no_column(place: str, column: str, columns: Iterable[str]) -> str:
    there = ", ".join(map(repr, columns)) or "none"
    return f"{place} has no column {column!r}. It has: {there}. Pass column= with the one that holds the text."
