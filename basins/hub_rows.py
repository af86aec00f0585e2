"""Rows of a Hugging Face dataset, with an error that says what to do without a network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from basins.errors import BasinsError, MissingExtra


def hub_rows(name: str, config: str, split: str, streaming: bool, advice: str) -> Iterator[dict[str, Any]]:
    """The rows of "owner/name", downloaded at first use; `streaming` downloads only as many as are taken."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtra("datasets", "experiments") from error
    try:
        rows: Any = load_dataset(name, config or None, split=split, streaming=streaming)
        yield from rows
    except Exception as error:  # the client raises whatever its reader, its cache and the network raise
        raise BasinsError(
            f"{name!r} is not a file here, and as a Hugging Face dataset it could not be read: "
            f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]} Without a network, or with "
            "HF_HUB_OFFLINE set, only datasets in the local cache load: download it once while online, or pass a file. "
            f"{advice}"
        ) from error
