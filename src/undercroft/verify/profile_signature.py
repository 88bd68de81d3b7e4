"""Who vouches for a kernel profile?  A DSSE envelope over the profile's header.

The header holds the digest of every part, so that a signature over it covers every byte, and
the envelope stays small and stands beside the file.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from undercroft.base import FormatError, VerificationError
from undercroft.formats.dsse import (
    DsseSignature,
    encode_envelope,
    parse_envelope,
    pre_authentication_encoding,
)
from undercroft.formats.kernel.profile import KernelProfile

PAYLOAD_TYPE = "application/vnd.undercroft.kernel-profile-header"
_KEY = "Ed25519 key"


def key_id(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 of a public key's SubjectPublicKeyInfo (RFC 5280), in hexadecimal."""
    spki = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(spki).hexdigest()


def load_public_key(pem: bytes) -> Ed25519PublicKey:
    """Read an Ed25519 public key (PEM).  Raises FormatError."""
    try:
        key = serialization.load_pem_public_key(pem)
    except ValueError as error:
        raise FormatError(_KEY, 0, str(error)) from error
    if not isinstance(key, Ed25519PublicKey):
        raise FormatError(_KEY, 0, "a key of another kind", expected="Ed25519")
    return key


def load_private_key(pem: bytes) -> Ed25519PrivateKey:
    """Read an Ed25519 private key (PEM, not encrypted).  Raises FormatError."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise FormatError(_KEY, 0, str(error)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise FormatError(_KEY, 0, "a key of another kind", expected="Ed25519")
    return key


def sign_profile(profile: KernelProfile, key: Ed25519PrivateKey) -> bytes:
    """Return the envelope with which ``key`` vouches for a profile."""
    covered = pre_authentication_encoding(PAYLOAD_TYPE, profile.header)
    signature = DsseSignature(key_id(key.public_key()), key.sign(covered))
    return encode_envelope(PAYLOAD_TYPE, profile.header, [signature])


def verify_profile(
    profile: KernelProfile, envelope: bytes, keys: Sequence[Ed25519PublicKey]
) -> str:
    """Return the id of the key, one of ``keys``, that vouches for the profile.

    Raises FormatError, and VerificationError (``profile.payload``, ``profile.signature``).
    """
    unverified = parse_envelope(envelope)
    if unverified.payload_type != PAYLOAD_TYPE:
        raise VerificationError(
            "profile.payload",
            "the envelope is about something else",
            expected=PAYLOAD_TYPE,
            got=unverified.payload_type,
        )
    if not hmac.compare_digest(unverified.payload, profile.header):
        raise VerificationError(
            "profile.payload",
            "the envelope is of another profile",
            expected=profile.id,
            got=hashlib.sha256(unverified.payload).hexdigest(),
        )
    covered = pre_authentication_encoding(unverified.payload_type, unverified.payload)
    for key in keys:
        for each in unverified.signatures:
            try:
                key.verify(each.signature, covered)
            except InvalidSignature:
                continue
            return key_id(key)
    raise VerificationError(
        "profile.signature",
        "no key that is believed has signed this profile",
        expected=", ".join(key_id(key)[:16] for key in keys),
        got=", ".join(each.claimed_keyid[:16] for each in unverified.signatures),
    )
