"""The only module that reads configuration and names concrete classes."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Return the folder for guests, package caches and saved evidence.

    ``UNDERCROFT_HOME``, else ``$XDG_STATE_HOME/undercroft``, else ``~/.local/state/undercroft``.
    """
    if explicit := os.environ.get("UNDERCROFT_HOME"):
        return Path(explicit)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "undercroft"
