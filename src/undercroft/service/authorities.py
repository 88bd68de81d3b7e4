"""A folder of TPM authorities that the operator accepts: roots, what stands between, and CRLs.

A certificate that names itself as its issuer is a root: whoever puts it into the folder trusts
it. Any other is only a link to a root, and no reason to trust anything. Private keys that lie
there (swtpm's own authority keeps them so) are passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from undercroft.base import EnvironmentFault
from undercroft.formats.tpm.certificate import (
    MAX_CRL,
    TpmCertificate,
    parse_certificate,
    parse_crl,
)

_CERTIFICATES = (".pem", ".crt", ".cer", ".der")
_CRLS = (".crl",)


@dataclass(frozen=True, slots=True)
class Authorities:
    """What a certificate path may be made of."""

    roots: tuple[TpmCertificate, ...]
    intermediates: tuple[TpmCertificate, ...]
    crls: tuple[x509.CertificateRevocationList, ...]


def read_authorities(folder: Path) -> Authorities:
    """Read every certificate (``*.pem``, ``*.crt``, ``*.cer``, ``*.der``) and CRL (``*.crl``).

    Raises EnvironmentFault if there is no root: then nothing is trusted. Raises FormatError for
    a file that is not what its name says.
    """
    certificates = [
        parse_certificate(data)
        for path in _files(folder, _CERTIFICATES)
        if b"PRIVATE KEY" not in (data := _read(path))
    ]
    roots = tuple(c for c in certificates if c.certificate.subject == c.certificate.issuer)
    if not roots:
        raise EnvironmentFault(
            "no root certificate of a TPM authority",
            where=str(folder),
            remedy="put the manufacturer's root certificate (PEM or DER) there",
        )
    return Authorities(
        roots,
        tuple(c for c in certificates if c not in roots),
        tuple(parse_crl(_read(path)) for path in _files(folder, _CRLS)),
    )


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in suffixes)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_CRL + 1)
    except OSError as error:
        raise EnvironmentFault(f"cannot read: {error.strerror}", where=str(path)) from error
