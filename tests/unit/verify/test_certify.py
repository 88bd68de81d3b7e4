"""One key of a TPM vouches for another."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from undercroft.base import FormatError, HashAlgorithm, VerificationError
from undercroft.formats.tpm import CreationData, CreationInfo, PcrSelectionList, TpmRh
from undercroft.testing import SimulatedAttester
from undercroft.verify.ak import verify_ak
from undercroft.verify.certify import verify_certify, verify_creation

NONCE = bytes(range(32))
OWNER = TpmRh.OWNER.handle_name
AK, SUBJECT = SimulatedAttester(), SimulatedAttester(label="subject", hierarchy=TpmRh.OWNER)
CREATION = CreationData(PcrSelectionList(()), b"", 1, None, OWNER, OWNER, b"outside")


def test_a_certified_key_can_be_used_to_certify_the_next() -> None:
    statement = AK.certify(SUBJECT.public, OWNER, NONCE).statement
    certified = verify_certify(statement, AK.ak, SUBJECT.public, NONCE, parent=OWNER)
    assert certified.name == SUBJECT.public.name
    assert certified.qualified_name == SUBJECT.qualified_name
    second = verify_ak(certified.public)
    third = SimulatedAttester(label="third").public
    again = SUBJECT.certify(third, OWNER, NONCE).statement
    assert verify_certify(again, second, third, NONCE).by.name == SUBJECT.public.name


def test_creation_tells_the_circumstances() -> None:
    statement = AK.certify_creation(SUBJECT.public, CREATION, NONCE).statement
    created = verify_creation(statement, AK.ak, SUBJECT.public, CREATION.encode(), NONCE)
    assert created.creation == CREATION
    assert created.public == SUBJECT.public


def test_creation_data_that_was_signed_but_is_none_is_a_format_error() -> None:
    info = CreationInfo(SUBJECT.public.name, HashAlgorithm.SHA256.hash(b"junk"))
    statement = AK.signed(AK.attest(info, NONCE), ()).statement
    with pytest.raises(FormatError):
        verify_creation(statement, AK.ak, SUBJECT.public, b"junk", NONCE)


def test_a_nameless_object_cannot_be_certified() -> None:
    nameless = replace(SUBJECT.public, name_alg=None)
    info = CreationInfo(b"", b"")
    statement = AK.signed(AK.attest(info, NONCE), ()).statement
    with pytest.raises(VerificationError) as caught:
        verify_creation(statement, AK.ak, nameless, b"", NONCE)
    assert caught.value.check == "creation.name"


def test_without_qualifying_data_nothing_is_fresh() -> None:
    statement = AK.certify(SUBJECT.public, OWNER, b"").statement
    with pytest.raises(ValueError, match="not fresh"):
        verify_certify(statement, AK.ak, SUBJECT.public, b"")
