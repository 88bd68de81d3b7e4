"""What a numbered check is, and how weak evidence is graded."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from undercroft.base import Finding, HashAlgorithm, JsonValue, Outcome, VerificationError
from undercroft.formats.tpm import Scheme


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its number in the code (``Q4``), its stable id, what it says, and the clause."""

    number: str
    id: str
    says: str
    source: str

    def failed(
        self, what: str, *, expected: object = "", got: object = "", remedy: str = ""
    ) -> VerificationError:
        """Return (not raise) the error of this check."""
        return VerificationError(self.id, what, expected=expected, got=got, remedy=remedy)

    def finding(self, outcome: Outcome, summary: str, details: Mapping[str, JsonValue]) -> Finding:
        """Return what this check found."""
        return Finding(self.id, outcome, summary, details, self.source)


class Weakness(enum.Enum):
    """Why authentic evidence is worth less than it could be.  Stable ids."""

    SHA1_SIGNATURE = "sha1-signature"
    SHA1_PCR_BANK = "sha1-pcr-bank"
    TPM12 = "tpm-1.2"


class QuoteGrade(enum.Enum):
    """How much an authentic quote is worth.

    FULL: TPM 2.0, nothing weak.  WEAK: TPM 2.0 that leans on SHA-1.  LEGACY: TPM 1.2.
    """

    FULL = "full"
    WEAK = "weak"
    LEGACY = "legacy"


def grade_of(weaknesses: tuple[Weakness, ...]) -> QuoteGrade:
    """Return the grade that evidence with these weaknesses gets."""
    if Weakness.TPM12 in weaknesses:
        return QuoteGrade.LEGACY
    return QuoteGrade.WEAK if weaknesses else QuoteGrade.FULL


def weaknesses_of(scheme: Scheme, banks: tuple[HashAlgorithm, ...]) -> tuple[Weakness, ...]:
    """Return what is weak in a signature of ``scheme`` and these PCR banks."""
    found = []
    if scheme.hash_alg is HashAlgorithm.SHA1:
        found.append(Weakness.SHA1_SIGNATURE)
    if HashAlgorithm.SHA1 in banks:
        found.append(Weakness.SHA1_PCR_BANK)
    return tuple(found)
