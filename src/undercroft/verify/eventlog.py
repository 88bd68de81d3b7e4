"""Replay of an event log, and its comparison with quoted PCRs.

``replay_eventlog`` says what the PCRs would be if the log were the truth; it proves nothing.
``verify_eventlog`` compares that with PCR values that a verified quote vouches for.  Only then
are the digests of the log's events what was extended, in that order, per PCR; the order of
events between PCRs, their types and whatever is ``claimed_`` remain the log writer's word.

The checks are numbered; :data:`CHECKS` is the table.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from undercroft.base import PCR_COUNT, HashAlgorithm, PcrBank, VerificationError
from undercroft.formats.eventlog import Event, EventLog, LogFormat
from undercroft.formats.eventlog.types import NO_ACTION
from undercroft.formats.eventlog.value import hasher
from undercroft.formats.eventlog.words import register_name
from undercroft.verify.checks import Check
from undercroft.verify.quirks import (
    DRTM_PCRS,
    NO_PCR,
    FiredQuirk,
    Quirk,
    Replay,
    log_quirks,
    replay_quirks,
    startup_localities,
)

G1_BANK = Check(
    "G1",
    "eventlog.bank",
    "PCRs were quoted, in banks that the log has a digest of every event for",
    "PFP 1.06, 10.4.5.1",
)
G2_REPLAY = Check(
    "G2",
    "eventlog.replay",
    "every quoted PCR is what the log replays to",
    "PFP 1.06, 3.3.4 and 10.4; PTP 1.05, 4.6.2 (start values)",
)
CHECKS = (G1_BANK, G2_REPLAY)

OS_EXTENDED_PCRS = frozenset({10, 11, 15, 16, 23})
"""PCRs that are also extended after the firmware's log has ended: IMA (10), systemd-pcrextend
(11, 15), debugging (16), applications (23).  There a difference is no error: the PCR is
``unexplained``, and what stands in it is for other evidence to explain."""

OS_EXTENDED_REGISTERS = frozenset({4})
"""The same for a CCEL: RTMR[3] is the guest's own (Intel TDX Virtual Firmware Design Guide, 8)."""

_MRTD = 0
"""Register 0 of a CCEL is built by the TDX module; no log replays to it."""


@dataclass(frozen=True, slots=True)
class ReplayedPcrs:
    """What a log replays to; nothing is verified.

    ``banks`` hold the PCRs (CCEL: the registers, by index) that the log extends.  A bank for
    which an event has no digest, or whose hash this machine cannot compute, is in ``left_out``
    with the reason.  ``events`` counts the log's entries, its header among them; an entry that
    names no PCR is not counted.  ``startup_locality`` is what PCR 0 was started with.
    """

    banks: Mapping[HashAlgorithm, PcrBank]
    left_out: Mapping[HashAlgorithm, str]
    events: int
    startup_locality: int
    quirks: tuple[FiredQuirk, ...]


@dataclass(frozen=True, slots=True)
class ReplayedLog:
    """A log whose replay equals quoted PCRs.

    ``log`` is the log; ``vouched`` are its events that the quote vouches for: extended events
    in a PCR whose quoted value the log accounts for, in every quoted bank that has the PCR, and
    with the digests of those banks only.
    ``banks`` are the quoted banks, ``explained`` the quoted PCRs that the log accounts for and
    ``unexplained`` those that something else extended too.  ``quirks`` fired on the way.
    """

    log: EventLog
    vouched: tuple[Event, ...]
    banks: tuple[PcrBank, ...]
    explained: frozenset[int]
    unexplained: frozenset[int]
    startup_locality: int
    quirks: tuple[FiredQuirk, ...]


def replay_eventlog(log: EventLog) -> ReplayedPcrs:
    """Return the PCR values that ``log`` leads to, in every bank it has."""
    locality = _startup_locality(log)
    banks: dict[HashAlgorithm, PcrBank] = {}
    left_out: dict[HashAlgorithm, str] = {}
    for algorithm in log.algorithms:
        values, why = _replay_bank(log, algorithm, locality)
        if why:
            left_out[algorithm] = why
        else:
            banks[algorithm] = PcrBank(algorithm, values)
    return ReplayedPcrs(
        MappingProxyType(banks),
        MappingProxyType(left_out),
        sum([event.pcr != NO_PCR for event in log.events]),
        locality,
        log_quirks(log),
    )


def _startup_locality(log: EventLog) -> int:
    localities = startup_localities(log)
    return localities[0][1] if localities and log.format is not LogFormat.CCEL else 0


def _replay_bank(
    log: EventLog, algorithm: HashAlgorithm, locality: int
) -> tuple[dict[int, bytes], str]:
    """Return the bank's PCRs, or why it cannot be replayed."""
    new = hasher(algorithm)
    if new is None:
        return {}, f"this machine cannot compute {algorithm}"
    plain = Replay(locality)
    values: dict[int, bytes] = {}
    for event in log.events:
        pcr = event.pcr
        if event.type == NO_ACTION or pcr >= PCR_COUNT:
            continue
        digest = event.digests.get(algorithm)
        if digest is None:
            return {}, f"event {event.index} has no {algorithm} digest"
        value = values.get(pcr) or plain.start(pcr, algorithm)
        values[pcr] = new(value + digest).digest()
    return values, ""


def _replay_pcr(log: EventLog, pcr: int, algorithm: HashAlgorithm, how: Replay) -> bytes:
    """Return one PCR replayed in some way; every event of it has the digest."""
    value = how.start(pcr, algorithm)
    for event in log.events:
        if event.pcr == pcr and (event.type != NO_ACTION or how.no_action_extended):
            # The header of a crypto-agile log has a SHA-1 digest only, of zeros.
            value = algorithm.hash(value, event.digests.get(algorithm, bytes(algorithm.size)))
    for text in how.appended:
        value = algorithm.hash(value, algorithm.hash(text))
    return value


def verify_eventlog(
    log: EventLog,
    quoted: Sequence[PcrBank],
    *,
    os_extended: Collection[int] | None = None,
) -> ReplayedLog:
    """Compare the replay of ``log`` with PCR values that a verified quote vouches for.

    Every quoted PCR must be what the log replays to, in every quoted bank, plainly or by one
    replay quirk.  Only in ``os_extended`` (``OS_EXTENDED_PCRS``, for a CCEL
    ``OS_EXTENDED_REGISTERS``) and in a D-RTM PCR without events may it differ, and is then
    unexplained.  A PCR without events must have its start value.

    Raises VerificationError: G1 if there is nothing to compare with or the log cannot be replayed
    in a quoted bank, G2 for the first PCR that differs.
    """
    replayed = replay_eventlog(log)
    _check_banks(replayed, quoted)
    cc = log.format is LogFormat.CCEL
    if os_extended is None:
        os_extended = OS_EXTENDED_REGISTERS if cc else OS_EXTENDED_PCRS
    may_differ = _may_differ(log, os_extended)
    locality = replayed.startup_locality
    explained: set[int] = set()
    fired: list[FiredQuirk] = []
    pcrs = sorted({pcr for bank in quoted for pcr in bank.values})
    for pcr in pcrs:
        found = _account(log, replayed, quoted, pcr)
        if found is not None:
            explained.add(pcr)
            quirk, how = found
            fired += [FiredQuirk(quirk, ())] if quirk else []
            locality = how.locality if pcr == 0 else locality
        elif pcr not in may_differ:
            raise _differs(replayed, quoted, pcr, register_name(pcr, log.format))
    return ReplayedLog(
        log,
        _vouched(log, quoted, explained),
        tuple(quoted),
        frozenset(explained),
        frozenset(pcrs) - explained,
        locality,
        (*replayed.quirks, *fired),
    )


def _vouched(log: EventLog, quoted: Sequence[PcrBank], pcrs: set[int]) -> tuple[Event, ...]:
    """Return the events of ``pcrs``, each with the digests that a quoted bank vouches for.

    The log's other banks are the log writer's word: a dbx entry must not be compared with them.
    """
    proven = {pcr: {b.algorithm for b in quoted if pcr in b.values} for pcr in pcrs}
    return tuple(
        [
            _with_digests(event, proven[event.pcr])
            for event in log.events
            if event.extends and event.pcr in pcrs
        ]
    )


def _with_digests(event: Event, algorithms: set[HashAlgorithm]) -> Event:
    if len(event.alg_ids) == len(algorithms):
        return event  # every quoted bank has a digest here: replay saw to that
    digests = {a: digest for a, digest in event.digests.items() if a in algorithms}
    return msgspec.structs.replace(
        event,
        digests=MappingProxyType(digests),
        other_digests=MappingProxyType({}),
        alg_ids=tuple([a.alg_id for a in digests]),
    )


def _check_banks(replayed: ReplayedPcrs, quoted: Sequence[PcrBank]) -> None:
    if not any(bank.values for bank in quoted):
        raise G1_BANK.failed("no PCR was quoted: there is nothing to compare")
    for bank in quoted:
        if bank.algorithm not in replayed.banks:
            reason = replayed.left_out.get(bank.algorithm, "the log has no digest of that bank")
            raise G1_BANK.failed(
                f"the log cannot be replayed in the quoted {bank.algorithm} bank: {reason}",
                expected=" or ".join(map(str, replayed.banks)) or "a bank that the log has",
                got=bank.algorithm,
                remedy="quote a bank that the firmware's event log has digests for",
            )


def _may_differ(log: EventLog, os_extended: Collection[int]) -> frozenset[int]:
    if log.format is LogFormat.CCEL:
        return frozenset(os_extended) | {_MRTD}
    # A dynamic launch keeps its own log: without events here it is for others to explain.
    used = {event.pcr for event in log.events if event.extends}
    return frozenset(os_extended) | (DRTM_PCRS - used)


def _plain(replayed: ReplayedPcrs, pcr: int, algorithm: HashAlgorithm) -> bytes:
    value = replayed.banks[algorithm].values.get(pcr)
    if value is not None:
        return value
    # Without an event a D-RTM PCR was never launched: it is as TPM2_Startup left it.
    return Replay(replayed.startup_locality, drtm_ones=True).start(pcr, algorithm)


def _account(
    log: EventLog, replayed: ReplayedPcrs, quoted: Sequence[PcrBank], pcr: int
) -> tuple[Quirk | None, Replay] | None:
    """Return how the log accounts for a PCR in every quoted bank; None if it does not."""
    locality = replayed.startup_locality
    banks = [bank for bank in quoted if pcr in bank.values]
    if all(_same(_plain(replayed, pcr, bank.algorithm), bank, pcr) for bank in banks):
        return None, Replay(locality)
    if log.format is not LogFormat.CCEL:
        for quirk, how in replay_quirks(pcr, locality):
            if all(_same(_replay_pcr(log, pcr, b.algorithm, how), b, pcr) for b in banks):
                return quirk, how
    return None


def _same(value: bytes, bank: PcrBank, pcr: int) -> bool:
    return hmac.compare_digest(value, bank.values[pcr])


def _differs(
    replayed: ReplayedPcrs, quoted: Sequence[PcrBank], pcr: int, name: str
) -> VerificationError:
    banks = [bank for bank in quoted if pcr in bank.values]
    values = [_plain(replayed, pcr, bank.algorithm) for bank in banks]
    pairs = zip(banks, values, strict=True)
    bank, value = next(pair for pair in pairs if not _same(pair[1], pair[0], pcr))
    return G2_REPLAY.failed(
        f"{name} of the {bank.algorithm} bank is not what the event log replays to",
        expected=value.hex(),
        got=bank.values[pcr].hex(),
        remedy="take the log and the quote again, of the same boot; if they still differ, the "
        "log was changed or something was extended that it does not hold",
    )
