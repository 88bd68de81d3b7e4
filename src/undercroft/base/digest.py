"""Hash algorithms as the TCG numbers them, and a digest that knows its algorithm."""

from __future__ import annotations

import enum
import functools
import hashlib
import hmac
from dataclasses import dataclass


class HashAlgorithm(enum.Enum):
    """A hash algorithm, by the name that Linux and the TCG both use.

    ``alg_id`` is the TPM_ALG_ID of the TCG Algorithm Registry (rev 1.34, table 3); ``size`` is
    the digest length in bytes; ``hashlib_name`` is what :mod:`hashlib` calls it.
    """

    SHA1 = ("sha1", 0x0004, 20, "sha1")
    SHA256 = ("sha256", 0x000B, 32, "sha256")
    SHA384 = ("sha384", 0x000C, 48, "sha384")
    SHA512 = ("sha512", 0x000D, 64, "sha512")
    SM3_256 = ("sm3_256", 0x0012, 32, "sm3")
    SHA3_256 = ("sha3_256", 0x0027, 32, "sha3_256")
    SHA3_384 = ("sha3_384", 0x0028, 48, "sha3_384")
    SHA3_512 = ("sha3_512", 0x0029, 64, "sha3_512")

    def __init__(self, label: str, alg_id: int, size: int, hashlib_name: str) -> None:
        self.label = label
        self.alg_id = alg_id
        self.size = size
        self.hashlib_name = hashlib_name
        # A named constructor is several times faster than hashlib.new; SM3 has none.
        self._new = getattr(hashlib, hashlib_name, None) or functools.partial(
            hashlib.new, hashlib_name
        )

    # Members are equal only to themselves; Enum's own hash costs a call, and banks are dict keys.
    __hash__ = object.__hash__

    def __str__(self) -> str:
        return self.label

    def hash(self, *parts: bytes | bytearray | memoryview) -> bytes:
        """Return the raw digest of the concatenated ``parts``."""
        state = self._new()
        for part in parts:
            state.update(part)
        return state.digest()

    def digest(self, *parts: bytes | bytearray | memoryview) -> Digest:
        """Return the digest of the concatenated ``parts``, tagged with this algorithm."""
        return Digest(self, self.hash(*parts))

    @classmethod
    def from_alg_id(cls, alg_id: int) -> HashAlgorithm | None:
        """Return the algorithm with this TPM_ALG_ID, or None if it is not one we know."""
        return _BY_ALG_ID.get(alg_id)

    @classmethod
    def from_name(cls, name: str) -> HashAlgorithm | None:
        """Return the algorithm with this Linux name (``sha256``), or None."""
        return _BY_NAME.get(name)


_BY_ALG_ID = {algorithm.alg_id: algorithm for algorithm in HashAlgorithm}
_BY_NAME = {algorithm.label: algorithm for algorithm in HashAlgorithm}


@dataclass(frozen=True, slots=True)
class Digest:
    """A digest and the algorithm that made it.  The length is checked on construction."""

    algorithm: HashAlgorithm
    value: bytes

    def __post_init__(self) -> None:
        if len(self.value) != self.algorithm.size:
            raise ValueError(
                f"a {self.algorithm} digest has {self.algorithm.size} bytes, got {len(self.value)}"
            )

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value.hex()}"

    def matches(self, other: Digest) -> bool:
        """Compare in constant time; digests of different algorithms never match."""
        return self.algorithm is other.algorithm and hmac.compare_digest(self.value, other.value)
