"""DSSE, the Dead Simple Signing Envelope: a payload, its type, and signatures over both.

Source: github.com/secure-systems-lab/dsse, protocol.md and envelope.md, version 1.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from undercroft.base import FormatError
from undercroft.formats import strict_json

_FORMAT = "DSSE envelope"
MAX_SIZE = 32 << 20


@dataclass(frozen=True, slots=True)
class DsseSignature:
    """One signature; ``claimed_keyid`` is a hint that nothing vouches for."""

    claimed_keyid: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class UnverifiedEnvelope:
    """An envelope whose signatures nobody has looked at."""

    payload_type: str
    payload: bytes
    signatures: tuple[DsseSignature, ...]


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sig: str
    keyid: str = ""


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    payload: str
    payloadType: str  # noqa: N815 - the specification's name
    signatures: list[_Signature]


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that a signature covers: PAE() of protocol.md."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def parse_envelope(data: bytes) -> UnverifiedEnvelope:
    """Parse an envelope; raise FormatError if it is none, or has no signature."""
    wire = strict_json.parse(data, _Envelope, _FORMAT, limit=MAX_SIZE)
    if not wire.signatures:
        raise FormatError(_FORMAT, 0, "there is no signature")
    return UnverifiedEnvelope(
        wire.payloadType,
        _decoded(wire.payload),
        tuple(DsseSignature(each.keyid, _decoded(each.sig)) for each in wire.signatures),
    )


def encode_envelope(
    payload_type: str, payload: bytes, signatures: Sequence[DsseSignature]
) -> bytes:
    """Return the envelope as JSON."""
    wire = _Envelope(
        base64.b64encode(payload).decode(),
        payload_type,
        [
            _Signature(base64.b64encode(each.signature).decode(), each.claimed_keyid)
            for each in signatures
        ],
    )
    return strict_json.encode(wire)


def _decoded(text: str) -> bytes:
    """Decode base64, of either alphabet as envelope.md demands."""
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(_FORMAT, 0, f"not base64: {error}") from error
