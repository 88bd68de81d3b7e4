"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# A machine that also runs guests stops for longer than hypothesis thinks an example may take;
# tests that bound time do so themselves.
settings.register_profile("undercroft", deadline=None)
settings.load_profile("undercroft")
