"""Puts the epochs of the write traps into PCR 19, each as soon as it has ended.

So a verifier who has the quote knows how many there were and how they were linked, and that
nobody took one away, without trusting who kept the chain.
"""

from __future__ import annotations

from collections.abc import Sequence

from undercroft.formats.eventlog import parse_eventlog
from undercroft.formats.evidence.interval import epoch_digest, parse_epoch
from undercroft.formats.launch import (
    EPOCH,
    PCR_RECORD,
    EpochRecord,
    parse_epoch_record,
    parse_launch_event,
)
from undercroft.securekernel.vtpm.client import VtpmClient


class EpochKeeper:
    """Remembers what PCR 19 has, and extends it with what is new."""

    def __init__(self, client: VtpmClient) -> None:
        self._client = client
        self._launch = 0
        self._kept: set[bytes] = set()

    def keep(self, chain: Sequence[bytes]) -> int:
        """Record every encoded epoch of ``chain`` that PCR 19 has not; return how many.

        After a reset of the machine PCR 19 is empty, and gets the whole chain again.  Does nothing
        where there was no launch to record for.  Raises as :class:`VtpmClient` does.
        """
        status = self._client.status()
        if status["log_size"] == 0:
            return 0
        if status["launch"] != self._launch:
            self._launch, self._kept = status["launch"], self._recorded()
        new = 0
        for encoded in chain:
            digest = epoch_digest(encoded)
            if digest not in self._kept:
                epoch = parse_epoch(encoded)
                record = EpochRecord(epoch.session, epoch.sequence, digest)
                self._client.record(EPOCH, record.encode())
                self._kept.add(digest)
                new += 1
        return new

    def _recorded(self) -> set[bytes]:
        log = self._client.current_launch_log()
        events = (
            parse_launch_event(e.data) for e in parse_eventlog(log).events if e.pcr == PCR_RECORD
        )
        return {parse_epoch_record(event.data).digest for event in events if event.name == EPOCH}
