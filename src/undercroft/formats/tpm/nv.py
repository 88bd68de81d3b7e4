"""TPMS_NV_PUBLIC: the public area of an NV index, and its Name (Part 2, 13.5; Part 1, 16)."""

from __future__ import annotations

import msgspec

from undercroft.base import HashAlgorithm
from undercroft.formats.reader import BoundedReader
from undercroft.formats.tpm.constants import MAX_DIGEST
from undercroft.formats.tpm.fields import encode_2b, encode_hash, read_hash, unwrap_2b


class NvPublic(msgspec.Struct, frozen=True):
    """TPMS_NV_PUBLIC (Part 2, 13.5); ``attributes`` is the TPMA_NV, ``data_size`` in bytes."""

    nv_index: int
    name_alg: HashAlgorithm
    attributes: int
    auth_policy: bytes
    data_size: int

    @property
    def name(self) -> bytes:
        """The index's Name: nameAlg and H(TPMS_NV_PUBLIC)."""
        return encode_hash(self.name_alg) + self.name_alg.hash(self.encode())

    def encode(self) -> bytes:
        """Encode as TPMS_NV_PUBLIC."""
        return b"".join(
            (
                self.nv_index.to_bytes(4, "big"),
                encode_hash(self.name_alg),
                self.attributes.to_bytes(4, "big"),
                encode_2b(self.auth_policy),
                self.data_size.to_bytes(2, "big"),
            )
        )


def _parse(data: bytes, base: int) -> NvPublic:
    reader = BoundedReader(data, "TPMS_NV_PUBLIC", order="big", base=base)
    public = NvPublic(
        reader.u32("nvIndex"),
        read_hash(reader, "nameAlg"),
        reader.u32("attributes"),
        reader.sized(2, "authPolicy", limit=MAX_DIGEST),
        reader.u16("dataSize"),
    )
    reader.finish()
    return public


def parse_nv_public(data: bytes) -> NvPublic:
    """Parse ``data``, exactly one TPMS_NV_PUBLIC.  Raises FormatError."""
    return _parse(data, 0)


def parse_nv_public_2b(data: bytes) -> NvPublic:
    """Parse ``data``, exactly one TPM2B_NV_PUBLIC.  Raises FormatError."""
    return _parse(unwrap_2b(data, "TPM2B_NV_PUBLIC"), 2)
