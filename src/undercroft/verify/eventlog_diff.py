"""What changed between two boots, in words.

The events of each PCR are compared in their order by type and digests: what was measured, not
what the log says of it.  Words come from the decoded data, so ``claimed`` stays in them.
"""

from __future__ import annotations

import difflib
from collections import Counter, deque
from dataclasses import dataclass

from undercroft.base import HashAlgorithm
from undercroft.formats.eventlog import Event, EventLog
from undercroft.formats.eventlog.signatures import Signature, SignatureDatabase
from undercroft.formats.eventlog.variables import UefiVariable
from undercroft.formats.eventlog.words import describe, register_name, signature_text

MAX_WORK = 4_000_000
"""Pairs of differing events that are aligned; beyond that they are compared as sets."""

_Key = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.  ``before`` or ``after`` is None where an event was added or removed."""

    pcr: int
    before: Event | None
    after: Event | None
    words: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LogDifference:
    """The changes between two logs, PCR by PCR, and the PCRs that are the same in both."""

    changes: tuple[Change, ...]
    same: tuple[int, ...]


def diff_eventlogs(before: EventLog, after: EventLog) -> LogDifference:
    """Compare two logs by the strongest bank that both have.

    Raises ValueError if they have no bank in common: nothing measured can then be compared.
    """
    common = [a for a in before.algorithms if a in after.algorithms]
    if not common:
        raise ValueError("the two logs have no hash algorithm in common")
    algorithm = max(common, key=lambda a: (a.size, a.alg_id))
    old, new = _by_pcr(before), _by_pcr(after)
    changes: list[Change] = []
    same: list[int] = []
    for pcr in sorted({*old, *new}):
        found = _diff_pcr(pcr, old.get(pcr, []), new.get(pcr, []), before, algorithm)
        changes += found
        if not found:
            same.append(pcr)
    return LogDifference(tuple(changes), tuple(same))


def _by_pcr(log: EventLog) -> dict[int, list[Event]]:
    events: dict[int, list[Event]] = {}
    for event in log.events:
        if event.extends:
            events.setdefault(event.pcr, []).append(event)
    return events


def _diff_pcr(
    pcr: int, old: list[Event], new: list[Event], log: EventLog, algorithm: HashAlgorithm
) -> list[Change]:
    a = [_key(event, algorithm) for event in old]
    b = [_key(event, algorithm) for event in new]
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    end = 0
    while end < min(len(a), len(b)) - start and a[-1 - end] == b[-1 - end]:
        end += 1
    old, a = old[start : len(old) - end], a[start : len(a) - end]
    new, b = new[start : len(new) - end], b[start : len(b) - end]
    if len(a) * len(b) > MAX_WORK:
        return _as_sets(pcr, old, new, a, b, log)
    changes: list[Change] = []
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag != "equal":
            changes += _replaced(pcr, old[i:j], new[k:m], log)
    return changes


def _key(event: Event, algorithm: HashAlgorithm) -> _Key:
    return event.type, event.digests.get(algorithm, b"")


def _as_sets(
    pcr: int, old: list[Event], new: list[Event], a: list[_Key], b: list[_Key], log: EventLog
) -> list[Change]:
    gone, come = Counter(a) - Counter(b), Counter(b) - Counter(a)
    removed = [event for event, key in zip(old, a, strict=True) if gone[key]]
    added = [event for event, key in zip(new, b, strict=True) if come[key]]
    return _replaced(pcr, removed, added, log)


def _replaced(pcr: int, old: list[Event], new: list[Event], log: EventLog) -> list[Change]:
    """Pair removed with added events that are about the same thing; the rest came or went."""
    where = register_name(pcr, log.format)
    waiting: dict[tuple[object, ...], deque[Event]] = {}
    for event in new:
        waiting.setdefault(_subject(event), deque()).append(event)
    changes: list[Change] = []
    for event in old:
        partners = waiting.get(_subject(event))
        if partners:
            changes.append(_changed(where, event, partners.popleft()))
        else:
            changes.append(Change(pcr, event, None, f"{where}: gone: {describe(event)[0]}"))
    left = {event.index for partners in waiting.values() for event in partners}
    return changes + [
        Change(pcr, None, event, f"{where}: new: {describe(event)[0]}")
        for event in new
        if event.index in left
    ]


def _subject(event: Event) -> tuple[object, ...]:
    """Return what an event is about, so that its old and new form find each other."""
    value = event.decoded
    if isinstance(value, UefiVariable):
        return event.type, value.guid, value.name
    return event.type, str(getattr(value, "claimed_name", ""))


def _changed(where: str, old: Event, new: Event) -> Change:
    was, now = describe(old)[0], describe(new)[0]
    same = was == now
    words = f"{where}: another digest for {now}" if same else f"{where}: was {was}; is {now}"
    return Change(new.pcr, old, new, words, _database_changes(old, new))


def _database_changes(old: Event, new: Event) -> tuple[str, ...]:
    before, after = _entries(old), _entries(new)
    if before is None or after is None:
        return ()
    removed = [f"removed {signature_text(s.data)}" for s in before if s not in after]
    return (*removed, *[f"added {signature_text(s.data)}" for s in after if s not in before])


def _entries(event: Event) -> dict[Signature, None] | None:
    content = getattr(event.decoded, "content", None)
    if not isinstance(content, SignatureDatabase):
        return None
    return dict.fromkeys(s for entry in content.lists for s in entry.signatures)
