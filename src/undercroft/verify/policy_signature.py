"""Who vouches for a policy?  A DSSE envelope over its text, by as many keys as are demanded."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from undercroft.formats.dsse import (
    DsseSignature,
    encode_envelope,
    parse_envelope,
    pre_authentication_encoding,
)
from undercroft.verify.checks import Check
from undercroft.verify.profile_signature import key_id

PAYLOAD_TYPE = "application/vnd.undercroft.policy+toml"

_SOURCE = "DSSE v1, protocol.md"
Y1_TYPE = Check("Y1", "policy.payload", "the envelope says that it holds a policy", _SOURCE)
Y2_SIGNATURE = Check(
    "Y2",
    "policy.signature",
    "as many of the keys that are believed as are demanded, each once, signed the text",
    _SOURCE,
)
Y3_ROLLBACK = Check("Y3", "policy.rollback", "no newer issue of the policy was seen before", "")
CHECKS = (Y1_TYPE, Y2_SIGNATURE, Y3_ROLLBACK)


def sign_policy_text(text: bytes, keys: Sequence[Ed25519PrivateKey]) -> bytes:
    """Return the envelope with which each of ``keys`` vouches for a policy's text."""
    covered = pre_authentication_encoding(PAYLOAD_TYPE, text)
    signatures = [DsseSignature(key_id(key.public_key()), key.sign(covered)) for key in keys]
    return encode_envelope(PAYLOAD_TYPE, text, signatures)


def verify_policy_text(
    envelope: bytes, keys: Sequence[Ed25519PublicKey], threshold: int = 1
) -> tuple[bytes, tuple[str, ...]]:
    """Return the text in ``envelope`` and the ids of the keys that vouch for it.

    Raises FormatError, VerificationError (Y1, Y2), and ValueError for a threshold below 1, which
    would believe anybody.
    """
    if threshold < 1:
        raise ValueError("at least one key has to sign")
    unverified = parse_envelope(envelope)
    if unverified.payload_type != PAYLOAD_TYPE:
        raise Y1_TYPE.failed(
            "the envelope is about something else",
            expected=PAYLOAD_TYPE,
            got=unverified.payload_type,
        )
    covered = pre_authentication_encoding(unverified.payload_type, unverified.payload)
    signers = dict.fromkeys(
        key_id(key)
        for key in keys
        if any(_signed(key, each.signature, covered) for each in unverified.signatures)
    )
    if len(signers) < threshold:
        raise Y2_SIGNATURE.failed(
            "not enough of the keys that are believed signed this policy",
            expected=f"{threshold} of {', '.join(key_id(key)[:16] for key in keys) or 'none'}",
            got=", ".join(each.claimed_keyid[:16] for each in unverified.signatures),
            remedy="sign it with `undercroft policy sign`, or believe its key",
        )
    return unverified.payload, tuple(signers)


def _signed(key: Ed25519PublicKey, signature: bytes, covered: bytes) -> bool:
    try:
        key.verify(signature, covered)
    except InvalidSignature:
        return False
    return True
