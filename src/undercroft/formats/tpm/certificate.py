"""X.509 certificates as TPMs carry them, and the certificate revocation lists about them.

The bytes in a TPM's NV index are often longer than the certificate, or wrapped; each such habit
is a row of :data:`QUIRKS`, and a parsed certificate says which rows it needed.
"""

from __future__ import annotations

import base64
import binascii
import re

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from undercroft.base import FormatError

FORMAT = "X.509 certificate"
CRL_FORMAT = "X.509 CRL"
MAX_CERTIFICATE = 1 << 16
MAX_CRL = 1 << 24
_PEM = re.compile(
    rb"\s*-----BEGIN (CERTIFICATE|X509 CRL)-----([A-Za-z0-9+/=\s]+)-----END \1-----\s*"
)
_STORED_CERT = b"\x10\x01\x00"
_FULL_CERT = b"\x10\x02"

STORED_CERT = "stored-cert"
NV_PADDING = "nv-padding"
QUIRKS = {
    STORED_CERT: "wrapped in TCG_PCCLIENT_STORED_CERT, as TCG PC Client 1.21 has it, 7.3.2",
    NV_PADDING: "followed by the unused rest of its NV index: only 00 or only FF bytes",
}
"""What we tolerate around a certificate, by id."""

# What cryptography raises on a certificate that is no certificate; it reads most parts lazily.
# TypeError comes of a name's BIT STRING; Warning where a caller turned warnings into errors.
_PARSE_ERRORS = (
    ValueError,
    TypeError,
    Warning,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


class TpmCertificate(msgspec.Struct, frozen=True):
    """A certificate whose every part that we use has been read once without an error.

    ``der`` is the certificate alone; ``quirks`` are the rows of :data:`QUIRKS` that fired.
    """

    certificate: x509.Certificate
    der: bytes
    quirks: tuple[str, ...]

    @property
    def subject(self) -> str:
        """The subject as RFC 4514 text."""
        return self.certificate.subject.rfc4514_string()

    @property
    def issuer(self) -> str:
        """The issuer as RFC 4514 text."""
        return self.certificate.issuer.rfc4514_string()

    def encode(self) -> bytes:
        """Encode as DER, without what was around it."""
        return self.der


def _from_pem(data: bytes, label: bytes, format_name: str) -> bytes:
    match = _PEM.fullmatch(data)
    if match is None or match[1] != label:
        raise FormatError(format_name, 0, "not exactly one PEM block", expected=label.decode())
    try:
        return base64.b64decode(b"".join(match[2].split()), validate=True)
    except binascii.Error as error:
        raise FormatError(format_name, 0, f"the PEM block is no base64: {error}") from None


def _der_length(data: bytes, format_name: str) -> int:
    """Return the size in bytes of the DER SEQUENCE that ``data`` starts with (X.690, 8.1.3)."""
    if len(data) < 2 or data[0] != 0x30:
        raise FormatError(format_name, 0, "no DER sequence", got=data[:2].hex())
    first = data[1]
    size_of_size = first & 0x7F if first & 0x80 else 0
    if size_of_size > 4 or first == 0x80:
        raise FormatError(format_name, 1, "no DER length", got=f"{first:#04x}")
    length = int.from_bytes(data[2 : 2 + size_of_size], "big") if size_of_size else first
    total = 2 + size_of_size + length
    if total > len(data):
        raise FormatError(
            format_name, 0, "the sequence is longer than the input", expected=total, got=len(data)
        )
    return total


def _unwrapped(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return the DER certificate in ``data`` and the quirks that were around it."""
    quirks = []
    if data[:3] == _STORED_CERT and data[5:7] == _FULL_CERT:
        # tag 1001, certType 00 (full), a 16-bit size that counts what follows it, tag 1002.
        size = int.from_bytes(data[3:5], "big")
        if size < 2 or 5 + size > len(data):
            raise FormatError(FORMAT, 3, "the wrapped size is wrong", got=size)
        data = data[7 : 5 + size]
        quirks.append(STORED_CERT)
    length = _der_length(data, FORMAT)
    rest = data[length:]
    if rest:
        if rest.strip(b"\0") and rest.strip(b"\xff"):
            raise FormatError(FORMAT, length, "bytes are left over", expected=0, got=len(rest))
        quirks.append(NV_PADDING)
    return data[:length], tuple(quirks)


def parse_certificate(data: bytes) -> TpmCertificate:
    """Parse one certificate: DER, PEM, or the contents of a TPM NV index.  Raises FormatError."""
    if len(data) > MAX_CERTIFICATE:
        raise FormatError(FORMAT, 0, "too large", expected=MAX_CERTIFICATE, got=len(data))
    if data.lstrip()[:5] == b"-----":
        data = _from_pem(data, b"CERTIFICATE", FORMAT)
    der, quirks = _unwrapped(data)
    try:
        certificate = x509.load_der_x509_certificate(der)
        # Reading a part is what parses it: whatever is wrong comes out here and not later.
        _ = (
            certificate.version,
            certificate.serial_number,
            certificate.subject.rfc4514_string(),
            certificate.issuer.rfc4514_string(),
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            certificate.signature_hash_algorithm,
            certificate.public_key(),
            tuple(certificate.extensions),
        )
    except _PARSE_ERRORS as error:
        raise FormatError(FORMAT, 0, f"cannot be read: {error}") from None
    return TpmCertificate(certificate, der, quirks)


def parse_crl(data: bytes) -> x509.CertificateRevocationList:
    """Parse one certificate revocation list, DER or PEM.  Raises FormatError."""
    if len(data) > MAX_CRL:
        raise FormatError(CRL_FORMAT, 0, "too large", expected=MAX_CRL, got=len(data))
    if data.lstrip()[:5] == b"-----":
        data = _from_pem(data, b"X509 CRL", CRL_FORMAT)
    length = _der_length(data, CRL_FORMAT)
    if length != len(data):
        raise FormatError(CRL_FORMAT, length, "bytes are left over", got=len(data) - length)
    try:
        crl = x509.load_der_x509_crl(data)
        _ = (
            crl.issuer.rfc4514_string(),
            crl.last_update_utc,
            crl.next_update_utc,
            crl.signature_hash_algorithm,
            tuple(crl.extensions),
        )
    except _PARSE_ERRORS as error:
        raise FormatError(CRL_FORMAT, 0, f"cannot be read: {error}") from None
    return crl


def encode_crl(crl: x509.CertificateRevocationList) -> bytes:
    """Encode ``crl`` as DER."""
    return crl.public_bytes(Encoding.DER)
