"""TPMS_CREATION_DATA: where and when an object was created (Part 2, 15)."""

from __future__ import annotations

import msgspec

from undercroft.base import HashAlgorithm
from undercroft.formats.reader import BoundedReader
from undercroft.formats.tpm.constants import MAX_DIGEST, MAX_TPMT_HA
from undercroft.formats.tpm.fields import (
    encode_2b,
    encode_hash,
    read_hash_or_null,
    unwrap_2b,
)
from undercroft.formats.tpm.selection import PcrSelectionList, read_selection_list


class CreationData(msgspec.Struct, frozen=True):
    """TPMS_CREATION_DATA (Part 2, 15.1).

    ``locality`` is the TPMA_LOCALITY of the command; ``parent_name_alg`` is None where the
    parent is a hierarchy, and then ``parent_name`` and ``parent_qualified_name`` are its handle.
    """

    pcr_select: PcrSelectionList
    pcr_digest: bytes
    locality: int
    parent_name_alg: HashAlgorithm | None
    parent_name: bytes
    parent_qualified_name: bytes
    outside_info: bytes

    def encode(self) -> bytes:
        """Encode as TPMS_CREATION_DATA, the bytes that creationHash is over."""
        return b"".join(
            (
                self.pcr_select.encode(),
                encode_2b(self.pcr_digest),
                bytes((self.locality,)),
                encode_hash(self.parent_name_alg),
                encode_2b(self.parent_name),
                encode_2b(self.parent_qualified_name),
                encode_2b(self.outside_info),
            )
        )


def _parse(data: bytes, base: int) -> CreationData:
    reader = BoundedReader(data, "TPMS_CREATION_DATA", order="big", base=base)
    creation = CreationData(
        read_selection_list(reader),
        reader.sized(2, "pcrDigest", limit=MAX_DIGEST),
        reader.u8("locality"),
        read_hash_or_null(reader, "parentNameAlg"),
        reader.sized(2, "parentName", limit=MAX_TPMT_HA),
        reader.sized(2, "parentQualifiedName", limit=MAX_TPMT_HA),
        reader.sized(2, "outsideInfo", limit=MAX_TPMT_HA),
    )
    reader.finish()
    return creation


def parse_creation_data(data: bytes) -> CreationData:
    """Parse ``data``, exactly one TPMS_CREATION_DATA.  Raises FormatError."""
    return _parse(data, 0)


def parse_creation_data_2b(data: bytes) -> CreationData:
    """Parse ``data``, exactly one TPM2B_CREATION_DATA.  Raises FormatError."""
    return _parse(unwrap_2b(data, "TPM2B_CREATION_DATA"), 2)
