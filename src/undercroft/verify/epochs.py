"""The epochs of the write traps that PCR 19 names, and the chain that the evidence shows.

Checks:

``launch.epochs`` the epochs of each run of the secure kernel stand in PCR 19 by number, none
                  missing, and no run goes on after another has begun
``launch.chain``  the chain that is shown is the last run's, whole, as PCR 19 names it

More than one run means that the secure kernel was started again: what the guest did in between
is not covered by any epoch.  That is no lie, so it is stated and not refused.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from undercroft.formats.evidence.interval import epoch_digest
from undercroft.formats.launch import EPOCH, EpochRecord, LaunchEvent, parse_epoch_record
from undercroft.verify.checks import Check

W5_EPOCHS = Check(
    "W5",
    "launch.epochs",
    "PCR 19 names the epochs of each run of the secure kernel in order, without a gap",
    "docs/formats.md",
)
W6_CHAIN = Check(
    "W6",
    "launch.chain",
    "the chain of epochs that is shown is the last run's, whole, as PCR 19 names it",
    "docs/formats.md",
)
CHECKS = (W5_EPOCHS, W6_CHAIN)


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """The epochs of one run of the secure kernel, in order, as PCR 19 has them."""

    session: bytes
    epochs: tuple[EpochRecord, ...]


def recorded_runs(events: Iterable[LaunchEvent]) -> tuple[RecordedRun, ...]:
    """Return the runs whose epochs are among the ``events`` of PCR 19, in order.

    Raises VerificationError (W5), FormatError.
    """
    runs: list[list[EpochRecord]] = []
    for event in events:
        if event.name != EPOCH:
            continue
        record = parse_epoch_record(event.data)
        if not runs or runs[-1][-1].session != record.session:
            _begin(runs, record)
        elif record.sequence == runs[-1][-1].sequence + 1:
            runs[-1].append(record)
        else:
            raise W5_EPOCHS.failed(
                "an epoch is missing in PCR 19",
                expected=runs[-1][-1].sequence + 1,
                got=record.sequence,
            )
    return tuple(RecordedRun(run[0].session, tuple(run)) for run in runs)


def _begin(runs: list[list[EpochRecord]], record: EpochRecord) -> None:
    """Begin another run.  Its first epoch is the first: after a reset the whole chain is
    recorded again."""
    if record.sequence != 1:
        raise W5_EPOCHS.failed(
            "a run of the secure kernel without its first epoch", expected=1, got=record.sequence
        )
    if any(run[0].session == record.session for run in runs):
        raise W5_EPOCHS.failed(
            "a run of the secure kernel that goes on after another", got=record.session.hex()
        )
    runs.append([record])


def verify_epochs(runs: Sequence[RecordedRun], chain: Sequence[bytes]) -> RecordedRun:
    """Return the last of ``runs`` (``VerifiedLaunch.runs``), whose epochs are ``chain`` (encoded).

    Raises VerificationError (W6).
    """
    named = [epoch.digest for epoch in runs[-1].epochs] if runs else []
    shown = [epoch_digest(encoded) for encoded in chain]
    if not named or len(named) != len(shown) or not all(map(hmac.compare_digest, named, shown)):
        raise W6_CHAIN.failed(
            "the chain of epochs is not the one that PCR 19 names",
            expected=f"{len(named)} epochs, the last {named[-1].hex() if named else 'none'}",
            got=f"{len(shown)} epochs, the last {shown[-1].hex() if shown else 'none'}",
        )
    return runs[-1]
