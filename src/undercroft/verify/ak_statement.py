"""What every statement of a TPM must satisfy, whatever it states: magic, signature, freshness."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from undercroft.formats.tpm import TPM_GENERATED_VALUE, Attest, Signature
from undercroft.verify.ak import AttestationKey
from undercroft.verify.ak_key import verify_signature
from undercroft.verify.checks import Check


@dataclass(frozen=True, slots=True)
class StatementChecks:
    """The checks of one kind of statement, in the order in which they are made."""

    magic: Check
    scheme: Check
    signature: Check
    signer: Check
    nonce: Check

    @classmethod
    def numbered(
        cls, letter: str, kind: str, numbers: tuple[int, int, int, int, int]
    ) -> StatementChecks:
        """Return the checks ``kind``.magic and so on, numbered ``letter`` and ``numbers``."""
        rows = (
            (
                "magic",
                "the structure starts with TPM_GENERATED_VALUE, which a restricted key signs for"
                " nobody but its TPM",
                "TPM 2.0 Part 2, 6.2 and 10.12.12",
            ),
            (
                "scheme",
                "the signature has the scheme and hash of the attestation key",
                "TPM 2.0 Part 2, 12.2.3.5 and 12.2.3.6; Part 3, 18.1",
            ),
            (
                "signature",
                "the attestation key signed these bytes",
                "TPM 2.0 Part 1, B.6, B.7 and C.4",
            ),
            (
                "signer",
                "qualifiedSigner is the key's Qualified Name, where its parent is known",
                "TPM 2.0 Part 1, 16; Part 2, 10.12.12",
            ),
            (
                "nonce",
                "extraData is the expected qualifying data, byte for byte",
                "TPM 2.0 Part 3, 18.1 (qualifyingData); RFC 9334, 10.2",
            ),
        )
        return cls(
            *(
                Check(f"{letter}{number}", f"{kind}.{name}", says, source)
                for number, (name, says, source) in zip(numbers, rows, strict=True)
            )
        )


def check_statement(
    attest: Attest,
    attest_bytes: bytes,
    signature: Signature,
    ak: AttestationKey,
    expected_qualifying_data: bytes,
    checks: StatementChecks,
) -> None:
    """Raise VerificationError unless ``ak`` made this statement for this challenge.

    Raises ValueError if the caller expects no qualifying data, for such a statement could be
    any old one.
    """
    if not expected_qualifying_data:
        raise ValueError("a statement without qualifying data is not fresh")
    if attest.magic != TPM_GENERATED_VALUE:
        raise checks.magic.failed(
            "a TPM did not make this structure",
            expected=f"{TPM_GENERATED_VALUE:#x}",
            got=f"{attest.magic:#x}",
        )
    scheme = ak.scheme
    if signature.scheme is not scheme.algorithm or signature.hash_alg is not scheme.hash_alg:
        raise checks.scheme.failed(
            "the signature is not of the key's scheme",
            expected=scheme,
            got=f"{signature.scheme}-{signature.hash_alg}",
        )
    verify_signature(ak.key, signature, attest_bytes, checks.signature)
    if ak.qualified_name is not None and attest.qualified_signer != ak.qualified_name:
        raise checks.signer.failed(
            "the key stands elsewhere in its TPM than expected",
            expected=ak.qualified_name.hex(),
            got=attest.qualified_signer.hex(),
        )
    # compare_digest is False for different lengths: nothing is padded or cut.
    if not hmac.compare_digest(attest.extra_data, expected_qualifying_data):
        raise checks.nonce.failed(
            "the statement answers another challenge",
            expected=expected_qualifying_data.hex(),
            got=attest.extra_data.hex(),
            remedy="collect evidence again, for this challenge",
        )
