"""A certificate path for a TPM's key, from the key's certificate to a root that was given.

A subset of RFC 5280, section 6, for the certificates that TPM vendors issue.  Names and policies
are not constrained: a certificate with name constraints or another critical extension that is
not understood here is refused.  Nothing is fetched: issuers, roots and CRLs are given, and where
one is missing the error and the result repeat the address that the certificate itself gives.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID

from undercroft.base import VerificationError
from undercroft.formats.tpm.certificate import TpmCertificate
from undercroft.verify.checks import Check

MAX_PATH = 8
"""More certificates than any TPM vendor's path has (the longest are 4 or 5)."""
MAX_ATTEMPTS = 64
"""Issuers tried before giving up: cross-signed or hostile intermediates end here."""

_UNDERSTOOD = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.CERTIFICATE_POLICIES,
    ExtensionOID.CRL_DISTRIBUTION_POINTS,
}
"""Extensions that may be critical: acted on here or by the caller."""


@dataclass(frozen=True, slots=True)
class PathChecks:
    """The checks of one kind of certificate path."""

    chain: Check
    validity: Check
    critical: Check
    authority: Check

    @classmethod
    def numbered(cls, letter: str, kind: str, first: int) -> PathChecks:
        """Return the checks ``kind``.chain and so on, numbered from ``letter`` and ``first``."""
        rows = (
            (
                "chain",
                "each certificate is signed by the next and the last is a given root",
                "6.1.3",
            ),
            (
                "validity",
                "every certificate of the path is valid at the time of appraisal",
                "6.1.3",
            ),
            (
                "critical-extension",
                "no certificate has a critical extension that is not understood",
                "4.2 and 6.1.4",
            ),
            (
                "authority",
                "every issuer is a CA that may sign certificates, within its path length",
                "6.1.4",
            ),
        )
        return cls(
            *(
                Check(f"{letter}{first + i}", f"{kind}.{name}", says, f"RFC 5280, {clause}")
                for i, (name, says, clause) in enumerate(rows)
            )
        )


def extension(
    certificate: x509.Certificate, oid: x509.ObjectIdentifier
) -> x509.Extension[Any] | None:
    """Return the extension ``oid``, or None if the certificate does not have it."""
    return next((found for found in certificate.extensions if found.oid == oid), None)


def issuer_addresses(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return where the certificate says that its issuer's certificate is (AIA, caIssuers)."""
    found = extension(certificate, ExtensionOID.AUTHORITY_INFORMATION_ACCESS)
    if found is None:
        return ()
    return tuple(
        access.access_location.value
        for access in found.value
        if access.access_method == AuthorityInformationAccessOID.CA_ISSUERS
        and isinstance(access.access_location, x509.UniformResourceIdentifier)
    )


@dataclass(slots=True)
class _Search:
    """One path search: what it was given, and how many issuers it may still try."""

    intermediates: Sequence[TpmCertificate]
    roots: Sequence[TpmCertificate]
    now: datetime.datetime
    checks: PathChecks
    attempts: int = MAX_ATTEMPTS

    def paths(self, path: tuple[TpmCertificate, ...]) -> Iterator[tuple[TpmCertificate, ...]]:
        """Yield each signed path that goes on from ``path`` and ends in a root."""
        last = path[-1]
        for issuer, trusted in self._issuers(last, path):
            self.attempts -= 1
            if self.attempts < 0:
                return
            if not _signed_by(last.certificate, issuer.certificate):
                continue
            longer = (*path, issuer)
            if trusted:
                yield longer
            elif len(longer) < MAX_PATH:
                yield from self.paths(longer)

    def _issuers(
        self, last: TpmCertificate, path: tuple[TpmCertificate, ...]
    ) -> Iterator[tuple[TpmCertificate, bool]]:
        seen = {certificate.der for certificate in path}
        for trusted, candidates in ((True, self.roots), (False, self.intermediates)):
            for candidate in candidates:
                same_name = candidate.certificate.subject == last.certificate.issuer
                if same_name and candidate.der not in seen:
                    yield candidate, trusted


def _weakly_signed(certificate: x509.Certificate) -> bool:
    """Say whether the signature is over a hash whose collisions make certificates forgeable."""
    hash_alg = certificate.signature_hash_algorithm
    return hash_alg is not None and hash_alg.name in ("md5", "sha1")


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if _weakly_signed(certificate):
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def verify_path(
    leaf: TpmCertificate,
    intermediates: Sequence[TpmCertificate],
    roots: Sequence[TpmCertificate],
    now: datetime.datetime,
    checks: PathChecks,
) -> tuple[TpmCertificate, ...]:
    """Return a valid path from ``leaf`` to one of ``roots``, both included.

    ``now`` must be aware of its time zone.  If several paths lead to a root, the first valid
    one is returned; if none is valid, the error is that of the first.  Raises
    VerificationError, or ValueError without any root.
    """
    if not roots:
        raise ValueError("no root certificate was given: nothing can be trusted")
    first_error: VerificationError | None = None
    for path in _Search(intermediates, roots, now, checks).paths((leaf,)):
        try:
            _check_path(path, now, checks)
        except VerificationError as error:
            first_error = first_error or error
        else:
            return path
    if first_error is not None:
        raise first_error
    raise _no_path(leaf, intermediates, checks)


def _no_path(
    leaf: TpmCertificate, intermediates: Sequence[TpmCertificate], checks: PathChecks
) -> VerificationError:
    """Return the error for a certificate that no path leads from, naming the missing issuer."""
    last = leaf
    for _ in range(MAX_PATH):
        signers = (i for i in intermediates if _signed_by(last.certificate, i.certificate))
        issuer = next(signers, None)
        if issuer is None or issuer.der == last.der:
            break
        last = issuer
    if _weakly_signed(last.certificate):
        return checks.chain.failed(
            f"{last.subject or 'the certificate'} is signed over MD5 or SHA-1, which anyone with"
            " a collision can forge",
            expected="SHA-256 or better",
            got=last.certificate.signature_algorithm_oid.dotted_string,
            remedy="ask the vendor for a new certificate, or pin the key's Name",
        )
    where = issuer_addresses(last.certificate)
    return checks.chain.failed(
        "no path leads from the certificate to a given root",
        expected=f"the certificate of {last.issuer} that signed {last.subject or 'the leaf'}",
        got=f"{len(intermediates)} intermediate certificates",
        remedy=f"add it from {' or '.join(where)}" if where else "add the vendor's certificates",
    )


def _check_path(
    path: tuple[TpmCertificate, ...], now: datetime.datetime, checks: PathChecks
) -> None:
    for depth, member in enumerate(path):
        certificate = member.certificate
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not start <= now <= end:
            raise checks.validity.failed(
                f"{member.subject or 'the certificate'} is not valid now",
                expected=f"{start:%Y-%m-%d} to {end:%Y-%m-%d}",
                got=f"{now:%Y-%m-%d}",
            )
        for found in certificate.extensions:
            if found.critical and found.oid not in _UNDERSTOOD:
                raise checks.critical.failed(
                    f"{member.subject or 'the certificate'} has a critical extension that we "
                    "do not understand",
                    got=found.oid.dotted_string,
                )
        if depth:
            # Certificates between this issuer and the leaf, which does not count (4.2.1.9).
            _check_authority(member, depth - 1, checks.authority)


def _check_authority(issuer: TpmCertificate, below: int, check: Check) -> None:
    constraints = extension(issuer.certificate, ExtensionOID.BASIC_CONSTRAINTS)
    if constraints is None or not constraints.value.ca:
        raise check.failed("an issuer is no certification authority", got=issuer.subject)
    limit = constraints.value.path_length
    if limit is not None and below > limit:
        raise check.failed(
            f"the path below {issuer.subject} is too long", expected=f"at most {limit}", got=below
        )
    usage = extension(issuer.certificate, ExtensionOID.KEY_USAGE)
    if usage is not None and not usage.value.key_cert_sign:
        raise check.failed("an issuer may not sign certificates", got=issuer.subject)
