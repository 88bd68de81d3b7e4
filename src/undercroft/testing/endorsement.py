"""The endorsement keys of a simulated TPM, and TPM2_ActivateCredential done with them."""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from undercroft.base import HashAlgorithm
from undercroft.formats.tpm import (
    CredentialBlob,
    EccPublic,
    ObjectAttributes,
    Public,
    RsaPublic,
    SymmetricDefinition,
    TpmAlg,
    parse_ecc_point,
)
from undercroft.testing.attester import public_key_area
from undercroft.testing.keys import ecc_key, rsa_key
from undercroft.verify.ak_key import HASHES
from undercroft.verify.credential import IDENTITY, INTEGRITY, STORAGE, aes_cfb, kdfa, kdfe
from undercroft.verify.ek import POLICY_A, POLICY_B, EndorsementKey, verify_ek

EK_ATTRIBUTES = (
    ObjectAttributes.FIXED_TPM
    | ObjectAttributes.FIXED_PARENT
    | ObjectAttributes.SENSITIVE_DATA_ORIGIN
    | ObjectAttributes.ADMIN_WITH_POLICY
    | ObjectAttributes.RESTRICTED
    | ObjectAttributes.DECRYPT
)
TEMPLATES = ("L-1", "L-2", "H-3")
"""Templates of the EK profile that :class:`SimulatedEk` can make."""


class WrongCredentialError(Exception):
    """TPM_RC_INTEGRITY: the credential is not for this key and this object."""


class SimulatedEk:
    """An endorsement key in software, after one of :data:`TEMPLATES`."""

    def __init__(self, template: str = "L-1", *, label: str = "ek") -> None:
        self.private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
        if template == "L-1":
            self.private = rsa_key(label)
        else:
            curve = ec.SECP256R1() if template == "L-2" else ec.SECP384R1()
            self.private = ecc_key(label, curve)
        wide = template == "H-3"
        self.name_alg = HashAlgorithm.SHA384 if wide else HashAlgorithm.SHA256
        symmetric = SymmetricDefinition(TpmAlg.AES, 256 if wide else 128, TpmAlg.CFB)
        area = public_key_area(self.private, None)
        key = (
            RsaPublic(symmetric, None, area.key_bits, 0, area.modulus)
            if isinstance(area, RsaPublic)
            else EccPublic(symmetric, None, area.curve, None, area.x, area.y)
        )
        policy = POLICY_B[HashAlgorithm.SHA384] if wide else POLICY_A
        self.public = Public(self.name_alg, EK_ATTRIBUTES, policy, key)

    @property
    def ek(self) -> EndorsementKey:
        """The endorsement key as a verifier sees it."""
        return verify_ek(self.public)

    def activate_credential(self, blob: CredentialBlob, object_name: bytes) -> bytes:
        """TPM2_ActivateCredential for a loaded object; raises WrongCredentialError."""
        seed = self._seed(blob.encrypted_secret.secret)
        bits = self.ek.symmetric_bits
        integrity = kdfa(self.name_alg, seed, INTEGRITY, b"", b"", self.name_alg.size * 8)
        sealed = blob.id_object.enc_identity
        outer = hmac.digest(integrity, sealed + object_name, self.name_alg.hashlib_name)
        if not hmac.compare_digest(outer, blob.id_object.integrity_hmac):
            raise WrongCredentialError
        key = kdfa(self.name_alg, seed, STORAGE, object_name, b"", bits)
        plain = _aes_cfb_decrypt(key, sealed)
        return plain[2 : 2 + int.from_bytes(plain[:2], "big")]

    def _seed(self, secret: bytes) -> bytes:
        if isinstance(self.private, rsa.RSAPrivateKey):
            primitive = HASHES[self.name_alg]
            oaep = padding.OAEP(padding.MGF1(primitive), primitive, IDENTITY + b"\0")
            return self.private.decrypt(secret, oaep)
        point = parse_ecc_point(secret)
        x, y = int.from_bytes(point.x, "big"), int.from_bytes(point.y, "big")
        peer = ec.EllipticCurvePublicNumbers(x, y, self.private.curve).public_key()
        z = self.private.exchange(ec.ECDH(), peer)
        ours = self.private.public_key().public_numbers().x.to_bytes(len(point.x), "big")
        return kdfe(self.name_alg, z, IDENTITY, point.x, ours, self.name_alg.size * 8)


def _aes_cfb_decrypt(key: bytes, data: bytes) -> bytes:
    """Undo :func:`undercroft.verify.credential.aes_cfb`, block after block."""
    plain = b""
    for start in range(0, len(data), 16):
        # Re-encrypting what is known so far, and one zero block, gives the next key stream.
        stream = aes_cfb(key, plain + bytes(16))[start : start + 16]
        plain += bytes(a ^ b for a, b in zip(data[start : start + 16], stream, strict=False))
    return plain
