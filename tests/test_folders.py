"""A new folder appears as a whole or not at all."""

from __future__ import annotations

import errno

import pytest

from basins.errors import BasinsError
from basins.folders import new_folder


def test_appears_when_it_is_complete(tmp_path):
    with new_folder(tmp_path / "above" / "run") as temporary:
        (temporary / "file").write_text("whole")
        assert not (tmp_path / "above" / "run").exists()
    assert (tmp_path / "above" / "run" / "file").read_text() == "whole"
    assert [path.name for path in (tmp_path / "above").iterdir()] == ["run"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_nothing_is_left_after_an_error(tmp_path, error):
    expected = BasinsError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), new_folder(tmp_path / "run") as temporary:
        (temporary / "file").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_touched(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(BasinsError, match="run exists already"), new_folder(tmp_path / "run"):
        raise AssertionError("not reached")
    assert list((tmp_path / "run").iterdir()) == []
