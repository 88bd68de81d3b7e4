"""TPMT_PUBLIC: the public area of a TPM object, and its Name (Part 2, 12.2; Part 1, 16)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, TypeAlias

import msgspec

from undercroft.base import HashAlgorithm
from undercroft.formats.reader import BoundedReader
from undercroft.formats.tpm.constants import (
    MAX_DIGEST,
    MAX_ECC_KEY_BYTES,
    MAX_RSA_KEY_BYTES,
    ObjectAttributes,
    TpmAlg,
    TpmEccCurve,
)
from undercroft.formats.tpm.fields import (
    encode_2b,
    encode_hash,
    read_hash,
    read_hash_or_null,
    unwrap_2b,
    wrong_id,
)

RSA_DEFAULT_EXPONENT = 65537
"""What an exponent field of zero means (Part 2, 12.2.3.5)."""

_BLOCK_CIPHERS = {int(a): a for a in (TpmAlg.TDES, TpmAlg.AES, TpmAlg.SM4, TpmAlg.CAMELLIA)}
_MODES = {
    int(a): a for a in (TpmAlg.CTR, TpmAlg.OFB, TpmAlg.CBC, TpmAlg.CFB, TpmAlg.ECB, TpmAlg.NULL)
}
_HASHED, _BARE, _COUNTED, _WITH_KDF = "hash", "", "hash+count", "hash+kdf"
_RSA_SCHEMES = {
    TpmAlg.RSASSA: _HASHED,
    TpmAlg.RSAPSS: _HASHED,
    TpmAlg.OAEP: _HASHED,
    TpmAlg.RSAES: _BARE,
}
_ECC_SCHEMES = {
    TpmAlg.ECDSA: _HASHED,
    TpmAlg.SM2: _HASHED,
    TpmAlg.ECSCHNORR: _HASHED,
    TpmAlg.ECDH: _HASHED,
    TpmAlg.ECMQV: _HASHED,
    TpmAlg.ECDAA: _COUNTED,
}
_KDF_SCHEMES = {
    TpmAlg.MGF1: _HASHED,
    TpmAlg.KDF1_SP800_56A: _HASHED,
    TpmAlg.KDF2: _HASHED,
    TpmAlg.KDF1_SP800_108: _HASHED,
}
_KEYEDHASH_SCHEMES = {TpmAlg.HMAC: _HASHED, TpmAlg.XOR: _WITH_KDF}


def _id(value: int) -> bytes:
    return value.to_bytes(2, "big")


class SymmetricDefinition(msgspec.Struct, frozen=True):
    """TPMT_SYM_DEF_OBJECT (11.1.7) other than TPM_ALG_NULL.  ``mode`` may be TPM_ALG_NULL."""

    algorithm: TpmAlg
    key_bits: int
    mode: TpmAlg


class Scheme(msgspec.Struct, frozen=True):
    """A TPMT_*_SCHEME other than TPM_ALG_NULL (11.2).

    ``hash_alg`` is None for RSAES; ``count`` is ECDAA's; ``kdf`` is XOR's key derivation.
    """

    algorithm: TpmAlg
    hash_alg: HashAlgorithm | None = None
    count: int | None = None
    kdf: TpmAlg | None = None

    def __str__(self) -> str:
        return f"{self.algorithm}-{self.hash_alg}" if self.hash_alg else str(self.algorithm)


class RsaPublic(msgspec.Struct, frozen=True):
    """TPMS_RSA_PARMS and its unique field (12.2.3.5); ``exponent`` 0 stands for 65537."""

    type: ClassVar[TpmAlg] = TpmAlg.RSA
    symmetric: SymmetricDefinition | None
    scheme: Scheme | None
    key_bits: int
    exponent: int
    modulus: bytes

    def encode(self) -> bytes:
        """Encode as TPMU_PUBLIC_PARMS and TPMU_PUBLIC_ID."""
        fixed = _id(self.key_bits) + self.exponent.to_bytes(4, "big")
        head = _encode_symmetric(self.symmetric) + _encode_scheme(self.scheme)
        return head + fixed + encode_2b(self.modulus)


class EccPublic(msgspec.Struct, frozen=True):
    """TPMS_ECC_PARMS and its unique field (12.2.3.6); ``x`` and ``y`` big-endian, as found."""

    type: ClassVar[TpmAlg] = TpmAlg.ECC
    symmetric: SymmetricDefinition | None
    scheme: Scheme | None
    curve: TpmEccCurve
    kdf: Scheme | None
    x: bytes
    y: bytes

    def encode(self) -> bytes:
        """Encode as TPMU_PUBLIC_PARMS and TPMU_PUBLIC_ID."""
        head = _encode_symmetric(self.symmetric) + _encode_scheme(self.scheme)
        return (
            head
            + _id(self.curve)
            + _encode_scheme(self.kdf)
            + encode_2b(self.x)
            + encode_2b(self.y)
        )


class KeyedHashPublic(msgspec.Struct, frozen=True):
    """TPMS_KEYEDHASH_PARMS and its unique field (12.2.3.3): an HMAC key or a sealed blob."""

    type: ClassVar[TpmAlg] = TpmAlg.KEYEDHASH
    scheme: Scheme | None
    unique: bytes

    def encode(self) -> bytes:
        """Encode as TPMU_PUBLIC_PARMS and TPMU_PUBLIC_ID."""
        return _encode_scheme(self.scheme) + encode_2b(self.unique)


class SymCipherPublic(msgspec.Struct, frozen=True):
    """TPMS_SYMCIPHER_PARMS and its unique field (12.2.3.4)."""

    type: ClassVar[TpmAlg] = TpmAlg.SYMCIPHER
    symmetric: SymmetricDefinition
    unique: bytes

    def encode(self) -> bytes:
        """Encode as TPMU_PUBLIC_PARMS and TPMU_PUBLIC_ID."""
        return _encode_symmetric(self.symmetric) + encode_2b(self.unique)


KeyPublic: TypeAlias = RsaPublic | EccPublic | KeyedHashPublic | SymCipherPublic


class Public(msgspec.Struct, frozen=True):
    """TPMT_PUBLIC (12.2.4).  ``name_alg`` None is TPM_ALG_NULL: such an object has no Name."""

    name_alg: HashAlgorithm | None
    attributes: ObjectAttributes
    auth_policy: bytes
    key: KeyPublic

    @property
    def type(self) -> TpmAlg:
        """The type field."""
        return self.key.type

    @property
    def name(self) -> bytes:
        """The object's Name: nameAlg and H(TPMT_PUBLIC); empty without nameAlg (Part 1, 16)."""
        if self.name_alg is None:
            return b""
        return encode_hash(self.name_alg) + self.name_alg.hash(self.encode())

    def qualified_name(self, parent: bytes) -> bytes:
        """Return the Qualified Name under a parent whose Qualified Name is ``parent``.

        It is nameAlg and H(parent || Name) (Part 1, 16); a hierarchy's is its handle.
        """
        return qualified_name(self.name, parent)

    def encode(self) -> bytes:
        """Encode as TPMT_PUBLIC."""
        return b"".join(
            (
                _id(self.type),
                encode_hash(self.name_alg),
                self.attributes.to_bytes(4, "big"),
                encode_2b(self.auth_policy),
                self.key.encode(),
            )
        )

    def encode_2b(self) -> bytes:
        """Encode as TPM2B_PUBLIC."""
        return encode_2b(self.encode())


def qualified_name(name: bytes, parent: bytes) -> bytes:
    """Return the Qualified Name of the object with Name ``name``: see Public.qualified_name."""
    algorithm = HashAlgorithm.from_alg_id(int.from_bytes(name[:2], "big"))
    return encode_hash(algorithm) + algorithm.hash(parent, name) if algorithm else b""


def _encode_symmetric(symmetric: SymmetricDefinition | None) -> bytes:
    if symmetric is None:
        return _id(TpmAlg.NULL)
    return _id(symmetric.algorithm) + _id(symmetric.key_bits) + _id(symmetric.mode)


def _encode_scheme(scheme: Scheme | None) -> bytes:
    if scheme is None:
        return _id(TpmAlg.NULL)
    out = _id(scheme.algorithm)
    if scheme.hash_alg is not None:
        out += encode_hash(scheme.hash_alg)
    for extra in (scheme.count, scheme.kdf):
        if extra is not None:
            out += _id(extra)
    return out


def _read_symmetric(reader: BoundedReader) -> SymmetricDefinition | None:
    algorithm = reader.u16("symmetric")
    if algorithm == TpmAlg.NULL:
        return None
    if algorithm not in _BLOCK_CIPHERS:
        raise wrong_id(reader, "symmetric", algorithm)
    key_bits = reader.u16("keyBits")
    mode = reader.u16("mode")
    if mode not in _MODES:
        raise wrong_id(reader, "mode", mode)
    return SymmetricDefinition(_BLOCK_CIPHERS[algorithm], key_bits, _MODES[mode])


def _read_scheme(reader: BoundedReader, allowed: dict[TpmAlg, str], what: str) -> Scheme | None:
    value = reader.u16(what)
    if value == TpmAlg.NULL:
        return None
    if value not in allowed:
        raise wrong_id(reader, what, value)
    algorithm = TpmAlg(value)
    shape = allowed[algorithm]
    if shape == _BARE:
        return Scheme(algorithm)
    hash_alg = read_hash(reader, f"the hash of {what}")
    if shape == _COUNTED:
        return Scheme(algorithm, hash_alg, count=reader.u16("count"))
    if shape == _WITH_KDF:
        kdf = reader.u16("kdf")
        if kdf not in _KDF_SCHEMES and kdf != TpmAlg.NULL:
            raise wrong_id(reader, "kdf", kdf)
        return Scheme(algorithm, hash_alg, kdf=TpmAlg(kdf))
    return Scheme(algorithm, hash_alg)


def _read_rsa(reader: BoundedReader) -> RsaPublic:
    return RsaPublic(
        _read_symmetric(reader),
        _read_scheme(reader, _RSA_SCHEMES, "scheme"),
        reader.u16("keyBits"),
        reader.u32("exponent"),
        reader.sized(2, "unique", limit=MAX_RSA_KEY_BYTES),
    )


def _read_curve(reader: BoundedReader) -> TpmEccCurve:
    value = reader.u16("curveID")
    try:
        return TpmEccCurve(value)
    except ValueError:
        raise wrong_id(reader, "curveID", value) from None


def _read_ecc(reader: BoundedReader) -> EccPublic:
    return EccPublic(
        _read_symmetric(reader),
        _read_scheme(reader, _ECC_SCHEMES, "scheme"),
        _read_curve(reader),
        _read_scheme(reader, _KDF_SCHEMES, "kdf"),
        reader.sized(2, "unique.x", limit=MAX_ECC_KEY_BYTES),
        reader.sized(2, "unique.y", limit=MAX_ECC_KEY_BYTES),
    )


def _read_keyedhash(reader: BoundedReader) -> KeyedHashPublic:
    scheme = _read_scheme(reader, _KEYEDHASH_SCHEMES, "scheme")
    return KeyedHashPublic(scheme, reader.sized(2, "unique", limit=MAX_DIGEST))


def _read_symcipher(reader: BoundedReader) -> SymCipherPublic:
    symmetric = _read_symmetric(reader)
    if symmetric is None:
        raise wrong_id(reader, "sym", TpmAlg.NULL)
    return SymCipherPublic(symmetric, reader.sized(2, "unique", limit=MAX_DIGEST))


_KEYS: dict[int, Callable[[BoundedReader], KeyPublic]] = {
    TpmAlg.RSA: _read_rsa,
    TpmAlg.ECC: _read_ecc,
    TpmAlg.KEYEDHASH: _read_keyedhash,
    TpmAlg.SYMCIPHER: _read_symcipher,
}


def _read_attributes(reader: BoundedReader) -> ObjectAttributes:
    value = reader.u32("objectAttributes")
    try:
        return ObjectAttributes(value)
    except ValueError:
        reader.offset -= 4
        raise reader.fail("reserved object attributes are set", got=f"{value:#010x}") from None


def read_public(reader: BoundedReader) -> Public:
    """Read one TPMT_PUBLIC from ``reader``."""
    kind = reader.u16("type")
    if kind not in _KEYS:
        raise wrong_id(reader, "type", kind)
    name_alg = read_hash_or_null(reader, "nameAlg")
    attributes = _read_attributes(reader)
    auth_policy = reader.sized(2, "authPolicy", limit=MAX_DIGEST)
    return Public(name_alg, attributes, auth_policy, _KEYS[kind](reader))


def _parse(data: bytes, base: int) -> Public:
    reader = BoundedReader(data, "TPMT_PUBLIC", order="big", base=base)
    public = read_public(reader)
    reader.finish()
    return public


def parse_public(data: bytes) -> Public:
    """Parse ``data``, exactly one TPMT_PUBLIC.  Raises FormatError."""
    return _parse(data, 0)


def parse_public_2b(data: bytes) -> Public:
    """Parse ``data``, exactly one TPM2B_PUBLIC (12.2.5).  Raises FormatError."""
    return _parse(unwrap_2b(data, "TPM2B_PUBLIC"), 2)
