"""The values of a CoRIM.  Names are those of draft-ietf-rats-corim-11, in Python case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from undercroft.base import Digest, HashAlgorithm
from undercroft.formats.cbor import CborValue, Tagged

FORMAT = "CoRIM"

# CBOR tags (section 11.1 of the draft; RFC 8949, 3.4; RFC 9090; RFC 9562 via tag 37).
EPOCH_TIME, URI, UUID, OID = 1, 32, 37, 111
CORIM, COMID, BYTES = 501, 506, 560
TAGS = frozenset({EPOCH_TIME, URI, UUID, OID, CORIM, COMID, BYTES})

NAMED_INFORMATION: Mapping[HashAlgorithm, int | str] = {
    HashAlgorithm.SHA1: "sha-1",
    HashAlgorithm.SHA256: 1,
    HashAlgorithm.SHA384: 7,
    HashAlgorithm.SHA512: 8,
    HashAlgorithm.SM3_256: "sm3-256",
    HashAlgorithm.SHA3_256: 10,
    HashAlgorithm.SHA3_384: 11,
    HashAlgorithm.SHA3_512: 12,
}
"""Algorithm identifiers of a ``digest``: IANA Named Information Hash Algorithm Registry.  The
registry has no SHA-1 and no SM3; those are spelled in its style."""

Id: TypeAlias = str | bytes
"""Text, or the 16 bytes of a UUID."""
Digests: TypeAlias = tuple[Digest, ...]
Extensions: TypeAlias = Mapping[int, CborValue]
"""Items under negative keys, which the registries keep for private use."""


@dataclass(frozen=True, slots=True)
class ClassMap:
    """``class-map``: what kind of environment.  ``class_id`` is a tagged UUID, OID or bytes."""

    class_id: Tagged | None = None
    vendor: str | None = None
    model: str | None = None
    layer: int | None = None
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """``measurement-map``: one set of values that an element of the environment may have.

    ``mkey`` names the element; ``integrity_registers`` are values by register.
    """

    mkey: str | int | None = None
    digests: Digests = ()
    raw_value: bytes | None = None
    name: str | None = None
    integrity_registers: Mapping[int | str, Digests] = field(default_factory=dict)
    extensions: Extensions = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReferenceTriple:
    """``reference-triple-record``: an environment and what may be measured in it."""

    environment: ClassMap
    measurements: tuple[Measurement, ...]


@dataclass(frozen=True, slots=True)
class Entity:
    """``entity-map``: who stands for a manifest or tag, and in which roles."""

    name: str
    roles: tuple[int, ...]
    reg_id: str | None = None


@dataclass(frozen=True, slots=True)
class Comid:
    """``concise-mid-tag`` with reference triples."""

    tag_id: Id
    triples: tuple[ReferenceTriple, ...]
    tag_version: int | None = None
    language: str | None = None
    entities: tuple[Entity, ...] = ()
    extensions: Extensions = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Validity:
    """``validity-map``, in seconds since the Unix epoch."""

    not_after: int
    not_before: int | None = None


@dataclass(frozen=True, slots=True)
class Corim:
    """``unsigned-corim-map``.  ``profile`` is a URI, or the bytes of an OID (tag 111)."""

    id: Id
    comids: tuple[Comid, ...]
    profile: Id | None = None
    validity: Validity | None = None
    entities: tuple[Entity, ...] = ()
