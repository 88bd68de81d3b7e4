"""One TPM key vouches for another object of the same TPM: TPM2_Certify, TPM2_CertifyCreation.

A chain is built link by link: the attestation key that an endorsement key or a certificate
vouches for certifies the next key, whose attributes can then be believed.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from undercroft.formats.tpm import (
    CertifyInfo,
    CreationData,
    CreationInfo,
    Public,
    TpmSt,
    UnverifiedStatement,
    parse_creation_data,
)
from undercroft.verify.ak import AttestationKey
from undercroft.verify.ak_statement import StatementChecks, check_statement
from undercroft.verify.checks import Check

CERTIFY = StatementChecks.numbered("C", "certify", (1, 3, 4, 5, 6))
C2_TYPE = Check("C2", "certify.type", "the structure is TPM2_Certify's", "TPM 2.0 Part 2, 10.12.10")
C7_NAME = Check(
    "C7",
    "certify.name",
    "the certified Name is the one of the public area that was sent",
    "TPM 2.0 Part 1, 16; Part 3, 18.2",
)
C8_QUALIFIED_NAME = Check(
    "C8",
    "certify.qualified-name",
    "the certified Qualified Name is the object's, where its parent is known",
    "TPM 2.0 Part 1, 16",
)
CREATION = StatementChecks.numbered("N", "creation", (1, 3, 4, 5, 6))
N2_TYPE = Check(
    "N2", "creation.type", "the structure is TPM2_CertifyCreation's", "TPM 2.0 Part 2, 10.12.10"
)
N7_NAME = Check(
    "N7",
    "creation.name",
    "the certified Name is the one of the public area that was sent",
    "TPM 2.0 Part 1, 16; Part 3, 18.3",
)
N8_HASH = Check(
    "N8",
    "creation.hash",
    "creationHash is the digest of the creation data that was sent, with the object's nameAlg",
    "TPM 2.0 Part 2, 10.12.7 and 15.1; Part 3, 12.1",
)
CHECKS = (
    CERTIFY.magic,
    C2_TYPE,
    CERTIFY.scheme,
    CERTIFY.signature,
    CERTIFY.signer,
    CERTIFY.nonce,
    C7_NAME,
    C8_QUALIFIED_NAME,
    CREATION.magic,
    N2_TYPE,
    CREATION.scheme,
    CREATION.signature,
    CREATION.signer,
    CREATION.nonce,
    N7_NAME,
    N8_HASH,
)


@dataclass(frozen=True, slots=True)
class CertifiedObject:
    """An object that is loaded in the TPM of ``by``: its attributes are the TPM's word."""

    public: Public
    name: bytes
    qualified_name: bytes
    by: AttestationKey


@dataclass(frozen=True, slots=True)
class CreatedObject:
    """An object that the TPM of ``by`` created, and the circumstances of its creation."""

    public: Public
    name: bytes
    creation: CreationData
    by: AttestationKey


def verify_certify(
    statement: UnverifiedStatement,
    signer: AttestationKey,
    subject: Public,
    expected_qualifying_data: bytes,
    *,
    parent: bytes | None = None,
) -> CertifiedObject:
    """Check that ``signer``'s TPM has ``subject`` loaded (TPM2_Certify; C1 to C8).

    ``parent`` is the Qualified Name of the subject's parent (a hierarchy's is its handle), if
    the caller knows it.  Raises VerificationError; ValueError without qualifying data.
    """
    attest = statement.attest
    info = attest.attested
    if not isinstance(info, CertifyInfo):
        raise C2_TYPE.failed(
            "not TPM2_Certify's statement", expected=TpmSt.ATTEST_CERTIFY, got=attest.type
        )
    check_statement(
        attest,
        statement.attest_bytes,
        statement.signature,
        signer,
        expected_qualifying_data,
        CERTIFY,
    )
    name = _check_name(info.name, subject, C7_NAME)
    if parent is not None and info.qualified_name != subject.qualified_name(parent):
        raise C8_QUALIFIED_NAME.failed(
            "the object stands elsewhere in its TPM than expected",
            expected=subject.qualified_name(parent).hex(),
            got=info.qualified_name.hex(),
        )
    return CertifiedObject(subject, name, info.qualified_name, signer)


def verify_creation(
    statement: UnverifiedStatement,
    signer: AttestationKey,
    subject: Public,
    creation_data: bytes,
    expected_qualifying_data: bytes,
) -> CreatedObject:
    """Check that ``signer``'s TPM created ``subject`` (TPM2_CertifyCreation; N1 to N8).

    ``creation_data`` is the TPMS_CREATION_DATA.  Raises VerificationError, or FormatError if
    the creation data cannot be parsed; ValueError without qualifying data.
    """
    attest = statement.attest
    info = attest.attested
    if not isinstance(info, CreationInfo):
        raise N2_TYPE.failed(
            "not TPM2_CertifyCreation's statement",
            expected=TpmSt.ATTEST_CREATION,
            got=attest.type,
        )
    check_statement(
        attest,
        statement.attest_bytes,
        statement.signature,
        signer,
        expected_qualifying_data,
        CREATION,
    )
    name = _check_name(info.object_name, subject, N7_NAME)
    # An object without nameAlg has no Name, so there is a hash here.
    digest = subject.name_alg.hash(creation_data) if subject.name_alg else b""
    if not hmac.compare_digest(digest, info.creation_hash):
        raise N8_HASH.failed(
            "the creation data is not what the TPM signed",
            expected=info.creation_hash.hex(),
            got=digest.hex(),
        )
    return CreatedObject(subject, name, parse_creation_data(creation_data), signer)


def _check_name(certified: bytes, subject: Public, check: Check) -> bytes:
    name = subject.name
    if not name or certified != name:
        raise check.failed(
            "the TPM certified another object", expected=name.hex(), got=certified.hex()
        )
    return name
