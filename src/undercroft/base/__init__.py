"""Values that every other package speaks in: digests, PCR banks, nonces, findings, errors.

Nothing here parses, verifies or does I/O.
"""

from undercroft.base.digest import Digest, HashAlgorithm
from undercroft.base.errors import (
    EnvironmentFault,
    FormatError,
    MemoryFault,
    UndercroftError,
    VerificationError,
)
from undercroft.base.finding import Finding, JsonValue, Outcome, worst
from undercroft.base.grade import Grade
from undercroft.base.nonce import Nonce
from undercroft.base.pcr import PCR_COUNT, PcrBank

__all__ = [
    "PCR_COUNT",
    "Digest",
    "EnvironmentFault",
    "Finding",
    "FormatError",
    "Grade",
    "HashAlgorithm",
    "JsonValue",
    "MemoryFault",
    "Nonce",
    "Outcome",
    "PcrBank",
    "UndercroftError",
    "VerificationError",
    "worst",
]
