"""Small pieces that several TPM structures share: sized buffers and algorithm ids."""

from __future__ import annotations

from undercroft.base import FormatError, HashAlgorithm
from undercroft.formats.reader import BoundedReader
from undercroft.formats.tpm.constants import TpmAlg


def tpm_reader(data: bytes, format_name: str) -> BoundedReader:
    """Return a reader over ``data`` in the TPM's byte order (Part 1, 4.2: big-endian)."""
    return BoundedReader(data, format_name, order="big")


def encode_2b(value: bytes) -> bytes:
    """Encode a TPM2B: a 16-bit size, then the bytes (Part 2, 10.4.1)."""
    return len(value).to_bytes(2, "big") + value


def unwrap_2b(data: bytes, format_name: str) -> bytes:
    """Return the content of ``data``, which must be exactly one TPM2B."""
    reader = tpm_reader(data, format_name)
    content = reader.sized(2, "the content")
    reader.finish()
    return content


def wrong_id(reader: BoundedReader, what: str, value: int) -> FormatError:
    """Return the error for the 16-bit id ``value`` that was just read and is not one of ours."""
    reader.offset -= 2
    return reader.fail(f"{what} is not one this structure can hold", got=f"{value:#06x}")


def read_hash(reader: BoundedReader, what: str) -> HashAlgorithm:
    """Read a TPMI_ALG_HASH; an unknown algorithm is an error."""
    value = reader.u16(what)
    algorithm = HashAlgorithm.from_alg_id(value)
    if algorithm is None:
        raise wrong_id(reader, what, value)
    return algorithm


def read_hash_or_null(reader: BoundedReader, what: str) -> HashAlgorithm | None:
    """Read a TPMI_ALG_HASH+, where TPM_ALG_NULL is None."""
    value = reader.u16(what)
    if value == TpmAlg.NULL:
        return None
    algorithm = HashAlgorithm.from_alg_id(value)
    if algorithm is None:
        raise wrong_id(reader, what, value)
    return algorithm


def encode_hash(algorithm: HashAlgorithm | None) -> bytes:
    """Encode a TPMI_ALG_HASH+; None is TPM_ALG_NULL."""
    return (TpmAlg.NULL if algorithm is None else algorithm.alg_id).to_bytes(2, "big")
