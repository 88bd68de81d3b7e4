"""How a boot differs from its prediction, each difference in words.

The prediction is read as the event log that it foretells, so that both sides are compared and
described by the same code as two logs are.  The found log is the log writer's word until a quote
vouches for it (``verify.eventlog``).
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from undercroft.formats.eventlog import Event, EventLog, parse_eventlog
from undercroft.formats.eventlog.ipl import GrubText, LoadOptions
from undercroft.formats.eventlog.words import describe
from undercroft.reference.boot import PredictedEvent, encode_prediction
from undercroft.verify.eventlog_diff import Change, diff_eventlogs

_SHOWN = 300
"""Characters of a long command that are shown."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """One difference: what was predicted (None: nothing) and what was found (None: nothing).

    ``details`` are lines that say more: words of a command line, entries of a database.
    """

    pcr: int
    predicted: PredictedEvent | None
    found: Event | None
    words: str
    details: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every deviation, PCR by PCR, and the PCRs that are as predicted."""

    deviations: tuple[Deviation, ...]
    same: tuple[int, ...]


def compare_prediction(events: Sequence[PredictedEvent], log: EventLog) -> Comparison:
    """Compare ``log`` with its prediction, in the PCRs that were predicted.

    Raises ValueError if the log has no bank that was predicted.
    """
    banks = [bank for bank in log.algorithms if events and events[0].has(bank)]
    if not banks:
        raise ValueError("the log has no bank that was predicted")
    # The header is the log's first event: event number n + 1 is the nth prediction.
    expected = parse_eventlog(encode_prediction(events, banks))
    difference = diff_eventlogs(expected, log)
    known = {event.pcr for event in events}
    return Comparison(
        tuple(_deviation(c, events) for c in difference.changes if c.pcr in known),
        tuple(pcr for pcr in difference.same if pcr in known),
    )


def _deviation(change: Change, events: Sequence[PredictedEvent]) -> Deviation:
    predicted = events[change.before.index - 1] if change.before else None
    where, found = f"PCR {change.pcr}", change.after
    if predicted is None:
        assert found is not None  # a change has at least one side
        words = f"measured, and not predicted: {describe(found)[0][:_SHOWN]}"
    elif found is None:
        words = f"predicted, and not measured: {predicted.description}"
    else:
        words = _other(predicted, found)
    return Deviation(change.pcr, predicted, found, f"{where}: {words}", _details(change))


def _other(predicted: PredictedEvent, found: Event) -> str:
    """Say that something else stands in a predicted event's place."""
    if isinstance(found.decoded, GrubText | LoadOptions):
        # Commands say all of themselves; of other things there is only a digest.
        return f"{describe(found)[0][:_SHOWN]}; predicted: {predicted.description}"
    another = _ANOTHER.get(predicted.event_type, "another value")
    return f"{another}: {predicted.description}"


_ANOTHER = {
    "EV_IPL": "other content",
    "EV_EFI_BOOT_SERVICES_APPLICATION": "another program was started",
    "EV_EFI_VARIABLE_AUTHORITY": "another key decided",
    "EV_EFI_PLATFORM_FIRMWARE_BLOB": "another firmware",
}


def _details(change: Change) -> tuple[str, ...]:
    before, after = change.before, change.after
    if before is None or after is None:
        return change.details
    old, new = before.decoded, after.decoded
    if isinstance(old, GrubText) and isinstance(new, GrubText):
        return tuple(_changed_words(old.text, new.text))
    return change.details or tuple(_digests(before, after))


def _changed_words(old: str, new: str) -> list[str]:
    was, now = _split(old), _split(new)
    lines = []
    for tag, i, j, k, m in difflib.SequenceMatcher(None, was, now, autojunk=False).get_opcodes():
        if tag != "equal":
            lines += [f"removed: {word[:_SHOWN]}" for word in was[i:j]]
            lines += [f"added: {word[:_SHOWN]}" for word in now[k:m]]
    return lines


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # quotes that do not match
        return text.split()


def _digests(before: Event, after: Event) -> list[str]:
    algorithm = max(before.digests, key=lambda a: a.size)
    return [
        f"expected {algorithm}:{before.digests[algorithm].hex()}",
        f"found {algorithm}:{after.digests[algorithm].hex()}",
    ]
