"""A simulated TPM 1.2: it makes and signs TPM_Quote and TPM_Quote2 structures."""

from __future__ import annotations

from collections.abc import Iterable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from undercroft.base import HashAlgorithm, PcrBank
from undercroft.formats.tpm import (
    PcrComposite,
    PubKey12,
    QuoteInfo2,
    QuoteInfo12,
    UnverifiedQuote12,
    VersionInfo12,
    parse_quote12,
)
from undercroft.formats.tpm.legacy import SS_RSASSAPKCS1V15_SHA1, AnyQuoteInfo12
from undercroft.testing.keys import rsa_key

_ES_NONE = 0x0001
VERSION_INFO = VersionInfo12(b"\x01\x02\x00\x00", 2, 3, b"UCFT", b"")


class SimulatedAttester12:
    """A TPM 1.2 with an attestation identity key; ``label`` names the key."""

    def __init__(self, label: str = "ak") -> None:
        self.private = rsa_key(label)
        modulus = self.private.public_key().public_numbers().n.to_bytes(256, "big")
        self.public = PubKey12(_ES_NONE, SS_RSASSAPKCS1V15_SHA1, 2048, 2, b"", modulus)
        self.pcrs = {index: bytes(20) for index in range(24)}

    def measure(self, index: int, data: bytes) -> None:
        """TPM_Extend with the SHA-1 of ``data``."""
        sha1 = HashAlgorithm.SHA1
        self.pcrs[index] = sha1.hash(self.pcrs[index], sha1.hash(data))

    def composite(self, indices: Iterable[int]) -> PcrComposite:
        """Return the values of these PCRs."""
        bank = PcrBank(HashAlgorithm.SHA1, {index: self.pcrs[index] for index in indices})
        return PcrComposite.of(bank)

    def quote(self, external_data: bytes, indices: Iterable[int]) -> UnverifiedQuote12:
        """TPM_Quote."""
        composite = self.composite(indices)
        return self.signed(QuoteInfo12(composite.digest, external_data), composite)

    def quote2(
        self, external_data: bytes, indices: Iterable[int], version: VersionInfo12 | None = None
    ) -> UnverifiedQuote12:
        """TPM_Quote2, with the version information if it is given."""
        composite = self.composite(indices)
        info = QuoteInfo2(external_data, composite.pcr_select, 1, composite.digest, version)
        return self.signed(info, composite)

    def signed(self, info: AnyQuoteInfo12, composite: PcrComposite) -> UnverifiedQuote12:
        """Sign ``info`` and put it beside ``composite``."""
        data = info.encode()
        signature = self.private.sign(data, padding.PKCS1v15(), hashes.SHA1())
        return parse_quote12(data, signature, composite.encode())
