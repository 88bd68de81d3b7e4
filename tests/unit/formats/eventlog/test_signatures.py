"""EFI_SIGNATURE_LIST: sizes that must agree, and names of certificates."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.base import FormatError
from undercroft.formats.eventlog import signatures as sig
from undercroft.formats.eventlog.certificates import summarise_certificate
from undercroft.formats.eventlog.guid import MICROSOFT_OWNER, guid_bytes, guid_name, guid_text
from undercroft.testing.eventlog import certificate, signature_list

TYPE = sig.EFI_CERT_SHA256


def _list(list_size: int, header_size: int, size: int, body: bytes) -> bytes:
    return TYPE + struct.pack("<III", list_size, header_size, size) + body


def test_lists_follow_each_other() -> None:
    data = signature_list(TYPE, MICROSOFT_OWNER, b"a" * 32, b"b" * 32)
    data += signature_list(sig.EFI_CERT_X509, MICROSOFT_OWNER, certificate("x"))
    database = sig.decode_signature_database(data)
    assert [entry.data for entry in database.of_type(TYPE)] == [b"a" * 32, b"b" * 32]
    assert database.of_type(sig.EFI_CERT_X509)[0].owner == MICROSOFT_OWNER
    assert database.encode() == data


def test_a_list_may_be_empty_and_may_have_a_header() -> None:
    data = _list(28 + 3, 3, 48, b"hdr")
    (entry,) = sig.decode_signature_database(data).lists
    assert (entry.header, entry.signatures) == (b"hdr", ())
    assert entry.encode() == data


@pytest.mark.parametrize(
    ("data", "reason", "offset"),
    [
        (TYPE + b"\0", "the signature list header is cut short", 100),
        (_list(27, 0, 48, b""), "SignatureListSize is too small", 100),
        (_list(30, 3, 48, b"abc"), "SignatureListSize is too small", 100),
        (_list(28 + 48, 0, 15, bytes(48)), "SignatureSize does not divide", 100),
        (_list(28 + 48, 0, 0, bytes(48)), "SignatureSize does not divide", 100),
        (_list(28 + 48, 0, 47, bytes(48)), "SignatureSize does not divide", 100),
        (_list(28 + 96, 0, 48, bytes(48)), "Signatures is longer than the input", 128),
        (_list(2**32 - 1, 2**32 - 29, 16, b""), "SignatureHeader is longer", 128),
    ],
)
def test_sizes_that_disagree_are_refused(data: bytes, reason: str, offset: int) -> None:
    with pytest.raises(FormatError, match=reason) as caught:
        sig.decode_signature_database(data, 100)
    assert caught.value.offset == offset


def test_one_signature_is_its_owner_and_the_rest() -> None:
    one = sig.decode_signature(MICROSOFT_OWNER + b"data")
    assert one == sig.Signature(MICROSOFT_OWNER, b"data")
    assert one.encode() == MICROSOFT_OWNER + b"data"
    with pytest.raises(FormatError, match="SignatureOwner is longer"):
        sig.decode_signature(b"short", 5)


@settings(deadline=None)
@given(st.binary(max_size=120))
def test_what_parses_encodes_to_itself(data: bytes) -> None:
    try:
        database = sig.decode_signature_database(TYPE + data)
    except FormatError:
        return
    assert database.encode() == TYPE + data


def test_a_certificate_is_named_by_its_common_name() -> None:
    summary = summarise_certificate(certificate("Example CA", filler=9))
    assert summary is not None
    assert (summary.subject, summary.issuer) == ("Example CA", "Example CA")
    assert len(summary.tbs_hashes["sha384"]) == 48


def test_bytes_that_are_no_certificate_have_no_name() -> None:
    assert summarise_certificate(b"\x30\x82\x01\x00") is None
    odd_name = certificate("x").replace(b"\x0c\x01x", b"\x03\x01x")
    assert summarise_certificate(odd_name) is None
    changed = bytearray(certificate("x"))
    version = changed.index(b"\xa0\x03\x02\x01\x02") + 4
    changed[version] = 9
    assert summarise_certificate(bytes(changed)) is None


def test_guids_are_little_endian_in_memory() -> None:
    text = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
    assert guid_bytes(text).hex().startswith("cbb219d7")
    assert guid_text(guid_bytes(text)) == text
    assert guid_name(guid_bytes(text)) == "EFI_IMAGE_SECURITY_DATABASE"
    assert guid_name(bytes(15) + b"\1") == "00000000-0000-0000-0000-000000000001"
