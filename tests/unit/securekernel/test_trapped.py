"""The fact about the traps: what makes it pass, fail or unknown."""

from __future__ import annotations

from dataclasses import replace

from undercroft.base import Outcome
from undercroft.formats.evidence.interval import Uncovered
from undercroft.securekernel.trapped import traps_finding
from undercroft.securekernel.traps.guard import GuardStatus, Mode
from undercroft.testing.epochs import honest_epoch, lawful_change

STATUS = GuardStatus(
    mode=Mode.OBSERVE, session=bytes(16), since=1, writes=3, lawful=1, violations=0, pending=0,
    frozen=False, uncovered=(), ended="", replaced=False, fault="", answer_us=(),
)  # fmt: skip


def test_full_cover_and_no_unexplained_write_passes() -> None:
    finding = traps_finding(STATUS, honest_epoch(2), b"\1" * 32, [])
    assert finding.outcome is Outcome.PASS
    assert finding.details["head"] == "01" * 32
    assert finding.details["epochs"] == 2


def test_what_could_not_be_told_is_unknown() -> None:
    doubts = (
        replace(STATUS, ended="the guest ended"),
        replace(STATUS, fault="the log cannot be written"),
        replace(STATUS, uncovered=(Uncovered("vfio", 9, "a network card"),)),
    )
    for status in doubts:
        assert traps_finding(status, None, b"", []).outcome is Outcome.UNKNOWN


def test_an_unexplained_write_fails_whatever_else_is() -> None:
    attempt = replace(lawful_change(1), lawful=False, landed=False, reason="no rule")
    status = replace(STATUS, violations=1, fault="the log cannot be written")
    finding = traps_finding(status, None, b"", [attempt])
    assert finding.outcome is Outcome.FAIL
    assert "was refused, in enqueue_entity+0x11d" in finding.summary
    landed = replace(attempt, landed=True)
    assert "landed" in traps_finding(status, None, b"", [landed]).summary
