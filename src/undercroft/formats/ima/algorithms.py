"""The kernel's hash algorithms, by its own names and numbers.

``include/uapi/linux/hash_info.h`` (enum hash_algo) and ``crypto/hash_info.c`` (names, sizes).
These names are not the TCG's: SHA3-256 is ``sha3-256`` here.
"""

from __future__ import annotations

import enum

from undercroft.base import HashAlgorithm


class LinuxHash(enum.Enum):
    """A member of the kernel's ``enum hash_algo``: its name, number and digest size in bytes.

    ``algorithm`` is the same algorithm as the TCG knows it, or None if we cannot compute it.
    """

    MD4 = ("md4", 0, 16, None)
    MD5 = ("md5", 1, 16, None)
    SHA1 = ("sha1", 2, 20, HashAlgorithm.SHA1)
    RIPE_MD_160 = ("rmd160", 3, 20, None)
    SHA256 = ("sha256", 4, 32, HashAlgorithm.SHA256)
    SHA384 = ("sha384", 5, 48, HashAlgorithm.SHA384)
    SHA512 = ("sha512", 6, 64, HashAlgorithm.SHA512)
    SHA224 = ("sha224", 7, 28, None)
    RIPE_MD_128 = ("rmd128", 8, 16, None)
    RIPE_MD_256 = ("rmd256", 9, 32, None)
    RIPE_MD_320 = ("rmd320", 10, 40, None)
    WP_256 = ("wp256", 11, 32, None)
    WP_384 = ("wp384", 12, 48, None)
    WP_512 = ("wp512", 13, 64, None)
    TGR_128 = ("tgr128", 14, 16, None)
    TGR_160 = ("tgr160", 15, 20, None)
    TGR_192 = ("tgr192", 16, 24, None)
    SM3_256 = ("sm3", 17, 32, HashAlgorithm.SM3_256)
    STREEBOG_256 = ("streebog256", 18, 32, None)
    STREEBOG_512 = ("streebog512", 19, 64, None)
    SHA3_256 = ("sha3-256", 20, 32, HashAlgorithm.SHA3_256)
    SHA3_384 = ("sha3-384", 21, 48, HashAlgorithm.SHA3_384)
    SHA3_512 = ("sha3-512", 22, 64, HashAlgorithm.SHA3_512)

    def __init__(self, label: str, number: int, size: int, algorithm: HashAlgorithm | None) -> None:
        self.label = label
        self.number = number
        self.size = size
        self.algorithm = algorithm

    def __str__(self) -> str:
        return self.label

    @classmethod
    def from_name(cls, name: bytes) -> LinuxHash | None:
        """Return the algorithm that the kernel calls ``name``, or None."""
        return _BY_NAME.get(name)

    @classmethod
    def from_number(cls, number: int) -> LinuxHash | None:
        """Return the algorithm with this number in ``enum hash_algo``, or None."""
        return _BY_NUMBER.get(number)

    @classmethod
    def of(cls, algorithm: HashAlgorithm) -> LinuxHash:
        """Return the kernel's name for an algorithm of the TCG's."""
        return _BY_ALGORITHM[algorithm]


_BY_NAME = {member.label.encode(): member for member in LinuxHash}
# SM3 was "sm3-256" until Linux 5.19 (commit d2825fa9365d renamed it).
_BY_NAME[b"sm3-256"] = LinuxHash.SM3_256
_BY_NUMBER = {member.number: member for member in LinuxHash}
_BY_ALGORITHM = {m.algorithm: m for m in LinuxHash if m.algorithm is not None}
