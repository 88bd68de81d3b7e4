"""The host layer: what the TPM of the host says about the guest's quote.

Deterministic CBOR::

    {"version": 2, "tpm": "hardware" / "stand-in",
     "attest": bstr, "signature": bstr, "ak-public": bstr, "pcrs": {* name => [select, values]},
     "guest-quote": bstr .size 32, "descriptor": bstr .size 32, "log-head": bstr .size 32,
     "last-modified": uint, "counter": uint,
     "nv-public": bstr, "nv-attest": bstr, "nv-signature": bstr,
     ? "eventlog": bstr, ? "ima-list": bstr}

``attest`` is a TPM2_Quote of the host's PCRs, ``nv-attest`` a TPM2_NV_Certify of its monotonic
counter, both by the same key and with the qualifyingData of :func:`deep_qualifying_data`.
``guest-quote`` is the SHA-256 of the guest's quote item, ``descriptor`` that of the VM descriptor
(zeros if the launch measured none), ``log-head`` that of the launch's log.  ``last-modified`` is
the epoch of the write traps in which the secure kernel last saw a change, 0 if there was none or
nobody looked (:func:`last_modified_of`).  ``eventlog`` and ``ima-list`` are the host's own boot log
and file list, as its kernel gives them.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec

from undercroft.base import FormatError, Nonce
from undercroft.formats import cbor
from undercroft.formats.evidence.binding import part_digest
from undercroft.formats.evidence.collection import (
    QuoteItem,
    decode_banks,
    encode_banks,
    encode_quote_item,
)
from undercroft.formats.evidence.record import SecureKernelRecord

FORMAT = "host layer"
VERSION = 2
LIMITS = cbor.Limits(depth=4, items=1 << 10, size=64 << 20)
NO_DESCRIPTOR = bytes(32)
_TRAPS = "kernel.traps"
"""Id of the fact that says what the write traps saw."""
_DOMAIN = b"undercroft.deepquote.v2\0"


class HostTpmKind(enum.Enum):
    """What vouches: a TPM of the machine, or a program that stands in for one."""

    HARDWARE = "hardware"
    STAND_IN = "stand-in"


@dataclass(frozen=True, slots=True)
class HostClaims:
    """What the host's quote is bound to, besides the verifier's nonce; see the module."""

    guest_quote: bytes
    descriptor: bytes
    log_head: bytes
    last_modified: int
    counter: int


@dataclass(frozen=True, slots=True)
class HostLayer:
    """A host layer as collected; nothing in it is verified."""

    claimed_tpm: HostTpmKind
    quote: QuoteItem
    claims: HostClaims
    nv_public: bytes
    nv_attest: bytes
    nv_signature: bytes
    eventlog: bytes | None = None
    ima_list: bytes | None = None

    def bound_to(self, nonce: Nonce) -> bytes:
        """Return the qualifyingData that both of the layer's statements have to carry."""
        return deep_qualifying_data(nonce, self.claims, self.eventlog, self.ima_list)


def guest_quote_digest(item: QuoteItem) -> bytes:
    """Return what the host names a guest's quote by: the SHA-256 of its item in the evidence."""
    return hashlib.sha256(encode_quote_item(item)).digest()


def log_head(launch_log: bytes | None) -> bytes:
    """Return what stands for the whole log of the secure kernel: its SHA-256, zeros for none."""
    return bytes(32) if launch_log is None else hashlib.sha256(launch_log).digest()


def last_modified_of(record: SecureKernelRecord | None) -> int:
    """Return the last epoch in which a protected range changed, as the record says; else 0."""
    facts = [fact for fact in record.facts if fact.id == _TRAPS] if record else []
    ranges = facts[0].details.get("ranges") if facts else None
    if not isinstance(ranges, list | tuple):
        return 0
    epochs = [each.get("last-modified-epoch") for each in ranges if isinstance(each, Mapping)]
    return max((epoch for epoch in epochs if isinstance(epoch, int) and epoch >= 0), default=0)


def deep_qualifying_data(
    nonce: Nonce, claims: HostClaims, eventlog: bytes | None, ima_list: bytes | None
) -> bytes:
    """Return the 32 bytes that the host's quote has to carry as qualifyingData.

    SHA-256(domain || SHA-256(nonce) || guest-quote || descriptor || log-head || last-modified ||
    counter || P(eventlog) || P(ima-list)), numbers in 8 bytes, P as in ``binding``: every part has
    one length, so that no two inputs run together.
    """
    state = hashlib.sha256(_DOMAIN + hashlib.sha256(nonce.value).digest())
    for digest in (claims.guest_quote, claims.descriptor, claims.log_head):
        state.update(digest)
    for number in (claims.last_modified, claims.counter):
        state.update(number.to_bytes(8, "big"))
    for part in (eventlog, ima_list):
        state.update(part_digest(part))
    return state.digest()


_Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class _Wire(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    version: int
    tpm: HostTpmKind
    attest: bytes
    signature: bytes
    ak_public: bytes
    pcrs: dict[str, tuple[bytes, bytes]]
    guest_quote: _Digest
    descriptor: _Digest
    log_head: _Digest
    last_modified: _Count
    counter: _Count
    nv_public: bytes
    nv_attest: bytes
    nv_signature: bytes
    eventlog: bytes | None = None
    ima_list: bytes | None = None


def parse_host_layer(data: bytes) -> HostLayer:
    """Parse a host layer.  Raises FormatError; encoding the result gives back ``data``."""
    wire = cbor.convert(cbor.decode(data, FORMAT, limits=LIMITS), _Wire, FORMAT)
    if wire.version != VERSION:
        raise FormatError(FORMAT, 0, "unknown version", expected=VERSION, got=wire.version)
    return HostLayer(
        wire.tpm,
        QuoteItem(wire.attest, wire.signature, wire.ak_public, decode_banks(wire.pcrs)),
        HostClaims(
            wire.guest_quote, wire.descriptor, wire.log_head, wire.last_modified, wire.counter
        ),
        wire.nv_public,
        wire.nv_attest,
        wire.nv_signature,
        wire.eventlog,
        wire.ima_list,
    )


def encode_host_layer(layer: HostLayer) -> bytes:
    """Encode ``layer``."""
    quote, claims = layer.quote, layer.claims
    logs = {"eventlog": layer.eventlog, "ima-list": layer.ima_list}
    return cbor.encode(
        {
            "version": VERSION,
            "tpm": layer.claimed_tpm.value,
            "attest": quote.attest,
            "signature": quote.signature,
            "ak-public": quote.claimed_ak_public,
            "pcrs": encode_banks(quote.claimed_pcrs),
            "guest-quote": claims.guest_quote,
            "descriptor": claims.descriptor,
            "log-head": claims.log_head,
            "last-modified": claims.last_modified,
            "counter": claims.counter,
            "nv-public": layer.nv_public,
            "nv-attest": layer.nv_attest,
            "nv-signature": layer.nv_signature,
            **{name: log for name, log in logs.items() if log is not None},
        }
    )
