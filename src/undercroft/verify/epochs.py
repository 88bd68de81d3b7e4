"""The epochs of the write traps that PCR 19 names, and the chain that the evidence shows.

PCR 19 gets the newest epoch now and then: each names the one before it by digest.  Checks:

``launch.epochs`` the epochs of each run of the secure kernel stand in PCR 19 by number, and no run
                  goes on after another has begun
``launch.chain``  the chain that is shown is the last run's: it has every epoch that PCR 19 names
                  of it, at its number, and ends with the newest

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
    "PCR 19 names epochs of each run of the secure kernel in order, one run after another",
    "docs/formats.md",
)
W6_CHAIN = Check(
    "W6",
    "launch.chain",
    "the chain of epochs that is shown is the last run's: it has what PCR 19 names, to the newest",
    "docs/formats.md",
)
CHECKS = (W5_EPOCHS, W6_CHAIN)


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """Epochs of one run of the secure kernel, in order, as PCR 19 has them."""

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
            if any(run[0].session == record.session for run in runs):
                raise W5_EPOCHS.failed(
                    "a run of the secure kernel that goes on after another",
                    got=record.session.hex(),
                )
            runs.append([record])
        elif record.sequence > runs[-1][-1].sequence:
            runs[-1].append(record)
        else:
            raise W5_EPOCHS.failed(
                "an epoch of the secure kernel after a later one",
                expected=f"more than {runs[-1][-1].sequence}",
                got=record.sequence,
            )
    return tuple(RecordedRun(run[0].session, tuple(run)) for run in runs)


def verify_epochs(runs: Sequence[RecordedRun], chain: Sequence[bytes]) -> RecordedRun:
    """Return the last of ``runs`` (``VerifiedLaunch.runs``), whose epochs are ``chain`` (encoded).

    Whether the chain is linked is for ``interval.verify_chain`` to say.  Raises VerificationError
    (W6).
    """
    named = runs[-1].epochs if runs else ()
    shown = [epoch_digest(encoded) for encoded in chain]
    if not named or named[-1].sequence != len(shown):
        raise W6_CHAIN.failed(
            "the chain of epochs does not end with the newest that PCR 19 names",
            expected=f"{named[-1].sequence} epochs" if named else "no epoch",
            got=f"{len(shown)} epochs",
        )
    for record in named:
        if not hmac.compare_digest(record.digest, shown[record.sequence - 1]):
            raise W6_CHAIN.failed(
                f"epoch {record.sequence} of the chain is not the one that PCR 19 names",
                expected=record.digest.hex(),
                got=shown[record.sequence - 1].hex(),
            )
    return runs[-1]
