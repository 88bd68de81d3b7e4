"""Credential blobs: what TPM2_MakeCredential makes and TPM2_ActivateCredential opens."""

from __future__ import annotations

import msgspec

from undercroft.formats.reader import BoundedReader
from undercroft.formats.tpm.constants import MAX_DIGEST, MAX_ECC_KEY_BYTES, MAX_RSA_KEY_BYTES
from undercroft.formats.tpm.fields import encode_2b

MAX_ENC_IDENTITY = 2 + MAX_DIGEST
"""An encrypted TPM2B_DIGEST."""
TOOLS_MAGIC = 0xBADCC0DE
TOOLS_VERSION = 1
_MAX_SECRET = max(MAX_RSA_KEY_BYTES, 2 * (2 + MAX_ECC_KEY_BYTES))


class IdObject(msgspec.Struct, frozen=True):
    """TPMS_ID_OBJECT (Part 2, 12.4.2).

    ``enc_identity`` is the encrypted TPM2B_DIGEST with nothing in front: its size field is
    inside the encryption (Part 1, 24.4).
    """

    integrity_hmac: bytes
    enc_identity: bytes

    def encode(self) -> bytes:
        """Encode as TPM2B_ID_OBJECT."""
        return encode_2b(encode_2b(self.integrity_hmac) + self.enc_identity)


class EncryptedSecret(msgspec.Struct, frozen=True):
    """TPM2B_ENCRYPTED_SECRET (Part 2, 11.4.3).

    ``secret`` is OAEP ciphertext for an RSA key; for an ECC key it is a TPMS_ECC_POINT.
    """

    secret: bytes

    def encode(self) -> bytes:
        """Encode as TPM2B_ENCRYPTED_SECRET."""
        return encode_2b(self.secret)


class EccPoint(msgspec.Struct, frozen=True):
    """TPMS_ECC_POINT (Part 2, 11.2.5.2), big-endian, as found."""

    x: bytes
    y: bytes

    def encode(self) -> bytes:
        """Encode as TPMS_ECC_POINT."""
        return encode_2b(self.x) + encode_2b(self.y)


class CredentialBlob(msgspec.Struct, frozen=True):
    """Both parts of a credential: what a verifier sends to be activated."""

    id_object: IdObject
    encrypted_secret: EncryptedSecret

    def encode(self) -> bytes:
        """Encode as the parameters of TPM2_ActivateCredential: both TPM2Bs (Part 3, 12.5)."""
        return self.id_object.encode() + self.encrypted_secret.encode()

    def encode_tools_file(self) -> bytes:
        """Encode as the file that tpm2-tools reads: magic, version, both TPM2Bs."""
        head = TOOLS_MAGIC.to_bytes(4, "big") + TOOLS_VERSION.to_bytes(4, "big")
        return head + self.encode()


def _read_id_object(reader: BoundedReader) -> IdObject:
    outer = reader.sized(2, "the ID object", limit=2 + MAX_DIGEST + MAX_ENC_IDENTITY)
    inner = BoundedReader(
        outer, "TPMS_ID_OBJECT", order="big", base=reader.base + reader.offset - len(outer)
    )
    hmac = inner.sized(2, "integrityHMAC", limit=MAX_DIGEST)
    if inner.remaining > MAX_ENC_IDENTITY:
        raise inner.fail("encIdentity is too large", expected=MAX_ENC_IDENTITY, got=inner.remaining)
    return IdObject(hmac, inner.rest())


def _read_secret(reader: BoundedReader) -> EncryptedSecret:
    return EncryptedSecret(reader.sized(2, "secret", limit=_MAX_SECRET))


def parse_id_object(data: bytes) -> IdObject:
    """Parse ``data``, exactly one TPM2B_ID_OBJECT.  Raises FormatError."""
    reader = BoundedReader(data, "TPM2B_ID_OBJECT", order="big")
    value = _read_id_object(reader)
    reader.finish()
    return value


def parse_encrypted_secret(data: bytes) -> EncryptedSecret:
    """Parse ``data``, exactly one TPM2B_ENCRYPTED_SECRET.  Raises FormatError."""
    reader = BoundedReader(data, "TPM2B_ENCRYPTED_SECRET", order="big")
    value = _read_secret(reader)
    reader.finish()
    return value


def parse_ecc_point(data: bytes) -> EccPoint:
    """Parse ``data``, exactly one TPMS_ECC_POINT.  Raises FormatError."""
    reader = BoundedReader(data, "TPMS_ECC_POINT", order="big")
    x = reader.sized(2, "x", limit=MAX_ECC_KEY_BYTES)
    point = EccPoint(x, reader.sized(2, "y", limit=MAX_ECC_KEY_BYTES))
    reader.finish()
    return point


def _read_blob(reader: BoundedReader) -> CredentialBlob:
    blob = CredentialBlob(_read_id_object(reader), _read_secret(reader))
    reader.finish()
    return blob


def parse_credential(data: bytes) -> CredentialBlob:
    """Parse ``data``: a TPM2B_ID_OBJECT and a TPM2B_ENCRYPTED_SECRET.  Raises FormatError."""
    return _read_blob(BoundedReader(data, "TPM2_ActivateCredential", order="big"))


def parse_tools_credential(data: bytes) -> CredentialBlob:
    """Parse ``data``, a credential file of tpm2-tools.  Raises FormatError."""
    reader = BoundedReader(data, "tpm2-tools credential", order="big")
    for what, expected in (("magic", TOOLS_MAGIC), ("version", TOOLS_VERSION)):
        got = reader.u32(what)
        if got != expected:
            reader.offset -= 4
            raise reader.fail(f"the {what} is wrong", expected=f"{expected:#x}", got=f"{got:#x}")
    return _read_blob(reader)
