"""The committed logs: built again, parsed, encoded, replayed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from undercroft.base import FormatError
from undercroft.formats.eventlog import EventType, Malformed, Opaque, parse_eventlog
from undercroft.formats.eventlog.asjson import event_json
from undercroft.formats.eventlog.words import describe
from undercroft.verify.eventlog import replay_eventlog, verify_eventlog

VECTORS = Path(__file__).parents[3] / "vectors" / "eventlog"
EXPECTED: dict[str, dict[str, Any]] = json.loads((VECTORS / "expected.json").read_text())
GOOD = [name for name, value in EXPECTED.items() if "error" not in value]
BAD = [name for name, value in EXPECTED.items() if "error" in value]


def _build() -> dict[str, bytes]:
    spec = importlib.util.spec_from_file_location("build_eventlogs", VECTORS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    files: dict[str, bytes] = module.build()
    return files


def _read(name: str) -> bytes:
    return (VECTORS / f"{name}.bin").read_bytes()


def test_the_vectors_are_what_their_script_builds() -> None:
    built = _build()
    committed = {path.name for path in VECTORS.iterdir() if path.suffix in (".bin", ".json")}
    assert committed == set(built)
    assert len(GOOD) >= 25
    assert len(BAD) >= 18
    for name, content in built.items():
        assert (VECTORS / name).read_bytes() == content, name


@pytest.mark.parametrize("name", GOOD)
def test_a_log_replays_to_what_the_firmware_extended(name: str) -> None:
    expected = EXPECTED[name]
    log = parse_eventlog(_read(name))
    replayed = replay_eventlog(log)
    got = {
        str(algorithm): {str(pcr): value.hex() for pcr, value in bank.values.items()}
        for algorithm, bank in replayed.banks.items()
    }
    assert got == expected["pcrs"]
    assert replayed.events == expected["events"]
    assert sorted(fired.quirk.id for fired in replayed.quirks) == expected["quirks"]
    verified = verify_eventlog(log, tuple(replayed.banks.values()))
    assert verified.unexplained == frozenset()


@pytest.mark.parametrize("name", GOOD)
def test_a_log_encodes_to_itself(name: str) -> None:
    data = _read(name)
    log = parse_eventlog(data)
    assert log.encode() == data
    for event in log.events:
        assert event.decoded.encode() == event.data
        content = getattr(event.decoded, "content", None)
        assert content is None or content.encode() == event.decoded.data  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", GOOD)
def test_every_event_can_be_shown(name: str) -> None:
    for event in parse_eventlog(_read(name)).events:
        lines = describe(event)
        assert all(line.isprintable() for line in lines), lines
        assert json.loads(json.dumps(event_json(event)))["index"] == event.index


@pytest.mark.parametrize("name", BAD)
def test_a_broken_log_is_one_typed_error(name: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_eventlog(_read(name))
    assert EXPECTED[name]["error"] in str(caught.value)
    assert 0 <= caught.value.offset <= len(_read(name))


def test_every_type_of_the_profile_is_decoded() -> None:
    seen: dict[int, object] = {}
    for name in ("every-type", "seabios-sha1"):
        for event in parse_eventlog(_read(name)).events:
            assert not isinstance(event.decoded, Malformed)
            seen[event.type] = event.decoded
    launch = ("EV_TXT_", "EV_AMD_SL_", "EV_ARM_")
    profile = {t for t in EventType if not t.name.startswith(launch)} - {EventType.EV_UNUSED}
    assert profile <= set(seen)


def test_unknown_types_stay_opaque_and_malformed_data_stays_in_its_event() -> None:
    unknown = parse_eventlog(_read("unknown-type")).events[-2:]
    assert [e.decoded for e in unknown] == [
        Opaque(b"of the future", "unknown event type"),
        Opaque(b"unlike what was hashed", "unknown event type"),
    ]
    assert [e.type_name for e in unknown] == ["unknown type 0x80000f00", "unknown type 0x00001234"]
    malformed = parse_eventlog(_read("malformed-data")).events
    errors = [e.decoded.error for e in malformed if isinstance(e.decoded, Malformed)]
    assert len(errors) == 8
    assert all("at offset" in error for error in errors)
