"""Exit statuses of the command line, and how an error is shown to a person."""

from __future__ import annotations

import sys

from undercroft.base import FormatError, UndercroftError, VerificationError

AFFIRMED = 0
OUR_FAILURE = 1
USAGE = 2
CONTRAINDICATED = 3
NOT_ENOUGH = 4
NOT_AUTHENTIC = 5


def of(error: UndercroftError) -> int:
    """Return the exit status for ``error``: whose fault it is decides."""
    return NOT_AUTHENTIC if isinstance(error, FormatError | VerificationError) else OUR_FAILURE


def report(error: UndercroftError) -> None:
    """Print what went wrong, where, expected, got and what to do, to standard error."""
    lines = [f"undercroft: {error.what}"]
    labels = ("where", "expected", "got", "remedy")
    lines += [f"  {label + ':':<10}{value}" for label in labels if (value := getattr(error, label))]
    sys.stderr.write("\n".join(lines) + "\n")
