"""A simulated TPM vendor: a root, an intermediate CA, and certificates for simulated TPMs.

Everything is on P-256 and deterministic.  A test bends one thing at a time: every ``issue``
argument that is not given is what the EK profile asks for.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from undercroft.formats.tpm.certificate import TpmCertificate, parse_certificate, parse_crl
from undercroft.testing.keys import ecc_key
from undercroft.verify.checks_key_certificate import (
    KP_EK_CERTIFICATE,
    TPM_MANUFACTURER,
    TPM_MODEL,
    TPM_VERSION,
)

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
START = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
END = datetime.datetime(2040, 1, 1, tzinfo=datetime.UTC)
AIA = "http://tpm-vendor.example/intermediate.crt"
CRL_ADDRESS = "http://tpm-vendor.example/intermediate.crl"

PublicKey: TypeAlias = CertificatePublicKeyTypes
Extensions: TypeAlias = Iterable[tuple[x509.ExtensionType, bool]]


def name(common_name: str) -> x509.Name:
    """Return a distinguished name with only a common name; empty for an empty one."""
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    return x509.Name(attributes)


def key_usage(*bits: str) -> x509.KeyUsage:
    """Return a key usage with these bits (``key_encipherment``) set."""
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{bit: bit in bits for bit in names})


def tpm_attributes() -> x509.SubjectAlternativeName:
    """Return the subject alternative name that names a TPM."""
    values = {TPM_MANUFACTURER: "id:55434654", TPM_MODEL: "simulated", TPM_VERSION: "id:00010000"}
    attributes = [x509.NameAttribute(oid, value) for oid, value in values.items()]
    return x509.SubjectAlternativeName([x509.DirectoryName(x509.Name(attributes))])


def authority(path_length: int | None = None) -> list[tuple[x509.ExtensionType, bool]]:
    """Return the extensions of a certification authority."""
    return [
        (x509.BasicConstraints(ca=True, path_length=path_length), True),
        (key_usage("key_cert_sign", "crl_sign"), True),
    ]


def ek_extensions(key: PublicKey) -> list[tuple[x509.ExtensionType, bool]]:
    """Return the extensions that the EK profile asks for."""
    usage = "key_encipherment" if isinstance(key, rsa.RSAPublicKey) else "key_agreement"
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (key_usage(usage), True),
        (x509.ExtendedKeyUsage([KP_EK_CERTIFICATE]), False),
        (tpm_attributes(), True),
        (
            x509.AuthorityInformationAccess(
                [
                    x509.AccessDescription(
                        AuthorityInformationAccessOID.CA_ISSUERS,
                        x509.UniformResourceIdentifier(AIA),
                    )
                ]
            ),
            False,
        ),
        (distribution_points(CRL_ADDRESS), False),
    ]


def distribution_points(address: str) -> x509.CRLDistributionPoints:
    """Return an extension that names one address for CRLs."""
    full_name = [x509.UniformResourceIdentifier(address)]
    return x509.CRLDistributionPoints([x509.DistributionPoint(full_name, None, None, None)])


@dataclass
class Authority:
    """A certification authority: its key and its own certificate."""

    common_name: str
    key: ec.EllipticCurvePrivateKey
    certificate: TpmCertificate = field(init=False)

    def issue(
        self,
        subject: str,
        public_key: PublicKey,
        extensions: Extensions,
        *,
        start: datetime.datetime = START,
        end: datetime.datetime = END,
        serial: int = 1,
    ) -> TpmCertificate:
        """Issue a certificate for ``public_key``."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(self.common_name))
            .public_key(public_key)
            .serial_number(serial)
            .not_valid_before(start)
            .not_valid_after(end)
        )
        for value, critical in extensions:
            builder = builder.add_extension(value, critical)
        signed = builder.sign(self.key, hashes.SHA256(), ecdsa_deterministic=True)
        return parse_certificate(signed.public_bytes(Encoding.DER))

    def crl(
        self,
        revoked: Sequence[int] = (),
        *,
        reason: x509.ReasonFlags | None = None,
        start: datetime.datetime = START,
        end: datetime.datetime = END,
        extensions: Extensions = (),
    ) -> x509.CertificateRevocationList:
        """Issue a CRL that revokes these serial numbers."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(name(self.common_name))
            .last_update(start)
            .next_update(end)
        )
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start)
            if reason is not None:
                entry = entry.add_extension(x509.CRLReason(reason), critical=False)
            builder = builder.add_revoked_certificate(entry.build())
        for value, critical in extensions:
            builder = builder.add_extension(value, critical)
        signed = builder.sign(self.key, hashes.SHA256(), ecdsa_deterministic=True)
        return parse_crl(signed.public_bytes(Encoding.DER))


class SimulatedTpmVendor:
    """A root CA and an intermediate CA that issues certificates for TPM keys."""

    def __init__(self, label: str = "vendor") -> None:
        self.root = Authority(f"{label} root", ecc_key(f"{label} root", ec.SECP256R1()))
        self.root.certificate = self.root.issue(
            self.root.common_name, self.root.key.public_key(), authority()
        )
        self.intermediate = self.subordinate(f"{label} intermediate", authority(path_length=0))

    def subordinate(
        self,
        common_name: str,
        extensions: Extensions,
        *,
        issuer: Authority | None = None,
        start: datetime.datetime = START,
        end: datetime.datetime = END,
    ) -> Authority:
        """Return another CA, by default under the root."""
        child = Authority(common_name, ecc_key(common_name, ec.SECP256R1()))
        parent = issuer or self.root
        child.certificate = parent.issue(
            common_name, child.key.public_key(), extensions, start=start, end=end, serial=2
        )
        return child

    def ek_certificate(
        self,
        key: PublicKey,
        *,
        change: Callable[
            [list[tuple[x509.ExtensionType, bool]]], list[tuple[x509.ExtensionType, bool]]
        ] = list,
        subject: str = "",
        issuer: Authority | None = None,
        start: datetime.datetime = START,
        end: datetime.datetime = END,
    ) -> TpmCertificate:
        """Issue an EK certificate for ``key``, its extensions passed through ``change``."""
        return (issuer or self.intermediate).issue(
            subject, key, change(ek_extensions(key)), serial=77, start=start, end=end
        )
