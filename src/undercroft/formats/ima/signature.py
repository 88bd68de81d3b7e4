"""File signatures: ``struct signature_v2_hdr`` (``security/integrity/integrity.h``).

::

    u8 xattr type | u8 version | u8 hash algorithm | be32 key id | be16 size | signature

The extended attribute ``security.ima`` (or ``security.evm``) as it stands in a ``sig`` field.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from undercroft.formats.ima.algorithms import LinuxHash
from undercroft.formats.reader import BoundedReader

FORMAT = "signature_v2_hdr"


class SignatureType(enum.IntEnum):
    """The signature members of ``enum evm_ima_xattr_type``."""

    EVM_IMA_XATTR_DIGSIG = 3
    EVM_XATTR_PORTABLE_DIGSIG = 5
    IMA_VERITY_DIGSIG = 6


@dataclass(frozen=True, slots=True)
class ImaSignature:
    """A signature and what it says of itself; nothing of it is verified.

    ``version`` 2 signs the file's digest, 3 the hash of a ``struct ima_file_id``.
    ``claimed_key_id`` is the last four bytes of the signing key's subject key identifier.
    """

    type: SignatureType
    version: int
    hash_algorithm: LinuxHash
    claimed_key_id: bytes
    signature: bytes

    def encode(self) -> bytes:
        """Return the bytes that :func:`parse_signature` takes."""
        head = bytes((self.type, self.version, self.hash_algorithm.number))
        return head + self.claimed_key_id + len(self.signature).to_bytes(2, "big") + self.signature


def parse_signature(data: bytes) -> ImaSignature:
    """Parse a ``sig`` or ``evmsig`` field.  Raises FormatError; version 1 is refused."""
    reader = BoundedReader(data, FORMAT, order="big")
    type_number, version, hash_number = (reader.u8(w) for w in ("type", "version", "hash_algo"))
    if type_number not in list(SignatureType):
        raise reader.fail("not a signature's xattr type", expected="3, 5 or 6", got=type_number)
    if version not in (2, 3):
        raise reader.fail("no such signature version", expected="2 or 3", got=version)
    hash_algorithm = LinuxHash.from_number(hash_number)
    if hash_algorithm is None:
        raise reader.fail("no such hash algorithm", got=hash_number)
    key_id = reader.take(4, "keyid")
    signature = reader.sized(2, "sig")
    reader.finish()
    return ImaSignature(SignatureType(type_number), version, hash_algorithm, key_id, signature)
