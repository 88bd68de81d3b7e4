from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.base import FormatError
from undercroft.formats.ima import ImaSignature, LinuxHash, SignatureType, parse_signature

GOOD = bytes.fromhex("030204a1b2c3d40005") + b"12345"


def test_a_signature_says_what_it_is() -> None:
    assert parse_signature(GOOD) == ImaSignature(
        SignatureType.EVM_IMA_XATTR_DIGSIG,
        2,
        LinuxHash.SHA256,
        bytes.fromhex("a1b2c3d4"),
        b"12345",
    )


@pytest.mark.parametrize("type_number", [3, 5, 6])
@pytest.mark.parametrize("version", [2, 3])
def test_every_kind_encodes_to_what_was_parsed(type_number: int, version: int) -> None:
    data = bytes((type_number, version)) + GOOD[2:]
    assert parse_signature(data).encode() == data


BAD = {
    "nothing": b"",
    "type-hash": b"\x04" + GOOD[1:],
    "type-zero": b"\0" + GOOD[1:],
    "version-1": b"\x03\x01" + GOOD[2:],
    "version-4": b"\x03\x04" + GOOD[2:],
    "hash": b"\x03\x02\x17" + GOOD[3:],
    "cut": GOOD[:-1],
    "left-over": GOOD + b"6",
    "no-size": GOOD[:8],
}


@pytest.mark.parametrize("case", BAD)
def test_bad_signatures_are_refused(case: str) -> None:
    with pytest.raises(FormatError):
        parse_signature(BAD[case])


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_anything_is_refused_or_encodes_to_itself(data: bytes) -> None:
    try:
        signature = parse_signature(data)
    except FormatError:
        return
    assert signature.encode() == data
