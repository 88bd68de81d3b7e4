"""The host layer: what the TPM of the host says about the guest's quote.

Deterministic CBOR::

    {"version": 1, "tpm": "hardware" / "stand-in",
     "attest": bstr, "signature": bstr, "ak-public": bstr, "pcrs": {* name => [select, values]},
     "guest-quote": bstr .size 32, "descriptor": bstr .size 32, "log-head": bstr .size 32,
     "last-modified": uint, "counter": uint,
     "nv-public": bstr, "nv-attest": bstr, "nv-signature": bstr}

``attest`` is a TPM2_Quote of the host's PCRs, ``nv-attest`` a TPM2_NV_Certify of its monotonic
counter, both by the same key and with the qualifyingData of :func:`deep_qualifying_data`.
``guest-quote`` is the SHA-256 of the guest's quote item, ``descriptor`` that of the VM descriptor
(zeros if the launch measured none), ``log-head`` that of the launch's log.  ``last-modified`` is
the epoch in which the secure kernel last saw a change, 0 if that is not known.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from typing import Annotated

import msgspec

from undercroft.base import FormatError, Nonce
from undercroft.formats import cbor
from undercroft.formats.evidence.collection import (
    QuoteItem,
    decode_banks,
    encode_banks,
    encode_quote_item,
)

FORMAT = "host layer"
VERSION = 1
LIMITS = cbor.Limits(depth=4, items=1 << 10, size=1 << 16)
NO_DESCRIPTOR = bytes(32)
_DOMAIN = b"undercroft.deepquote.v1\0"


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


def guest_quote_digest(item: QuoteItem) -> bytes:
    """Return what the host names a guest's quote by: the SHA-256 of its item in the evidence."""
    return hashlib.sha256(encode_quote_item(item)).digest()


def log_head(launch_log: bytes | None) -> bytes:
    """Return what stands for the whole log of the secure kernel: its SHA-256, zeros for none."""
    return bytes(32) if launch_log is None else hashlib.sha256(launch_log).digest()


def deep_qualifying_data(nonce: Nonce, claims: HostClaims) -> bytes:
    """Return the 32 bytes that the host's quote has to carry as qualifyingData.

    SHA-256(domain || SHA-256(nonce) || guest-quote || descriptor || log-head || last-modified ||
    counter): three digests of 32 bytes and two numbers of 8, so that no two inputs run together.
    """
    state = hashlib.sha256(_DOMAIN + hashlib.sha256(nonce.value).digest())
    for digest in (claims.guest_quote, claims.descriptor, claims.log_head):
        state.update(digest)
    for number in (claims.last_modified, claims.counter):
        state.update(number.to_bytes(8, "big"))
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
    )


def encode_host_layer(layer: HostLayer) -> bytes:
    """Encode ``layer``."""
    quote, claims = layer.quote, layer.claims
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
        }
    )
