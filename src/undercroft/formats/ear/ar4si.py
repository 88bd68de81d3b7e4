"""Attestation Results for Secure Interactions: tiers and trustworthiness claims.

Source: draft-ietf-rats-ar4si-06, sections 2.3.2 (enumeration encoding) and 2.3.4 (claims).
"""

from __future__ import annotations

import enum


class Tier(enum.Enum):
    """Trustworthiness tier; the value is the CBOR form of ``ear_status``."""

    __hash__ = object.__hash__  # members are unique: by identity, and not by name in Python

    NONE = 0
    AFFIRMING = 2
    WARNING = 32
    CONTRAINDICATED = 96

    @property
    def label(self) -> str:
        """The JSON form."""
        return self.name.lower()


class TrustClaim(enum.Enum):
    """The claims of a trustworthiness vector, by their JSON names."""

    __hash__ = object.__hash__

    INSTANCE_IDENTITY = "instance-identity"
    CONFIGURATION = "configuration"
    EXECUTABLES = "executables"
    FILE_SYSTEM = "file-system"
    HARDWARE = "hardware"
    RUNTIME_OPAQUE = "runtime-opaque"
    STORAGE_OPAQUE = "storage-opaque"
    SOURCED_DATA = "sourced-data"


NO_CLAIM = 0
"""The evidence is insufficient for a conclusion; to a relying party the same as no claim."""
UNKNOWN_ELEMENTS = 1
"""The evidence has elements that the verifier cannot evaluate."""
APPROVED = 2
"""The affirming value that every claim has."""
APPROVED_BOOT = 3
"""executables: only recognized genuine executables were loaded during boot (2: and after it)."""
UNRECOGNIZED = 33
"""executables: runtime memory holds something that is not recognized."""
NON_STANDARD_WARNING = -33
"""A warning for a claim that has no standard one (instance-identity)."""
CONTRAINDICATED = 96
"""The contraindicating value that every claim has."""

MIN_VALUE, MAX_VALUE = -128, 127


def tier_of(value: int) -> Tier:
    """Return the tier of a claim's value.  Raises ValueError outside -128..127."""
    if not MIN_VALUE <= value <= MAX_VALUE:
        raise ValueError(f"a trustworthiness claim is {MIN_VALUE} to {MAX_VALUE}, got {value}")
    if -1 <= value <= 1:
        return Tier.NONE
    # The non-standard ranges mirror the standard ones, one further down: -2..-32, -33..-96.
    magnitude = value if value > 0 else -value - 1
    if magnitude < 32:
        return Tier.AFFIRMING
    return Tier.WARNING if magnitude < 96 else Tier.CONTRAINDICATED
