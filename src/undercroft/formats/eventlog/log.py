"""The event log itself: three formats in, events out, and back.

* TCG_PCClientPCREvent, SHA-1 only: TPM 1.2, and TPM 2.0 firmware that was asked for that format.
* TCG_PCR_EVENT2, crypto agile: PFP 1.06, section 10.2.
* The same with confidential-computing measurement registers in place of PCRs (CCEL): UEFI 2.10,
  section 38.4; ACPI 6.5, section 5.2.34.

An event number is the position in the log; event 0 of a crypto-agile log is its header.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from undercroft.base import FormatError, HashAlgorithm
from undercroft.formats.eventlog.decode import decode_event
from undercroft.formats.eventlog.specid import SPEC_ID_03, SpecIdEvent, decode_spec_id
from undercroft.formats.eventlog.types import NO_ACTION, type_name
from undercroft.formats.eventlog.value import DigestCheck, EventValue
from undercroft.formats.reader import BoundedReader

MAX_LOG_SIZE = 4 << 20
"""Bytes of log that we take, so that no log costs more than seconds; firmware reserves 64 KiB to
256 KiB."""
MAX_EVENTS = 1 << 16
"""Events that we take; real logs have about a hundred."""

_NAME = "TCG event log"
_SHA1_EVENT = struct.Struct("<II20sI")
_EVENT2_HEAD = struct.Struct("<III")


class LogFormat(enum.Enum):
    """Which of the three formats a log has."""

    TCG_1_2 = "tcg-1.2"
    CRYPTO_AGILE = "crypto-agile"
    CCEL = "ccel"


CC_REGISTERS = MappingProxyType({0: "MRTD", 1: "RTMR[0]", 2: "RTMR[1]", 3: "RTMR[2]", 4: "RTMR[3]"})
"""What a CCEL's register index means on Intel TDX (UEFI 2.10, section 38.4.1)."""

CC_REGISTER_OF_PCR = MappingProxyType(
    {0: 0, 1: 1, 7: 1, **dict.fromkeys(range(2, 7), 2), **dict.fromkeys(range(8, 16), 3)}
)
"""The register index in which a CCEL records what a TPM would have in that PCR (the same)."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event.

    ``index`` is its number in the log and ``offset`` where it stands in bytes.  ``pcr`` is the
    PCR, in a CCEL the register index.  ``type`` and ``data`` are the log writer's word: ``check``
    and the type of ``decoded`` say what the digests prove of the data (see ``value``).
    ``digests`` has the algorithms that we know, in the log's order; ``other_digests`` those that
    the log's header declares and we do not know, by TPM_ALG_ID.  ``alg_ids`` is the order.
    """

    index: int
    offset: int
    pcr: int
    type: int
    digests: Mapping[HashAlgorithm, bytes]
    data: bytes
    decoded: EventValue
    check: DigestCheck
    alg_ids: tuple[int, ...]
    other_digests: Mapping[int, bytes] = MappingProxyType({})

    @property
    def type_name(self) -> str:
        """The TCG's name of the type."""
        return type_name(self.type)

    @property
    def extends(self) -> bool:
        """Was anything extended?"""
        return self.type != NO_ACTION


class EventLog(msgspec.Struct, frozen=True, gc=False):
    """A parsed log; nothing in it is verified.

    ``algorithms`` are the banks that the log has digests for; ``header`` is None in a SHA-1 log
    that does not begin with a Spec ID event.  ``alg_ids`` are the TPM_ALG_IDs that the header
    declares, those that we do not know among them.  ``padding`` is what the firmware's buffer had
    after the last event: b"" or bytes that are all 0xff or all zero.
    """

    format: LogFormat
    header: SpecIdEvent | None
    algorithms: tuple[HashAlgorithm, ...]
    alg_ids: tuple[int, ...]
    events: tuple[Event, ...]
    padding: bytes

    def encode(self) -> bytes:
        """Return the log, byte for byte."""
        sha1 = self.format is LogFormat.TCG_1_2
        parts = [
            encode_sha1_event(event) if sha1 or event.index == 0 else encode_event2(event)
            for event in self.events
        ]
        return b"".join(parts) + self.padding


def encode_sha1_event(event: Event) -> bytes:
    """Return an event as TCG_PCClientPCREvent."""
    digest = event.digests[HashAlgorithm.SHA1]
    return _SHA1_EVENT.pack(event.pcr, event.type, digest, len(event.data)) + event.data


def encode_event2(event: Event) -> bytes:
    """Return an event as TCG_PCR_EVENT2."""
    parts = [_EVENT2_HEAD.pack(event.pcr, event.type, len(event.alg_ids))]
    for alg_id in event.alg_ids:
        known = HashAlgorithm.from_alg_id(alg_id)
        digest = event.digests[known] if known else event.other_digests[alg_id]
        parts += [alg_id.to_bytes(2, "little"), digest]
    return b"".join([*parts, len(event.data).to_bytes(4, "little"), event.data])


def parse_eventlog(data: bytes) -> EventLog:
    """Parse a log in any of the three formats and decode every event.

    Raises FormatError for a log whose framing is broken, for more than ``MAX_LOG_SIZE`` bytes and
    for more than ``MAX_EVENTS`` events.  Event data that is not what its type says does not break
    the log: see ``decode_event``.
    """
    if len(data) > MAX_LOG_SIZE:
        raise FormatError(
            _NAME, MAX_LOG_SIZE, "the log is too large", expected=MAX_LOG_SIZE, got=len(data)
        )
    if _padding_start(data) == 0:
        raise FormatError(_NAME, 0, "the log is empty", expected="an event", got="nothing")
    first = _sha1_event(data, 0, 0)
    if first.type == NO_ACTION and first.data[:16] == SPEC_ID_03:
        return _crypto_agile(data, first)
    return _sha1_log(data, first)


def _sha1_event(data: bytes, offset: int, index: int) -> Event:
    reader = BoundedReader(data, "TCG_PCClientPCREvent", order="little")
    reader.offset = offset
    pcr, number, digest, size = reader.unpack(_SHA1_EVENT, "the event header")
    payload = reader.take(size, "Event")
    digests = MappingProxyType({HashAlgorithm.SHA1: digest})
    decoded, check = decode_event(number, payload, digests)
    return Event(index, offset, pcr, number, digests, payload, decoded, check, _SHA1_ONLY)


_SHA1_ONLY = (HashAlgorithm.SHA1.alg_id,)


def _padding_start(data: bytes) -> int:
    """Return where the trailing run of 0xff or of zero bytes starts, len(data) if none does.

    An event may end inside the run: only what begins in it is padding.
    """
    last = data[-1:]
    return len(data.rstrip(last)) if last in (b"\xff", b"\0") else len(data)


def _check_count(events: list[Event], offset: int) -> None:
    if len(events) == MAX_EVENTS:
        raise FormatError(_NAME, offset, "too many events", expected=f"<= {MAX_EVENTS}")


def _sha1_log(data: bytes, first: Event) -> EventLog:
    events = [first]
    offset = _SHA1_EVENT.size + len(first.data)
    padding_at = _padding_start(data)
    while offset < padding_at:
        _check_count(events, offset)
        events.append(_sha1_event(data, offset, len(events)))
        offset += _SHA1_EVENT.size + len(events[-1].data)
    header = first.decoded if isinstance(first.decoded, SpecIdEvent) else None
    algorithms = (HashAlgorithm.SHA1,)
    return EventLog(LogFormat.TCG_1_2, header, algorithms, _SHA1_ONLY, tuple(events), data[offset:])


def _crypto_agile(data: bytes, first: Event) -> EventLog:
    header = decode_spec_id(first.data, _SHA1_EVENT.size)
    # TDVF logs its Spec ID event with index 1: the registers of a CCEL, not PCRs
    # (edk2 OvmfPkg/Tcg/TdTcg2Dxe/TdTcg2Dxe.c, SetupCcEventLog).
    kind = LogFormat.CCEL if first.pcr == 1 else LogFormat.CRYPTO_AGILE
    events = [first]
    offset = _SHA1_EVENT.size + len(first.data)
    padding_at = _padding_start(data)
    layout = _Layout(header.algorithms)
    while offset < padding_at:
        _check_count(events, offset)
        event, offset = layout.event(data, offset, len(events))
        events.append(event)
    return EventLog(kind, header, layout.algorithms, layout.alg_ids, tuple(events), data[offset:])


class _Layout:
    """Reads TCG_PCR_EVENT2 as the header declares it.

    Nearly every event lists exactly the header's algorithms in the header's order; that one is
    read in one step.  What is otherwise (or broken) is read field by field, and refused there.
    """

    def __init__(self, declared: tuple[tuple[int, int], ...]) -> None:
        self.sizes = dict(declared)
        self.alg_ids = tuple(self.sizes)
        known = [HashAlgorithm.from_alg_id(alg_id) for alg_id in self.alg_ids]
        self.algorithms = tuple([algorithm for algorithm in known if algorithm])
        digests = "".join([f"H{size}s" for size in self.sizes.values()])
        self.struct = struct.Struct(f"<III{digests}I")
        self.all_known = len(self.algorithms) == len(known)

    def event(self, data: bytes, offset: int, index: int) -> tuple[Event, int]:
        """Return the event at ``offset`` and where the next one starts.  Raises FormatError."""
        start = offset + self.struct.size
        if self.all_known and start <= len(data):
            pcr, number, count, *fields, size = self.struct.unpack_from(data, offset)
            end = start + size
            usual = count == len(self.alg_ids) and tuple(fields[::2]) == self.alg_ids
            if usual and end <= len(data):
                digests = MappingProxyType(dict(zip(self.algorithms, fields[1::2], strict=True)))
                payload = data[start:end]
                decoded, check = decode_event(number, payload, digests)
                return (
                    Event(
                        index, offset, pcr, number, digests, payload, decoded, check, self.alg_ids
                    ),
                    end,
                )
        return self._slow_event(data, offset, index)

    def _slow_event(self, data: bytes, offset: int, index: int) -> tuple[Event, int]:
        reader = BoundedReader(data, "TCG_PCR_EVENT2", order="little")
        reader.offset = offset
        pcr, number, count = reader.unpack(_EVENT2_HEAD, "the event header")
        found = self._digests(reader, count)
        payload = reader.take(reader.u32("eventSize"), "event")
        digests, others = {}, {}
        for alg_id, digest in found.items():
            algorithm = HashAlgorithm.from_alg_id(alg_id)
            if algorithm:
                digests[algorithm] = digest
            else:
                others[alg_id] = digest
        decoded, check = decode_event(number, payload, digests)
        event = Event(
            index,
            offset,
            pcr,
            number,
            MappingProxyType(digests),
            payload,
            decoded,
            check,
            tuple(found),
            MappingProxyType(others),
        )
        return event, reader.offset

    def _digests(self, reader: BoundedReader, count: int) -> dict[int, bytes]:
        if count > len(self.sizes):
            raise reader.fail(
                "more digests than the header has algorithms",
                expected=f"<= {len(self.sizes)}",
                got=count,
            )
        found: dict[int, bytes] = {}
        for _ in range(count):
            alg_id = reader.u16("hashAlg")
            if alg_id not in self.sizes or alg_id in found:
                reader.offset -= 2
                what = "twice in one event" if alg_id in found else "not in the header"
                raise reader.fail(f"an algorithm that is {what}", got=f"{alg_id:#06x}")
            found[alg_id] = reader.take(self.sizes[alg_id], "digest")
        return found
