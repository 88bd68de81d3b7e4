"""How a fact is settled on a machine that goes on running.

A look over live structures may fall into the middle of an update: a task that has its pid but is
not yet in the list, an entry freed under our hands.  So a look that finds something wrong is
repeated, with the guest held still while we look and running in between; only what every look
saw counts.  What lasts shorter than that is for the write traps, not for polling.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from undercroft.base import Finding, FormatError, JsonValue, MemoryFault, Outcome
from undercroft.securekernel.arch.x86_64.walk import WalkTooLargeError
from undercroft.securekernel.linux.live import LiveKernel, StructureError

DELAYS_S = (0.0, 0.004, 0.02, 0.1, 0.4)
"""Seconds the guest runs before each look.  A vCPU may be off its host CPU for tens of ms in the
middle of an update; 0.4 s is an order of magnitude beyond that."""

MORE_DELAY_S = 0.5
MAX_MORE = 20

WALK_ERRORS = (StructureError, MemoryFault, WalkTooLargeError)
"""What hostile or torn memory makes a walk raise."""


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One thing wrong in one look.  ``details`` are for the finding.

    An anomaly with ``certain`` False (something could not be read) makes the fact UNKNOWN.
    """

    details: Mapping[str, JsonValue]
    certain: bool = True


@dataclass(frozen=True, slots=True)
class Look:
    """What one look saw: anomalies by an identity that lasts, and details if all is well."""

    anomalies: Mapping[Hashable, Anomaly] = field(default_factory=dict)
    details: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FactSpec:
    """A fact's id, what PASS and FAIL mean in one sentence, and what it cannot see.

    A ``patient`` fact is UNKNOWN, not FAIL, while what is wrong may yet be lawful (see ``more``).
    """

    id: str
    passed: str
    failed: str
    limits: Sequence[str]
    source: str = ""
    patient: bool = False


@dataclass(frozen=True, slots=True)
class Observer:
    """How looks are made: how the guest is held still, and how we wait between looks."""

    paused: Callable[[], AbstractContextManager[None]]
    sleep: Callable[[float], None] = time.sleep
    delays: Sequence[float] = DELAYS_S

    def settle(
        self, spec: FactSpec, kernel: LiveKernel, look: Callable[[LiveKernel], Look]
    ) -> Finding:
        """Settle one fact; see :meth:`settle_all`."""
        return self.settle_all((spec,), kernel, lambda fresh: {spec.id: look(fresh)})[0]

    def settle_all(
        self,
        specs: Sequence[FactSpec],
        kernel: LiveKernel,
        look: Callable[[LiveKernel], Mapping[str, Look]],
        *,
        more: Callable[[LiveKernel], bool] = lambda _: False,
    ) -> tuple[Finding, ...]:
        """Look until one look is clean: PASS.  If none is, return what every look saw.

        One look tells of all facts, by id.  After the last of ``delays``, looks go on as long as
        ``more`` asks for it, at most MAX_MORE times.  Nothing that every look saw, or fewer than
        two looks that could be finished, is UNKNOWN.
        """
        looks: list[Mapping[str, Look]] = []
        failures: list[Exception] = []
        waiting = False
        for number, delay in enumerate([*self.delays, *[MORE_DELAY_S] * MAX_MORE]):
            if number >= len(self.delays) and not (waiting := more(kernel.fresh())):
                break
            if delay:
                self.sleep(delay)
            try:
                with self.paused() if number else nullcontext():
                    looks.append(look(kernel.fresh()))
            except (*WALK_ERRORS, FormatError) as error:
                failures.append(error)
                continue
            if not any(seen.anomalies for seen in looks[-1].values()):
                break
        return tuple(
            _conclude(spec, [seen[spec.id] for seen in looks], failures, waiting=waiting)
            for spec in specs
        )


def _conclude(
    spec: FactSpec, looks: Sequence[Look], failures: Sequence[Exception], *, waiting: bool
) -> Finding:
    """Return the finding on one fact from all looks."""
    clean = next((seen for seen in reversed(looks) if not seen.anomalies), None)
    if clean is not None:
        return _finding(spec, {}, clean.details)
    found = _unsettled(spec, looks, failures)
    if waiting and spec.patient and found.outcome is Outcome.FAIL:
        why = "it may yet be lawful: the guest did not come to rest in time"
        summary = f"{spec.failed}, but {why}"
        return Finding(found.id, Outcome.UNKNOWN, summary, found.details, found.source)
    return found


def _unsettled(spec: FactSpec, looks: Sequence[Look], failures: Sequence[Exception]) -> Finding:
    """Return the finding where no look was clean."""
    if not looks:
        return _finding(spec, {"walk": Anomaly({"walk": str(failures[-1])}, certain=False)}, {})
    last = looks[-1]
    lasting = {
        key: anomaly
        for key, anomaly in last.anomalies.items()
        if all(key in seen.anomalies for seen in looks)
    }
    if len(looks) > 1 and lasting:
        return _finding(spec, lasting, last.details)
    why = str(failures[-1]) if failures else "every look saw something else"
    changing: dict[Hashable, Anomaly] = {
        "unsettled": Anomaly({"unsettled": why, "last_look": _listed(last)}, certain=False)
    }
    return _finding(spec, changing, last.details)


def _listed(look: Look) -> list[JsonValue]:
    return [dict(anomaly.details) for anomaly in list(look.anomalies.values())[:MAX_REPORTED]]


MAX_REPORTED = 64
"""Anomalies that one finding lists; the rest is counted."""


def _finding(
    spec: FactSpec, anomalies: Mapping[Hashable, Anomaly], details: Mapping[str, JsonValue]
) -> Finding:
    everything: dict[str, JsonValue] = {**details, "limits": list(spec.limits)}
    if not anomalies:
        return Finding(spec.id, Outcome.PASS, spec.passed, everything, spec.source)
    certain = [anomaly for anomaly in anomalies.values() if anomaly.certain]
    listed = certain or list(anomalies.values())
    everything["count"] = len(listed)
    everything["anomalies"] = [dict(anomaly.details) for anomaly in listed[:MAX_REPORTED]]
    if certain:
        return Finding(spec.id, Outcome.FAIL, spec.failed, everything, spec.source)
    return Finding(
        spec.id, Outcome.UNKNOWN, f"could not tell: {_why(listed)}", everything, spec.source
    )


_ALONE = ("walk", "unsettled")
"""Details that are a reason by themselves."""


def _why(listed: Sequence[Anomaly]) -> str:
    """Return what could not be told, in words: the first of ``listed``, and how many there are."""
    details = listed[0].details
    text = next((str(details[name]) for name in _ALONE if name in details), "")
    if not text:
        words = [f"{name.replace('_', ' ')} {value}" for name, value in details.items() if value]
        rule = details.get("rule")
        text = f"{words[0]}: {rule}" if rule and words else ", ".join(words[:3])
    text = text or "no reason known"
    return text + (f", and {len(listed) - 1} more" if len(listed) > 1 else "")
