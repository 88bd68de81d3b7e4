"""Decoded values: what is proven, what is claimed, and what does not fit."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.base import HashAlgorithm
from undercroft.formats.eventlog import (
    Claimed,
    DigestCheck,
    EventType,
    EventValue,
    Malformed,
    Opaque,
    value,
)
from undercroft.formats.eventlog import variables as var
from undercroft.formats.eventlog.decode import decode_event
from undercroft.formats.eventlog.devicepath import DevicePath
from undercroft.formats.eventlog.firmware import CrtmVersion, FirmwareBlob, FirmwareBlob2
from undercroft.formats.eventlog.guid import EFI_GLOBAL_VARIABLE, SHIM_LOCK
from undercroft.formats.eventlog.ipl import (
    GrubText,
    LoadOptions,
    MeasuredContents,
    SectionName,
    ShimVariable,
)
from undercroft.formats.eventlog.signatures import Signature
from undercroft.formats.eventlog.spdm import (
    DeviceContext,
    DeviceSecurity,
    DeviceSecurity2,
    MeasurementBlock,
)
from undercroft.formats.eventlog.tagged import MAX_TAGS, NamedMeasurement, Tag, TaggedEvents
from undercroft.formats.eventlog.text import AsciiText, Utf16Text, ascii_text, plain, utf16_text
from undercroft.testing.eventlog import certificate

SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256
T = EventType
MATCHES, DIFFERS = DigestCheck.MATCHES, DigestCheck.DIFFERS
NOT_RECOMPUTABLE = DigestCheck.NOT_RECOMPUTABLE


def _digests(measured: bytes) -> Mapping[HashAlgorithm, bytes]:
    return {SHA256: SHA256.hash(measured), SHA1: SHA1.hash(measured)}


def decode(
    number: int, data: bytes, measured: bytes | None = None
) -> tuple[EventValue, DigestCheck]:
    decoded, check = decode_event(number, data, _digests(data if measured is None else measured))
    assert decoded.encode() == data
    return decoded, check


def _utf16(text: str) -> bytes:
    return text.encode("utf-16-le") + b"\0\0"


def _variable(name: str, content: bytes, guid: bytes = EFI_GLOBAL_VARIABLE) -> bytes:
    return var.UefiVariable(guid, name, content, None).encode()


def test_the_base_value_has_no_encoding() -> None:
    with pytest.raises(NotImplementedError):
        EventValue().encode()


def test_digests_that_cannot_be_computed_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value, "_HASHLIB", {SHA1: value.hasher(SHA1)})
    assert value.hasher(SHA256) is None
    assert not value.hashes_to({SHA256: SHA256.hash(b"x")}, b"x")
    assert value.hashes_to({SHA256: bytes(32), SHA1: SHA1.hash(b"x")}, b"x")
    assert not value.hashes_to({}, b"x")


# -- text


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"words", AsciiText("words")),
        (b"words\0", AsciiText("words", b"\0")),
        ("grün\n".encode(), AsciiText("grün\n")),
        (b"", None),
        (b"\0", None),
        (b"a\0b", None),
        (b"\x1b[0m", None),
        (b"\xff\xfe", None),
    ],
)
def test_ascii_text(data: bytes, expected: AsciiText | None) -> None:
    assert ascii_text(data) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (_utf16("1.0"), Utf16Text("1.0", b"\0\0")),
        (_utf16("1.0")[:-2], Utf16Text("1.0")),
        (_utf16("größer"), Utf16Text("größer", b"\0\0")),
        (b"odd", None),
        (b"ab", None),
        (b"\x00\xd8a\0", None),
        (b"\x1b\0", None),
        (b"\0\0", None),
    ],
)
def test_utf16_text(data: bytes, expected: Utf16Text | None) -> None:
    assert utf16_text(data) == expected


def test_shown_text_is_escaped_and_bounded() -> None:
    assert plain("a\x1b[2J\u202eb") == "a\\x1b[2J\\u202eb"
    assert plain("x" * 9, limit=4) == "xxxx… (5 characters more)"


# -- EV_IPL


@pytest.mark.parametrize(
    ("data", "measured", "expected", "check"),
    [
        (b"grub_cmd: ls\0", b"ls", GrubText("grub_cmd: ", "ls", b"\0"), MATCHES),
        (b"grub_cmd ls\0", b"ls\0", GrubText("grub_cmd ", "ls", b"\0"), MATCHES),
        (
            b"kernel_cmdline: /k ro\0",
            b"/k ro",
            GrubText("kernel_cmdline: ", "/k ro", b"\0"),
            MATCHES,
        ),
        (b"grub_cmd: ls", b"rm", Claimed(GrubText("grub_cmd: ", "ls", b"")), DIFFERS),
        (b"grub_cmd: \xff", b"", Claimed(Opaque(b"grub_cmd: \xff", "not text")), NOT_RECOMPUTABLE),
        (b"MokList\0", b"list", ShimVariable("MokList", None, b"\0"), NOT_RECOMPUTABLE),
        (b"MokSBState\0", b"\1", ShimVariable("MokSBState", 1, b"\0"), MATCHES),
        (b"MokSBState\0", b"\0", ShimVariable("MokSBState", 0, b"\0"), MATCHES),
        (b"MokSBState", b"\7", ShimVariable("MokSBState", None, b""), NOT_RECOMPUTABLE),
        (
            b"/boot/grub.cfg\0",
            b"set x",
            MeasuredContents(AsciiText("/boot/grub.cfg", b"\0")),
            NOT_RECOMPUTABLE,
        ),
        (b"loader's words", b"loader's words", AsciiText("loader's words"), MATCHES),
        (b"\xa1", b"?", Claimed(Opaque(b"\xa1", "not text")), NOT_RECOMPUTABLE),
        (b"\x01\x02\xff", b"\x01\x02\xff", Opaque(b"\x01\x02\xff", "not text"), MATCHES),
    ],
)
def test_what_boot_loaders_write(
    data: bytes, measured: bytes, expected: EventValue, check: DigestCheck
) -> None:
    assert decode(T.EV_IPL, data, measured) == (expected, check)


def test_what_systemd_writes() -> None:
    line = _utf16("root=/dev/vda2")
    assert decode(T.EV_IPL, line, line[:-2]) == (LoadOptions("root=/dev/vda2", b"\0\0"), MATCHES)
    assert decode(T.EV_IPL, line, line) == (LoadOptions("root=/dev/vda2", b"\0\0"), MATCHES)
    assert decode(T.EV_IPL, line[:-1], line) == (LoadOptions("root=/dev/vda2", b"\0"), MATCHES)
    section = _utf16(".linux")
    assert decode(T.EV_IPL, section, b".linux\0") == (SectionName(".linux", b"\0\0"), MATCHES)
    contents = MeasuredContents(Utf16Text(".linux", b"\0\0"))
    assert decode(T.EV_IPL, section, b"the kernel") == (contents, NOT_RECOMPUTABLE)


# -- EV_EVENT_TAG


def test_a_named_tag_is_claimed() -> None:
    data = Tag(0x8F3B22EC, b"Linux initrd\0").encode()
    named = NamedMeasurement(0x8F3B22EC, AsciiText("Linux initrd", b"\0"))
    assert decode(T.EV_EVENT_TAG, data, b"the initrd") == (named, NOT_RECOMPUTABLE)
    binary = Tag(0x8F3B22EC, b"\x01\xff\x02").encode()
    assert decode(T.EV_EVENT_TAG, binary)[1] is MATCHES


def test_text_without_a_tag_is_claimed() -> None:
    assert decode(T.EV_EVENT_TAG, b"options\0", b"?") == (
        Claimed(AsciiText("options", b"\0")),
        NOT_RECOMPUTABLE,
    )
    assert isinstance(decode(T.EV_EVENT_TAG, b"hashed as it stands, oddly long")[0], Malformed)


def test_a_containers_children_are_decoded_to_a_bounded_depth() -> None:
    data = b"inner"
    for _ in range(12):
        data = Tag(0x40010001, data).encode()
    tags, check = decode(T.EV_EVENT_TAG, data)
    assert isinstance(tags, TaggedEvents)
    assert check is MATCHES
    depth, tag = 0, tags.tags[0]
    while tag.children:
        depth, tag = depth + 1, tag.children[0]
    assert depth == 8


def test_a_container_by_its_number_only_keeps_its_bytes() -> None:
    data = Tag(0x40010001, b"not tags").encode()
    (tags, _) = decode(T.EV_EVENT_TAG, data)
    assert tags == TaggedEvents((Tag(0x40010001, b"not tags"),))


def test_too_many_tags_are_malformed() -> None:
    data = Tag(1, b"").encode() * (MAX_TAGS + 1)
    decoded, _ = decode(T.EV_EVENT_TAG, data)
    assert isinstance(decoded, Malformed)
    assert "too many tagged events" in decoded.error


# -- variables


def test_a_variable_is_proven_whole() -> None:
    data = _variable("SecureBoot", b"\1")
    assert decode(T.EV_EFI_VARIABLE_DRIVER_CONFIG, data) == (
        var.UefiVariable(EFI_GLOBAL_VARIABLE, "SecureBoot", b"\1", var.Flag(1)),
        MATCHES,
    )
    decoded, check = decode(T.EV_EFI_VARIABLE_DRIVER_CONFIG, data, b"\1")
    assert isinstance(decoded, Claimed)
    assert check is DIFFERS


@pytest.mark.parametrize(
    ("name", "content"),
    [("SecureBoot", b"\1\1"), ("SomethingElse", b"\1"), ("SetupMode", b"")],
)
def test_a_variable_of_no_known_form_has_no_content(name: str, content: bytes) -> None:
    decoded, _ = decode(T.EV_EFI_VARIABLE_DRIVER_CONFIG, _variable(name, content))
    assert isinstance(decoded, var.UefiVariable)
    assert decoded.content is None


def test_a_database_that_does_not_parse_stays_in_its_variable() -> None:
    decoded, check = decode(T.EV_EFI_VARIABLE_DRIVER_CONFIG, _variable("db", b"short"))
    assert isinstance(decoded, var.UefiVariable)
    assert isinstance(decoded.content, Malformed)
    assert "EFI_SIGNATURE_LIST at offset 36" in decoded.content.error
    assert check is MATCHES


def test_an_authority_is_an_entry_a_certificate_or_a_setting() -> None:
    der = certificate("x", filler=300)
    contents = {
        _variable("db", SHIM_LOCK + der): Signature(SHIM_LOCK, der),
        _variable("Shim", der): var.Certificate(der),
        _variable("SbatLevel", b"sbat,1,2\n"): var.Text("sbat,1,2\n"),
        _variable("SbatLevel", b"\xff"): None,
        _variable("MokListTrusted", b"\1"): var.Flag(1),
    }
    for data, content in contents.items():
        decoded, check = decode(T.EV_EFI_VARIABLE_AUTHORITY, data)
        assert isinstance(decoded, var.UefiVariable)
        assert (decoded.content, check) == (content, MATCHES)
        assert content is None or content.encode() == decoded.data


def test_bytes_after_a_variable_are_kept_apart() -> None:
    data = _variable("Shim", b"der")
    decoded, check = decode(T.EV_EFI_VARIABLE_AUTHORITY, data + b"12345\xaf", data + b"12345")
    assert isinstance(decoded, var.UefiVariable)
    assert (decoded.trailing, decoded.uncovered, check) == (b"12345", b"\xaf", MATCHES)


def test_a_boot_variables_name_is_claimed() -> None:
    option = var.LoadOption(1, "Debian", DevicePath(()), b"more")
    for content, decoded in (
        (option.encode(), option),
        (b"", None),
        (b"\1\0\0\0\0\0", Malformed),
    ):
        got, check = decode(T.EV_EFI_VARIABLE_BOOT, _variable("Boot00A1", content), content)
        assert isinstance(got, var.BootVariable)
        assert check is MATCHES
        if decoded is Malformed:
            assert isinstance(got.content, Malformed)
        else:
            assert got.content == decoded
        assert (got.claimed_name, got.data) == ("Boot00A1", content)


def test_a_description_ends_at_a_whole_character() -> None:
    # "a\0 \0\0b" holds two zero bytes in a row that do not start a character.
    option = struct.pack("<IH", 1, 0) + "aĀb".encode("utf-16-le") + b"\0\0"
    assert var.decode_load_option(option).description == "aĀb"


def test_a_boot_variable_may_be_hashed_whole() -> None:
    data = _variable("BootOrder", b"\1\0\2\0")
    for number in (T.EV_EFI_VARIABLE_BOOT, T.EV_EFI_VARIABLE_BOOT2):
        decoded, check = decode(number, data)
        assert isinstance(decoded, var.UefiVariable)
        assert (decoded.content, check) == (var.BootOrder((1, 2)), MATCHES)
    odd = _variable("BootOrder", b"\1")
    decoded, _ = decode(T.EV_EFI_VARIABLE_BOOT, odd)
    assert isinstance(decoded, var.UefiVariable)
    assert decoded.content is None
    for name in ("BootCurrent", "Boot00X1"):
        decoded, _ = decode(T.EV_EFI_VARIABLE_BOOT2, _variable(name, b"\1\0"))
        assert isinstance(decoded, var.UefiVariable)
        assert decoded.content is None


# -- firmware


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (_utf16("1.0"), CrtmVersion("1.0", end=b"\0\0")),
        (b"\0\0", CrtmVersion("", end=b"\0\0")),
        (b"", CrtmVersion("")),
        (bytes(range(16)), CrtmVersion("", guid=bytes(range(16)))),
        (b"v1.0", AsciiText("v1.0")),
        (b"\x01\x02\x03", Opaque(b"\x01\x02\x03", "vendor-defined")),
    ],
)
def test_firmware_versions(data: bytes, expected: EventValue) -> None:
    assert decode(T.EV_S_CRTM_VERSION, data) == (expected, MATCHES)


def test_post_code_comes_in_four_forms() -> None:
    blob, blob2 = FirmwareBlob(1, 2), FirmwareBlob2(b"d", 1, 2)
    assert decode(T.EV_POST_CODE, blob.encode(), b"?") == (blob, NOT_RECOMPUTABLE)
    assert decode(T.EV_POST_CODE, blob2.encode(), b"?") == (blob2, NOT_RECOMPUTABLE)
    words = (Claimed(AsciiText("POST CODE")), NOT_RECOMPUTABLE)
    assert decode(T.EV_POST_CODE, b"POST CODE", b"?") == words
    odd = b"\xff\1\2"
    assert decode(T.EV_POST_CODE, odd) == (Opaque(odd, "vendor-defined"), MATCHES)


def test_other_non_host_information_is_the_vendors() -> None:
    assert decode(T.EV_NONHOST_INFO, b"GCE NonHostInfo\0") == (
        AsciiText("GCE NonHostInfo", b"\0"),
        MATCHES,
    )


@pytest.mark.parametrize(
    ("number", "data"),
    [
        (T.EV_EFI_PLATFORM_FIRMWARE_BLOB, bytes(17)),
        (T.EV_EFI_PLATFORM_FIRMWARE_BLOB2, b"\4abc"),
        (T.EV_EFI_HANDOFF_TABLES, struct.pack("<Q", 1)),
        (T.EV_EFI_GPT_EVENT, bytes(100)[:99]),
        (T.EV_EFI_BOOT_SERVICES_APPLICATION, bytes(31)),
        (T.EV_EFI_SPDM_FIRMWARE_BLOB, b"SPDM?" + bytes(40)),
        (T.EV_EFI_SPDM_FIRMWARE_BLOB, b"SPDM Device Sec2" + bytes(20)),
        (T.EV_NO_ACTION, b"SP800-155 Event\0"),
        (T.EV_NO_ACTION, b"NvIndexInstance\0" + bytes(8) + b"SPDM Device Sec3" + bytes(40)),
        (T.EV_NO_ACTION, b"NvIndexDynamic\0\0" + bytes(16) + b"\xff\xff"),
        (T.EV_NO_ACTION, b"H-CRTM CompMeas\0\1"),
    ],
)
def test_data_that_does_not_follow_its_type_is_malformed(number: int, data: bytes) -> None:
    decoded, check = decode(number, data)
    assert isinstance(decoded, Malformed)
    assert "at offset" in decoded.error
    assert check is (DigestCheck.NOT_EXTENDED if number == T.EV_NO_ACTION else MATCHES)


def test_a_note_of_unknown_signature_is_opaque() -> None:
    assert decode(T.EV_NO_ACTION, b"?" * 20)[0] == Opaque(
        b"?" * 20, "unknown EV_NO_ACTION signature"
    )


def test_an_spdm_device_that_is_not_pci_keeps_its_context() -> None:
    block = MeasurementBlock(1, 1, b"measurement")
    usb = DeviceSecurity(1, 99, 2, 2, block, DeviceContext(b"descriptors"))
    assert decode(T.EV_EFI_SPDM_FIRMWARE_CONFIG, usb.encode()) == (usb, MATCHES)


def test_an_spdm_sub_header_of_another_kind_is_kept() -> None:
    head = struct.pack("<16sHBBIIIIQQ", b"SPDM Device Sec2", 2, 0, 0, 0, 0, 7, 3, 1, 0)
    device, check = decode(T.EV_EFI_SPDM_FIRMWARE_BLOB, head + b"oem")
    assert isinstance(device, DeviceSecurity2)
    assert (device.certificate_chain, device.blocks, check) == (b"oem", (), MATCHES)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*map(int, EventType)]), st.binary(max_size=120), st.booleans())
def test_decoding_never_raises_and_loses_nothing(number: int, data: bytes, matches: bool) -> None:
    decode(number, data, None if matches else data + b"!")


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_a_hostile_variable_loses_nothing(data: bytes) -> None:
    head = struct.pack("<16sQQ", EFI_GLOBAL_VARIABLE, 2, len(data)) + "db".encode("utf-16-le")
    for number in (T.EV_EFI_VARIABLE_DRIVER_CONFIG, T.EV_EFI_VARIABLE_AUTHORITY):
        decoded, _ = decode(number, head + data)
        assert isinstance(decoded, var.UefiVariable)
        assert decoded.content is not None
        assert decoded.content.encode() == data
