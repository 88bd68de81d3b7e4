"""What happened under the traps, as a chain of epochs.

The clock of a session is the wall clock at its start plus monotonic time, so that a clock that
is set makes no hole and no overlap.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.formats.evidence.interval import (
    FIRST,
    BlindWindow,
    Change,
    CoveredRange,
    Epoch,
    Sampling,
    Uncovered,
    encode_chain,
    encode_epoch,
    epoch_digest,
)

_LENGTH = 4
"""Bytes of the length before each epoch in a file (``encode_chain``)."""
MAX_CHANGES = 4096
"""An epoch with so many changes is closed, and the next begins."""


class Clock:
    """ns since the Unix epoch that only go forward."""

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def now(self) -> int:
        """Return the time."""
        return self._offset + time.monotonic_ns()


class Journal:
    """Collects one epoch at a time and chains them.  Used by the guard's thread only.

    ``file`` is appended to as epochs close.  If it cannot be written, ``fault`` says why and the
    chain goes on in memory: nothing is lost, but the fault is part of what the guard reports.
    """

    def __init__(self, mode: str, clock: Clock, file: Path | None = None) -> None:
        self.session = secrets.token_bytes(16)
        self.clock = clock
        self.mode = mode
        self.chain: list[bytes] = []
        self.head = FIRST
        self.fault: EnvironmentFault | None = None
        """Why epochs are no longer written to the file."""
        self.writes = 0
        self.changes: list[Change] = []
        self.blind: list[BlindWindow] = []
        self.sample_times: list[int] = []
        self.lawful = 0
        self.violations = 0
        self.began = clock.now()
        self._t0 = self.began
        self._file = file
        if file is not None:
            self.fault = _repair(file)
        self._writes_before = 0
        self._seed = secrets.token_bytes(32)
        self._revealed = b""
        self.mean_ns = 0

    @property
    def sequence(self) -> int:
        """The number of the epoch that is open; the first is 1."""
        return len(self.chain) + 1

    @property
    def seed(self) -> bytes:
        """The secret seed of the open epoch."""
        return self._seed

    @property
    def opened_at(self) -> int:
        """When the open epoch began."""
        return self._t0

    @property
    def is_full(self) -> bool:
        """Whether the open epoch should be closed now."""
        return len(self.changes) >= MAX_CHANGES

    def add(self, change: Change) -> None:
        """Record a change or an attempt."""
        self.changes.append(change)
        if change.lawful:
            self.lawful += 1
        else:
            self.violations += 1

    def close(
        self,
        cause: str,
        ranges: tuple[CoveredRange, ...],
        channels: tuple[str, ...],
        uncovered: tuple[Uncovered, ...],
        unsettled: int,
    ) -> Epoch:
        """End the open epoch now, chain it, and begin the next at the same instant."""
        t1 = self.clock.now()
        epoch = Epoch(
            session=self.session,
            sequence=self.sequence,
            previous=self.head,
            t0=self._t0,
            t1=t1,
            mode=self.mode,
            cause=cause,
            ranges=ranges,
            channels=channels,
            uncovered=uncovered,
            blind=tuple(self.blind),
            changes=tuple(self.changes),
            unsettled=unsettled,
            writes=self.writes - self._writes_before,
            sampling=Sampling(
                hashlib.sha256(self._seed).digest(),
                self._revealed,
                self.mean_ns,
                tuple(self.sample_times),
            ),
        )
        encoded = encode_epoch(epoch)
        self.chain.append(encoded)
        self.head = epoch_digest(encoded)
        self._save(encoded)
        self._t0, self._writes_before = t1, self.writes
        self._revealed, self._seed = self._seed, secrets.token_bytes(32)
        self.blind, self.changes, self.sample_times = [], [], []
        return epoch

    def _save(self, encoded: bytes) -> None:
        if self._file is None or self.fault is not None:
            return
        try:
            with self._file.open("ab") as stream:
                stream.write(encode_chain([encoded]))
                stream.flush()
                os.fdatasync(stream.fileno())
        except OSError as error:
            self.fault = EnvironmentFault(
                f"the log of epochs cannot be written: {error.strerror}", where=str(self._file)
            )


def _repair(file: Path) -> EnvironmentFault | None:
    """Cut off the half epoch that a log ends with if its writer was killed; return what fails.

    What is cut off was never vouched for: the file is made durable before an epoch is told of.
    """
    if not file.is_file():
        return None
    try:
        with file.open("r+b") as stream:
            size = stream.seek(0, os.SEEK_END)
            at = 0
            while at + _LENGTH <= size:
                stream.seek(at)
                length = int.from_bytes(stream.read(_LENGTH), "big")
                if at + _LENGTH + length > size:
                    break
                at += _LENGTH + length
            if at < size:
                stream.truncate(at)
    except OSError as error:
        return EnvironmentFault(f"the log of epochs: {error.strerror}", where=str(file))
    return None
