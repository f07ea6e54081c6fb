"""Exceptions. Each says in one line which file, setting or row is at fault, what was expected and what was found."""

from __future__ import annotations


class Error(Exception):
    """Anything that macula raises. ``kind`` is one of ``setting``, ``input``, ``not_found``, ``mismatch``, ``exists``,
    ``not_finite``, ``io`` and ``failed``; ``exit_code`` is what the command would end with."""

    kind: str = "failed"
    exit_code: int = 1


class InputError(Error, ValueError):
    """A setting, file or row that cannot be used (exit code 2)."""

    exit_code = 2


class NotFoundError(InputError, FileNotFoundError):
    """A file or folder that is not there."""

    __str__ = Exception.__str__


class ExistsError(InputError, FileExistsError):
    """Output that is there already and was not to be replaced."""

    __str__ = Exception.__str__


class RunError(Error, RuntimeError):
    """Something that went wrong while running (exit code 1)."""


_CLASSES = {
    "setting": InputError,
    "input": InputError,
    "mismatch": InputError,
    "not_found": NotFoundError,
    "exists": ExistsError,
}


def make(kind: str, line: str) -> Error:
    """The exception of a kind."""
    if kind == "exists":
        line = f"{line}; give force=True to replace it"
    error = _CLASSES.get(kind, RunError)(line)
    error.kind = kind
    return error
