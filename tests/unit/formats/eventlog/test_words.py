"""What a person reads of an event."""

from __future__ import annotations

import json

import pytest

from undercroft.base import HashAlgorithm
from undercroft.formats.eventlog import Event, EventType, LogFormat, parse_eventlog
from undercroft.formats.eventlog import signatures as sig
from undercroft.formats.eventlog.asjson import event_json
from undercroft.formats.eventlog.firmware import CrtmVersion
from undercroft.formats.eventlog.guid import MICROSOFT_OWNER, SHIM_LOCK
from undercroft.formats.eventlog.tagged import Tag, TaggedEvents
from undercroft.formats.eventlog.value import EventValue
from undercroft.formats.eventlog.variables import UefiVariable
from undercroft.formats.eventlog.words import (
    MAX_DETAILS,
    describe,
    describe_value,
    register_name,
    signature_text,
)
from undercroft.testing.eventlog import (
    SimulatedFirmware,
    certificate,
    device_path,
    signature_list,
)

T = EventType
SHA256 = HashAlgorithm.SHA256


def _event(number: int, data: bytes, measured: bytes | None = None, pcr: int = 4) -> Event:
    fw = SimulatedFirmware((SHA256,))
    fw.measure(pcr, number, data, measured)
    return parse_eventlog(fw.log()).events[1]


def _utf16(text: str) -> bytes:
    return text.encode("utf-16-le") + b"\0\0"


@pytest.mark.parametrize(
    ("number", "data", "measured", "words"),
    [
        (T.EV_SEPARATOR, bytes(4), None, "separator 00000000: the firmware has finished"),
        (T.EV_SEPARATOR, b"\1\0\0\0oops", None, "the firmware reports an ERROR"),
        (T.EV_SEPARATOR, b"WBCL", None, 'separator with words "WBCL"'),
        (T.EV_ACTION, b"words", b"other", 'claimed: action "words"'),
        (T.EV_S_CRTM_VERSION, _utf16("1.0"), None, 'firmware version "1.0"'),
        (T.EV_IPL, b"grub_cmd: ls\0", b"ls", "GRUB ran: ls"),
        (T.EV_IPL, b"kernel_cmdline: ro\0", b"ro", "GRUB passed the command line: ro"),
        (T.EV_IPL, b"MokSBState\0", b"\1", "shim measured its variable, claimed MokSBState = 1"),
        (T.EV_IPL, _utf16("ro quiet"), _utf16("ro quiet"), 'load options "ro quiet"'),
        (0x5555, b"\1", None, "unknown event type: 01"),
        (0x5555, bytes(40), None, f"unknown event type: {'00' * 32}... (40 bytes)"),
        (0x5555, b"", None, "unknown event type: no data"),
        (T.EV_EFI_GPT_EVENT, b"short", None, "does not follow its type"),
        (T.EV_NONHOST_INFO, b"GCE NonHostInfo\0\4", None, "AMD SEV-SNP"),
        (T.EV_NONHOST_INFO, b"GCE NonHostInfo\0\x63", None, "number 99"),
    ],
)
def test_one_sentence(number: int, data: bytes, measured: bytes | None, words: str) -> None:
    assert words in describe(_event(number, data, measured))[0]


def test_what_windows_measured_is_read_for_a_person() -> None:
    tags = [
        Tag(0x00070001, _utf16("\\EFI\\x.efi")),
        Tag(0x00070001, b"\xff"),
        Tag(0x00070002, (4096).to_bytes(8, "little")),
        Tag(0x00050003, b"\1"),
        Tag(0x00050003, bytes(3)),
        Tag(0x00070003, (0x800C).to_bytes(4, "little")),
        Tag(0x00070003, (0x9999).to_bytes(4, "little")),
        Tag(0x00070004, bytes(range(20))),
        Tag(0x00090009, b"?"),
    ]
    data = TaggedEvents(tuple(tags)).encode()
    assert describe(_event(T.EV_EVENT_TAG, data)) == [
        "9 tagged events",
        'file path: "\\EFI\\x.efi"',
        "file path: ff",
        "image size: 4096",
        "test signing: 1",
        "test signing: 000000",
        "hash algorithm: SHA-256",
        "hash algorithm: 99990000",
        "Authenticode hash: 000102030405060708090a0b0c0d0e0f... (20 bytes)",
        "0x00090009: 3f",
    ]


def test_a_long_database_is_shortened() -> None:
    hashes = [SHA256.hash(bytes([n])) for n in range(MAX_DETAILS + 5)]
    value = signature_list(sig.EFI_CERT_SHA256, MICROSOFT_OWNER, *hashes)
    data = UefiVariable(SHIM_LOCK, "dbx", value, None).encode()
    lines = describe(_event(T.EV_EFI_VARIABLE_DRIVER_CONFIG, data))
    assert lines[0] == "variable dbx (SHIM_LOCK): 29 entries"
    assert len(lines) == 1 + MAX_DETAILS + 1
    assert lines[-1] == "... and 5 more"


def test_certificates_are_named() -> None:
    assert signature_text(certificate("Example CA")) == '"Example CA" (issuer: self-signed)'
    assert signature_text(b"\x30\x82garbage") == b"\x30\x82garbage".hex()


def test_a_bare_certificate_is_named() -> None:
    key = certificate("Example Distribution CA", filler=300)
    data = UefiVariable(SHIM_LOCK, "Shim", key, None).encode()
    assert describe(_event(T.EV_EFI_VARIABLE_AUTHORITY, data)) == [
        'variable Shim (SHIM_LOCK): "Example Distribution CA" (issuer: self-signed)'
    ]


def test_a_variable_without_structure_is_shown_raw() -> None:
    for value, words in ((b"\1\2", "variable x (SHIM_LOCK) = 0102"), (b"", "is absent or empty")):
        data = UefiVariable(SHIM_LOCK, "x", value, None).encode()
        assert words in describe(_event(T.EV_EFI_VARIABLE_DRIVER_CONFIG, data))[0]


def test_a_value_without_words_is_named_by_its_kind() -> None:
    assert describe_value(EventValue(), 0) == ["EventValue"]


def test_text_from_the_log_cannot_drive_a_terminal() -> None:
    event = _event(T.EV_IPL, b"grub_cmd: \x1b]0;owned\x07\0", b"\x1b]0;owned\x07")
    assert describe(event) == ["GRUB ran: \\x1b]0;owned\\x07"]


def test_registers_have_their_names() -> None:
    assert register_name(7, LogFormat.CRYPTO_AGILE) == "PCR 7"
    assert register_name(0xFFFFFFFF, LogFormat.CRYPTO_AGILE) == "no PCR"
    assert register_name(3, LogFormat.CCEL) == "RTMR[2]"
    assert register_name(9, LogFormat.CCEL) == "register 9"


def test_json_names_every_field() -> None:
    fw = SimulatedFirmware((SHA256,))
    fw.image(device_path((4, 4, _utf16("\\x.efi"))), b"image")
    event = parse_eventlog(fw.log()).events[1]
    shown = json.loads(json.dumps(event_json(event)))
    assert shown["type_name"] == "EV_EFI_BOOT_SERVICES_APPLICATION"
    assert shown["digests"] == {"sha256": SHA256.hash(b"image").hex()}
    assert shown["digest_check"] == "not recomputable"
    assert shown["decoded"]["kind"] == "ImageLoad"
    assert shown["decoded"]["claimed_device_path"]["text"] == "\\x.efi"
    assert shown["decoded"]["claimed_device_path"]["nodes"][0]["type"] == 4


def test_json_writes_guids_as_text() -> None:
    event = _event(T.EV_S_CRTM_VERSION, SHIM_LOCK)
    assert isinstance(event.decoded, CrtmVersion)
    shown = json.loads(json.dumps(event_json(event)))
    assert shown["decoded"]["guid"] == "605dab50-e046-4300-abb6-3dd810dd8b23"
    assert shown["words"] == "firmware version 605dab50-e046-4300-abb6-3dd810dd8b23"
