"""The evidence file (``*.cmw``): a CMW collection with everything one appraisal needs.

================= ======================================================== ==========
label             value                                                    may lack
================= ======================================================== ==========
``tpm-quote``     deterministic CBOR, see :class:`QuoteItem`               no
``tcg-eventlog``  the TCG event log as the firmware left it                yes
``ima-list``      binary_runtime_measurements                              yes
``secure-kernel`` the encoded SecureKernelRecord                           yes
``launch-log``    the crypto-agile log of the secure kernel's launch       yes
``host-layer``    what the host's TPM says of the quote, see ``hostlayer`` yes
``trap-epochs``   the chain of epochs of the write traps, see ``interval`` yes
================= ======================================================== ==========

The quote covers all of them but the host layer, which covers the quote; the epochs by the digest
of the last one, which stands in the secure kernel's record.  Any other label is
refused: nobody would look at it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from undercroft.base import PCR_COUNT, FormatError, HashAlgorithm, PcrBank
from undercroft.formats import cbor
from undercroft.formats.cbor import CborValue
from undercroft.formats.evidence import cmw

FORMAT = "evidence"
TYPE = "tag:undercroft.example,2026:evidence/1"
"""The collection's type: says what the labels mean, and the version of that meaning."""

QUOTE_FORMAT = "tpm-quote"

QUOTE, EVENTLOG, IMA, RECORD = "tpm-quote", "tcg-eventlog", "ima-list", "secure-kernel"
LAUNCH, HOST, EPOCHS = "launch-log", "host-layer", "trap-epochs"
_MEDIA_TYPES = {
    QUOTE: "application/vnd.undercroft.tpm-quote+cbor",
    EVENTLOG: "application/vnd.undercroft.tcg-eventlog",
    IMA: "application/vnd.undercroft.ima-binary-runtime-measurements",
    RECORD: "application/vnd.undercroft.secure-kernel-record+cbor",
    LAUNCH: "application/vnd.undercroft.launch-log",
    HOST: "application/vnd.undercroft.host-layer+cbor",
    EPOCHS: "application/vnd.undercroft.trap-epochs",
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
    launch_log: bytes | None = None
    host_layer: bytes | None = None
    epochs: bytes | None = None


class _Quote(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    attest: bytes
    signature: bytes
    ak_public: bytes
    pcrs: dict[str, tuple[bytes, bytes]]


_SELECT_SIZE = PCR_COUNT // 8
"""Bytes of a pcrSelect: bit n of byte n // 8 stands for PCR n (TPM 2.0 Part 2, 10.6.1)."""


@functools.lru_cache(maxsize=64)  # the same few selections come again and again
def _indices(select: bytes) -> tuple[int, ...]:
    bits = int.from_bytes(select, "little")
    return tuple(index for index in range(PCR_COUNT) if bits >> index & 1)


def _bank(name: str, select: bytes, values: bytes) -> PcrBank:
    algorithm = HashAlgorithm.from_name(name)
    if algorithm is None:
        raise FormatError(QUOTE_FORMAT, 0, "unknown hash algorithm", got=repr(name[:40]))
    indices, size = _indices(select), algorithm.size
    if len(select) != _SELECT_SIZE or len(values) != len(indices) * size:
        raise FormatError(
            QUOTE_FORMAT,
            0,
            f"the {name} bank's values are not those of its pcrSelect",
            expected=f"{_SELECT_SIZE} bytes, and {size} for each PCR",
            got=f"{len(select)} and {len(values)} bytes",
        )
    starts = range(0, len(values), size)
    return PcrBank(
        algorithm,
        {i: values[at : at + size] for i, at in zip(indices, starts, strict=True)},
    )


def decode_banks(pcrs: Mapping[str, tuple[bytes, bytes]]) -> tuple[PcrBank, ...]:
    """Return the banks that ``{* name => [select, values]}`` holds.  Raises FormatError."""
    return tuple([_bank(name, *bank) for name, bank in pcrs.items()])


def encode_banks(banks: Sequence[PcrBank]) -> dict[str, list[bytes]]:
    """Return the inverse of :func:`decode_banks`.  Raises ValueError if a bank is there twice."""
    pcrs = {
        bank.algorithm.label: [
            sum(1 << index for index in bank.values).to_bytes(_SELECT_SIZE, "little"),
            b"".join(bank.values.values()),
        ]
        for bank in banks
    }
    if len(pcrs) != len(banks):
        raise ValueError("two PCR banks of one algorithm")
    return pcrs


def parse_quote_item(data: bytes) -> QuoteItem:
    """Parse a quote item.  Raises FormatError.

    ``{"attest": bstr, "signature": bstr, "ak-public": bstr, "pcrs": {* name => [select, values]}}``
    where ``select`` is a pcrSelect of three bytes and ``values`` are the PCRs in it, ascending,
    end to end.
    """
    wire = cbor.convert(cbor.decode(data, QUOTE_FORMAT), _Quote, QUOTE_FORMAT)
    return QuoteItem(wire.attest, wire.signature, wire.ak_public, decode_banks(wire.pcrs))


def encode_quote_item(item: QuoteItem) -> bytes:
    """Encode ``item``.  Raises ValueError if two banks have the same algorithm."""
    return cbor.encode(
        {
            "attest": item.attest,
            "signature": item.signature,
            "ak-public": item.claimed_ak_public,
            "pcrs": encode_banks(item.claimed_pcrs),
        }
    )


_RECORD_HEADS = {label: (media_type, cmw.EVIDENCE) for label, media_type in _MEDIA_TYPES.items()}


def _item(label: object, record: CborValue) -> bytes:
    """Return the value of one CMW record of an evidence collection."""
    head = _RECORD_HEADS.get(label) if isinstance(label, str) else None
    if head is None:
        raise FormatError(FORMAT, 0, "an item that evidence does not have", got=repr(label))
    match record:
        case [media_type, bytes() as value, int() as ind] if (media_type, ind) == head:
            return value
    raise FormatError(
        FORMAT, 0, f"{label} is not a record of evidence", expected=head, got=repr(record)[:100]
    )


def from_value(value: CborValue) -> Evidence:
    """Read a decoded CBOR value as an evidence collection.  Raises FormatError.

    What :mod:`.cmw` reads in general is read here for exactly this collection: every label and
    type is known, and nothing nests.
    """
    kind = value.get(cmw.TYPE_KEY) if isinstance(value, dict) else None
    if kind != TYPE:
        got = repr(kind)[:100]
        raise FormatError(FORMAT, 0, "not an evidence collection", expected=TYPE, got=got)
    values = {label: _item(label, item) for label, item in value.items() if label != cmw.TYPE_KEY}
    if QUOTE not in values:
        raise FormatError(FORMAT, 0, "evidence without a quote", expected=QUOTE, got=[*values])
    return Evidence(
        parse_quote_item(values[QUOTE]),
        values.get(EVENTLOG),
        values.get(IMA),
        values.get(RECORD),
        values.get(LAUNCH),
        values.get(HOST),
        values.get(EPOCHS),
    )


def to_cmw(evidence: Evidence) -> cmw.CmwCollection:
    """Return ``evidence`` as a CMW collection."""
    values = {
        QUOTE: encode_quote_item(evidence.quote),
        EVENTLOG: evidence.eventlog,
        IMA: evidence.ima_list,
        RECORD: evidence.record,
        LAUNCH: evidence.launch_log,
        HOST: evidence.host_layer,
        EPOCHS: evidence.epochs,
    }
    items: dict[str | int, cmw.Cmw] = {
        label: cmw.CmwRecord(_MEDIA_TYPES[label], value, cmw.EVIDENCE)
        for label, value in values.items()
        if value is not None
    }
    return cmw.CmwCollection(TYPE, items)


def parse_evidence(data: bytes) -> Evidence:
    """Parse an evidence file.  Raises FormatError; encoding the result gives back ``data``."""
    return from_value(cbor.decode(data, FORMAT))


def encode_evidence(evidence: Evidence) -> bytes:
    """Encode ``evidence`` as an evidence file."""
    return cmw.encode_cmw(to_cmw(evidence))
