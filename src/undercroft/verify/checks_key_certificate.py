"""Does a certificate say what a TPM key's certificate must say: which key, and what it is for?"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtensionOID

from undercroft.formats.tpm import Public
from undercroft.formats.tpm.certificate import TpmCertificate
from undercroft.verify.ak_key import UnusableKeyError, load_public_key
from undercroft.verify.checks import Check
from undercroft.verify.checks_crl import Revocation, verify_not_revoked
from undercroft.verify.checks_x509 import PathChecks, extension, issuer_addresses, verify_path

# TCG OID registry (2.23.133): key purposes, certificate policies, TPM attributes.
KP_EK_CERTIFICATE = x509.ObjectIdentifier("2.23.133.8.1")
KP_AIK_CERTIFICATE = x509.ObjectIdentifier("2.23.133.8.3")
CAP_VERIFIED_TPM_RESIDENCY = x509.ObjectIdentifier("2.23.133.11.1.1")
CAP_VERIFIED_TPM_FIXED = x509.ObjectIdentifier("2.23.133.11.1.2")
CAP_VERIFIED_TPM_RESTRICTED = x509.ObjectIdentifier("2.23.133.11.1.3")
TPM_MANUFACTURER = x509.ObjectIdentifier("2.23.133.2.1")
TPM_MODEL = x509.ObjectIdentifier("2.23.133.2.2")
TPM_VERSION = x509.ObjectIdentifier("2.23.133.2.3")
_ANY_EXTENDED_USAGE = x509.ObjectIdentifier("2.5.29.37.0")

QUIRKS = {
    "no-extended-key-usage": "the certificate has no extended key usage, so RFC 5280 restricts"
    " nothing; the EK profile asks for tcg-kp-EKCertificate (2.5, 3.2)",
    "key-usage-not-critical": "key usage should be critical (RFC 5280, 4.2.1.3)",
    "key-usage-extra": "key usage allows more than the profile asks for",
    "no-basic-constraints": "the certificate does not say that it is no CA; the EK profile wants"
    " it to (2.5, 3.2)",
    "no-tpm-attributes": "the subject alternative name does not name the TPM's manufacturer,"
    " model and version (EK profile 2.5, 3.1.2)",
    "san-not-critical": "the subject is empty but the subject alternative name is not critical"
    " (RFC 5280, 4.2.1.6)",
}
"""Habits of certificate issuers that we tolerate, by id; a result says which rows fired.

Those of the bytes around a certificate are in ``undercroft.formats.tpm.certificate``."""


@dataclass(frozen=True, slots=True)
class CertificateProfile:
    """What one kind of TPM key certificate must say.

    ``purpose`` is the extended key usage; ``rsa_usage`` and ``ecc_usage`` name the key usage
    bit; ``policies`` must all be asserted; an absent extended key usage is a quirk where
    ``purpose_may_be_absent`` and an error elsewhere.
    """

    purpose: x509.ObjectIdentifier | None
    purpose_may_be_absent: bool
    rsa_usage: str
    ecc_usage: str
    policies: tuple[x509.ObjectIdentifier, ...]
    certified_key: Check
    not_ca: Check
    key_usage: Check
    extended_usage: Check
    policy: Check
    path: PathChecks
    revoked: Check

    @property
    def checks(self) -> tuple[Check, ...]:
        """All checks, in the order in which they are made."""
        return (
            self.certified_key,
            self.not_ca,
            self.key_usage,
            *((self.extended_usage,) if self.purpose else ()),
            *((self.policy,) if self.policies else ()),
            self.path.chain,
            self.path.validity,
            self.path.critical,
            self.path.authority,
            self.revoked,
        )


def profile(
    letter: str,
    kind: str,
    first: int,
    *,
    purpose: x509.ObjectIdentifier | None,
    purpose_may_be_absent: bool,
    usages: tuple[str, str],
    policies: tuple[x509.ObjectIdentifier, ...],
    source: str,
) -> CertificateProfile:
    """Return a profile whose checks are ``kind``.… and numbered from ``letter`` and ``first``."""

    def check(number: int, name: str, says: str) -> Check:
        return Check(f"{letter}{first + number}", f"{kind}.{name}", says, source)

    return CertificateProfile(
        purpose,
        purpose_may_be_absent,
        *usages,
        policies,
        check(0, "certified-key", "the certificate is about exactly this key"),
        check(1, "not-ca", "the certificate is not a certification authority's"),
        check(2, "key-usage", "key usage allows what such a key does"),
        check(3, "extended-key-usage", "extended key usage names what such a key is for"),
        check(4, "policy", "the issuer asserts that it verified the key's attributes"),
        PathChecks.numbered(letter, kind, first + 5),
        check(9, "revoked", "no CRL revokes a certificate of the path"),
    )


@dataclass(frozen=True, slots=True)
class TpmIdentity:
    """Which TPM a certificate is about: the TCG attributes of its subject alternative name."""

    manufacturer: str
    model: str
    version: str


@dataclass(frozen=True, slots=True)
class VerifiedCertificate:
    """A certificate path that was verified for one key.

    ``path`` goes from the key's certificate to the root.  ``revocation`` says what CRLs did and
    did not cover; ``quirks`` are ids of rows of the quirk tables; ``issuer_addresses`` repeat
    what the certificate gives as its issuer's address (AIA).
    """

    path: tuple[TpmCertificate, ...]
    identity: TpmIdentity | None
    revocation: Revocation
    quirks: tuple[str, ...]
    issuer_addresses: tuple[str, ...]


def verify_key_certificate(
    leaf: TpmCertificate,
    public: Public,
    wanted: CertificateProfile,
    *,
    intermediates: Sequence[TpmCertificate],
    roots: Sequence[TpmCertificate],
    crls: Sequence[x509.CertificateRevocationList],
    now: datetime.datetime,
) -> VerifiedCertificate:
    """Check that ``leaf`` certifies ``public`` as ``wanted`` says, up to one of ``roots``.

    Raises VerificationError with one of ``wanted.checks``; ValueError without any root.
    """
    certificate = leaf.certificate
    _check_key(certificate, public, wanted.certified_key)
    quirks = [
        *leaf.quirks,
        *_check_not_ca(certificate, wanted.not_ca),
        *_check_key_usage(certificate, wanted),
        *_check_purpose(certificate, wanted),
    ]
    _check_policies(certificate, wanted)
    path = verify_path(leaf, intermediates, roots, now, wanted.path)
    revocation = verify_not_revoked(path, crls, now, wanted.revoked)
    identity, san_quirks = _identity(certificate)
    return VerifiedCertificate(
        path, identity, revocation, (*quirks, *san_quirks), issuer_addresses(certificate)
    )


def _check_key(certificate: x509.Certificate, public: Public, check: Check) -> None:
    certified = certificate.public_key()
    try:
        key = load_public_key(public)
    except UnusableKeyError as error:
        raise check.failed("the key cannot be used", got=error) from None
    same = isinstance(certified, rsa.RSAPublicKey | ec.EllipticCurvePublicKey) and (
        certified.public_numbers() == key.public_numbers()
    )
    if not same:
        raise check.failed("the certificate is about another key", expected=public.name.hex())


def _check_not_ca(certificate: x509.Certificate, check: Check) -> tuple[str, ...]:
    constraints = extension(certificate, ExtensionOID.BASIC_CONSTRAINTS)
    if constraints is None:
        return ("no-basic-constraints",)
    if constraints.value.ca:
        raise check.failed("the certificate is a certification authority's")
    return ()


def _check_key_usage(certificate: x509.Certificate, wanted: CertificateProfile) -> list[str]:
    is_rsa = isinstance(certificate.public_key(), rsa.RSAPublicKey)
    bit = wanted.rsa_usage if is_rsa else wanted.ecc_usage
    usage = extension(certificate, ExtensionOID.KEY_USAGE)
    allowed = set() if usage is None else _usage_bits(usage.value)
    if usage is None or bit not in allowed:
        raise wanted.key_usage.failed(
            "the key may not be used as such a key is", expected=bit, got=" ".join(sorted(allowed))
        )
    quirks = [] if usage.critical else ["key-usage-not-critical"]
    return quirks if allowed == {bit} else [*quirks, "key-usage-extra"]


def _usage_bits(usage: x509.KeyUsage) -> set[str]:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
    )
    return {name for name in names if getattr(usage, name)}


def _check_purpose(certificate: x509.Certificate, wanted: CertificateProfile) -> tuple[str, ...]:
    if wanted.purpose is None:
        return ()
    found = extension(certificate, ExtensionOID.EXTENDED_KEY_USAGE)
    if found is None and wanted.purpose_may_be_absent:
        return ("no-extended-key-usage",)
    purposes = () if found is None else tuple(found.value)
    if wanted.purpose not in purposes and _ANY_EXTENDED_USAGE not in purposes:
        raise wanted.extended_usage.failed(
            "the certificate is for another purpose",
            expected=wanted.purpose.dotted_string,
            got=" ".join(purpose.dotted_string for purpose in purposes),
        )
    return ()


def _check_policies(certificate: x509.Certificate, wanted: CertificateProfile) -> None:
    found = extension(certificate, ExtensionOID.CERTIFICATE_POLICIES)
    asserted = {policy.policy_identifier for policy in found.value} if found else set()
    for policy in wanted.policies:
        if policy not in asserted:
            raise wanted.policy.failed(
                "the issuer does not say that it verified the key's attributes",
                expected=policy.dotted_string,
                got=" ".join(sorted(oid.dotted_string for oid in asserted)),
            )


def _identity(certificate: x509.Certificate) -> tuple[TpmIdentity | None, list[str]]:
    found = extension(certificate, ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    quirks = []
    if found is not None and not found.critical and not list(certificate.subject):
        quirks.append("san-not-critical")
    values = {}
    for name in found.value.get_values_for_type(x509.DirectoryName) if found else ():
        values.update({attribute.oid: str(attribute.value) for attribute in name})
    try:
        identity = TpmIdentity(values[TPM_MANUFACTURER], values[TPM_MODEL], values[TPM_VERSION])
    except KeyError:
        return None, [*quirks, "no-tpm-attributes"]
    return identity, quirks
