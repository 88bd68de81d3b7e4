"""Where event logs leave the specification and are believed all the same: a table.

A row has an id, what happens and where it was seen.  There are two kinds.  *Log quirks* are seen
in the log alone.  *Replay quirks* are other ways to start or extend a PCR; one is tried only when
the plain replay of a PCR differs from its quoted value, and holds only if it gives exactly that
value in every quoted bank.  Results say which rows fired: a policy may refuse any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from undercroft.base import PCR_COUNT, HashAlgorithm
from undercroft.formats.eventlog import Claimed, DigestCheck, Event, EventLog, EventType, LogFormat
from undercroft.formats.eventlog.actions import (
    EXIT_BOOT_SERVICES_INVOCATION,
    EXIT_BOOT_SERVICES_SUCCEEDED,
    Separator,
)
from undercroft.formats.eventlog.firmware import ImageLoad
from undercroft.formats.eventlog.ipl import LoadOptions, ShimVariable
from undercroft.formats.eventlog.noaction import PlatformId, StartupLocality
from undercroft.formats.eventlog.specid import SpecIdEvent
from undercroft.formats.eventlog.text import AsciiText
from undercroft.formats.eventlog.types import NO_ACTION
from undercroft.formats.eventlog.variables import UefiVariable

NO_PCR = 0xFFFFFFFF
"""The index of an entry that belongs to no PCR (Windows' trust point at the end of its log)."""

STARTUP_LOCALITIES = (0, 3, 4)
"""TPM2_Startup from locality 0 or 3, or an H-CRTM sequence at locality 4."""

DRTM_PCRS = frozenset(range(17, 23))
"""Reset to all ones by TPM2_Startup, to zero by a dynamic launch (PTP 1.05, section 4.6.2)."""


@dataclass(frozen=True, slots=True)
class Quirk:
    """A row: a stable id, what happens, and where that is known from."""

    id: str
    summary: str
    source: str


@dataclass(frozen=True, slots=True)
class FiredQuirk:
    """A row that fired, and for which events (by index; empty: for the log as a whole)."""

    quirk: Quirk
    events: tuple[int, ...]


PADDING_ONES = Quirk(
    "padding-ones",
    "the log ends in 0xff bytes: the unused rest of the firmware's buffer",
    "ACPI 6.5, 5.2.34 (CCEL): LAML is the length of the area, not of the log",
)
PADDING_ZEROS = Quirk(
    "padding-zeros",
    "the log ends in zero bytes: the unused rest of the firmware's buffer",
    "TCG ACPI Specification 1.3, section 8: LAML is the length of the area, not of the log",
)
SHA1_LOG = Quirk(
    "sha1-log",
    "the log has SHA-1 digests only",
    "PFP 1.06, 10.1; EFI_TCG2_EVENT_LOG_FORMAT_TCG_1_2 of the TCG EFI Protocol 1.0, 6.4",
)
PCR_OUT_OF_RANGE = Quirk(
    "pcr-out-of-range",
    "an event names a PCR that no TPM has; it is not replayed",
    "PTP 1.05, 4.6: PCR 0 to 23; UEFI 2.10, 38.4.1: register 0 to 4",
)
DIGEST_ORDER = Quirk(
    "digest-order",
    "an event lists its digests in another order than the log's header",
    "seen on OpenPOWER skiboot; PFP 1.06, 10.2 sets no order",
)
DIGEST_MISSING = Quirk(
    "digest-missing",
    "an event lacks a digest that the log's header promises; that bank is not replayed",
    "PFP 1.06, 10.4.5.1: all events use all algorithms of the header",
)
DIGEST_NOT_OF_DATA = Quirk(
    "digest-not-of-data",
    "an event's digest is not the hash of its data although its type says so",
    "PFP 1.06, 10.4.1; seen on OpenPOWER skiboot (EV_ACTION, EV_SEPARATOR)",
)
NO_ACTION_DIGEST = Quirk(
    "no-action-digest",
    "an EV_NO_ACTION event has a digest that is not zero",
    "PFP 1.06, 10.4.5: the digests are all zero",
)
STARTUP_LOCALITY_LATE = Quirk(
    "startup-locality-late",
    "StartupLocality is not the only one, or stands after an event in PCR 0; the first counts",
    "PFP 1.06, 10.4.5.3: it precedes every event in PCR 0",
)
SHIM_EVENT_SLACK = Quirk(
    "shim-event-slack",
    "an event of shim is longer than what was hashed",
    "shim before 15.3, tpm.c: sizeof() of structures that end in one-element arrays",
)
UTF16_LOG_CUT = Quirk(
    "utf16-log-cut",
    "a UTF-16 text is logged without the last byte of its end",
    "systemd-boot and gummiboot before 250, measure.c",
)
SEPARATOR_TEXT = Quirk(
    "separator-text",
    "a separator is neither 00000000 nor ffffffff",
    "Windows ends PCRs 12 to 14 with WBCL; OpenPOWER skiboot writes words",
)
UNTAGGED_EVENT_TAG = Quirk(
    "untagged-event-tag",
    "an EV_EVENT_TAG event holds bare text instead of a tagged event",
    "Linux 6.x, drivers/firmware/efi/libstub/efi-stub-helper.c, on a CC measurement protocol",
)
BOOT_VARIABLE_WHOLE = Quirk(
    "boot-variable-whole",
    "EV_EFI_VARIABLE_BOOT hashes the whole structure instead of the variable's data",
    "TCG EFI Platform 1.22, 7.8 against PFP 1.06, 10.4.1",
)
PLATFORM_ID_PADDED = Quirk(
    "platform-id-padded",
    "an SP800-155 event is longer than its structure",
    "edk2 SecurityPkg/Tcg/Tcg2Dxe: the event is a HOB, rounded up to eight bytes",
)
SPEC_ID_ODD = Quirk(
    "spec-id-odd",
    "the log's header lacks its vendorInfo, or is longer than its structure",
    "PFP 1.06, 10.4.5.1",
)

STARTUP_LOCALITY_UNLOGGED = Quirk(
    "startup-locality-unlogged",
    "PCR 0 was started with a locality that the log does not tell",
    "PFP 1.06, 3.3.4.1; firmware that starts the TPM from locality 3 or an H-CRTM and logs nothing",
)
NO_ACTION_EXTENDED = Quirk(
    "no-action-extended",
    "the firmware extended its EV_NO_ACTION events",
    "PFP 1.06, 10.4.5 forbids it; tpm2-tools before 5.6 replays so",
)
EXIT_BOOT_SERVICES_UNLOGGED = Quirk(
    "exit-boot-services-unlogged",
    "the log was taken before its last events: Exit Boot Services was extended into PCR 5",
    "TCG EFI Protocol 1.0, 6.5: later events are in the Final Events Table only",
)
NO_DYNAMIC_LAUNCH = Quirk(
    "no-dynamic-launch",
    "events in a D-RTM PCR, but the PCR still counts from its value before a launch",
    "PTP 1.05, 4.6.2: PCRs 17 to 22 are all ones until a dynamic launch",
)

LOG_QUIRKS = (
    PADDING_ONES,
    PADDING_ZEROS,
    SHA1_LOG,
    PCR_OUT_OF_RANGE,
    DIGEST_ORDER,
    DIGEST_MISSING,
    DIGEST_NOT_OF_DATA,
    NO_ACTION_DIGEST,
    STARTUP_LOCALITY_LATE,
    SHIM_EVENT_SLACK,
    UTF16_LOG_CUT,
    SEPARATOR_TEXT,
    UNTAGGED_EVENT_TAG,
    BOOT_VARIABLE_WHOLE,
    PLATFORM_ID_PADDED,
    SPEC_ID_ODD,
)
REPLAY_QUIRKS = (
    STARTUP_LOCALITY_UNLOGGED,
    NO_ACTION_EXTENDED,
    EXIT_BOOT_SERVICES_UNLOGGED,
    NO_DYNAMIC_LAUNCH,
)

_EventTest = Callable[[Any], bool]


def _is_text(event: Any) -> bool:
    return isinstance(event.decoded.claimed_value, AsciiText)


def _is_odd_header(event: Any) -> bool:
    header = event.decoded
    return header.claimed_vendor_info is None or bool(header.claimed_trailing)


# Rows that look at a decoded value; by the value's type, so that an event pays for its own only.
_BY_VALUE: Mapping[type, tuple[tuple[Quirk, _EventTest], ...]] = MappingProxyType(
    {
        UefiVariable: (
            (SHIM_EVENT_SLACK, lambda e: bool(e.decoded.trailing or e.decoded.uncovered)),
            (BOOT_VARIABLE_WHOLE, lambda e: e.type == EventType.EV_EFI_VARIABLE_BOOT),
        ),
        ShimVariable: ((SHIM_EVENT_SLACK, lambda e: len(e.decoded.claimed_end) > 1),),
        ImageLoad: ((SHIM_EVENT_SLACK, lambda e: bool(e.decoded.claimed_trailing)),),
        LoadOptions: ((UTF16_LOG_CUT, lambda e: len(e.decoded.end) == 1),),
        Separator: ((SEPARATOR_TEXT, lambda e: not (e.decoded.standard or e.decoded.error)),),
        Claimed: (
            (UNTAGGED_EVENT_TAG, lambda e: e.type == EventType.EV_EVENT_TAG and _is_text(e)),
            (SEPARATOR_TEXT, lambda e: e.type == EventType.EV_SEPARATOR),
        ),
        SpecIdEvent: ((SPEC_ID_ODD, _is_odd_header),),
        PlatformId: ((PLATFORM_ID_PADDED, lambda e: bool(e.decoded.claimed_trailing)),),
    }
)


def _event_quirks(log: EventLog) -> dict[str, tuple[Quirk, list[int]]]:
    fired: dict[str, tuple[Quirk, list[int]]] = {}

    def fire(quirk: Quirk, event: Event) -> None:
        fired.setdefault(quirk.id, (quirk, []))[1].append(event.index)

    registers = 5 if log.format is LogFormat.CCEL else PCR_COUNT
    for event in log.events:
        if event.alg_ids is not log.alg_ids and event.alg_ids != log.alg_ids and event.offset:
            # (event 0, at offset 0, is the header: it has one SHA-1 digest in every format)
            short = len(event.alg_ids) < len(log.alg_ids)
            fire(DIGEST_MISSING if short else DIGEST_ORDER, event)
        if event.pcr >= registers and event.pcr != NO_PCR:
            fire(PCR_OUT_OF_RANGE, event)
        if event.check is DigestCheck.DIFFERS:
            fire(DIGEST_NOT_OF_DATA, event)
        if event.type == NO_ACTION and any(map(any, event.digests.values())):
            fire(NO_ACTION_DIGEST, event)
        for quirk, test in _BY_VALUE.get(type(event.decoded), ()):
            if test(event):
                fire(quirk, event)
    return fired


def startup_localities(log: EventLog) -> list[tuple[int, int]]:
    """Return the StartupLocality events of a log, in order, as (event index, locality)."""
    return [
        (event.index, event.decoded.claimed_locality)
        for event in log.events
        if isinstance(event.decoded, StartupLocality)
    ]


def _log_quirks(log: EventLog) -> list[FiredQuirk]:
    fired = []
    if log.padding:
        padding = PADDING_ONES if log.padding[0] else PADDING_ZEROS
        fired.append(FiredQuirk(padding, ()))
    if log.format is LogFormat.TCG_1_2:
        fired.append(FiredQuirk(SHA1_LOG, ()))
    localities = startup_localities(log)
    if localities:
        indices = tuple([index for index, _ in localities])
        before = log.events[: indices[0]]
        if len(indices) > 1 or any(e.pcr == 0 and e.extends for e in before):
            fired.append(FiredQuirk(STARTUP_LOCALITY_LATE, indices))
    return fired


def log_quirks(log: EventLog) -> tuple[FiredQuirk, ...]:
    """Return the log quirks that ``log`` shows."""
    rows = [FiredQuirk(quirk, tuple(indices)) for quirk, indices in _event_quirks(log).values()]
    return (*_log_quirks(log), *rows)


@dataclass(frozen=True, slots=True)
class Replay:
    """How one PCR is replayed: the plain way, or the way of a replay quirk.

    ``locality`` is the last byte of PCR 0's start value; ``drtm_ones`` starts a D-RTM PCR at all
    ones; ``appended`` are texts whose hashes are extended after the log's events.
    """

    locality: int = 0
    no_action_extended: bool = False
    drtm_ones: bool = False
    appended: tuple[bytes, ...] = ()

    def start(self, pcr: int, algorithm: HashAlgorithm) -> bytes:
        """Return the PCR's start value (PTP 1.05, 4.6.2; PFP 1.06, 3.3.4.1)."""
        if pcr == 0:
            return self.locality.to_bytes(algorithm.size, "big")
        ones = self.drtm_ones and pcr in DRTM_PCRS
        return b"\xff" * algorithm.size if ones else bytes(algorithm.size)


_INVOCATION = EXIT_BOOT_SERVICES_INVOCATION.encode()
_SUCCEEDED = EXIT_BOOT_SERVICES_SUCCEEDED.encode()


def replay_quirks(pcr: int, locality: int) -> tuple[tuple[Quirk, Replay], ...]:
    """Return the other ways to replay ``pcr`` of a TPM, where ``locality`` is the plain one."""
    rows = [(NO_ACTION_EXTENDED, Replay(locality, no_action_extended=True))]
    if pcr == 0:
        others = [n for n in STARTUP_LOCALITIES if n != locality]
        rows += [(STARTUP_LOCALITY_UNLOGGED, Replay(n)) for n in others]
    elif pcr == 5:
        for texts in ((_INVOCATION, _SUCCEEDED), (_SUCCEEDED,)):
            rows.append((EXIT_BOOT_SERVICES_UNLOGGED, Replay(appended=texts)))
    elif pcr in DRTM_PCRS:
        rows.append((NO_DYNAMIC_LAUNCH, Replay(drtm_ones=True)))
    return tuple(rows)
