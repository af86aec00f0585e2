"""The one exception that basins raises on purpose."""

from __future__ import annotations

from collections.abc import Iterable


class BasinsError(ValueError):
    """Bad input. The message says what was given, what is possible, the likely cause and the fix."""


class MissingExtra(BasinsError, ImportError):
    """An optional dependency is not installed; the message names the install command."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f'{package} is not installed; it comes with the "{extra}" extra: pip install "compression-basins[{extra}]"'
        )


def choose(name: str, value: object, options: Iterable[str]) -> str:
    """`value`, if it is one of `options`; a BasinsError that lists them otherwise."""
    options = list(options)
    if value not in options:
        raise BasinsError(f"{name}={value!r} is not an option. Possible: {', '.join(map(repr, options))}.")
    return str(value)
