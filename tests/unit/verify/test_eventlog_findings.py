"""What a verified log leaves to say."""

from __future__ import annotations

from collections.abc import Iterable

from undercroft.base import Finding, HashAlgorithm, Outcome
from undercroft.formats.eventlog import EventType, LogFormat, parse_eventlog
from undercroft.testing.eventlog import SimulatedFirmware
from undercroft.verify.eventlog import verify_eventlog
from undercroft.verify.eventlog_findings import judge_eventlog

T = EventType
SHA256, SHA384 = HashAlgorithm.SHA256, HashAlgorithm.SHA384
PASS, FAIL, UNKNOWN = Outcome.PASS, Outcome.FAIL, Outcome.UNKNOWN


def _boot() -> SimulatedFirmware:
    fw = SimulatedFirmware((SHA256,))
    fw.separators()
    return fw


def _judge(fw: SimulatedFirmware, pcrs: Iterable[int] = range(8)) -> dict[str, Finding]:
    findings = judge_eventlog(verify_eventlog(parse_eventlog(fw.log()), fw.banks(pcrs)))
    checks = ("pcrs", "types", "data", "separators", "quirks")
    assert [finding.id for finding in findings] == [f"eventlog.{check}" for check in checks]
    return {finding.id.removeprefix("eventlog."): finding for finding in findings}


def _not_passed(findings: dict[str, Finding]) -> dict[str, Outcome]:
    return {name: f.outcome for name, f in findings.items() if f.outcome is not PASS}


def test_an_ordinary_log_passes() -> None:
    findings = _judge(_boot())
    assert _not_passed(findings) == {}
    assert findings["quirks"].summary == "no quirk fired"


def test_an_unexplained_pcr_is_unknown() -> None:
    fw = _boot()
    fw.pcrs[SHA256][10] = b"x" * 32
    findings = _judge(fw, (*range(8), 10))
    assert _not_passed(findings) == {"pcrs": UNKNOWN}
    assert findings["pcrs"].details["unexplained"] == [10]


def test_an_unknown_type_never_passes_silently() -> None:
    fw = _boot()
    fw.measure(6, 0x7777, b"?")
    findings = _judge(fw)
    assert _not_passed(findings) == {"types": UNKNOWN}
    assert "unknown type 0x00007777" in str(findings["types"].details)


def test_data_that_is_not_what_its_type_says_is_unknown() -> None:
    fw = _boot()
    fw.measure(5, T.EV_EFI_GPT_EVENT, b"short")
    assert _not_passed(_judge(fw)) == {"data": UNKNOWN}
    fw = _boot()
    fw.measure(5, T.EV_ACTION, b"words", b"other words")
    assert _not_passed(_judge(fw)) == {"data": UNKNOWN}


def test_an_error_separator_fails() -> None:
    fw = _boot()
    fw.measure(4, T.EV_SEPARATOR, b"\1\0\0\0")
    assert _not_passed(_judge(fw)) == {"separators": FAIL}
    fw = _boot()
    fw.measure(4, T.EV_SEPARATOR, b"\1\0\0\0", b"what the firmware says")
    assert _not_passed(_judge(fw)) == {"separators": FAIL, "data": UNKNOWN}


def test_a_missing_separator_is_unknown() -> None:
    fw = SimulatedFirmware((SHA256,))
    fw.separators(range(7))
    findings = _judge(fw)
    assert _not_passed(findings) == {"separators": UNKNOWN}
    assert findings["separators"].details["missing"] == [7]
    assert _not_passed(_judge(_boot(), [9])) == {"separators": UNKNOWN}


def test_a_separator_counts_by_its_digest() -> None:
    fw = SimulatedFirmware((SHA256,))
    fw.separators(range(7))
    fw.measure(7, T.EV_ACTION, bytes(4))
    assert _not_passed(_judge(fw)) == {}


def test_a_ccels_registers_are_finished_too() -> None:
    fw = SimulatedFirmware((SHA384,), kind=LogFormat.CCEL)
    fw.separators((1, 2))
    assert _not_passed(_judge(fw, (1, 2))) == {}
    fw.separators((3,))
    assert _not_passed(_judge(fw, (1, 2, 3))) == {}


def test_quirks_are_named() -> None:
    fw = _boot()
    fw.measure(12, T.EV_SEPARATOR, b"WBCL")
    findings = _judge(fw)
    assert "separator-text" in findings["quirks"].summary
    assert "'events': [9]" in str(findings["quirks"].details)
