"""What a secure kernel that stays beside a guest puts into PCR 19 while it runs."""

from __future__ import annotations

import time
from collections.abc import Sequence

from undercroft.base import EnvironmentFault, Finding, FormatError, Outcome
from undercroft.securekernel.vtpm.client import VtpmClient
from undercroft.securekernel.vtpm.records import RecordKeeper

FACT = "kernel.recorded"
EVERY_S = 300.0
"""How often an epoch goes to PCR 19, in seconds: a day of them is 50 KiB of the launch's log."""


class RunningRecord:
    """Keeps what failed, at once, and the newest epoch of the traps, now and then."""

    def __init__(self, client: VtpmClient, *, every_s: float = EVERY_S) -> None:
        self._keeper = RecordKeeper(client)
        self._every_s = every_s
        self._due = 0.0
        self._failed: set[tuple[str, str]] = set()

    def keep(
        self, facts: Sequence[Finding], chain: Sequence[bytes] = (), *, last: bool = False
    ) -> tuple[Finding, ...]:
        """Record what is new; return a fact if it could not be, for the guest goes on regardless.

        ``last``: nothing follows, so the newest epoch is recorded whenever the last one was.
        """
        failed = {(fact.id, fact.summary) for fact in facts if fact.outcome is Outcome.FAIL}
        due = last or time.monotonic() >= self._due
        if not due and failed <= self._failed:
            return ()
        try:
            self._keeper.keep_findings(facts)
            if due:
                self._keeper.keep_epochs(chain)
        except (EnvironmentFault, FormatError) as fault:
            what = f"PCR 19 does not get what the secure kernel sees: {fault}"
            return (Finding(FACT, Outcome.UNKNOWN, what),)
        self._failed |= failed
        if due and chain:
            self._due = time.monotonic() + self._every_s
        return ()
