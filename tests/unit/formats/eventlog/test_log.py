"""Framing: three formats, their limits, and what a log's digests are keyed by."""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.base import FormatError, HashAlgorithm
from undercroft.formats.eventlog import (
    CC_REGISTER_OF_PCR,
    CC_REGISTERS,
    MAX_EVENTS,
    MAX_LOG_SIZE,
    DigestCheck,
    EventType,
    LogFormat,
    Malformed,
    parse_eventlog,
)
from undercroft.testing.eventlog import SimulatedFirmware

SHA1, SHA256, SHA384 = HashAlgorithm.SHA1, HashAlgorithm.SHA256, HashAlgorithm.SHA384


def test_a_crypto_agile_log_tells_its_banks_and_events() -> None:
    fw = SimulatedFirmware((SHA1, SHA256))
    fw.measure(4, EventType.EV_EFI_ACTION, b"Calling EFI Application from Boot Option")
    log = parse_eventlog(fw.log())
    assert (log.format, log.algorithms) == (LogFormat.CRYPTO_AGILE, (SHA1, SHA256))
    assert log.header is not None
    assert log.header.claimed_version == "2.0 errata 0"
    head, event = log.events
    assert (head.index, head.extends, head.check) == (0, False, DigestCheck.NOT_EXTENDED)
    assert (event.index, event.pcr, event.type_name) == (1, 4, "EV_EFI_ACTION")
    assert event.extends
    assert event.digests == {SHA1: SHA1.hash(event.data), SHA256: SHA256.hash(event.data)}
    assert event.offset == len(fw.entries[0])


def test_a_sha1_log_needs_no_header() -> None:
    fw = SimulatedFirmware((SHA1,), kind=LogFormat.TCG_1_2)
    fw.measure(0, EventType.EV_S_CRTM_VERSION, b"\0\0")
    log = parse_eventlog(fw.log(bytes(40)))
    assert (log.format, log.header, log.algorithms) == (LogFormat.TCG_1_2, None, (SHA1,))
    assert (len(log.events), len(log.padding)) == (1, 40)


def test_index_one_in_the_header_makes_it_a_ccel() -> None:
    log = parse_eventlog(SimulatedFirmware((SHA384,), kind=LogFormat.CCEL).log())
    assert log.format is LogFormat.CCEL
    assert [CC_REGISTERS[CC_REGISTER_OF_PCR[pcr]] for pcr in (0, 1, 7, 4, 8)] == [
        "MRTD",
        "RTMR[0]",
        "RTMR[0]",
        "RTMR[1]",
        "RTMR[2]",
    ]


def test_an_event_may_end_in_the_byte_that_pads_the_log() -> None:
    fw = SimulatedFirmware((SHA256,))
    fw.measure(0, EventType.EV_SEPARATOR, b"\xff\xff\xff\xff")
    log = parse_eventlog(fw.log(b"\xff" * 7))
    assert (len(log.events), log.padding) == (2, b"\xff" * 7)
    assert log.events[1].data == b"\xff" * 4


def test_bytes_after_the_last_event_are_no_padding_if_they_differ() -> None:
    with pytest.raises(FormatError, match="the event header is cut short"):
        parse_eventlog(SimulatedFirmware((SHA256,)).log(b"\xff\xff\x01"))


def test_64_mib_of_tiny_events_are_refused_at_once() -> None:
    tiny = struct.pack("<III", 0, 5, 0) + bytes(4)
    data = SimulatedFirmware((SHA256,)).log() + tiny * ((64 << 20) // len(tiny))
    start = time.perf_counter()
    with pytest.raises(FormatError, match="the log is too large") as caught:
        parse_eventlog(data)
    assert time.perf_counter() - start < 1
    assert caught.value.offset == MAX_LOG_SIZE


def test_a_log_of_the_smallest_nodes_takes_bounded_time() -> None:
    path = b"\1\1\4\0" * 255
    data = struct.pack("<QQQQ", 0, 0, 0, len(path)) + path
    fw = SimulatedFirmware((SHA256,))
    for _ in range((1 << 20) // len(data)):
        fw.measure(4, EventType.EV_EFI_BOOT_SERVICES_APPLICATION, data, b"image")
    start = time.perf_counter()
    log = parse_eventlog(fw.log())
    assert time.perf_counter() - start < 20  # half a second on an idle machine
    assert not any(isinstance(event.decoded, Malformed) for event in log.events)


@pytest.mark.parametrize("kind", [LogFormat.CRYPTO_AGILE, LogFormat.TCG_1_2])
def test_more_events_than_any_log_has_are_refused(kind: LogFormat) -> None:
    fw = SimulatedFirmware((SHA1,), kind=kind)
    tiny = struct.pack("<III", 1, 5, 0) + bytes(4)
    sha1_tiny = struct.pack("<II20sI", 1, 5, bytes(20), 0)
    data = fw.log() + (tiny if kind is LogFormat.CRYPTO_AGILE else sha1_tiny) * (MAX_EVENTS + 1)
    with pytest.raises(FormatError, match="too many events"):
        parse_eventlog(data)


def test_an_unknown_algorithm_is_kept_beside_the_known_ones() -> None:
    fw = SimulatedFirmware((SHA256,))
    fw.header(((0x7777, 3), (SHA256.alg_id, 32)), b"vendor")
    fw.entry(0, 5, b"x", {0x7777: b"abc", SHA256.alg_id: SHA256.hash(b"x")})
    log = parse_eventlog(fw.log())
    assert log.algorithms == (SHA256,)
    assert log.alg_ids == (0x7777, SHA256.alg_id)
    assert log.events[1].other_digests == {0x7777: b"abc"}
    assert log.events[1].check is DigestCheck.MATCHES
    assert log.encode() == fw.log()


def test_a_digest_in_one_bank_that_is_not_of_the_data_is_seen() -> None:
    fw = SimulatedFirmware((SHA1, SHA256))
    fw.entry(4, EventType.EV_ACTION, b"x", {SHA1.alg_id: SHA1.hash(b"x"), SHA256.alg_id: bytes(32)})
    assert parse_eventlog(fw.log()).events[1].check is DigestCheck.DIFFERS


_types = st.sampled_from([*map(int, EventType), 0x77, 0x80000FFF])
_events = st.lists(
    st.tuples(st.integers(0, 30), _types, st.binary(max_size=80), st.booleans()), max_size=8
)


@settings(max_examples=150, deadline=None)
@given(_events, st.sampled_from(list(LogFormat)), st.sampled_from([b"", b"\xff" * 9, bytes(50)]))
def test_any_event_keeps_its_bytes(
    events: list[tuple[int, int, bytes, bool]], kind: LogFormat, padding: bytes
) -> None:
    banks = (SHA1,) if kind is LogFormat.TCG_1_2 else (SHA1, SHA384)
    fw = SimulatedFirmware(banks, kind=kind)
    for pcr, number, data, matches in events:
        measured = data if matches else data + b"!"
        fw.entry(pcr, number, data, {a.alg_id: a.hash(measured) for a in banks})
    if kind is LogFormat.TCG_1_2:
        fw.entries.insert(0, struct.pack("<II20sI", 3, 5, b"\1" * 20, 0))
    log = parse_eventlog(fw.log(padding))
    assert log.encode() == fw.log(padding)
    for event, (pcr, number, data, matches) in zip(log.events[1:], events, strict=False):
        assert (event.pcr, event.type, event.data) == (pcr, number, data)
        assert event.decoded.encode() == data
        if not matches:
            # Only a one-byte flag, a GRUB text or a UTF-16 text is more than its data's hash.
            assert event.check is not DigestCheck.MATCHES or number in (2**31 + 2, 13)
        if isinstance(event.decoded, Malformed):
            assert "at offset" in event.decoded.error
