"""RATS Conceptual Message Wrapper, the CBOR record and collection (draft-ietf-rats-msg-wrap-23).

A record is ``[type, value, ? ind]`` (section 3.1), a collection a map from labels to records or
further collections, with an optional type under ``__cmwc_t`` (section 3.3).  The Tag CMW
(section 3.2) is not read: nothing of ours writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias, Union

from undercroft.base import FormatError
from undercroft.formats import cbor
from undercroft.formats.cbor import CborValue

FORMAT = "CMW"
MEDIA_TYPE = "application/cmw+cbor"
TYPE_KEY = "__cmwc_t"
EVIDENCE = 1 << 2
"""The bit of Evidence in ``ind`` (CMW Indicators registry)."""

MAX_CONTENT_FORMAT = 0xFFFF
MAX_INDICATOR = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class CmwRecord:
    """A message and its type: a media type, or a CoAP Content-Format number.

    ``ind`` is the bit map of the conceptual messages inside; 0 where it is not given.
    """

    type: str | int
    value: bytes
    ind: int = 0


Cmw: TypeAlias = Union[CmwRecord, "CmwCollection"]


@dataclass(frozen=True, slots=True)
class CmwCollection:
    """Messages by label.  ``type`` (a URI or OID; empty if absent) says what labels mean."""

    type: str
    items: Mapping[str | int, Cmw]

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", MappingProxyType(dict(self.items)))


def _fail(reason: str, got: object = "") -> FormatError:
    return FormatError(FORMAT, 0, reason, got=got)


def _is_type(kind: CborValue) -> bool:
    if isinstance(kind, str):
        return kind != ""
    return type(kind) is int and 0 <= kind <= MAX_CONTENT_FORMAT


def _record(value: list[CborValue]) -> CmwRecord:
    if len(value) not in (2, 3):
        raise _fail("a record has two or three members", len(value))
    kind, message, *ind = value
    if not _is_type(kind):
        raise _fail("a record's type is a media type or a Content-Format number", kind)
    if not isinstance(message, bytes):
        raise _fail("a record's value is a byte string")
    if not ind:
        return CmwRecord(kind, message)
    if type(ind[0]) is not int or not 0 < ind[0] <= MAX_INDICATOR:
        raise _fail("a record's ind is 1 to 2^32-1", ind[0])
    return CmwRecord(kind, message, ind[0])


def _collection(value: dict[str | int, CborValue]) -> CmwCollection:
    kind = value.get(TYPE_KEY, "")
    if not isinstance(kind, str) or (TYPE_KEY in value and not kind):
        raise _fail("a collection's type is a URI or an OID", kind)
    items = {label: from_value(item) for label, item in value.items() if label != TYPE_KEY}
    if not items:
        raise _fail("a collection has at least one item")
    return CmwCollection(kind, items)


def from_value(value: CborValue) -> Cmw:
    """Read a decoded CBOR value as a CMW.  Raises FormatError."""
    match value:
        case list():
            return _record(value)
        case dict():
            return _collection(value)
    raise _fail("neither a record nor a collection")


def to_value(cmw: Cmw) -> CborValue:
    """Return the CBOR value of ``cmw``."""
    if isinstance(cmw, CmwRecord):
        return [cmw.type, cmw.value, *([cmw.ind] if cmw.ind else [])]
    items = {label: to_value(item) for label, item in cmw.items.items()}
    return {**({TYPE_KEY: cmw.type} if cmw.type else {}), **items}


def parse_cmw(data: bytes) -> Cmw:
    """Parse a CBOR CMW.  Raises FormatError; ``encode_cmw`` of the result gives back ``data``."""
    return from_value(cbor.decode(data, FORMAT))


def encode_cmw(cmw: Cmw) -> bytes:
    """Encode ``cmw`` as deterministic CBOR."""
    return cbor.encode(to_value(cmw))
