"""A signing key loaded once, which then checks TPM signatures at the crypto library's speed."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from undercroft.base import HashAlgorithm
from undercroft.formats.tpm import (
    EccPublic,
    EccSignature,
    Public,
    RsaPublic,
    Signature,
    TpmAlg,
    TpmEccCurve,
)
from undercroft.formats.tpm.public import RSA_DEFAULT_EXPONENT
from undercroft.verify.checks import Check

HASHES: dict[HashAlgorithm, hashes.HashAlgorithm] = {
    HashAlgorithm.SHA1: hashes.SHA1(),  # graded as weak in the result
    HashAlgorithm.SHA256: hashes.SHA256(),
    HashAlgorithm.SHA384: hashes.SHA384(),
    HashAlgorithm.SHA512: hashes.SHA512(),
}
CURVES: dict[TpmEccCurve, ec.EllipticCurve] = {
    TpmEccCurve.NIST_P256: ec.SECP256R1(),
    TpmEccCurve.NIST_P384: ec.SECP384R1(),
    TpmEccCurve.NIST_P521: ec.SECP521R1(),
}
MIN_RSA_BITS = 2048
"""Shortest RSA key of the PC Client and EK profiles; TPM 1.2 has it as well."""
_ECDSA = {algorithm: ec.ECDSA(primitive) for algorithm, primitive in HASHES.items()}
_RSASSA = padding.PKCS1v15()
# TPMs differ in their PSS salt length (Part 1, B.7), so it is taken as found.
_RSAPSS = {
    algorithm: padding.PSS(padding.MGF1(primitive), padding.PSS.AUTO)
    for algorithm, primitive in HASHES.items()
}


class UnusableKeyError(ValueError):
    """A public area that is no usable RSA or ECC key; the message says why."""


def load_public_key(public: Public) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    """Return the RSA or ECC key in ``public``.  Raises UnusableKeyError.

    The modulus must have exactly keyBits bits, at least 2048; the point must lie on its curve.
    """
    match public.key:
        case RsaPublic() as key:
            return _load_rsa(key)
        case EccPublic() as key:
            return _load_ecc(key)
        case _:
            raise UnusableKeyError(f"a {public.type} object has no public key")


def _load_rsa(key: RsaPublic) -> rsa.RSAPublicKey:
    modulus = int.from_bytes(key.modulus, "big")
    if key.key_bits < MIN_RSA_BITS:
        raise UnusableKeyError(
            f"RSA-{key.key_bits} is too short, {MIN_RSA_BITS} bits are the least"
        )
    if modulus.bit_length() != key.key_bits:
        raise UnusableKeyError(
            f"the modulus has {modulus.bit_length()} bits, keyBits is {key.key_bits}"
        )
    try:
        return rsa.RSAPublicNumbers(key.exponent or RSA_DEFAULT_EXPONENT, modulus).public_key()
    except ValueError as error:
        raise UnusableKeyError(str(error)) from None


def _load_ecc(key: EccPublic) -> ec.EllipticCurvePublicKey:
    curve = CURVES.get(key.curve)
    if curve is None:
        raise UnusableKeyError(f"curve {key.curve} is not supported")
    x, y = int.from_bytes(key.x, "big"), int.from_bytes(key.y, "big")
    try:
        return ec.EllipticCurvePublicNumbers(x, y, curve).public_key()
    except ValueError as error:
        raise UnusableKeyError(str(error)) from None


def verify_signature(
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    signature: Signature,
    message: bytes,
    check: Check,
) -> None:
    """Raise ``check``'s VerificationError unless ``signature`` over ``message`` is ``key``'s.

    A scheme that does not fit the key, or is not RSASSA, RSAPSS or ECDSA over SHA-1, SHA-256,
    SHA-384 or SHA-512, fails as well.
    """
    scheme = signature.scheme
    primitive = HASHES.get(signature.hash_alg)
    try:
        if primitive is None:
            pass
        elif isinstance(signature, EccSignature):
            if scheme is TpmAlg.ECDSA and isinstance(key, ec.EllipticCurvePublicKey):
                # DER holds integers, so leading zeros make no difference; an r or s out of
                # range is a well-formed pair that the library then finds wrong.
                r, s = int.from_bytes(signature.r, "big"), int.from_bytes(signature.s, "big")
                key.verify(encode_dss_signature(r, s), message, _ECDSA[signature.hash_alg])
                return
        elif isinstance(key, rsa.RSAPublicKey):
            pss = scheme is TpmAlg.RSAPSS
            padded = _RSAPSS[signature.hash_alg] if pss else _RSASSA
            key.verify(signature.sig, message, padded, primitive)
            return
    except InvalidSignature:
        raise check.failed(
            "the signature is not this key's over these bytes",
            expected=f"a valid {scheme}-{signature.hash_alg} signature",
            got="an invalid one",
        ) from None
    raise check.failed(
        "the signature's scheme does not fit the key",
        expected="RSASSA, RSAPSS or ECDSA, as the key is",
        got=f"{scheme}-{signature.hash_alg}",
    )
