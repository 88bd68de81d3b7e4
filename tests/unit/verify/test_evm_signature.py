"""Portable EVM signatures, made as evmctl makes them: ``evmctl sign --portable``."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from undercroft.base import VerificationError
from undercroft.formats.ima import (
    FileDigest,
    ImaSignature,
    InodeMetadata,
    LinuxHash,
    SignatureType,
)
from undercroft.verify.evm_signature import CHECKS, verify_evm_signature
from undercroft.verify.ima_signature import ImaKeyring, load_keyring

RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
DER = serialization.Encoding.DER
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
KEYRING = load_keyring(
    (name, key.public_key().public_bytes(DER, SPKI))
    for name, key in (("rsa", RSA_KEY), ("ec", EC_KEY))
)
VALUE = hashlib.sha256(b"content").digest()
DIGEST = FileDigest("ima", "sha256", LinuxHash.SHA256, VALUE)
IMA = b"\x04\x04" + VALUE
SELINUX = (b"security.selinux", b"system_u:object_r:bin_t:s0\0")
INODE = InodeMetadata(0, 5, 0o100755, (SELINUX, (b"security.ima", IMA)))
PREHASHED = Prehashed(hashes.SHA256())


def by_rsa(hashed: bytes) -> bytes:
    return RSA_KEY.sign(hashed, PKCS1v15(), PREHASHED)


def by_ec(hashed: bytes) -> bytes:
    return EC_KEY.sign(hashed, ec.ECDSA(PREHASHED))


def signed(
    inode: InodeMetadata = INODE,
    sign: Callable[[bytes], bytes] = by_rsa,
    key: int = 0,
    layout: str = "<QIIIHxx",
) -> ImaSignature:
    values = b"".join(value for _, value in inode.xattrs)
    misc = struct.pack(layout, 0, 0, inode.uid, inode.gid, inode.mode)
    return ImaSignature(
        SignatureType.EVM_XATTR_PORTABLE_DIGSIG,
        2,
        LinuxHash.SHA256,
        KEYRING.keys[key].key_id,
        sign(hashlib.sha256(values + misc).digest()),
    )


@pytest.mark.parametrize(("sign", "key"), [(by_rsa, 0), (by_ec, 1)], ids=["rsa", "ecdsa"])
def test_a_portable_signature(sign: Callable[[bytes], bytes], key: int) -> None:
    verified = verify_evm_signature(signed(INODE, sign, key), INODE, DIGEST, KEYRING)
    assert (verified.key, verified.inode) == (KEYRING.keys[key], INODE)


def test_of_a_32_bit_and_of_a_big_endian_kernel() -> None:
    verify_evm_signature(signed(layout="<IIIIHxx"), INODE, DIGEST, KEYRING)
    verify_evm_signature(signed(layout=">QIIIHxx"), INODE, DIGEST, KEYRING, "big")


def ima_signed(digest: bytes = VALUE) -> InodeMetadata:
    """Return an inode whose security.ima is a signature itself."""
    header = b"\x03\x02\x04" + KEYRING.keys[1].key_id
    signature = by_ec(digest)
    value = header + len(signature).to_bytes(2, "big") + signature
    return replace(INODE, xattrs=((b"security.ima", value),))


def test_a_signature_in_security_ima_is_verified_too() -> None:
    inode = ima_signed()
    assert verify_evm_signature(signed(inode), inode, DIGEST, KEYRING).inode == inode


def test_a_wrong_signature_in_security_ima_is_that_checks() -> None:
    inode = ima_signed(bytes(32))
    with pytest.raises(VerificationError) as refusal:
        verify_evm_signature(signed(inode), inode, DIGEST, KEYRING)
    assert refusal.value.check == "ima.signature"


def having(*xattrs: tuple[bytes, bytes]) -> InodeMetadata:
    return replace(INODE, xattrs=xattrs)


SHA512 = FileDigest("ima", "sha512", LinuxHash.SHA512, hashlib.sha512(b"content").digest())
OLD = having((b"security.ima", b"\x01" + hashlib.sha1(b"content").digest()))
EMPTY = having((b"security.ima", b""))
Case = tuple[str, ImaSignature, InodeMetadata, FileDigest]
REFUSED: dict[str, Case] = {
    "type": (
        "evm.signature-type",
        replace(signed(), type=SignatureType.EVM_IMA_XATTR_DIGSIG),
        INODE,
        DIGEST,
    ),
    "version": ("evm.signature-type", replace(signed(), version=3), INODE, DIGEST),
    "hash": (
        "evm.signature-hash",
        replace(signed(), hash_algorithm=LinuxHash.SHA1),
        INODE,
        DIGEST,
    ),
    "no-ima": ("evm.ima-xattr", signed(having(SELINUX)), having(SELINUX), DIGEST),
    "empty-ima": ("evm.ima-xattr", signed(EMPTY), EMPTY, DIGEST),
    "other-algorithm": ("evm.content-algorithm", signed(), INODE, SHA512),
    "verity": ("evm.content-algorithm", signed(), INODE, replace(DIGEST, kind="verity")),
    "unknown": ("evm.content-algorithm", signed(), INODE, replace(DIGEST, algorithm=None)),
    "digest-without-algorithm": ("evm.content-algorithm", signed(OLD), OLD, DIGEST),
    "content": ("evm.content", signed(), INODE, replace(DIGEST, value=bytes(32))),
    "key": ("evm.signature-key", replace(signed(), claimed_key_id=b"none"), INODE, DIGEST),
    "owner": ("evm.signature", signed(), replace(INODE, uid=1), DIGEST),
    "group": ("evm.signature", signed(), replace(INODE, gid=0), DIGEST),
    "mode": ("evm.signature", signed(), replace(INODE, mode=0o104755), DIGEST),
    "attribute": ("evm.signature", signed(), having((b"security.ima", IMA)), DIGEST),
    "other-key": ("evm.signature", signed(sign=by_ec), INODE, DIGEST),
}


@pytest.mark.parametrize("case", REFUSED)
def test_each_check_says_no(case: str) -> None:
    check, signature, inode, digest = REFUSED[case]
    with pytest.raises(VerificationError) as refusal:
        verify_evm_signature(signature, inode, digest, KEYRING)
    assert refusal.value.check == check


def test_the_checks_are_numbered_and_each_says_no_above() -> None:
    assert [check.number for check in CHECKS] == [f"FE{n}" for n in range(1, 8)]
    assert {check.id for check in CHECKS} == {case[0] for case in REFUSED.values()}


def test_two_keys_with_one_id_are_both_tried() -> None:
    wrong = replace(KEYRING.keys[1], key_id=KEYRING.keys[0].key_id)
    keyring = ImaKeyring((wrong, KEYRING.keys[0]))
    assert verify_evm_signature(signed(), INODE, DIGEST, keyring).key is KEYRING.keys[0]
