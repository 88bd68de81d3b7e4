"""Has a certificate of a verified path been revoked?  The CRLs are given as parsed lists.

A certificate without a usable, current list is reported as unknown, never as good.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtensionOID

from undercroft.formats.tpm.certificate import TpmCertificate
from undercroft.verify.checks import Check
from undercroft.verify.checks_x509 import extension


@dataclass(frozen=True, slots=True)
class Revocation:
    """What the CRLs say about a path.

    ``good`` are the subjects that a current list vouches for; ``unknown`` those that none
    covers, with the addresses of the lists that their certificates name.
    """

    good: tuple[str, ...]
    unknown: tuple[tuple[str, tuple[str, ...]], ...]


def verify_not_revoked(
    path: tuple[TpmCertificate, ...],
    crls: Sequence[x509.CertificateRevocationList],
    now: datetime.datetime,
    check: Check,
) -> Revocation:
    """Return what ``crls`` say about each certificate of ``path`` but the root.

    A list counts if the certificate's issuer signed it and may (RFC 5280, 6.3.3).  An outdated
    list no longer vouches for anything, but what it revoked stays revoked.  Raises ``check``'s
    VerificationError if a certificate is revoked.
    """
    good, unknown = [], []
    for member, issuer in itertools.pairwise(path):
        lists = [crl for crl in crls if _covers(crl, member.certificate, issuer.certificate)]
        for crl in lists:
            _check_listed(crl, member, check)
        if any(_current(crl, now) for crl in lists):
            good.append(member.subject)
        else:
            unknown.append((member.subject, crl_addresses(member.certificate)))
    return Revocation(tuple(good), tuple(unknown))


def crl_addresses(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return where the certificate says that its CRL is."""
    found = extension(certificate, ExtensionOID.CRL_DISTRIBUTION_POINTS)
    if found is None:
        return ()
    return tuple(address for point in found.value for address in _uris(point.full_name or ()))


def _uris(names: Iterable[x509.GeneralName]) -> Iterable[str]:
    return (n.value for n in names if isinstance(n, x509.UniformResourceIdentifier))


def _covers(
    crl: x509.CertificateRevocationList, certificate: x509.Certificate, issuer: x509.Certificate
) -> bool:
    """Say whether ``crl`` is a complete, authentic list that speaks about ``certificate``."""
    if crl.issuer != certificate.issuer:
        return False
    usage = extension(issuer, ExtensionOID.KEY_USAGE)
    if usage is not None and not usage.value.crl_sign:
        return False
    for found in crl.extensions:
        if found.oid == ExtensionOID.ISSUING_DISTRIBUTION_POINT:
            if not _in_scope(found.value, certificate):
                return False
        elif found.critical:
            return False  # a delta CRL, or something we do not understand
    try:
        return crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False


def _in_scope(point: x509.IssuingDistributionPoint, certificate: x509.Certificate) -> bool:
    """Say whether a list with this issuing distribution point is about ``certificate``."""
    if point.indirect_crl or point.only_some_reasons or point.only_contains_attribute_certs:
        return False
    constraints = extension(certificate, ExtensionOID.BASIC_CONSTRAINTS)
    is_ca = constraints is not None and constraints.value.ca
    if (point.only_contains_ca_certs and not is_ca) or (point.only_contains_user_certs and is_ca):
        return False
    if point.relative_name is not None:
        return False
    names = set(_uris(point.full_name or ()))
    return not point.full_name or bool(names & set(crl_addresses(certificate)))


def _check_listed(
    crl: x509.CertificateRevocationList, member: TpmCertificate, check: Check
) -> None:
    entry = crl.get_revoked_certificate_by_serial_number(member.certificate.serial_number)
    if entry is None:
        return
    reason = _reason(entry)
    if reason is not x509.ReasonFlags.remove_from_crl:
        raise check.failed(
            f"{member.subject or 'the certificate'} is revoked",
            expected="no entry in its issuer's CRL",
            got=f"{reason.value} on {entry.revocation_date_utc:%Y-%m-%d}",
        )


def _reason(entry: x509.RevokedCertificate) -> x509.ReasonFlags:
    try:
        found = entry.extensions.get_extension_for_class(x509.CRLReason)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        # A reason that cannot be read makes the certificate no less revoked.
        return x509.ReasonFlags.unspecified
    return found.value.reason


def _current(crl: x509.CertificateRevocationList, now: datetime.datetime) -> bool:
    end = crl.next_update_utc
    return end is not None and crl.last_update_utc <= now <= end
