"""A new folder, written as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from basins.errors import BasinsError


def check_new(folder: str | Path) -> Path:
    """Raise BasinsError if `folder` exists or could not be made."""
    folder = Path(folder)
    if folder.is_symlink() or folder.exists():
        raise BasinsError(f"{folder} exists already. Nothing was written; choose another folder or remove it first.")
    above = next((parent for parent in folder.absolute().parents if parent.exists()), Path("/"))
    if not above.is_dir():
        raise BasinsError(f"{folder} cannot be made: {above} is a file.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise BasinsError(f"{folder} cannot be made: there is no permission to write in {above}.")
    return folder


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder` that takes its name at the end.

    After any exception (a full disk, Ctrl-C) nothing is left under either name.
    """
    from safetensors import SafetensorError  # what it raises on a full disk

    folder = check_new(folder)
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        yield temporary
        os.chmod(temporary, 0o755)
        temporary.rename(folder)
    except BaseException as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        reason = error.__cause__ if isinstance(error, BasinsError) else error
        if isinstance(reason, (OSError, SafetensorError)):
            raise BasinsError(f"{folder} could not be written ({reason}). Nothing is left under that name.") from error
        raise
