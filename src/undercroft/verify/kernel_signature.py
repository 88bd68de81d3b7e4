"""Is a kernel file its vendor's?  Authenticode of a vmlinuz, and PKCS#7 behind a module.

A vmlinuz is verified against certificates that the caller trusts (the distribution's Secure
Boot CA).  Its modules are verified against the keys built into that vmlinuz, which is what the
kernel itself does (kernel/module/signing.c, certs/system_keyring.c); so one anchor covers all.
Validity periods are not looked at: neither firmware nor kernel does.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from undercroft.base import FormatError, HashAlgorithm, VerificationError
from undercroft.formats.kernel import KernelImage
from undercroft.formats.kernel.signed_data import (
    OID_DATA,
    OID_SPC_INDIRECT_DATA,
    SignedData,
    authenticode_digest,
    parse_signed_data,
    split_certificates,
)
from undercroft.formats.pe import parse_pe

_WIN_CERT_TYPE_PKCS_SIGNED_DATA = 2
_MAX_CHAIN = 8
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


@dataclass(frozen=True, slots=True)
class VerifiedSigner:
    """Who signed: the certificate's subject and SHA-256 fingerprint, and the anchor it leads to."""

    subject: str
    fingerprint: str
    anchor: str


def verify_vmlinuz(vmlinuz: bytes, anchors: Sequence[bytes]) -> VerifiedSigner:
    """Verify the Authenticode signature of a vmlinuz; ``anchors`` are DER certificates.

    Raises VerificationError (``kernel.signature``, ``kernel.digest``, ``kernel.chain``).
    """
    check = "kernel.signature"
    image = parse_pe(vmlinuz)
    messages = [
        certificate.data
        for certificate in image.certificates
        if certificate.certificate_type == _WIN_CERT_TYPE_PKCS_SIGNED_DATA
    ]
    if not messages:
        raise VerificationError(check, "the vmlinuz is not signed")
    if not anchors:
        raise VerificationError("kernel.chain", "there is no certificate to trust")
    failure: VerificationError | None = None
    for message in messages:
        signed = parse_signed_data(message)
        try:
            if signed.content_type != OID_SPC_INDIRECT_DATA or not signed.attributes:
                raise VerificationError(check, "the signature is not an Authenticode signature")
            _check_digest(signed, signed.content, check)
            name, digest = authenticode_digest(signed.content)
            algorithm = HashAlgorithm.from_name(name)
            if algorithm is None or not hmac.compare_digest(digest, image.authenticode(algorithm)):
                raise VerificationError(
                    "kernel.digest",
                    "the file is not the one that was signed",
                    expected=digest.hex(),
                )
            return _verify_signer(signed, signed.attributes, anchors, check)
        except VerificationError as error:
            failure = error
    assert failure is not None  # there was a message, and it did not return
    raise failure


def builtin_keys(image: KernelImage) -> tuple[bytes, ...]:
    """Return the DER certificates built into a kernel (certs/system_certificates.S).

    Raises FormatError if it has none.
    """
    size = int.from_bytes(image.read(image.offset("system_certificate_list_size"), 8), "little")
    start = image.offset("system_certificate_list")
    return split_certificates(image.read(start, size))


def verify_module(
    name: str, content: bytes, signature: bytes, keys: Sequence[bytes]
) -> VerifiedSigner:
    """Verify a module's ``signature`` over ``content`` against the keys built into its kernel.

    Raises VerificationError (``module.signature``, ``module.chain``).
    """
    check = "module.signature"
    if not signature:
        raise VerificationError(check, f"the module {name} is not signed")
    signed = parse_signed_data(signature)
    if signed.content_type != OID_DATA or signed.content:
        raise VerificationError(check, "the signature is not a detached one")
    covered = content
    if signed.attributes:
        _check_digest(signed, covered, check)
        covered = signed.attributes
    return _verify_signer(signed, covered, keys, check)


def _check_digest(signed: SignedData, content: bytes, check: str) -> None:
    digest = hashlib.new(signed.digest, content).digest()
    if not hmac.compare_digest(digest, signed.message_digest):
        raise VerificationError(
            check,
            "the signed digest is not the content's",
            expected=signed.message_digest.hex(),
            got=digest.hex(),
        )


def _verify_signer(
    signed: SignedData, covered: bytes, anchors: Sequence[bytes], check: str
) -> VerifiedSigner:
    """Find the signer's certificate, verify the signature, and follow it to an anchor."""
    trusted = [_certificate(anchor) for anchor in anchors]
    others = [_certificate(each) for each in signed.certificates]
    signer = next(
        (
            certificate
            for certificate in (*trusted, *others)
            if certificate.serial_number == signed.serial
            and certificate.issuer.public_bytes() == signed.issuer
        ),
        None,
    )
    if signer is None:
        raise VerificationError(check, "the signer's certificate is not there", got=signed.serial)
    _verify_bytes(signer, signed, covered, check)
    anchor = _anchor(signer, trusted, others, check.partition(".")[0] + ".chain")
    return VerifiedSigner(
        subject=signer.subject.rfc4514_string(),
        fingerprint=signer.fingerprint(hashes.SHA256()).hex(),
        anchor=anchor.subject.rfc4514_string(),
    )


def _verify_bytes(signer: x509.Certificate, signed: SignedData, covered: bytes, check: str) -> None:
    algorithm = _HASHES.get(signed.digest)
    key = signer.public_key()
    if algorithm is None:
        raise VerificationError(check, "the digest algorithm is too weak", got=signed.digest)
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signed.signature, covered, padding.PKCS1v15(), algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signed.signature, covered, ec.ECDSA(algorithm))
        else:
            raise VerificationError(check, "the signer's key is of a kind that is not used here")
    except InvalidSignature:
        raise VerificationError(
            check, f"the signature by {signer.subject.rfc4514_string()} is not valid"
        ) from None


def _anchor(
    certificate: x509.Certificate,
    trusted: Sequence[x509.Certificate],
    others: Sequence[x509.Certificate],
    check: str,
) -> x509.Certificate:
    """Follow issuers from ``certificate`` to one of ``trusted``."""
    for _ in range(_MAX_CHAIN):
        if certificate in trusted:
            return certificate
        for issuer in (*trusted, *others):
            if issuer != certificate and _issued(certificate, issuer):
                certificate = issuer
                break
        else:
            break
    raise VerificationError(
        check, f"{certificate.subject.rfc4514_string()} leads to no trusted certificate"
    )


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _certificate(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise FormatError("X.509 certificate", 0, str(error)) from error
