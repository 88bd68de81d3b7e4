"""Logs of other people's machines replay to the values that others computed.

The logs are not part of the repository: this runs where they stand beside the checkout.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from undercroft.formats.eventlog import EventLog, Malformed, parse_eventlog
from undercroft.verify.eventlog import replay_eventlog, verify_eventlog

LOGS = Path(__file__).parents[4] / "shared" / "interop" / "eventlogs"
pytestmark = pytest.mark.skipif(
    not LOGS.is_dir(), reason="the interop logs do not stand beside the checkout"
)

_EXPECTED = LOGS / "expected.json"
EXPECTED = json.loads(_EXPECTED.read_text()) if _EXPECTED.is_file() else {}


def test_there_are_logs() -> None:
    assert len(EXPECTED) == 25


def _load(name: str) -> tuple[bytes, EventLog]:
    data = (LOGS / name).read_bytes()
    return data, parse_eventlog(data)


@pytest.mark.parametrize("name", EXPECTED)
def test_replay_gives_the_expected_values(name: str) -> None:
    _, log = _load(name)
    replayed = replay_eventlog(log)
    got: dict[str, object] = {"events": replayed.events}
    for algorithm, bank in replayed.banks.items():
        got[str(algorithm)] = {str(pcr): value.hex() for pcr, value in bank.values.items()}
    assert got == EXPECTED[name]
    assert not replayed.left_out
    verified = verify_eventlog(log, tuple(replayed.banks.values()))
    assert verified.unexplained == frozenset()


@pytest.mark.parametrize("name", EXPECTED)
def test_encoding_gives_the_log_back(name: str) -> None:
    data, log = _load(name)
    assert log.encode() == data


@pytest.mark.parametrize("name", EXPECTED)
def test_every_event_is_decoded_without_loss(name: str) -> None:
    for event in _load(name)[1].events:
        assert not isinstance(event.decoded, Malformed)
        assert event.decoded.encode() == event.data
