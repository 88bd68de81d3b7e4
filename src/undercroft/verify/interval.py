"""Was covered memory unchanged, but for lawful changes, from t0 to t1?

Numbered checks; each raises VerificationError with its id.

===  ==========================  =========================================================
I1   interval.chain              epochs parse, are of one session and follow each other by
                                 number and by digest
I2   interval.head               the last epoch is the one that the quoted record names
I3   interval.hole               each epoch begins when the one before ended
I4   interval.span               together they cover [t0, t1]
I5   interval.ranges             every demanded range is covered, by the same memory throughout
I6   interval.channels           every epoch was watched through a demanded channel
I7   interval.uncovered          no way around the channels was found, but those accepted
I8   interval.blind              no blind window, but for those accepted
I9   interval.change             every change has an explanation, and every patch came to an end
I10  interval.open               no page was open for longer than accepted
I11  interval.digest             what stands there changed only in epochs that list changes
I12  interval.sampling           each seed is the one that was committed to, and registers were
                                 looked at when it says
===  ==========================  =========================================================

Whether an explanation is true is the secure kernel's word: it is part of the trusted base, and the
chain is only as good as the quote that binds its head.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from undercroft.base import VerificationError
from undercroft.formats.evidence import SecureKernelRecord
from undercroft.formats.evidence.interval import (
    FIRST,
    BlindWindow,
    Change,
    CoveredRange,
    Epoch,
    epoch_digest,
    parse_chain,
    parse_epoch,
    sample_times,
)

TRAPS_FACT = "kernel.traps"
"""The secure kernel's fact whose detail ``head`` is the digest of the last epoch."""
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class IntervalDemand:
    """What a relying party accepts.  The defaults accept nothing that is not full cover.

    ``ranges`` and ``channels`` are names, and have to be given: nothing demanded would be nothing
    proven.  ``uncovered`` are kinds of channels that are accepted, ``blind_ns`` how long all blind
    windows may be together, ``open_ns`` how long the page of one change may have been open.
    ``sampling`` demands that registers were looked at: (largest mean distance, how late at most),
    in ns.  The seed of a session's last epoch is not revealed, so its samples prove nothing yet.
    """

    ranges: tuple[str, ...]
    channels: tuple[str, ...]
    uncovered: frozenset[str] = field(default_factory=frozenset)
    blind_ns: int = 0
    open_ns: int = 100_000_000
    sampling: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class VerifiedInterval:
    """Covered memory did not change from ``t0`` to ``t1`` but by ``changes``, all lawful.

    ``last_modified`` gives for each demanded range the end of the epoch in which it last changed,
    None if it did not in the whole session.  ``blind`` are the accepted blind windows.
    """

    t0: int
    t1: int
    session: bytes
    epochs: tuple[Epoch, ...]
    changes: tuple[Change, ...]
    blind: tuple[BlindWindow, ...]
    last_modified: dict[str, int | None]


def verify_interval(
    chain: Sequence[bytes], t0: int, t1: int, *, head: bytes, demand: IntervalDemand
) -> VerifiedInterval:
    """Return what the chain of encoded epochs proves about [t0, t1], or raise VerificationError.

    ``chain`` is a session's epochs in order, from its first; ``head`` is the SHA-256 of the last
    one, from a record that a verified quote binds.  Raises FormatError if an epoch is malformed.
    """
    return prove_interval(verify_chain(chain, head), t0, t1, demand)


def prove_interval(
    epochs: Sequence[Epoch], t0: int, t1: int, demand: IntervalDemand
) -> VerifiedInterval:
    """Return what ``epochs``, from :func:`verify_chain`, prove about [t0, t1] (I4 to I10, I12).

    Raises VerificationError.
    """
    if not demand.ranges or not demand.channels:
        raise VerificationError(
            "interval.ranges", "nothing is demanded", expected="ranges and channels"
        )
    if not t0 < t1 or t0 < epochs[0].t0 or t1 > epochs[-1].t1:  # I4
        raise VerificationError(
            "interval.span",
            "the chain does not cover the interval",
            expected=f"{t0} to {t1} ns",
            got=f"{epochs[0].t0} to {epochs[-1].t1} ns",
        )
    mine = tuple(epoch for epoch in epochs if epoch.t1 > t0 and epoch.t0 < t1)
    for epoch in mine:
        _check_cover(epoch, mine[0], demand)
        _check_changes(epoch, demand)
    if demand.sampling is not None:
        for epoch, after in itertools.pairwise(epochs):
            if epoch in mine:
                _check_samples(epoch, after.sampling.revealed, *demand.sampling)
    blind = tuple(window for epoch in mine for window in epoch.blind)
    _check_blind(blind, demand)
    if mine[-1].unsettled:  # I9
        raise VerificationError(
            "interval.change", "it ends in the middle of a patch", got=mine[-1].unsettled
        )
    return VerifiedInterval(
        t0=t0,
        t1=t1,
        session=mine[0].session,
        epochs=mine,
        changes=tuple(change for epoch in mine for change in epoch.changes),
        blind=blind,
        last_modified={
            name: _end_of(epochs, _range(mine[-1], name).last_modified) for name in demand.ranges
        },
    )


def verify_bound_chain(data: bytes, record: SecureKernelRecord | None) -> tuple[Epoch, ...]:
    """Return the epochs of an evidence item, whose last one ``record`` names.

    ``record`` is bound by a verified quote.  Raises VerificationError (I1, I2, I3, I11, I12) or
    FormatError.
    """
    facts = record.facts if record is not None else ()
    heads = [fact.details.get("head") for fact in facts if fact.id == TRAPS_FACT]
    head = heads[0] if len(heads) == 1 else None
    if not isinstance(head, str) or len(head) != 64 or not set(head) <= _HEX:  # I2
        raise VerificationError(
            "interval.head",
            "the secure kernel's record names no chain of epochs",
            expected=f"a digest in the fact {TRAPS_FACT}",
            got=head,
        )
    return verify_chain(parse_chain(data), bytes.fromhex(head))


def verify_chain(chain: Sequence[bytes], head: bytes) -> tuple[Epoch, ...]:
    """Return a session's epochs, linked without a hole (I1, I2, I3, I11, I12)."""
    if not chain:
        raise VerificationError("interval.chain", "there are no epochs")
    if not hmac.compare_digest(epoch_digest(chain[-1]), head):  # I2
        raise VerificationError(
            "interval.head",
            "the chain does not end with the epoch that is vouched for",
            expected=head.hex(),
            got=epoch_digest(chain[-1]).hex(),
        )
    epochs = tuple(map(parse_epoch, chain))
    if epochs[0].previous != FIRST:  # I1
        raise VerificationError(
            "interval.chain", "the chain does not begin with a first epoch", got=epochs[0].sequence
        )
    for encoded, (before, after) in zip(chain, itertools.pairwise(epochs), strict=False):
        _check_link(encoded, before, after)
    return epochs


def _check_link(encoded: bytes, before: Epoch, after: Epoch) -> None:
    linked = hmac.compare_digest(after.previous, epoch_digest(encoded))
    if not linked or after.session != before.session or after.sequence != before.sequence + 1:
        raise VerificationError(  # I1
            "interval.chain",
            "an epoch does not follow the one before it",
            expected=f"{before.sequence + 1} after {epoch_digest(encoded).hex()}",
            got=f"{after.sequence} after {after.previous.hex()}",
        )
    if after.t0 != before.t1:  # I3
        raise VerificationError(
            "interval.hole", "there is a hole in time", expected=before.t1, got=after.t0
        )
    if hashlib.sha256(after.sampling.revealed).digest() != before.sampling.commitment:  # I12
        raise VerificationError(
            "interval.sampling", "a revealed seed is not the one committed to", got=after.sequence
        )
    changed = {change.range for change in after.changes if change.landed}
    for covered in after.ranges:  # I11
        earlier = next((each for each in before.ranges if each.name == covered.name), None)
        if earlier is None or earlier.digest == covered.digest:
            continue
        told = covered.name in changed or after.unsettled or before.unsettled
        if not told or covered.last_modified != after.sequence:
            raise VerificationError(
                "interval.digest",
                f"{covered.name} differs and no change is told",
                expected=earlier.digest.hex(),
                got=covered.digest.hex(),
            )


def _range(epoch: Epoch, name: str) -> CoveredRange:
    found = [covered for covered in epoch.ranges if covered.name == name]
    if len(found) != 1:  # I5
        raise VerificationError(
            "interval.ranges", f"{name} was not covered", expected=1, got=len(found)
        )
    return found[0]


def _check_cover(epoch: Epoch, first: Epoch, demand: IntervalDemand) -> None:
    for name in demand.ranges:
        if _range(epoch, name).extents != _range(first, name).extents:  # I5
            raise VerificationError("interval.ranges", f"{name} means other memory than before")
    _demand_all("interval.channels", demand.channels, epoch.channels)  # I6
    around = [each for each in epoch.uncovered if each.kind not in demand.uncovered]
    if around:  # I7
        raise VerificationError(
            "interval.uncovered",
            "the memory could be written around the traps",
            expected=sorted(demand.uncovered) or "no such way",
            got=f"{around[0].kind} of process {around[0].pid}: {around[0].detail}",
        )


def _demand_all(check: str, wanted: Collection[str], got: Collection[str]) -> None:
    missing = [name for name in wanted if name not in got]
    if missing:
        raise VerificationError(check, "not what is demanded", expected=missing, got=list(got))


def _check_changes(epoch: Epoch, demand: IntervalDemand) -> None:
    for change in epoch.changes:
        where = change.symbol or f"{change.paddr:#x}"
        if not change.lawful:  # I9
            raise VerificationError(
                "interval.change",
                f"a change without an explanation, in {where}: {change.reason}",
                expected=change.before.hex(),
                got=change.after.hex(),
            )
        if change.open_ns > demand.open_ns:  # I10
            raise VerificationError(
                "interval.open",
                f"the page of {where} was open for too long",
                expected=demand.open_ns,
                got=change.open_ns,
            )


def _check_samples(epoch: Epoch, seed: bytes, mean_ns: int, late_ns: int) -> None:
    """Every time that the seed gives has to have its sample, not before it and not much later."""
    sampling = epoch.sampling
    if not 0 < sampling.mean_ns <= mean_ns:  # I12
        raise VerificationError(
            "interval.sampling", "not sampled often enough", expected=mean_ns, got=sampling.mean_ns
        )
    due = itertools.takewhile(
        lambda at: at + late_ns < epoch.t1, sample_times(seed, epoch.t0, sampling.mean_ns)
    )
    taken = iter(sampling.times)
    for at in due:
        got = next(taken, None)
        if got is None or not at <= got <= at + late_ns:
            raise VerificationError(
                "interval.sampling",
                "registers were not looked at when the seed says",
                expected=f"{at} ns, at most {late_ns} ns later",
                got=got,
            )


def _check_blind(blind: Sequence[BlindWindow], demand: IntervalDemand) -> None:
    if not blind:
        return
    total = sum(max(0, window.t1 - window.t0) for window in blind)
    if total > demand.blind_ns or demand.blind_ns == 0:  # I8
        raise VerificationError(
            "interval.blind",
            f"not covered all the time: {blind[0].reason}",
            expected=demand.blind_ns,
            got=total,
        )


def _end_of(epochs: Sequence[Epoch], sequence: int) -> int | None:
    return next((epoch.t1 for epoch in epochs if epoch.sequence == sequence), None)
