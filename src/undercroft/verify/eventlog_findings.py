"""What a verified event log leaves to say, as findings.

The checks are numbered; :data:`CHECKS` is the table.
"""

from __future__ import annotations

from collections.abc import Iterable

from undercroft.base import Finding, JsonValue, Outcome
from undercroft.formats.eventlog import (
    CC_REGISTER_OF_PCR,
    Claimed,
    DigestCheck,
    Event,
    LogFormat,
    Malformed,
    Opaque,
)
from undercroft.formats.eventlog.actions import SEPARATORS, Separator
from undercroft.formats.eventlog.decode import UNKNOWN_TYPE
from undercroft.formats.eventlog.value import hashes_to
from undercroft.verify.checks import Check
from undercroft.verify.eventlog import ReplayedLog

_ROWS = (
    ("pcrs", "every quoted PCR is accounted for by the log", "3.3.4"),
    ("types", "every event has a type that we know", "10.4.1"),
    ("data", "every event's data follows its type and its digest", "10.4.1"),
    ("separators", "the firmware finished PCRs 0 to 7 without reporting an error", "10.4.1"),
    ("quirks", "which rows of the quirk table fired", "10.4"),
)
CHECKS = tuple(
    Check(
        f"J{number}",
        f"eventlog.{name}",
        says,
        f"PC Client Platform Firmware Profile 1.06, {clause}",
    )
    for number, (name, says, clause) in enumerate(_ROWS, 1)
)
_BY_NAME = {name: check for (name, _, _), check in zip(_ROWS, CHECKS, strict=True)}


def judge_eventlog(replayed: ReplayedLog) -> tuple[Finding, ...]:
    """Return one finding per check, in the order of :data:`CHECKS`."""
    events = replayed.log.events
    unknown = [e for e in events if isinstance(e.decoded, Opaque) and e.decoded.why == UNKNOWN_TYPE]
    broken = [
        e for e in events if isinstance(e.decoded, Malformed) or e.check is DigestCheck.DIFFERS
    ]
    return (
        _pcrs(replayed),
        _none_of("types", "event types that we do not know", unknown),
        _none_of("data", "events whose data is not what their type says", broken),
        _separators(replayed),
        _quirks(replayed),
    )


def _finding(check: str, outcome: Outcome, summary: str, **details: JsonValue) -> Finding:
    return _BY_NAME[check].finding(outcome, summary, details)


def _pcrs(replayed: ReplayedLog) -> Finding:
    left = sorted(replayed.unexplained)
    explained = sorted(replayed.explained)
    if left:
        pcrs = ", ".join(map(str, left))
        why = f"something was extended into PCR {pcrs} that the event log does not hold"
        return _finding("pcrs", Outcome.UNKNOWN, why, explained=explained, unexplained=left)
    why = f"the event log accounts for all {len(explained)} quoted PCRs"
    return _finding("pcrs", Outcome.PASS, why, explained=explained)


def _none_of(check: str, what: str, events: Iterable[Event]) -> Finding:
    found: list[JsonValue] = [
        {"event": e.index, "pcr": e.pcr, "type": e.type_name, "check": e.check.value}
        for e in events
    ]
    if found:
        return _finding(check, Outcome.UNKNOWN, f"{len(found)} {what}", events=found)
    return _finding(check, Outcome.PASS, f"no {what}")


def _separators(replayed: ReplayedLog) -> Finding:
    cc = replayed.log.format is LogFormat.CCEL
    wanted = {CC_REGISTER_OF_PCR[pcr] if cc else pcr for pcr in range(8)} & replayed.explained
    seen: set[int] = set()
    errors: list[int] = []
    for event in replayed.vouched:
        value = event.decoded.claimed_value if isinstance(event.decoded, Claimed) else event.decoded
        if isinstance(value, Separator) and value.error:
            errors.append(event.index)
        elif any(hashes_to(event.digests, data) for data in SEPARATORS):
            seen.add(event.pcr)
    if errors:
        why = "the firmware reported an error by a separator"
        return _finding("separators", Outcome.FAIL, why, events=errors)
    missing = sorted(wanted - seen)
    if missing or not wanted:
        pcrs = ", ".join(map(str, missing)) or "0 to 7"
        why = f"no separator that a quote vouches for in PCR {pcrs}"
        return _finding("separators", Outcome.UNKNOWN, why, missing=missing)
    return _finding("separators", Outcome.PASS, "the firmware finished with its PCRs")


def _quirks(replayed: ReplayedLog) -> Finding:
    rows: list[JsonValue] = [
        {"id": fired.quirk.id, "summary": fired.quirk.summary, "events": list(fired.events)}
        for fired in replayed.quirks
    ]
    names = ", ".join(fired.quirk.id for fired in replayed.quirks)
    why = f"departures from the specification that are known: {names}" if rows else "no quirk fired"
    return _finding("quirks", Outcome.PASS, why, quirks=rows)
