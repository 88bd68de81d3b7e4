"""Is what ran of today?  Files and kernel of superseded and vulnerable package versions.

``updates.package``   a package of which a version ran that is not the one of today
``updates.summary``   how many there are; PASS if none

A file of an old version was good and may still be running: until the machine boots again, an
upgrade leaves both versions in its list, and both are explained.  How long that may go on is the
policy's to say.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from undercroft.appraise.ima import UPDATES
from undercroft.appraise.model import Judgement, failed, passed, stated, worst_of
from undercroft.base import Finding, JsonValue, Outcome
from undercroft.formats.ear import TrustClaim
from undercroft.policy import Action, Policy
from undercroft.reference.model import ReferenceSet
from undercroft.reference.updates import Label, parse_label

CLAIM = TrustClaim.EXECUTABLES
DAY = 24 * 3600
SHOWN = 64
"""How many packages are told one by one."""


@dataclass(frozen=True, slots=True)
class _Ran:
    """A label and how many files of it were used; ``beside`` are other versions that ran too."""

    label: Label
    files: int
    beside: tuple[str, ...]


def appraise_updates(
    judgements: Iterable[Judgement], references: ReferenceSet, policy: Policy, now: int
) -> Iterator[Judgement]:
    """Judge every package of which a version ran that is not current, by its age at ``now``.

    Says nothing where the references do not know which versions are current.
    """
    if not references.states:
        return
    counts: dict[str, int] = {}
    for judgement in judgements:
        found = judgement.finding.details.get(UPDATES)
        if isinstance(found, Mapping):
            for text, count in found.items():
                counts[text] = counts.get(text, 0) + int(str(count))
    ran = [(parse_label(text), count) for text, count in counts.items()]
    old = [_Ran(label, count, _beside(label, ran)) for label, count in ran if not label.is_current]
    told = sorted((_judged(one, policy, now) for one in old), key=lambda j: j.finding.summary)
    yield from told[:SHOWN]
    yield _summary(told)


def _beside(label: Label, ran: Iterable[tuple[Label, int]]) -> tuple[str, ...]:
    versions = {one.version for one, _ in ran if one.package == label.package and one != label}
    return tuple(sorted(versions))


def _days(label: Label, now: int) -> int:
    return max(now - label.superseded, 0) // DAY if label.superseded else 0


def _judged(one: _Ran, policy: Policy, now: int) -> Judgement:
    label, rules = one.label, policy.updates
    days = _days(label, now)
    details: dict[str, JsonValue] = {
        "package": label.package,
        "version": label.version,
        "files": one.files,
        "superseded-since": _date(label.superseded) if label.superseded else None,
        "days": days,
        "successor": label.successor,
        "advisories": list(label.advisories),
        "other-versions-that-ran": list(one.beside),
    }
    what = f"{label.package} {label.version} is superseded by {label.successor}"
    if label.advisories:
        what = f"{label.package} {label.version} is known to be vulnerable"
        what += f" ({', '.join(label.advisories[:3])})"
    if label.superseded:
        what += f", since {days} days"
    if one.beside:
        what += f"; {', '.join(one.beside)} ran as well: the old one ends when the machine reboots"
    name = "updates.package"
    actions: list[Action] = []
    if label.advisories and days >= rules.vulnerable_days:
        actions.append(rules.vulnerable)
    if label.superseded and days >= rules.superseded_days:
        actions.append(rules.superseded)
    if not actions:
        allowed = rules.vulnerable_days if label.advisories else rules.superseded_days
        details["allowed-days"] = allowed
        return stated(Finding(name, Outcome.PASS, f"{what}; {allowed} are allowed", details))
    outcome = Outcome.FAIL if label.advisories else Outcome.UNKNOWN
    action = max(actions, key=list(Action).index)
    return failed(Finding(name, outcome, what, details), CLAIM, action)


def _summary(told: list[Judgement]) -> Judgement:
    counting = [judgement for judgement in told if judgement.tier is not None]
    details: dict[str, JsonValue] = {
        "not-current": len(told),
        "too-long": len(counting),
        "not-told": max(len(told) - SHOWN, 0),
    }
    name = "updates.summary"
    if not counting:
        what = "everything that ran is of today"
        if told:
            what = f"{len(told)} packages are not of today, none for longer than is allowed"
        return passed(Finding(name, Outcome.PASS, what, details), CLAIM)
    what = f"{len(counting)} packages have not been of today for longer than is allowed"
    worst = worst_of([judgement.tier for judgement in counting])
    return Judgement(Finding(name, Outcome.UNKNOWN, what, details), worst, CLAIM)


def _date(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d")
