"""Keys that a certificate vouches for directly: IAK and IDevID, and attestation keys at large.

Source: TCG, TPM 2.0 Keys for Device Identity and Attestation, version 1.0, rev. 12.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from undercroft.formats.tpm import ObjectAttributes, Public
from undercroft.formats.tpm.certificate import TpmCertificate
from undercroft.verify.ak import AttestationKey
from undercroft.verify.ak_key import UnusableKeyError, load_public_key
from undercroft.verify.checks import Check
from undercroft.verify.checks_key_certificate import (
    CAP_VERIFIED_TPM_FIXED,
    CAP_VERIFIED_TPM_RESTRICTED,
    KP_AIK_CERTIFICATE,
    CertificateProfile,
    VerifiedCertificate,
    profile,
    verify_key_certificate,
)

_SOURCE = "TCG TPM 2.0 Keys for Device Identity and Attestation 1.0, 8"
IAK_CERTIFICATE = profile(
    "U",
    "iak",
    1,
    purpose=KP_AIK_CERTIFICATE,
    purpose_may_be_absent=True,
    usages=("digital_signature", "digital_signature"),
    policies=(CAP_VERIFIED_TPM_RESTRICTED,),
    source=_SOURCE,
)
"""An initial attestation key: the issuer asserts that it verified fixedTPM and restricted.

A relying party must look for that assertion before it believes TPM-internal data."""
AK_CERTIFICATE = profile(
    "K",
    "ak-certificate",
    1,
    purpose=KP_AIK_CERTIFICATE,
    purpose_may_be_absent=False,
    usages=("digital_signature", "digital_signature"),
    policies=(),
    source="TCG EK Credential Profile 2.5, 3.2 (tcg-kp-AIKCertificate); RFC 5280, 4.2.1",
)
"""An attestation key whose certificate says so by its purpose alone, as cloud vTPMs have."""
IDEVID_CERTIFICATE = profile(
    "D",
    "idevid",
    3,
    purpose=None,
    purpose_may_be_absent=True,
    usages=("digital_signature", "digital_signature"),
    policies=(CAP_VERIFIED_TPM_FIXED,),
    source=_SOURCE,
)
D1_ATTRIBUTES = Check(
    "D1",
    "idevid.attributes",
    "fixedTPM, fixedParent, sensitiveDataOrigin and sign are set, restricted and decrypt are not",
    "TCG TPM 2.0 Keys for Device Identity and Attestation 1.0, 7.3.4",
)
D2_KEY = Check(
    "D2",
    "idevid.key",
    "the key is an RSA key of 2048 bits or more or a point on P-256, P-384 or P-521",
    "TCG TPM 2.0 Keys for Device Identity and Attestation 1.0, 7.3",
)
CHECKS = (
    *IAK_CERTIFICATE.checks,
    *AK_CERTIFICATE.checks,
    D1_ATTRIBUTES,
    D2_KEY,
    *IDEVID_CERTIFICATE.checks,
)
REQUIRED = (
    ObjectAttributes.FIXED_TPM
    | ObjectAttributes.FIXED_PARENT
    | ObjectAttributes.SENSITIVE_DATA_ORIGIN
    | ObjectAttributes.SIGN
)
FORBIDDEN = ObjectAttributes.RESTRICTED | ObjectAttributes.DECRYPT


@dataclass(frozen=True, slots=True)
class CertifiedAk:
    """An attestation key that a certificate path vouches for."""

    ak: AttestationKey
    certificate: VerifiedCertificate


@dataclass(frozen=True, slots=True)
class CertifiedIdentity:
    """A device identity key (IDevID) that a certificate path vouches for.

    It signs anything: never take what it signed for a statement of its TPM.
    """

    public: Public
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    certificate: VerifiedCertificate


def verify_ak_certificate(
    ak: AttestationKey,
    leaf: TpmCertificate,
    *,
    intermediates: Sequence[TpmCertificate],
    roots: Sequence[TpmCertificate],
    crls: Sequence[x509.CertificateRevocationList],
    now: datetime.datetime,
    wanted: CertificateProfile = IAK_CERTIFICATE,
) -> CertifiedAk:
    """Check that ``leaf`` certifies ``ak``, as ``wanted`` says: an IAK, or AK_CERTIFICATE.

    Raises VerificationError with one of ``wanted.checks``; ValueError without any root.
    """
    verified = verify_key_certificate(
        leaf, ak.public, wanted, intermediates=intermediates, roots=roots, crls=crls, now=now
    )
    return CertifiedAk(ak, verified)


def verify_idevid(
    public: Public,
    leaf: TpmCertificate,
    *,
    intermediates: Sequence[TpmCertificate],
    roots: Sequence[TpmCertificate],
    crls: Sequence[x509.CertificateRevocationList],
    now: datetime.datetime,
) -> CertifiedIdentity:
    """Check that ``public`` is an IDevID key and that ``leaf`` certifies it (D1 to D12).

    Raises VerificationError, or ValueError without any root.
    """
    attributes = public.attributes
    if REQUIRED & ~attributes or attributes & FORBIDDEN:
        raise D1_ATTRIBUTES.failed(
            "the key is no device identity key",
            expected=f"{' '.join(REQUIRED.labels)} and not {' '.join(FORBIDDEN.labels)}",
            got=" ".join(attributes.labels),
        )
    try:
        key = load_public_key(public)
    except UnusableKeyError as error:
        raise D2_KEY.failed("the key cannot be used", got=error) from None
    verified = verify_key_certificate(
        leaf,
        public,
        IDEVID_CERTIFICATE,
        intermediates=intermediates,
        roots=roots,
        crls=crls,
        now=now,
    )
    return CertifiedIdentity(public, key, verified)
