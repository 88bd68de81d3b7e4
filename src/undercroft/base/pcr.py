"""A bank of platform configuration registers, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from undercroft.base.digest import HashAlgorithm

PCR_COUNT = 24
"""PCRs of a PC Client TPM (PC Client Platform TPM Profile 1.05, section 4.6)."""


@dataclass(frozen=True, slots=True)
class PcrBank:
    """Values of some PCRs of one bank, by index.  Lengths and indices are checked."""

    algorithm: HashAlgorithm
    values: Mapping[int, bytes]

    def __post_init__(self) -> None:
        for index, value in self.values.items():
            if not 0 <= index < PCR_COUNT:
                raise ValueError(f"PCR {index} is not one of 0..{PCR_COUNT - 1}")
            if len(value) != self.algorithm.size:
                raise ValueError(
                    f"PCR {index} of the {self.algorithm} bank has {self.algorithm.size} bytes, "
                    f"got {len(value)}"
                )
        object.__setattr__(self, "values", MappingProxyType(dict(sorted(self.values.items()))))

    def extended(self, index: int, digest: bytes) -> PcrBank:
        """Return the bank after ``PCR[index] := H(PCR[index] || digest)``.

        Raises KeyError if the bank does not hold the PCR.
        """
        value = self.algorithm.hash(self.values[index], digest)
        return PcrBank(self.algorithm, {**self.values, index: value})
