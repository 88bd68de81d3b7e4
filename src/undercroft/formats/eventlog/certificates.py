"""X.509 certificates inside signature lists: only as much as a name and a fingerprint."""

from __future__ import annotations

import hashlib
import warnings

import msgspec
from cryptography import x509


class CertificateSummary(msgspec.Struct, frozen=True, gc=False):
    """Who a certificate names.  ``sha256`` is over the DER, ``tbs_hashes`` over TBSCertificate.

    ``tbs_hashes`` maps sha256, sha384, sha512 to the digests that a dbx entry revokes by (UEFI
    2.10, section 32.4.1, EFI_CERT_X509_SHA256_GUID).
    """

    subject: str
    issuer: str
    sha256: bytes
    tbs_hashes: dict[str, bytes]


def summarise_certificate(der: bytes) -> CertificateSummary | None:
    """Return what a certificate says of itself, None if it cannot be read.  Verifies nothing."""
    try:
        # Old platform keys break rules that the library warns about; reading them is all we do.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            certificate = x509.load_der_x509_certificate(der)
            subject, issuer = certificate.subject, certificate.issuer
            tbs = certificate.tbs_certificate_bytes
    except (ValueError, TypeError, x509.InvalidVersion):
        return None  # TypeError: a name whose attribute is a BIT STRING
    hashes = {name: hashlib.new(name, tbs).digest() for name in ("sha256", "sha384", "sha512")}
    return CertificateSummary(_name(subject), _name(issuer), hashlib.sha256(der).digest(), hashes)


def _name(name: x509.Name) -> str:
    common = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(common[-1].value) if common else name.rfc4514_string()
