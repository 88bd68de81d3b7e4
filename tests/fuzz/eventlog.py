"""Fuzz targets for event logs; the vectors are their corpus.

Only FormatError escapes a parser, and what parses encodes to the input.
"""

from __future__ import annotations

import sys
from pathlib import Path

from undercroft.base import FormatError, HashAlgorithm
from undercroft.formats.eventlog import EventType, parse_eventlog
from undercroft.formats.eventlog.asjson import event_json
from undercroft.formats.eventlog.decode import decode_event
from undercroft.formats.eventlog.devicepath import decode_device_path
from undercroft.formats.eventlog.devicepath_text import device_path_text
from undercroft.formats.eventlog.signatures import decode_signature_database
from undercroft.formats.eventlog.specid import decode_spec_id
from undercroft.formats.eventlog.variables import decode_load_option
from undercroft.testing.fuzzing import Suite, Target, fuzz_by_hand
from undercroft.verify.eventlog import replay_eventlog, verify_eventlog
from undercroft.verify.eventlog_findings import judge_eventlog
from undercroft.verify.secureboot import judge_secure_boot

VECTORS = Path(__file__).parents[1] / "vectors" / "eventlog"
TYPES = tuple(EventType)


def fuzz_log(data: bytes) -> None:
    """Parse a log; a log that parses encodes, replays, is shown and is judged."""
    try:
        log = parse_eventlog(data)
    except FormatError:
        return
    assert log.encode() == data
    for event in log.events:
        assert event.decoded.encode() == event.data
        event_json(event)
    banks = tuple(replay_eventlog(log).banks.values())
    if any(bank.values for bank in banks):
        verified = verify_eventlog(log, banks)
        judge_eventlog(verified)
        judge_secure_boot(verified)


def fuzz_event(data: bytes) -> None:
    """Decode event data of the type that the first byte picks; the second picks the digest."""
    number = int(TYPES[data[0] % len(TYPES)]) if data else 0
    payload = data[2:]
    measured = payload if data[1:2] < b"\x80" else payload[:-1]
    value, _ = decode_event(number, payload, {HashAlgorithm.SHA256: _sha256(measured)})
    assert value.encode() == payload


def _sha256(data: bytes) -> bytes:
    return HashAlgorithm.SHA256.hash(data)


def fuzz_parts(data: bytes) -> None:
    """Decode the structures that stand inside events."""
    for decode in (decode_signature_database, decode_load_option, decode_spec_id):
        try:
            value = decode(data)
        except FormatError:
            continue
        assert value.encode() == data
    try:
        path = decode_device_path(data)
    except FormatError:
        return
    assert path.encode() == data
    assert device_path_text(path).isprintable()


TARGETS: dict[str, Target] = {
    "log": fuzz_log,
    "event": fuzz_event,
    "parts": fuzz_parts,
}
SUITE = Suite(
    Path(__file__),
    TARGETS,
    (VECTORS, VECTORS / "recorded"),
    frozenset({".bin"}),
    largest=6000,
)

if __name__ == "__main__":
    sys.exit(fuzz_by_hand(__file__, TARGETS))
