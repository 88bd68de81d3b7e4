"""A quote, or any other statement of a TPM, as it arrives: parsed, and not yet believed."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from undercroft.base import PcrBank
from undercroft.formats.tpm.attest import Attest, parse_attest
from undercroft.formats.tpm.signature import Signature, parse_signature


class UnverifiedQuote(msgspec.Struct, frozen=True):
    """A TPM 2.0 quote, its signature and the PCR values that came with it.

    ``attest_bytes`` are the bytes that were signed, and ``attest`` what they say (of any type:
    ``verify`` insists on a quote).  No signature covers ``claimed_pcrs``; pcrDigest proves them.
    """

    attest_bytes: bytes
    attest: Attest
    signature: Signature
    claimed_pcrs: tuple[PcrBank, ...]


def parse_quote(
    attest: bytes, signature: bytes, claimed_pcrs: Iterable[PcrBank]
) -> UnverifiedQuote:
    """Parse a TPMS_ATTEST and a TPMT_SIGNATURE, each exactly.  Raises FormatError."""
    return UnverifiedQuote(
        attest, parse_attest(attest), parse_signature(signature), tuple(claimed_pcrs)
    )


class UnverifiedStatement(msgspec.Struct, frozen=True):
    """A statement of a TPM other than a quote (TPM2_Certify and the like) and its signature.

    ``attest_bytes`` are the bytes that were signed, and ``attest`` what they say.
    """

    attest_bytes: bytes
    attest: Attest
    signature: Signature


def parse_statement(attest: bytes, signature: bytes) -> UnverifiedStatement:
    """Parse a TPMS_ATTEST and a TPMT_SIGNATURE, each exactly.  Raises FormatError."""
    return UnverifiedStatement(attest, parse_attest(attest), parse_signature(signature))
