"""DSSE envelopes: the specification's own example, and what is refused."""

from __future__ import annotations

import pytest

from undercroft.base import FormatError
from undercroft.formats.dsse import (
    DsseSignature,
    encode_envelope,
    parse_envelope,
    pre_authentication_encoding,
)


def test_the_encoding_of_the_specifications_example() -> None:
    covered = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert covered == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_what_goes_in_comes_out() -> None:
    signature = DsseSignature("key", b"\xff\xfe\xfd")
    envelope = parse_envelope(encode_envelope("text/plain", b"payload", [signature]))
    assert (envelope.payload_type, envelope.payload) == ("text/plain", b"payload")
    assert envelope.signatures == (signature,)


def test_both_alphabets_of_base64_are_read() -> None:
    text = b'{"payload": "_-8=", "payloadType": "t", "signatures": [{"sig": "AA=="}]}'
    envelope = parse_envelope(text)
    assert envelope.payload == b"\xff\xef"
    assert envelope.signatures == (DsseSignature("", b"\0"),)


@pytest.mark.parametrize(
    "text",
    [
        '{"payload": "", "payloadType": "t", "signatures": []}',
        '{"payload": "*", "payloadType": "t", "signatures": [{"sig": ""}]}',
        '{"payload": "A", "payloadType": "t", "signatures": [{"sig": ""}]}',
        '{"payload": "", "payloadType": "t", "signatures": [{"sig": ""}], "more": 1}',
        "[]",
    ],
)
def test_what_is_no_envelope(text: str) -> None:
    with pytest.raises(FormatError):
        parse_envelope(text.encode())
