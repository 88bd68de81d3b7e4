"""What every decoded event value has in common, and what a digest proves about it.

A TCG event carries a digest, which is what was extended, and data, which explains the digest.
Only for some event types is the digest the hash of the data.  Everything else in the data is the
log writer's word: such fields have ``claimed_`` in their names, and a value that its digest
should cover but does not is wrapped in :class:`Claimed`.

The values are msgspec structs: frozen, slotted, and cheap enough to decode a whole log eagerly.
``gc=False`` is safe because a frozen value holds only what was made before it: no cycles.
"""

from __future__ import annotations

import enum
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from undercroft.base import HashAlgorithm


class DigestCheck(enum.Enum):
    """What recomputing an event's digests from its data showed, in every bank of the log."""

    MATCHES = "matches"
    """The digests are the hash of what the decoded value holds."""
    NOT_RECOMPUTABLE = "not recomputable"
    """The digests are of something that is not in the log (a firmware volume, a file, ...)."""
    DIFFERS = "differs"
    """The digests should be the hash of the data and are not."""
    NOT_EXTENDED = "not extended"
    """EV_NO_ACTION: nothing was extended, so nothing is proven."""


class EventValue(msgspec.Struct, frozen=True, gc=False):
    """Base of all decoded values.  ``encode`` gives back the event data, byte for byte."""

    def encode(self) -> bytes:
        """Return the event data that this value was decoded from."""
        raise NotImplementedError


class Opaque(EventValue, frozen=True, gc=False):
    """Data that we have no decoder for: an unknown event type, or a vendor's own structure.

    ``why`` says which; an unknown event type is reported by everything that reads the log.
    """

    claimed_data: bytes
    why: str

    def encode(self) -> bytes:
        """Return the data as it was."""
        return self.claimed_data


class Malformed(EventValue, frozen=True, gc=False):
    """Data that does not follow the structure of its event type; ``error`` says where and why."""

    claimed_data: bytes
    error: str

    def encode(self) -> bytes:
        """Return the data as it was."""
        return self.claimed_data


class Claimed(EventValue, frozen=True, gc=False):
    """A well-formed value that no digest covers: what the log says, and nobody vouches for."""

    claimed_value: EventValue

    def encode(self) -> bytes:
        """Return the data of the value inside."""
        return self.claimed_value.encode()


Digests = Mapping[HashAlgorithm, bytes]
Decoded = tuple[EventValue, DigestCheck]

# hashlib's own constructors cost half of hashlib.new.  SM3 may be missing from this OpenSSL.
_HASHLIB: dict[HashAlgorithm, Callable[[bytes], Any]] = {
    algorithm: getattr(hashlib, name, None) or functools.partial(hashlib.new, name)
    for algorithm in HashAlgorithm
    if (name := algorithm.hashlib_name) in hashlib.algorithms_available
}


def hasher(algorithm: HashAlgorithm) -> Callable[[bytes], Any] | None:
    """Return the hashlib constructor for ``algorithm``, or None if this Python has none."""
    return _HASHLIB.get(algorithm)


def hashes_to(digests: Digests, data: bytes) -> bool:
    """Is every digest that we can compute the hash of ``data``?  False if there is none."""
    proven = False
    for algorithm, digest in digests.items():
        new = _HASHLIB.get(algorithm)
        if new is not None:
            if new(data).digest() != digest:
                return False
            proven = True
    return proven


def covered(value: EventValue, data: bytes, digests: Digests) -> Decoded:
    """Judge a value whose digest must be the hash of ``data``."""
    if hashes_to(digests, data):
        return value, DigestCheck.MATCHES
    return Claimed(value), DigestCheck.DIFFERS


def perhaps_covered(value: EventValue, data: bytes, digests: Digests) -> Decoded:
    """Judge a value whose digest is the hash of ``data`` on some platforms, not on all."""
    if hashes_to(digests, data):
        return value, DigestCheck.MATCHES
    return Claimed(value), DigestCheck.NOT_RECOMPUTABLE
