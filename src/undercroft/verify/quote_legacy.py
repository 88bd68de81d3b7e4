"""TPM 1.2 quotes: verified for what they are, and graded legacy.

A TPM 1.2 has no clock, no counters and no hash but SHA-1 in its quotes, so its result is a type
of its own: nothing that needs those can mistake it for a TPM 2.0 quote.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from undercroft.base import PcrBank
from undercroft.formats.tpm import PcrComposite, PubKey12, QuoteInfo2, UnverifiedQuote12
from undercroft.formats.tpm.legacy import SHA1_SIZE, SS_RSASSAPKCS1V15_SHA1
from undercroft.verify.ak_key import MIN_RSA_BITS
from undercroft.verify.checks import Check, QuoteGrade, Weakness, grade_of

L1_KEY = Check(
    "L1",
    "quote12.key",
    "the attestation identity key is an RSA key of 2048 bits that signs RSASSA over SHA-1",
    "TPM Main 1.2 Part 2, 10.5; Part 3, 15.1",
)
L2_SIGNATURE = Check(
    "L2",
    "quote12.signature",
    "the attestation identity key signed these bytes",
    "TPM Main 1.2 Part 3, 16.3 and 16.5",
)
L3_NONCE = Check(
    "L3",
    "quote12.nonce",
    "externalData is the expected value, byte for byte",
    "TPM Main 1.2 Part 2, 11.3 and 11.4",
)
L4_SELECTION = Check(
    "L4",
    "quote12.selection",
    "the PCRs are exactly the expected ones, in what was sent and in what was signed",
    "TPM Main 1.2 Part 2, 8.1, 8.2 and 11.4",
)
L5_DIGEST = Check(
    "L5",
    "quote12.composite",
    "the signed composite hash is that of the PCR values that were sent",
    "TPM Main 1.2 Part 2, 5.4.1 and 8.2",
)
CHECKS = (L1_KEY, L2_SIGNATURE, L3_NONCE, L4_SELECTION, L5_DIGEST)
WEAKNESSES = (Weakness.TPM12, Weakness.SHA1_SIGNATURE, Weakness.SHA1_PCR_BANK)
_SHA1, _RSASSA = hashes.SHA1(), padding.PKCS1v15()


@dataclass(frozen=True, slots=True)
class IdentityKey12:
    """A TPM 1.2 attestation identity key, loaded.  Such a key signs only what its TPM says."""

    public: PubKey12
    key: rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class VerifiedQuote12:
    """A TPM 1.2 quote that passed every check of :data:`CHECKS`; always graded legacy."""

    pcrs: tuple[PcrBank, ...]
    qualifying_data: bytes
    aik: IdentityKey12

    @property
    def weaknesses(self) -> tuple[Weakness, ...]:
        """What is weak in the quote: everything is SHA-1."""
        return WEAKNESSES

    @property
    def grade(self) -> QuoteGrade:
        """LEGACY."""
        return grade_of(WEAKNESSES)


def load_identity_key(public: PubKey12) -> IdentityKey12:
    """Load an attestation identity key.  Raises VerificationError (L1)."""
    modulus = int.from_bytes(public.modulus, "big")
    exponent = int.from_bytes(public.exponent, "big") or 65537
    if public.sig_scheme != SS_RSASSAPKCS1V15_SHA1 or modulus.bit_length() < MIN_RSA_BITS:
        raise L1_KEY.failed(
            "the key is no attestation identity key",
            expected=f"RSASSA over SHA-1, {MIN_RSA_BITS} bits",
            got=f"scheme {public.sig_scheme:#x}, {modulus.bit_length()} bits",
        )
    try:
        key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError as error:
        raise L1_KEY.failed("the key cannot be used", got=error) from None
    return IdentityKey12(public, key)


def verify_quote12(
    quote: UnverifiedQuote12,
    aik: IdentityKey12,
    expected_external_data: bytes,
    expected_pcrs: Collection[int],
) -> VerifiedQuote12:
    """Check a TPM 1.2 quote (L1 to L5) and return the SHA-1 PCRs that it proves.

    ``expected_external_data`` has 20 bytes.  Raises VerificationError, or FormatError for a
    PCR that no TPM has; ValueError if the caller expects no PCR or other than 20 bytes.
    """
    if len(expected_external_data) != SHA1_SIZE or not expected_pcrs:
        raise ValueError("a TPM 1.2 quote has 20 bytes of external data and at least one PCR")
    info = quote.info
    try:
        aik.key.verify(quote.signature, quote.info_bytes, _RSASSA, _SHA1)
    except InvalidSignature:
        raise L2_SIGNATURE.failed("the signature is not this key's over these bytes") from None
    if not hmac.compare_digest(info.external_data, expected_external_data):
        raise L3_NONCE.failed(
            "the quote answers another challenge",
            expected=expected_external_data.hex(),
            got=info.external_data.hex(),
        )
    composite = quote.claimed_composite
    wanted = tuple(sorted(set(expected_pcrs)))
    if composite.indices != wanted or not _select_agrees(info, composite):
        raise L4_SELECTION.failed(
            "the quote is about other PCRs than were asked for",
            expected=",".join(map(str, wanted)),
            got=",".join(map(str, composite.indices)),
        )
    if not hmac.compare_digest(composite.digest, info.digest_value):
        raise L5_DIGEST.failed(
            "the PCR values are not those that the TPM signed",
            expected=info.digest_value.hex(),
            got=composite.digest.hex(),
        )
    return VerifiedQuote12((composite.bank,), info.external_data, aik)


def _select_agrees(info: object, composite: PcrComposite) -> bool:
    # TPM_QUOTE_INFO signs the bitmap only inside the composite hash, which L5 recomputes.
    return not isinstance(info, QuoteInfo2) or info.pcr_select == composite.pcr_select
