"""PCR values as a TPM gives them out: TPML_DIGEST and the response of TPM2_PCR_Read."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from undercroft.base import PCR_COUNT, FormatError, HashAlgorithm, PcrBank
from undercroft.formats.reader import BoundedReader
from undercroft.formats.tpm.constants import MAX_DIGEST
from undercroft.formats.tpm.fields import encode_2b
from undercroft.formats.tpm.selection import PcrSelectionList, read_selection_list

MAX_DIGESTS = 8
"""The most digests in one TPML_DIGEST (Part 2, 10.9.4)."""
_READ = "TPM2_PCR_Read"


class DigestList(msgspec.Struct, frozen=True):
    """TPML_DIGEST (Part 2, 10.9.4)."""

    digests: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Encode as TPML_DIGEST."""
        return len(self.digests).to_bytes(4, "big") + b"".join(map(encode_2b, self.digests))


class PcrRead(msgspec.Struct, frozen=True):
    """The response parameters of TPM2_PCR_Read (Part 3, 22.4).

    ``pcr_selection`` is what of the request ``pcr_values`` answers, up to eight PCRs;
    ``pcr_update_counter`` is the same in all answers that belong together.
    """

    pcr_update_counter: int
    pcr_selection: PcrSelectionList
    pcr_values: DigestList

    def encode(self) -> bytes:
        """Encode as the response parameters."""
        counter = self.pcr_update_counter.to_bytes(4, "big")
        return counter + self.pcr_selection.encode() + self.pcr_values.encode()


def read_digest_list(reader: BoundedReader) -> DigestList:
    """Read one TPML_DIGEST from ``reader``."""
    count = reader.u32("the number of digests")
    if count > MAX_DIGESTS:
        reader.offset -= 4
        raise reader.fail("too many digests", expected=f"at most {MAX_DIGESTS}", got=count)
    return DigestList(tuple([reader.sized(2, "a digest", limit=MAX_DIGEST) for _ in range(count)]))


def parse_digest_list(data: bytes) -> DigestList:
    """Parse ``data``, exactly one TPML_DIGEST.  Raises FormatError."""
    reader = BoundedReader(data, "TPML_DIGEST", order="big")
    digests = read_digest_list(reader)
    reader.finish()
    return digests


def parse_pcr_read(data: bytes) -> PcrRead:
    """Parse ``data``, exactly the response parameters of TPM2_PCR_Read.  Raises FormatError."""
    reader = BoundedReader(data, _READ, order="big")
    counter = reader.u32("pcrUpdateCounter")
    value = PcrRead(counter, read_selection_list(reader), read_digest_list(reader))
    reader.finish()
    return value


def banks_of(reads: Iterable[PcrRead]) -> tuple[PcrBank, ...]:
    """Join the answers to several TPM2_PCR_Read into banks, in the order they first appear.

    Raises FormatError if an answer's digests do not fit its selection, if a PCR comes twice, or
    if the PCRs changed in between (pcrUpdateCounter): such values are of no one moment.
    """
    banks: dict[HashAlgorithm, dict[int, bytes]] = {}
    counters = set()
    for read in reads:
        counters.add(read.pcr_update_counter)
        if len(counters) > 1:
            raise FormatError(_READ, 0, "a PCR changed between two reads")
        _join(banks, read)
    return tuple(PcrBank(algorithm, values) for algorithm, values in banks.items())


def _join(banks: dict[HashAlgorithm, dict[int, bytes]], read: PcrRead) -> None:
    selected = [
        (bank.algorithm, index) for bank in read.pcr_selection.selections for index in bank.indices
    ]
    digests = read.pcr_values.digests
    if len(selected) != len(digests):
        raise FormatError(
            _READ, 0, "as many digests as PCRs", expected=len(selected), got=len(digests)
        )
    for (algorithm, index), digest in zip(selected, digests, strict=True):
        if algorithm is None or index >= PCR_COUNT:
            raise FormatError(_READ, 0, "no PCR of a bank that we know", got=read.pcr_selection)
        values = banks.setdefault(algorithm, {})
        if index in values or len(digest) != algorithm.size:
            raise FormatError(_READ, 0, f"PCR {index} comes twice or has the wrong size")
        values[index] = digest
