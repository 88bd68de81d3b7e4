"""File signatures in ``sig`` fields against a keyring.

The checks are numbered; :data:`CHECKS` is the table.

A version 2 signature signs the file's digest (``asymmetric_verify`` in digsig_asymmetric.c); a
version 3 signature signs the hash of ``struct ima_file_id`` (``calc_file_id_hash`` in
ima_appraise.c): xattr type, hash algorithm, digest.  RSA is PKCS#1 v1.5, ECDSA is X9.62.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from undercroft.base import FormatError
from undercroft.formats.ima import FileDigest, ImaSignature, LinuxHash, SignatureType
from undercroft.verify.checks import Check

_SOURCE = "Linux security/integrity/digsig_asymmetric.c: asymmetric_verify"
F1_TYPE = Check(
    "F1",
    "ima.signature-type",
    "the signature is of a kind that an entry alone lets one check: EVM's portable signatures "
    "cover inode metadata that the entry has not",
    "Linux security/integrity/evm/evm_crypto.c: hmac_add_misc",
)
F2_KIND = Check(
    "F2",
    "ima.signature-kind",
    "version 2 goes with a file's own digest, version 3 with the digest type of its xattr type",
    "Linux security/integrity/ima/ima_appraise.c: xattr_verify",
)
F3_HASH = Check(
    "F3",
    "ima.signature-hash",
    "the signature's hash algorithm is the digest's, and not a broken one",
    _SOURCE,
)
F4_KEY = Check("F4", "ima.signature-key", "the keyring has the key that is named", _SOURCE)
F5_SIGNATURE = Check("F5", "ima.signature", "the key made the signature", _SOURCE)
CHECKS = (F1_TYPE, F2_KIND, F3_HASH, F4_KEY, F5_SIGNATURE)

ImaPublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

KEY_FORMAT = "IMA signing key"

HASHES: dict[LinuxHash, hashes.HashAlgorithm] = {
    LinuxHash.SHA224: hashes.SHA224(),
    LinuxHash.SHA256: hashes.SHA256(),
    LinuxHash.SHA384: hashes.SHA384(),
    LinuxHash.SHA512: hashes.SHA512(),
}
"""Algorithms that a signature may rest on.  MD5 and SHA-1 collide, so they are not here."""

_DIGEST_KINDS = {
    SignatureType.EVM_IMA_XATTR_DIGSIG: "ima",
    SignatureType.IMA_VERITY_DIGSIG: "verity",
}


@dataclass(frozen=True, slots=True)
class ImaKey:
    """A key that may sign files: its id as signatures name it, and what to call it.

    ``certified`` is how an appended signature names it: the issuer (a DER Name), the serial number
    and the whole subject key identifier of its certificate; None for a bare key.
    """

    key_id: bytes
    public_key: ImaPublicKey
    label: str
    certified: tuple[bytes, int, bytes] | None = None

    @property
    def encoded(self) -> bytes:
        """The id, the key as a SubjectPublicKeyInfo in DER, and its certificate's names."""
        der, spki = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        named = b"" if self.certified is None else repr(self.certified).encode()
        return self.key_id + self.public_key.public_bytes(der, spki) + named


@dataclass(frozen=True, slots=True)
class ImaKeyring:
    """Keys by id.  Two keys may share an id, which has only four bytes: both are tried."""

    keys: tuple[ImaKey, ...]

    def with_id(self, key_id: bytes) -> tuple[ImaKey, ...]:
        """Return the keys that have this id."""
        return tuple(key for key in self.keys if key.key_id == key_id)


@dataclass(frozen=True, slots=True)
class VerifiedImaSignature:
    """A signature that the key ``key`` made over ``digest``."""

    key: ImaKey
    digest: FileDigest
    version: int
    signature: ImaSignature = field(repr=False)


def load_key(data: bytes, label: str = "") -> ImaKey:
    """Read a certificate or a public key, PEM or DER, as a key that may sign files.

    The id is the end of the certificate's subject key identifier or, where there is none, of
    the SHA-1 of the public key's bits, as evmctl has it.  The certificate's own validity is not
    looked at: it went into the kernel's keyring, or the operator vouches for it.  Raises
    FormatError.
    """
    key, key_id, subject, certified = _read_key(data)
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise FormatError(KEY_FORMAT, 0, "neither an RSA nor an elliptic curve key")
    key_id = key_id or x509.SubjectKeyIdentifier.from_public_key(key).digest
    return ImaKey(key_id[-4:], key, label or subject or key_id.hex(), certified)


_Read: TypeAlias = tuple[object, bytes | None, str, tuple[bytes, int, bytes] | None]


def _read_key(data: bytes) -> _Read:
    try:
        if b"-----BEGIN CERTIFICATE-----" in data:
            return _of_certificate(x509.load_pem_x509_certificate(data))
        if data.lstrip().startswith(b"-----BEGIN"):
            return serialization.load_pem_public_key(data), None, "", None
        return _read_der(data)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise FormatError(
            KEY_FORMAT, 0, f"neither a certificate nor a public key: {error}"
        ) from None


def _read_der(data: bytes) -> _Read:
    try:
        return serialization.load_der_public_key(data), None, "", None
    except ValueError:
        return _of_certificate(x509.load_der_x509_certificate(data))


def _of_certificate(certificate: x509.Certificate) -> _Read:
    key, subject = certificate.public_key(), certificate.subject.rfc4514_string()
    issuer, serial = certificate.issuer.public_bytes(), certificate.serial_number
    try:
        identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        return key, None, subject, (issuer, serial, b"")
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError(str(error)) from None
    key_id = identifier.value.digest
    return key, key_id, subject, (issuer, serial, key_id)


def load_keyring(files: Iterable[tuple[str, bytes]]) -> ImaKeyring:
    """Read keys from (label, content) pairs.  Raises FormatError."""
    return ImaKeyring(tuple(load_key(data, label) for label, data in files))


def verify_ima_signature(
    signature: ImaSignature, digest: FileDigest, keyring: ImaKeyring
) -> VerifiedImaSignature:
    """Verify that a key of ``keyring`` signed a file with this digest.

    Raises VerificationError with one of :data:`CHECKS`: F1 and F4 say that nothing is known about
    the signature, every other that it is wrong or proves nothing.
    """
    kind = _DIGEST_KINDS.get(signature.type)
    if kind is None:
        raise F1_TYPE.failed(
            "an EVM signature covers metadata that the entry does not hold",
            got=signature.type.name,
        )
    if kind != digest.kind or (signature.version == 2) != (kind == "ima"):
        raise F2_KIND.failed(
            "the signature is not of a kind that goes with the entry's digest",
            expected=f"a signature over the {digest.kind} digest",
            got=f"{signature.type.name} version {signature.version}",
        )
    signed, algorithm = _signed_hash(signature, digest)
    keys = keyring.with_id(signature.claimed_key_id)
    if not keys:
        raise F4_KEY.failed("no key has this id", got=signature.claimed_key_id.hex())
    for key in keys:
        if made_by(key.public_key, signature.signature, signed, algorithm):
            return VerifiedImaSignature(key, digest, signature.version, signature)
    raise F5_SIGNATURE.failed("the signature is not over this digest", got=keys[0].label)


def _signed_hash(signature: ImaSignature, digest: FileDigest) -> tuple[bytes, hashes.HashAlgorithm]:
    """Return the hash that is signed and its algorithm."""
    algorithm = HASHES.get(signature.hash_algorithm)
    if (
        algorithm is None
        or digest.algorithm is not signature.hash_algorithm
        or len(digest.value) != signature.hash_algorithm.size
    ):
        raise F3_HASH.failed(
            "the signature's hash algorithm is not the digest's, or is broken",
            expected=digest.name,
            got=signature.hash_algorithm,
        )
    if signature.version == 2:
        return digest.value, algorithm
    file_id = bytes((signature.type, signature.hash_algorithm.number)) + digest.value
    return hash_of(algorithm, file_id), algorithm


def hash_of(algorithm: hashes.HashAlgorithm, data: bytes) -> bytes:
    """Return the digest of ``data`` by one of :data:`HASHES`."""
    hasher = hashes.Hash(algorithm)
    hasher.update(data)
    return hasher.finalize()


def made_by(
    key: ImaPublicKey, signature: bytes, signed: bytes, algorithm: hashes.HashAlgorithm
) -> bool:
    """Return whether ``key`` made ``signature`` over the hash ``signed``."""
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, signed, padding.PKCS1v15(), Prehashed(algorithm))
        else:
            key.verify(signature, signed, ec.ECDSA(Prehashed(algorithm)))
    except InvalidSignature:
        return False
    return True
