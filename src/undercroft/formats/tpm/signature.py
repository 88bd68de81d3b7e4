"""TPMT_SIGNATURE (Part 2, 11.3.4): the asymmetric kinds.

An HMAC or NULL "signature" proves nothing to anyone outside the TPM and is refused here.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from undercroft.base import HashAlgorithm
from undercroft.formats.reader import BoundedReader
from undercroft.formats.tpm.constants import MAX_ECC_KEY_BYTES, MAX_RSA_KEY_BYTES, TpmAlg
from undercroft.formats.tpm.fields import (
    encode_2b,
    encode_hash,
    read_hash,
    wrong_id,
)

RSA_SCHEMES = {int(a): a for a in (TpmAlg.RSASSA, TpmAlg.RSAPSS)}
ECC_SCHEMES = {int(a): a for a in (TpmAlg.ECDSA, TpmAlg.ECDAA, TpmAlg.SM2, TpmAlg.ECSCHNORR)}


class RsaSignature(msgspec.Struct, frozen=True):
    """TPMS_SIGNATURE_RSA (11.3.1) with its scheme: RSASSA or RSAPSS."""

    scheme: TpmAlg
    hash_alg: HashAlgorithm
    sig: bytes

    def encode(self) -> bytes:
        """Encode as TPMT_SIGNATURE."""
        return self.scheme.to_bytes(2, "big") + encode_hash(self.hash_alg) + encode_2b(self.sig)


class EccSignature(msgspec.Struct, frozen=True):
    """TPMS_SIGNATURE_ECC (11.3.2) with its scheme; ``r`` and ``s`` big-endian, as found.

    TPMs differ in whether they write leading zero bytes, so the bytes are kept.
    """

    scheme: TpmAlg
    hash_alg: HashAlgorithm
    r: bytes
    s: bytes

    def encode(self) -> bytes:
        """Encode as TPMT_SIGNATURE."""
        head = self.scheme.to_bytes(2, "big") + encode_hash(self.hash_alg)
        return head + encode_2b(self.r) + encode_2b(self.s)


Signature: TypeAlias = RsaSignature | EccSignature


def read_signature(reader: BoundedReader) -> Signature:
    """Read one TPMT_SIGNATURE from ``reader``."""
    sig_alg = reader.u16("sigAlg")
    if sig_alg in ECC_SCHEMES:
        return EccSignature(
            ECC_SCHEMES[sig_alg],
            read_hash(reader, "hash"),
            reader.sized(2, "signatureR", limit=MAX_ECC_KEY_BYTES),
            reader.sized(2, "signatureS", limit=MAX_ECC_KEY_BYTES),
        )
    if sig_alg in RSA_SCHEMES:
        return RsaSignature(
            RSA_SCHEMES[sig_alg],
            read_hash(reader, "hash"),
            reader.sized(2, "sig", limit=MAX_RSA_KEY_BYTES),
        )
    raise wrong_id(reader, "sigAlg", sig_alg)


def parse_signature(data: bytes) -> Signature:
    """Parse ``data``, exactly one TPMT_SIGNATURE.  Raises FormatError."""
    reader = BoundedReader(data, "TPMT_SIGNATURE", order="big")
    signature = read_signature(reader)
    reader.finish()
    return signature
