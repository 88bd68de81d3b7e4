"""What the secure kernel puts into PCR 19: what it found wrong, and the epochs of its traps.

Each once in a launch.  What was found wrong stays until the machine starts again, so undoing an
attack does not hide it.  An epoch names the one before it by digest, so the newest stands for all
that ended before: a verifier who has the quote knows that nobody took one away, without trusting
who kept the chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from undercroft.base import Finding, Outcome
from undercroft.formats.eventlog import parse_eventlog
from undercroft.formats.evidence.interval import epoch_digest, parse_epoch
from undercroft.formats.launch import (
    EPOCH,
    FINDING,
    PCR_RECORD,
    EpochRecord,
    finding_record,
    parse_launch_event,
)
from undercroft.securekernel.vtpm.client import VtpmClient

MAX_FINDINGS = 256
"""How many findings one launch keeps: enough to condemn a guest that varies them."""


class RecordKeeper:
    """Remembers what PCR 19 has, and extends it with what is new.

    Methods return how many records were added; none where there was no launch to record for.
    They raise as :class:`VtpmClient` does.
    """

    def __init__(self, client: VtpmClient) -> None:
        self._client = client
        self._launch = 0
        self._kept: dict[tuple[str, bytes], None] = {}

    def keep_findings(self, facts: Iterable[Finding]) -> int:
        """Record each fact that failed."""
        failed = [finding_record(fact) for fact in facts if fact.outcome is Outcome.FAIL]
        if not failed or not self._is_launched():
            return 0
        room = MAX_FINDINGS - sum(name == FINDING for name, _ in self._kept)
        new = [data for data in dict.fromkeys(failed) if (FINDING, data) not in self._kept]
        return sum(self._keep(FINDING, data) for data in new[: max(0, room)])

    def keep_epochs(self, chain: Sequence[bytes]) -> int:
        """Record the newest of a chain of encoded epochs."""
        if not chain or not self._is_launched():
            return 0
        epoch = parse_epoch(chain[-1])
        record = EpochRecord(epoch.session, epoch.sequence, epoch_digest(chain[-1]))
        return self._keep(EPOCH, record.encode())

    def _keep(self, name: str, data: bytes) -> bool:
        if (name, data) in self._kept:
            return False
        self._client.record(name, data)
        self._kept[name, data] = None
        return True

    def _is_launched(self) -> bool:
        """Tell whether there is a launch; learn what it has recorded if it is a new one."""
        status = self._client.status()
        if not status["log_size"]:
            return False
        if status["launch"] != self._launch:
            log = parse_eventlog(self._client.current_launch_log())
            events = (parse_launch_event(e.data) for e in log.events if e.pcr == PCR_RECORD)
            self._kept = {(event.name, event.data): None for event in events}
            self._launch = status["launch"]
        return True
