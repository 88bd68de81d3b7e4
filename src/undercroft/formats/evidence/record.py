"""SecureKernelRecord: what the secure kernel saw, when, and through which channels.

Deterministic CBOR, a map with text keys::

    {"version": 1, "guest": tstr, "kernel": {"release": tstr, "build-id": bstr},
     "t0": uint, "t1": uint, "channels": [* tstr],
     "facts": [* {"id": tstr, "outcome": tstr, "summary": tstr, "details": {* tstr => any},
                  "source": tstr}]}

The quote's qualifyingData carries its hash (:mod:`.binding`).  It holds facts; whether they are
acceptable is for ``appraise``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from undercroft.base import Finding, FormatError, Outcome
from undercroft.formats import cbor

FORMAT = "SecureKernelRecord"
VERSION = 1
LIMITS = cbor.Limits(depth=12, items=1 << 18, size=4 << 20)
MAX_NS = 1 << 63
"""Times are below 2^63 ns (the year 2262)."""

_FACT_ID = re.compile(r"[a-z0-9]+(?:[-_.][a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class SecureKernelRecord:
    """One report of the secure kernel about one guest.

    ``t0`` and ``t1`` (ns since the Unix epoch, the secure kernel's clock) bound the interval
    that the facts speak of; ``channels`` names what watched during it (``poll``, ``write-trap``).
    ``kernel_build_id`` is empty if the kernel could not be identified.  Several facts may share
    an id: the worst of them counts.
    """

    version: int
    guest: str
    kernel_release: str
    kernel_build_id: bytes
    t0: int
    t1: int
    channels: tuple[str, ...]
    facts: tuple[Finding, ...]

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"record version {self.version} is not {VERSION}")
        if not 0 <= self.t0 <= self.t1 < MAX_NS:
            raise ValueError("t0 <= t1 < 2^63 ns does not hold")
        for fact in self.facts:
            if not _FACT_ID.fullmatch(fact.id):
                raise ValueError(f"not a dotted fact id: {fact.id[:80]!r}")


class _Kernel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    release: str
    build_id: bytes


class _Fact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    outcome: Outcome
    summary: str
    details: dict[str, Any]
    source: str


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    guest: str
    kernel: _Kernel
    t0: int
    t1: int
    channels: list[str]
    facts: list[_Fact]


def _is_json(value: object) -> bool:
    """True if ``value`` has a JSON form: no byte strings, no integer keys."""
    match value:
        case Mapping():
            return all(isinstance(k, str) for k in value) and all(map(_is_json, value.values()))
        case list() | tuple():
            return all(map(_is_json, value))
        case bytes():
            return False
    return True


def _finding(wire: _Fact) -> Finding:
    if not _is_json(wire.details):
        raise ValueError(f"the details of {wire.id[:80]!r} have no JSON form")
    return Finding(wire.id, wire.outcome, wire.summary, wire.details, wire.source)


def parse_record(data: bytes) -> SecureKernelRecord:
    """Parse a record.  Raises FormatError; ``encode_record`` of the result gives back ``data``."""
    wire = cbor.convert(cbor.decode(data, FORMAT, limits=LIMITS), _Record, FORMAT)
    try:
        return SecureKernelRecord(
            wire.version,
            wire.guest,
            wire.kernel.release,
            wire.kernel.build_id,
            wire.t0,
            wire.t1,
            tuple(wire.channels),
            tuple(map(_finding, wire.facts)),
        )
    except ValueError as error:
        raise FormatError(FORMAT, 0, str(error)) from error


def encode_record(record: SecureKernelRecord) -> bytes:
    """Encode ``record``.  Raises ValueError if a fact's details hold what has no encoding."""
    return cbor.encode(
        {
            "version": record.version,
            "guest": record.guest,
            "kernel": {"release": record.kernel_release, "build-id": record.kernel_build_id},
            "t0": record.t0,
            "t1": record.t1,
            "channels": record.channels,
            "facts": [fact.as_json() for fact in record.facts],
        }
    )
