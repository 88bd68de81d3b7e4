"""The challenge and trust files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from undercroft.base import FormatError, HashAlgorithm, Nonce
from undercroft.formats.evidence.challenge import (
    Challenge,
    HowTrusted,
    Trust,
    encode_challenge,
    encode_trust,
    parse_challenge,
    parse_trust,
)

SHA256 = HashAlgorithm.SHA256
CHALLENGE = Challenge(Nonce(bytes(16)), {SHA256: (10, 0)}, 1_700_000_000)
TRUST = Trust("demo", b"public", HowTrusted.MADE_HERE, b"certificate")


def test_both_survive() -> None:
    assert parse_challenge(encode_challenge(CHALLENGE)) == CHALLENGE
    assert CHALLENGE.selection[SHA256] == (0, 10)
    assert parse_trust(encode_trust(TRUST)) == TRUST
    bare = Trust("demo", b"public", HowTrusted.PINNED)
    assert parse_trust(encode_trust(bare)) == bare


def challenge(**changes: Any) -> bytes:
    return json.dumps({**json.loads(encode_challenge(CHALLENGE)), **changes}).encode()


def trust(**changes: Any) -> bytes:
    return json.dumps({**json.loads(encode_trust(TRUST)), **changes}).encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (challenge(format="undercroft.challenge/2"), "version"),
        (challenge(nonce="00"), "16 to 64"),
        (challenge(nonce="zz"), "hexadecimal"),
        (challenge(selection={}), "at least one"),
        (challenge(selection={"sha256": []}), "no PCR"),
        (challenge(selection={"sha256": [0, 0]}), "one twice"),
        (challenge(selection={"sha256": [24]}), "outside"),
        (challenge(selection={"sha256": [-1]}), "outside"),
        (challenge(selection={"md5": [0]}), "algorithm"),
        (challenge(issued_at=-1), "1970"),
        (challenge(issued_at=1.5), "int"),
        (challenge(more=1), "unknown field"),
    ],
)
def test_a_bad_challenge_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_challenge(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[]", "object"),
        (trust(format="undercroft.trust/0"), "version"),
        (trust(guest=""), "name"),
        (trust(ak_public=""), "attestation key"),
        (trust(ak_public="0"), "hexadecimal"),
        (trust(ek_certificate="AB"), "hexadecimal"),
        (trust(how="somehow"), "enum"),
        (b" " * ((1 << 20) + 1), "too large"),
    ],
)
def test_a_bad_trust_file_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_trust(data)
