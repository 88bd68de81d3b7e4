"""A verifier's challenge."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

MIN_SIZE = 16
MAX_SIZE = 64
"""The largest TPM2B_DATA that every TPM takes: the size of a SHA-512 digest."""


@dataclass(frozen=True, slots=True)
class Nonce:
    """An unpredictable value that evidence must repeat: 16 to 64 bytes, compared exactly."""

    value: bytes

    def __post_init__(self) -> None:
        if not MIN_SIZE <= len(self.value) <= MAX_SIZE:
            raise ValueError(f"a nonce has {MIN_SIZE} to {MAX_SIZE} bytes, got {len(self.value)}")

    def __str__(self) -> str:
        return self.value.hex()

    def matches(self, other: bytes) -> bool:
        """Compare in constant time, without padding or truncating either side."""
        return hmac.compare_digest(self.value, other)
