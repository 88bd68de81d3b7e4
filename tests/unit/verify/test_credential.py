"""Activation in software: only the right keys open a credential; and the key derivations."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import HashAlgorithm
from undercroft.formats.tpm import CredentialBlob, parse_credential
from undercroft.testing import SimulatedAttester
from undercroft.testing.endorsement import TEMPLATES, SimulatedEk, WrongCredentialError
from undercroft.verify.credential import (
    aes_cfb,
    challenge_activation,
    kdfa,
    kdfe,
    make_credential,
    verify_activation,
)
from undercroft.verify.ek import PinnedEk

AK = SimulatedAttester()


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_tpm_with_both_keys_answers(template: str) -> None:
    ek = SimulatedEk(template)
    challenge = challenge_activation(AK.ak, PinnedEk(ek.ek), os.urandom)
    blob = parse_credential(challenge.blob.encode())
    answer = ek.activate_credential(blob, AK.public.name)
    activated = verify_activation(challenge, answer)
    assert (activated.ak.name, activated.ek.ek.name) == (AK.public.name, ek.public.name)


@pytest.mark.parametrize("template", TEMPLATES)
def test_another_object_cannot_be_activated(template: str) -> None:
    ek = SimulatedEk(template)
    blob = make_credential(ek.ek, AK.public.name, b"secret", os.urandom)
    with pytest.raises(WrongCredentialError):
        ek.activate_credential(blob, SimulatedAttester(label="other").public.name)


def test_another_key_cannot_open_it() -> None:
    blob = make_credential(SimulatedEk("L-2").ek, AK.public.name, b"secret", os.urandom)
    with pytest.raises(WrongCredentialError):
        SimulatedEk("L-2", label="other").activate_credential(blob, AK.public.name)


def test_a_changed_credential_is_refused() -> None:
    ek = SimulatedEk("L-2")
    blob = make_credential(ek.ek, AK.public.name, b"secret", os.urandom)
    identity = blob.id_object
    changed = CredentialBlob(
        type(identity)(identity.integrity_hmac, identity.enc_identity[::-1]),
        blob.encrypted_secret,
    )
    with pytest.raises(WrongCredentialError):
        ek.activate_credential(changed, AK.public.name)


@pytest.mark.parametrize("size", [0, 33])
def test_a_credential_has_at_most_a_digests_size(size: int) -> None:
    with pytest.raises(ValueError, match="1 to 32 bytes"):
        make_credential(SimulatedEk("L-2").ek, AK.public.name, bytes(size), os.urandom)


def test_two_challenges_have_nothing_in_common() -> None:
    ek = PinnedEk(SimulatedEk("L-2").ek)
    one, two = (challenge_activation(AK.ak, ek, os.urandom) for _ in range(2))
    assert one.secret != two.secret
    assert one.blob.encrypted_secret != two.blob.encrypted_secret


def test_aes_cfb_is_the_published_one() -> None:
    # NIST SP 800-38A, F.3.13: the first block with the zero IV is E(0) xor P, and feedback is
    # the ciphertext; checked against the vector by starting from its first ciphertext block.
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    iv = bytes.fromhex("000102030405060708090a0b0c0d0e0f")
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
    cipher = bytes.fromhex("3b3fd92eb72dad20333449f8e83cfb4ac8a64537a0b3a93fcde3cdad9f1ce58b")
    # A first block that encrypts to the vector's IV.
    first = bytes(a ^ b for a, b in zip(iv, aes_cfb(key, bytes(16)), strict=True))
    assert aes_cfb(key, first + plain) == iv + cipher


@given(st.binary(max_size=70))
def test_aes_cfb_keeps_the_length(data: bytes) -> None:
    assert len(aes_cfb(bytes(16), data)) == len(data)


def test_key_derivations_give_as_many_bits_as_asked() -> None:
    sha1 = HashAlgorithm.SHA1
    long = kdfa(sha1, b"key", b"LABEL", b"u", b"v", 512)
    assert len(long) == 64
    assert kdfa(sha1, b"key", b"LABEL", b"u", b"v", 128) != long[:16]  # the size is hashed in
    assert kdfe(sha1, b"z", b"USE", b"u", b"v", 256)[:16] == kdfe(
        sha1, b"z", b"USE", b"u", b"v", 128
    )
