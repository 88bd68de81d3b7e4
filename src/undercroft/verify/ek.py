"""Is this an endorsement key, and does a certificate say that it is a genuine TPM's?

Source: TCG EK Credential Profile for TPM Family 2.0, version 2.5.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from undercroft.base import HashAlgorithm
from undercroft.formats.tpm import (
    EccPublic,
    ObjectAttributes,
    Public,
    RsaPublic,
    SymmetricDefinition,
    TpmAlg,
    TpmEccCurve,
)
from undercroft.formats.tpm.certificate import TpmCertificate
from undercroft.verify.ak_key import UnusableKeyError, load_public_key
from undercroft.verify.checks import Check
from undercroft.verify.checks_key_certificate import (
    KP_EK_CERTIFICATE,
    VerifiedCertificate,
    profile,
    verify_key_certificate,
)

E1_ATTRIBUTES = Check(
    "E1",
    "ek.attributes",
    "fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted and decrypt are"
    " set, sign is not",
    "TCG EK Credential Profile 2.5, B.3 and B.4; TPM 2.0 Part 2, 8.3",
)
E2_POLICY = Check(
    "E2",
    "ek.policy",
    "authPolicy is the profile's PolicyA or PolicyB, so that only the endorsement hierarchy's"
    " owner can use the key",
    "TCG EK Credential Profile 2.5, B.3 and B.6",
)
E3_PROTECTION = Check(
    "E3",
    "ek.protection",
    "the key protects what it is sent with AES-CFB and has no scheme of its own",
    "TCG EK Credential Profile 2.5, B.3 and B.4; TPM 2.0 Part 1, 24",
)
E4_KEY = Check(
    "E4",
    "ek.key",
    "the key is an RSA key of 2048 bits or more or a point on P-256, P-384 or P-521",
    "TCG EK Credential Profile 2.5, B.3 and B.4",
)
EK_CERTIFICATE = profile(
    "E",
    "ek",
    5,
    purpose=KP_EK_CERTIFICATE,
    purpose_may_be_absent=True,
    usages=("key_encipherment", "key_agreement"),
    policies=(),
    source="TCG EK Credential Profile 2.5, 3.2; RFC 5280, 4.2.1",
)
E15_PINNED = Check(
    "E15", "ek.pinned", "the key's Name is one that the operator has listed", "TPM 2.0 Part 1, 16"
)
CHECKS = (E1_ATTRIBUTES, E2_POLICY, E3_PROTECTION, E4_KEY, *EK_CERTIFICATE.checks, E15_PINNED)

REQUIRED = (
    ObjectAttributes.FIXED_TPM
    | ObjectAttributes.FIXED_PARENT
    | ObjectAttributes.SENSITIVE_DATA_ORIGIN
    | ObjectAttributes.ADMIN_WITH_POLICY
    | ObjectAttributes.RESTRICTED
    | ObjectAttributes.DECRYPT
)
FORBIDDEN = ObjectAttributes.SIGN

POLICY_A = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
"""TPM2_PolicySecret of the endorsement hierarchy, SHA-256."""
POLICY_B = {
    HashAlgorithm.SHA256: bytes.fromhex(
        "ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0"
    ),
    HashAlgorithm.SHA384: bytes.fromhex(
        "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419ca"
        "cb47ba09699646150f9fc000f3f80e12"
    ),
    HashAlgorithm.SHA512: bytes.fromhex(
        "b8221ca69e8550a4914de3faa6a18c072cc01208073a928d5d66d59ef79e49a4"
        "29c41a6b269571d57edb25fbdb1838425608b413cd616a5f6db5b6071af99bea"
    ),
}
"""TPM2_PolicyOR of PolicyA and TPM2_PolicyAuthorizeNV of an index of the profile, by nameAlg."""

_TEMPLATES = {
    (2048, HashAlgorithm.SHA256, 128, POLICY_A): "L-1",
    (TpmEccCurve.NIST_P256, HashAlgorithm.SHA256, 128, POLICY_A): "L-2",
    (2048, HashAlgorithm.SHA256, 128, POLICY_B[HashAlgorithm.SHA256]): "H-1",
    (TpmEccCurve.NIST_P256, HashAlgorithm.SHA256, 128, POLICY_B[HashAlgorithm.SHA256]): "H-2",
    (TpmEccCurve.NIST_P384, HashAlgorithm.SHA384, 256, POLICY_B[HashAlgorithm.SHA384]): "H-3",
    (TpmEccCurve.NIST_P521, HashAlgorithm.SHA512, 256, POLICY_B[HashAlgorithm.SHA512]): "H-4",
    (3072, HashAlgorithm.SHA384, 256, POLICY_B[HashAlgorithm.SHA384]): "H-6",
}


@dataclass(frozen=True, slots=True)
class EndorsementKey:
    """A public area that is an endorsement key's; whether a genuine TPM's is not said here.

    ``template`` is the profile's name for it (``L-1``), or None if it is none of the profile's.
    ``name_alg`` is the hash of everything that is sent to the key, ``symmetric_bits`` the size
    of the AES key that protects it.
    """

    public: Public
    name: bytes
    name_alg: HashAlgorithm
    symmetric_bits: int
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    template: str | None


@dataclass(frozen=True, slots=True)
class CertifiedEk:
    """An endorsement key that a certificate path vouches for."""

    ek: EndorsementKey
    certificate: VerifiedCertificate


@dataclass(frozen=True, slots=True)
class PinnedEk:
    """An endorsement key that the operator vouches for, by its Name."""

    ek: EndorsementKey


def verify_ek(public: Public) -> EndorsementKey:
    """Check that ``public`` is what the EK profile says an endorsement key is, and load it.

    Raises VerificationError (E1 to E4).
    """
    attributes = public.attributes
    if REQUIRED & ~attributes or attributes & FORBIDDEN:
        raise E1_ATTRIBUTES.failed(
            "the key is no endorsement key",
            expected=f"{' '.join(REQUIRED.labels)} and not {' '.join(FORBIDDEN.labels)}",
            got=" ".join(attributes.labels),
        )
    name_alg = public.name_alg
    allowed = [POLICY_B[name_alg]] if name_alg in POLICY_B else []
    if name_alg is HashAlgorithm.SHA256:
        allowed.append(POLICY_A)
    if name_alg is None or public.auth_policy not in allowed:
        raise E2_POLICY.failed(
            "the key can be used under another policy than the profile's",
            expected=" or ".join(policy.hex() for policy in allowed) or "SHA-256, 384 or 512",
            got=public.auth_policy.hex(),
        )
    bits, size = _checked_protection(public)
    try:
        key = load_public_key(public)
    except UnusableKeyError as error:
        raise E4_KEY.failed("the key cannot be used", got=error) from None
    template = _TEMPLATES.get((size, name_alg, bits, public.auth_policy))
    return EndorsementKey(public, public.name, name_alg, bits, key, template)


def _checked_protection(public: Public) -> tuple[int, int]:
    """Return the AES key's size in bits, and the RSA key's size or the curve."""
    match public.key:
        case RsaPublic(
            symmetric=SymmetricDefinition(TpmAlg.AES, (128 | 192 | 256) as bits, TpmAlg.CFB),
            scheme=None,
            key_bits=size,
        ):
            return bits, size
        case EccPublic(
            symmetric=SymmetricDefinition(TpmAlg.AES, (128 | 192 | 256) as bits, TpmAlg.CFB),
            scheme=None,
            curve=curve,
            kdf=None,
        ):
            return bits, curve
    raise E3_PROTECTION.failed(
        "the key does not protect what it is sent as the profile says",
        expected="RSA or ECC with AES-CFB and no scheme",
        got=public.type,
    )


def verify_ek_certificate(
    ek: EndorsementKey,
    leaf: TpmCertificate,
    *,
    intermediates: Sequence[TpmCertificate],
    roots: Sequence[TpmCertificate],
    crls: Sequence[x509.CertificateRevocationList],
    now: datetime.datetime,
) -> CertifiedEk:
    """Check that ``leaf`` certifies ``ek`` as a genuine TPM's, up to one of ``roots``.

    ``intermediates`` may come from the TPM itself, ``roots`` only from the operator.  What no
    CRL of ``crls`` covers is in the result, as unknown.  Raises VerificationError (E5 to E14),
    or ValueError without any root.
    """
    verified = verify_key_certificate(
        leaf,
        ek.public,
        EK_CERTIFICATE,
        intermediates=intermediates,
        roots=roots,
        crls=crls,
        now=now,
    )
    return CertifiedEk(ek, verified)


def verify_pinned_ek(ek: EndorsementKey, names: Collection[bytes]) -> PinnedEk:
    """Check that ``ek`` is one of the keys whose Names the operator has listed.

    For machines without a certificate: the operator vouches for the key.  Raises
    VerificationError (E15).
    """
    if ek.name not in names:
        raise E15_PINNED.failed(
            "the operator has not listed this endorsement key",
            expected=f"one of {len(names)} Names",
            got=ek.name.hex(),
        )
    return PinnedEk(ek)
