"""TPML_PCR_SELECTION: which PCRs of which banks (Part 2, 10.6.2 and 10.9.7).

What a TPM signed is kept as it signed it: a bank listed twice, an empty bitmap or a bank whose
algorithm we do not know stays visible.  Whether it is what was asked for is decided in
``verify``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

import msgspec

from undercroft.base import PCR_COUNT, HashAlgorithm
from undercroft.formats.reader import BoundedReader
from undercroft.formats.tpm.fields import tpm_reader

MAX_BANKS = 16
"""More banks than any TPM has (HASH_COUNT, Part 2 Annex B, is the number it implements)."""
MAX_SELECT = 32
"""Bytes of bitmap: enough for 256 PCRs, all that an 8-bit PCR index can name."""
PC_CLIENT_SELECT = 3
"""Bytes of bitmap for the 24 PCRs of a PC Client TPM (PCR_SELECT_MIN)."""


@functools.lru_cache(maxsize=64)
def _indices(bitmap: bytes) -> tuple[int, ...]:
    # A verifier sees the same few selections over and over.
    bits = int.from_bytes(bitmap, "little")
    return tuple(i for i in range(bits.bit_length()) if bits >> i & 1)


class PcrSelection(msgspec.Struct, frozen=True):
    """TPMS_PCR_SELECTION: one bank's bitmap.

    ``alg_id`` is the TPM_ALG_ID as found; ``bitmap`` has bit ``i % 8`` of byte ``i // 8`` set
    for each selected PCR ``i``.
    """

    alg_id: int
    bitmap: bytes

    @property
    def algorithm(self) -> HashAlgorithm | None:
        """The bank's hash algorithm, or None if it is not one we know."""
        return HashAlgorithm.from_alg_id(self.alg_id)

    @property
    def indices(self) -> tuple[int, ...]:
        """The selected PCRs, ascending: the order in which a TPM hashes them."""
        return _indices(self.bitmap)

    def __str__(self) -> str:
        name = str(self.algorithm or f"{self.alg_id:#06x}")
        return f"{name}:{','.join(map(str, self.indices)) or 'none'}"

    def encode(self) -> bytes:
        """Encode as TPMS_PCR_SELECTION."""
        return self.alg_id.to_bytes(2, "big") + bytes((len(self.bitmap),)) + self.bitmap


class PcrSelectionList(msgspec.Struct, frozen=True):
    """TPML_PCR_SELECTION: banks in the order in which a TPM hashes them."""

    selections: tuple[PcrSelection, ...]

    @classmethod
    def of(cls, banks: Mapping[HashAlgorithm, Iterable[int]]) -> PcrSelectionList:
        """Return the selection of these PCRs, as a PC Client TPM encodes it.

        Raises ValueError for an index that is not a PCR of a PC Client TPM.
        """
        return cls(tuple(_bank(algorithm, indices) for algorithm, indices in banks.items()))

    def __str__(self) -> str:
        return "+".join(map(str, self.selections)) or "nothing"

    def encode(self) -> bytes:
        """Encode as TPML_PCR_SELECTION."""
        count = len(self.selections).to_bytes(4, "big")
        return count + b"".join(selection.encode() for selection in self.selections)


def _bank(algorithm: HashAlgorithm, indices: Iterable[int]) -> PcrSelection:
    bits = 0
    for index in indices:
        if not 0 <= index < PCR_COUNT:
            raise ValueError(f"PCR {index} is not one of 0..{PCR_COUNT - 1}")
        bits |= 1 << index
    return PcrSelection(algorithm.alg_id, bits.to_bytes(PC_CLIENT_SELECT, "little"))


def read_selection_list(reader: BoundedReader) -> PcrSelectionList:
    """Read one TPML_PCR_SELECTION from ``reader``."""
    count = reader.u32("the number of PCR banks")
    if count > MAX_BANKS:
        reader.offset -= 4
        raise reader.fail("too many PCR banks", expected=f"at most {MAX_BANKS}", got=count)
    selections = []
    for _ in range(count):
        alg_id = reader.u16("a PCR bank's hash")
        bitmap = reader.sized(1, "a PCR bitmap", limit=MAX_SELECT)
        selections.append(PcrSelection(alg_id, bitmap))
    return PcrSelectionList(tuple(selections))


def parse_selection_list(data: bytes) -> PcrSelectionList:
    """Parse ``data``, exactly one TPML_PCR_SELECTION.  Raises FormatError."""
    reader = tpm_reader(data, "TPML_PCR_SELECTION")
    selection = read_selection_list(reader)
    reader.finish()
    return selection
