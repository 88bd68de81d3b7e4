"""EVM's portable signatures in ``evmsig`` fields, over the metadata in the fields beside them.

The checks are numbered; :data:`CHECKS` is the table.

``evm_calc_hmac_or_hash`` (evm_crypto.c) hashes the values of the protected extended attributes,
end to end, and then a ``struct h_misc`` in the guest's own byte order: inode number and
generation (zero in a portable signature), owner and mode.  ``security.ima`` has to be among the
attributes; it is what binds the content.  The path is not signed.

What the list alone cannot show: attributes that the kernel does not protect, that the file is on
the file system as it was signed, and for which of a 32-bit and a 64-bit kernel it was signed
(``ino`` has the size of a long): both are tried.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from undercroft.base import FormatError
from undercroft.formats.ima import (
    FileDigest,
    ImaSignature,
    InodeMetadata,
    SignatureType,
    parse_signature,
)
from undercroft.verify.checks import Check
from undercroft.verify.ima_signature import (
    HASHES,
    ImaKey,
    ImaKeyring,
    hash_of,
    made_by,
    verify_ima_signature,
)

_CRYPTO = "Linux security/integrity/evm/evm_crypto.c"
_MAIN = "Linux security/integrity/evm/evm_main.c: evm_verify_hmac"
FE1_TYPE = Check(
    "FE1", "evm.signature-type", "the signature is a portable one, of version 2", _MAIN
)
FE2_HASH = Check(
    "FE2", "evm.signature-hash", "the signature's hash algorithm is not a broken one", _CRYPTO
)
FE3_IMA_XATTR = Check(
    "FE3",
    "evm.ima-xattr",
    "security.ima is among the signed attributes",
    f"{_CRYPTO}: evm_calc_hmac_or_hash (Portable EVM signatures must include an IMA hash)",
)
FE4_COMPARABLE = Check(
    "FE4",
    "evm.content-algorithm",
    "security.ima holds a digest in the algorithm of the entry's, or a signature",
    "Linux security/integrity/integrity.h: evm_ima_xattr_type",
)
FE5_CONTENT = Check(
    "FE5",
    "evm.content",
    "the digest in security.ima is that of the content that was measured",
    "Linux security/integrity/ima/ima_appraise.c: xattr_verify",
)
FE6_KEY = Check("FE6", "evm.signature-key", "the keyring has the key that is named", _MAIN)
FE7_SIGNATURE = Check(
    "FE7", "evm.signature", "the key signed this metadata", f"{_CRYPTO}: hmac_add_misc"
)
CHECKS = (
    FE1_TYPE,
    FE2_HASH,
    FE3_IMA_XATTR,
    FE4_COMPARABLE,
    FE5_CONTENT,
    FE6_KEY,
    FE7_SIGNATURE,
)

_IMA_XATTR = b"security.ima"
_IMA_XATTR_DIGEST_NG = 4
# struct h_misc of a 64-bit and of a 32-bit kernel, behind inode number and generation.
_MISC = ("12xIIH2x", "8xIIH2x")


@dataclass(frozen=True, slots=True)
class VerifiedEvmSignature:
    """A portable signature that ``key`` made over a file's content, owner, mode and attributes."""

    key: ImaKey
    inode: InodeMetadata


def verify_evm_signature(
    signature: ImaSignature,
    inode: InodeMetadata,
    digest: FileDigest,
    keyring: ImaKeyring,
    order: Literal["little", "big"] = "little",
) -> VerifiedEvmSignature:
    """Verify that a key of ``keyring`` signed ``inode`` with the content that has ``digest``.

    ``order`` is the guest's byte order.  Raises FormatError, or VerificationError with one of
    :data:`CHECKS` or, where ``security.ima`` is a signature itself, of ``ima_signature``'s.
    FE1, FE4 and FE6 say that nothing is known, every other that the signature is wrong.
    """
    if signature.type is not SignatureType.EVM_XATTR_PORTABLE_DIGSIG or signature.version != 2:
        raise FE1_TYPE.failed(
            "not a portable signature of version 2",
            got=f"{signature.type.name} version {signature.version}",
        )
    algorithm = signature.hash_algorithm
    hasher = HASHES.get(algorithm)
    if hasher is None:
        raise FE2_HASH.failed("the signature's hash algorithm is broken", got=algorithm)
    _check_content(inode, digest, keyring)
    keys = keyring.with_id(signature.claimed_key_id)
    if not keys:
        raise FE6_KEY.failed("no key has this id", got=signature.claimed_key_id.hex())
    for metadata in _signed(inode, order):
        hashed = hash_of(hasher, metadata)
        for key in keys:
            if made_by(key.public_key, signature.signature, hashed, hasher):
                return VerifiedEvmSignature(key, inode)
    raise FE7_SIGNATURE.failed("the signature is not over this metadata", got=keys[0].label)


def _signed(inode: InodeMetadata, order: Literal["little", "big"]) -> Iterator[bytes]:
    mark = "<" if order == "little" else ">"
    values = b"".join(value for _, value in inode.xattrs)
    for layout in _MISC:
        yield values + struct.pack(mark + layout, inode.uid, inode.gid, inode.mode)


def _check_content(inode: InodeMetadata, digest: FileDigest, keyring: ImaKeyring) -> None:
    """Check that ``security.ima`` is there and about the content that was measured."""
    value = dict(inode.xattrs).get(_IMA_XATTR)
    if not value:
        raise FE3_IMA_XATTR.failed("the metadata has no security.ima, so no content is signed")
    if value[0] != _IMA_XATTR_DIGEST_NG:
        try:
            signature = parse_signature(value)
        except FormatError as error:
            raise FE4_COMPARABLE.failed(
                "security.ima is neither a digest that names its algorithm nor a signature",
                got=value[:2].hex(),
            ) from error
        verify_ima_signature(signature, digest, keyring)
        return
    algorithm = digest.algorithm
    if digest.kind != "ima" or algorithm is None or value[1:2] != bytes((algorithm.number,)):
        raise FE4_COMPARABLE.failed(
            "security.ima is in another algorithm than the entry's digest",
            expected=digest.name,
            got=value[:2].hex(),
        )
    if not hmac.compare_digest(value[2:], digest.value):
        raise FE5_CONTENT.failed(
            "the signed content is not the one that was measured",
            expected=value[2:].hex(),
            got=digest.value.hex(),
        )
