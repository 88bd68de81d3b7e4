"""The evidence file (``*.cmw``): a CMW collection with everything one appraisal needs.

================= ======================================================== ==========
label             value                                                    may lack
================= ======================================================== ==========
``tpm-quote``     deterministic CBOR, see :class:`QuoteItem`               no
``tcg-eventlog``  the TCG event log as the firmware left it                yes
``ima-list``      binary_runtime_measurements                              yes
``secure-kernel`` the encoded SecureKernelRecord                           yes
================= ======================================================== ==========

Any other label is refused: the quote would not cover it, and nobody would look at it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from undercroft.base import FormatError, HashAlgorithm, PcrBank
from undercroft.formats import cbor
from undercroft.formats.evidence import cmw

FORMAT = "evidence"
TYPE = "tag:undercroft.example,2026:evidence/1"
"""The collection's type: says what the labels mean, and the version of that meaning."""

QUOTE_FORMAT = "tpm-quote"

QUOTE, EVENTLOG, IMA, RECORD = "tpm-quote", "tcg-eventlog", "ima-list", "secure-kernel"
_MEDIA_TYPES = {
    QUOTE: "application/vnd.undercroft.tpm-quote+cbor",
    EVENTLOG: "application/vnd.undercroft.tcg-eventlog",
    IMA: "application/vnd.undercroft.ima-binary-runtime-measurements",
    RECORD: "application/vnd.undercroft.secure-kernel-record+cbor",
}


@dataclass(frozen=True, slots=True)
class QuoteItem:
    """A quote as collected.

    ``attest`` is the TPMS_ATTEST that was signed, ``signature`` the TPMT_SIGNATURE.  Nothing
    signs the rest: ``claimed_ak_public`` is the TPMT_PUBLIC of the key that the collector says
    it used, and ``claimed_pcrs`` are the values it read.
    """

    attest: bytes
    signature: bytes
    claimed_ak_public: bytes
    claimed_pcrs: tuple[PcrBank, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Unverified evidence: the raw bytes of each part, None where a part is absent."""

    quote: QuoteItem
    eventlog: bytes | None = None
    ima_list: bytes | None = None
    record: bytes | None = None


class _Quote(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    attest: bytes
    signature: bytes
    ak_public: bytes
    pcrs: dict[str, dict[int, bytes]]


def _bank(name: str, values: dict[int, bytes]) -> PcrBank:
    algorithm = HashAlgorithm.from_name(name)
    if algorithm is None:
        raise FormatError(QUOTE_FORMAT, 0, "unknown hash algorithm", got=repr(name[:40]))
    try:
        return PcrBank(algorithm, values)
    except ValueError as error:
        raise FormatError(QUOTE_FORMAT, 0, str(error)) from error


def parse_quote_item(data: bytes) -> QuoteItem:
    """Parse ``{"attest": bstr, "signature": bstr, "ak-public": bstr, "pcrs": {name: {n: bstr}}}``.

    Raises FormatError.
    """
    wire = cbor.convert(cbor.decode(data, QUOTE_FORMAT), _Quote, QUOTE_FORMAT)
    banks = tuple(_bank(name, values) for name, values in wire.pcrs.items())
    return QuoteItem(wire.attest, wire.signature, wire.ak_public, banks)


def encode_quote_item(item: QuoteItem) -> bytes:
    """Encode ``item``.  Raises ValueError if two banks have the same algorithm."""
    pcrs = {bank.algorithm.label: dict(bank.values) for bank in item.claimed_pcrs}
    if len(pcrs) != len(item.claimed_pcrs):
        raise ValueError("two PCR banks of one algorithm")
    return cbor.encode(
        {
            "attest": item.attest,
            "signature": item.signature,
            "ak-public": item.claimed_ak_public,
            "pcrs": pcrs,
        }
    )


def _values(collection: cmw.CmwCollection) -> Iterable[tuple[str, bytes]]:
    for label, item in collection.items.items():
        if label not in _MEDIA_TYPES or not isinstance(label, str):
            raise FormatError(FORMAT, 0, "an item that evidence does not have", got=repr(label))
        if not isinstance(item, cmw.CmwRecord):
            raise FormatError(FORMAT, 0, f"{label} is a collection", expected="a record")
        if (item.type, item.ind) != (_MEDIA_TYPES[label], cmw.EVIDENCE):
            raise FormatError(
                FORMAT,
                0,
                f"{label} has another type or is no evidence",
                expected=(_MEDIA_TYPES[label], cmw.EVIDENCE),
                got=(item.type, item.ind),
            )
        yield label, item.value


def from_cmw(collection: cmw.Cmw) -> Evidence:
    """Read a CMW as evidence.  Raises FormatError."""
    if not isinstance(collection, cmw.CmwCollection) or collection.type != TYPE:
        got = getattr(collection, "type", "")
        raise FormatError(FORMAT, 0, "not an evidence collection", expected=TYPE, got=got)
    values = dict(_values(collection))
    if QUOTE not in values:
        raise FormatError(FORMAT, 0, "evidence without a quote", expected=QUOTE, got=[*values])
    return Evidence(
        parse_quote_item(values[QUOTE]),
        values.get(EVENTLOG),
        values.get(IMA),
        values.get(RECORD),
    )


def to_cmw(evidence: Evidence) -> cmw.CmwCollection:
    """Return ``evidence`` as a CMW collection."""
    values = {
        QUOTE: encode_quote_item(evidence.quote),
        EVENTLOG: evidence.eventlog,
        IMA: evidence.ima_list,
        RECORD: evidence.record,
    }
    items: dict[str | int, cmw.Cmw] = {
        label: cmw.CmwRecord(_MEDIA_TYPES[label], value, cmw.EVIDENCE)
        for label, value in values.items()
        if value is not None
    }
    return cmw.CmwCollection(TYPE, items)


def parse_evidence(data: bytes) -> Evidence:
    """Parse an evidence file.  Raises FormatError; encoding the result gives back ``data``."""
    return from_cmw(cmw.parse_cmw(data))


def encode_evidence(evidence: Evidence) -> bytes:
    """Encode ``evidence`` as an evidence file."""
    return cmw.encode_cmw(to_cmw(evidence))
