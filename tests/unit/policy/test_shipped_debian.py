"""The shipped policy for Debian guests is the default one, but for what a machine draws itself."""

from __future__ import annotations

from dataclasses import replace

from undercroft import wiring
from undercroft.policy import Requirement


def test_it_is_the_default_but_for_four_paths() -> None:
    debian, default = wiring.shipped_policy("debian"), wiring.shipped_policy("default")
    assert [action for _, action in debian.files.unknown_at] == [None] * 4
    same = replace(debian, id=default.id, files=replace(debian.files, unknown_at=()))
    assert same == default
    assert debian.boot.secure_boot is Requirement.REQUIRED
