"""Signed policies: whose they are, how many signed, and no issue older than one that was seen."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from undercroft.appraise.signed_policy import verify_policy
from undercroft.base import FormatError, VerificationError
from undercroft.formats.dsse import DsseSignature, encode_envelope, pre_authentication_encoding
from undercroft.policy import Policy
from undercroft.verify.policy_signature import (
    PAYLOAD_TYPE,
    sign_policy_text,
    verify_policy_text,
)
from undercroft.verify.profile_signature import key_id

TEXT = (importlib.resources.files("undercroft.policy") / "policies" / "default.toml").read_text()
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(3)]
PUBLIC = [key.public_key() for key in KEYS]


def issue(serial: int, *keys: Ed25519PrivateKey, text: str = TEXT) -> bytes:
    return sign_policy_text(f"serial = {serial}\n{text}".encode(), keys or KEYS[:1])


def accepted(envelope: bytes, seen: Mapping[str, int] | None = None, threshold: int = 1) -> Policy:
    verified = verify_policy(envelope, PUBLIC[:2], seen=seen or {}, threshold=threshold)
    assert verified.signers
    return verified.policy


def test_a_policy_that_a_believed_key_signed() -> None:
    verified = verify_policy(issue(3), PUBLIC[:1], seen={"default": 3})
    assert (verified.policy.id, verified.policy.serial) == ("default", 3)
    assert verified.signers == (key_id(PUBLIC[0]),)


def test_as_many_as_are_demanded() -> None:
    assert accepted(issue(1, KEYS[0], KEYS[1]), threshold=2).serial == 1
    for signed in (issue(1, KEYS[0]), issue(1, KEYS[0], KEYS[0]), issue(1, KEYS[0], KEYS[2])):
        with pytest.raises(VerificationError) as caught:
            accepted(signed, threshold=2)
        assert caught.value.check == "policy.signature"
    with pytest.raises(ValueError, match="at least one"):
        verify_policy_text(issue(1), PUBLIC, 0)


def test_a_key_that_nobody_believes() -> None:
    with pytest.raises(VerificationError) as caught:
        accepted(issue(1, KEYS[2]))
    assert caught.value.check == "policy.signature"
    with pytest.raises(VerificationError):
        verify_policy_text(issue(1), [])


def test_a_key_that_signed_is_told_by_its_signature_not_by_its_claimed_id() -> None:
    text = f"serial = 1\n{TEXT}".encode()
    covered = pre_authentication_encoding(PAYLOAD_TYPE, text)
    forged = encode_envelope(
        PAYLOAD_TYPE, text, [DsseSignature(key_id(PUBLIC[0]), KEYS[2].sign(covered))]
    )
    with pytest.raises(VerificationError):
        accepted(forged)
    unnamed = encode_envelope(PAYLOAD_TYPE, text, [DsseSignature("", KEYS[0].sign(covered))])
    assert accepted(unnamed).serial == 1


def test_a_changed_text() -> None:
    envelope = json.loads(issue(1))
    other = json.loads(issue(2))
    with pytest.raises(VerificationError) as caught:
        accepted(json.dumps({**envelope, "payload": other["payload"]}).encode())
    assert caught.value.check == "policy.signature"


def test_an_envelope_about_something_else() -> None:
    text = f"serial = 1\n{TEXT}".encode()
    covered = pre_authentication_encoding("text/plain", text)
    other = encode_envelope("text/plain", text, [DsseSignature("", KEYS[0].sign(covered))])
    with pytest.raises(VerificationError) as caught:
        accepted(other)
    assert caught.value.check == "policy.payload"


def test_an_older_issue_than_one_that_was_seen() -> None:
    with pytest.raises(VerificationError) as caught:
        accepted(issue(3), {"default": 4})
    assert caught.value.check == "policy.rollback"
    assert accepted(issue(3), {"other": 9}).serial == 3


def test_what_is_no_policy() -> None:
    with pytest.raises(FormatError, match="has a serial"):
        accepted(sign_policy_text(TEXT.encode(), KEYS[:1]))
    with pytest.raises(FormatError, match="UTF-8"):
        accepted(sign_policy_text(b"\xff", KEYS[:1]))
    with pytest.raises(FormatError, match="demands nothing"):
        accepted(sign_policy_text(b"", KEYS[:1]))
    with pytest.raises(FormatError, match="not here"):
        accepted(issue(1, text='format = "undercroft.policy/1"\nextends = "default"\nid = "x"'))
