"""Is this public area an attestation key: a key that signs only what its TPM itself says?

The attributes say so only if the public area is the one of a key in a genuine TPM.  That is
shown elsewhere: by credential activation (``verify.credential``), by a certificate or by
another attestation key (``verify.certify``), or by an operator who pins the key's Name.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from undercroft.formats.tpm import (
    EccPublic,
    ObjectAttributes,
    Public,
    RsaPublic,
    Scheme,
    TpmAlg,
    TpmRh,
)
from undercroft.formats.tpm.public import qualified_name
from undercroft.verify.ak_key import HASHES, UnusableKeyError, load_public_key
from undercroft.verify.checks import Check

A1_NAME = Check("A1", "ak.name", "the key has a Name", "TPM 2.0 Part 1, 16")
A2_ATTRIBUTES = Check(
    "A2",
    "ak.attributes",
    "fixedTPM, fixedParent, sensitiveDataOrigin, restricted and sign are set, decrypt is not",
    "TPM 2.0 Part 1, 25.1; Part 2, 8.3.3; TCG Keys for Device Identity and Attestation 1.0, 7.3.4",
)
A3_SCHEME = Check(
    "A3",
    "ak.scheme",
    "the key's one scheme is RSASSA, RSAPSS or ECDSA over SHA-1, SHA-256, SHA-384 or SHA-512",
    "TPM 2.0 Part 2, 12.2.3.5 and 12.2.3.6: a restricted signing key has a scheme",
)
A4_KEY = Check(
    "A4",
    "ak.key",
    "the key is an RSA key of 2048 bits or more or a point on P-256, P-384 or P-521",
    "TPM 2.0 Part 1, B.2 and C.2",
)
CHECKS = (A1_NAME, A2_ATTRIBUTES, A3_SCHEME, A4_KEY)

REQUIRED = (
    ObjectAttributes.FIXED_TPM
    | ObjectAttributes.FIXED_PARENT
    | ObjectAttributes.SENSITIVE_DATA_ORIGIN
    | ObjectAttributes.RESTRICTED
    | ObjectAttributes.SIGN
)
FORBIDDEN = ObjectAttributes.DECRYPT
_REQUIRED, _LOOKED_AT = int(REQUIRED), int(REQUIRED | FORBIDDEN)
_SCHEMES = (TpmAlg.RSASSA, TpmAlg.RSAPSS, TpmAlg.ECDSA)


@lru_cache(maxsize=1024)
def _hierarchies(name: bytes) -> Mapping[bytes, TpmRh]:
    return {qualified_name(name, hierarchy.handle_name): hierarchy for hierarchy in TpmRh}


class AttestationKey(msgspec.Struct, frozen=True):
    """An attestation key, checked and loaded once; verify as many quotes with it as you like.

    ``qualified_name`` is what the key's statements must carry as qualifiedSigner, or None where
    the key's parent is not known.
    """

    public: Public
    name: bytes
    scheme: Scheme
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    qualified_name: bytes | None

    @property
    def hierarchies(self) -> Mapping[bytes, TpmRh]:
        """The Qualified Names that the key would have as a primary key of each hierarchy."""
        return _hierarchies(self.name)


def verify_ak(public: Public, *, parent: bytes | None = None) -> AttestationKey:
    """Check the attributes and scheme of ``public`` and load its key.

    ``parent`` is the Qualified Name of the key's parent (for a primary key, the hierarchy's
    handle: ``TpmRh.ENDORSEMENT.handle_name``), if the caller knows it.  Raises
    VerificationError with one of :data:`CHECKS`.
    """
    name = public.name
    if not name:
        raise A1_NAME.failed("the key has no Name", expected="a nameAlg", got="TPM_ALG_NULL")
    _check_attributes(public.attributes)
    scheme = _checked_scheme(public)
    try:
        key = load_public_key(public)
    except UnusableKeyError as fault:
        raise A4_KEY.failed("the key cannot be used", got=fault) from None
    qualified = None if parent is None else qualified_name(name, parent)
    return AttestationKey(public, name, scheme, key, qualified)


def _check_attributes(attributes: ObjectAttributes) -> None:
    if int(attributes) & _LOOKED_AT != _REQUIRED:
        raise A2_ATTRIBUTES.failed(
            "the key could sign what is not its TPM's own statement, or exist outside its TPM",
            expected=f"{' '.join(REQUIRED.labels)} and not {' '.join(FORBIDDEN.labels)}",
            got=" ".join(attributes.labels),
        )


def _checked_scheme(public: Public) -> Scheme:
    key = public.key
    scheme = key.scheme if isinstance(key, RsaPublic | EccPublic) else None
    if scheme is None or scheme.algorithm not in _SCHEMES or scheme.hash_alg not in HASHES:
        raise A3_SCHEME.failed(
            "the key has no signing scheme that we verify",
            expected="RSASSA, RSAPSS or ECDSA over SHA-1, SHA-256, SHA-384 or SHA-512",
            got=scheme,
        )
    return scheme
