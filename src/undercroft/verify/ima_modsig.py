"""Appended signatures in ``modsig`` fields: PKCS#7 over the digest that stands beside them.

The checks are numbered; :data:`CHECKS` is the table.

A ``modsig`` field holds the PKCS#7 message from a file's end, ``d-modsig`` the digest that its
signature is over (``pkcs7_get_digest``): the file's content without the signature or, where the
message has signed attributes, those attributes, one of which is the content's digest.

What the list alone cannot show: that the file with this content is the one whose whole digest
stands in ``d-ng``.  The kernel took both from one file, and the quote vouches for its word; only
the file itself would prove it.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from undercroft.formats.ima import FileDigest, LinuxHash
from undercroft.formats.kernel.signed_data import OID_DATA, SignedData, parse_signed_data
from undercroft.verify.checks import Check
from undercroft.verify.ima_signature import HASHES, ImaKey, ImaKeyring, hash_of, made_by

_KERNEL = "Linux crypto/asymmetric_keys/pkcs7_verify.c"
FM1_FORM = Check(
    "FM1",
    "ima.modsig-form",
    "the signature is a detached one over data",
    "Linux security/integrity/ima/ima_modsig.c: ima_collect_modsig",
)
FM2_HASH = Check(
    "FM2",
    "ima.modsig-hash",
    "the signature's hash algorithm is that of d-modsig, and not a broken one",
    f"{_KERNEL}: pkcs7_get_digest",
)
FM3_ATTRIBUTES = Check(
    "FM3",
    "ima.modsig-attributes",
    "signed attributes, where there are some, hash to d-modsig",
    f"{_KERNEL}: pkcs7_digest",
)
FM4_KEY = Check(
    "FM4",
    "ima.modsig-key",
    "the keyring has the certificate that is named, or a bare key that made the signature",
    "RFC 5652, 5.3: SignerIdentifier",
)
FM5_SIGNATURE = Check(
    "FM5", "ima.modsig", "the key made the signature", f"{_KERNEL}: pkcs7_verify_one"
)
CHECKS = (FM1_FORM, FM2_HASH, FM3_ATTRIBUTES, FM4_KEY, FM5_SIGNATURE)


@dataclass(frozen=True, slots=True)
class VerifiedModsig:
    """An appended signature that ``key`` made.

    ``content`` is the digest, by ``algorithm``, of the file without it.
    """

    key: ImaKey
    algorithm: LinuxHash
    content: bytes


def verify_modsig(data: bytes, digest: FileDigest, keyring: ImaKeyring) -> VerifiedModsig:
    """Verify the ``modsig`` field ``data`` over ``digest``, the ``d-modsig`` beside it.

    Keys are trusted as they stand in ``keyring``: certificates that come along are not looked at.
    Raises FormatError, or VerificationError with one of :data:`CHECKS`: FM4 says that nothing is
    known about the signature, every other that it is wrong or proves nothing.
    """
    signed = parse_signed_data(data)
    if signed.content_type != OID_DATA or signed.content:
        raise FM1_FORM.failed("the appended signature is not a detached one over data")
    algorithm = digest.algorithm
    hasher = HASHES.get(algorithm) if algorithm else None
    if (
        algorithm is None
        or hasher is None
        or signed.digest != algorithm.label
        or len(digest.value) != algorithm.size
    ):
        raise FM2_HASH.failed(
            "the appended signature's hash algorithm is not the digest's, or is broken",
            expected=digest.name,
            got=signed.digest,
        )
    if signed.attributes:
        hashed = hash_of(hasher, signed.attributes)
        if not hmac.compare_digest(hashed, digest.value):
            raise FM3_ATTRIBUTES.failed(
                "d-modsig is not the digest of the signed attributes",
                expected=hashed.hex(),
                got=digest.value.hex(),
            )
    keys = _candidates(signed, keyring)
    for key in keys:
        if made_by(key.public_key, signed.signature, digest.value, hasher):
            content = signed.message_digest if signed.attributes else digest.value
            return VerifiedModsig(key, algorithm, content)
    named = [key for key in keys if key.certified]
    if not named:
        got = signed.key_id.hex() or f"serial number {signed.serial:#x}"
        raise FM4_KEY.failed("no certificate is the one that is named", got=got)
    raise FM5_SIGNATURE.failed("the appended signature is not over this digest", got=named[0].label)


def _candidates(signed: SignedData, keyring: ImaKeyring) -> list[ImaKey]:
    """Return the keys whose certificate is named, and those that have none to go by."""
    return [k for k in keyring.keys if k.certified is None or _is_named(k.certified, signed)]


def _is_named(certified: tuple[bytes, int, bytes], signed: SignedData) -> bool:
    issuer, serial, key_id = certified
    if signed.key_id:
        return key_id == signed.key_id
    return (issuer, serial) == (signed.issuer, signed.serial)
