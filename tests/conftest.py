"""Settings for every test."""

from __future__ import annotations

import os

from hypothesis import settings

# No test asserts a time, so hypothesis must not either. CI runs the same examples every time; a
# person's run looks for new ones.
settings.register_profile("person", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "person")
