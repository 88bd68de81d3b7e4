"""The command line: one file per verb."""

from undercroft.cli.main import main

__all__ = ["main"]
