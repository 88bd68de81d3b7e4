"""Polling ends with the finding, or says that there was none."""

from __future__ import annotations

import pytest

from undercroft.base import EnvironmentFault, Finding, Outcome
from undercroft.service.detect import poll_until_failed

GOOD = Finding("kernel.text", Outcome.PASS, "fine")
BAD = Finding("kernel.text", Outcome.FAIL, "patched")
OTHER = Finding("kernel.rodata", Outcome.FAIL, "changed")


def test_it_looks_until_the_finding_fails() -> None:
    looks = [[GOOD], [GOOD, OTHER], [OTHER, BAD]]
    finding, _ = poll_until_failed(lambda: looks.pop(0), "kernel.text", interval=0)
    assert finding is BAD
    assert looks == []


def test_what_is_never_found_is_an_error() -> None:
    with pytest.raises(EnvironmentFault, match="was not found"):
        poll_until_failed(lambda: [GOOD, OTHER], "kernel.text", interval=0.001, timeout=0.02)
