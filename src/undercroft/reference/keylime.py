"""Keylime's runtime policies, in and out.

Source: keylime/keylime ``keylime/ima/types.py`` and ``keylime/ima/ima.py`` (RuntimePolicyType,
version 1): ``digests`` gives for each path the hexadecimal digests it may have, of an algorithm
that only their length tells; ``excludes`` are regular expressions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from undercroft.base import Digest, FormatError, HashAlgorithm
from undercroft.formats import strict_json
from undercroft.reference.model import Provenance, ReferenceSet, ReferenceValue

MAX_SIZE = 256 << 20
_NAME = "Keylime runtime policy"
_ALGORITHMS = {
    algorithm.size: algorithm
    for algorithm in (
        HashAlgorithm.SHA1,
        HashAlgorithm.SHA256,
        HashAlgorithm.SHA384,
        HashAlgorithm.SHA512,
    )
}
_PSEUDO = frozenset({"boot_aggregate"})
"""Names in ``digests`` that are no paths; the boot aggregate we compute ourselves."""


class _Meta(msgspec.Struct, frozen=True):
    version: int = 1


class _Ima(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ignored_keyrings: list[str] = []
    log_hash_alg: str = "sha1"
    dm_policy: Any = None


class _Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    digests: dict[str, list[str]]
    meta: _Meta = _Meta()
    release: int | str = 0
    excludes: list[str] | None = []
    keyrings: dict[str, list[str]] = {}
    ima: _Ima = _Ima()
    ima_buf: dict[str, list[str]] = {}
    verification_keys: str = ""


@dataclass(frozen=True, slots=True)
class KeylimePolicy:
    """The files of a runtime policy as references; what has no place in those is listed.

    ``excludes`` are regular expressions for ``files.exclude`` of a policy to be written by a
    person; ``left_out`` names parts that were in use and say nothing here.
    """

    references: ReferenceSet
    excludes: tuple[str, ...]
    left_out: tuple[str, ...]


def parse_runtime_policy(data: bytes, name: str, provenance: Provenance) -> KeylimePolicy:
    """Read a runtime policy; every value gets ``provenance``, for it names none.

    Raises FormatError.
    """
    wire = strict_json.parse(data, _Policy, _NAME, limit=MAX_SIZE)
    if wire.meta.version != 1:
        raise FormatError(_NAME, 0, "another version", expected=1, got=wire.meta.version)
    if wire.ima.dm_policy is not None:
        raise FormatError(_NAME, 0, "a device-mapper policy, which cannot be left out silently")
    files = {
        path: tuple(
            ReferenceValue((digest,), "a file", provenance)
            for digest in dict.fromkeys(map(_digest, digests))
        )
        for path, digests in wire.digests.items()
        if path not in _PSEUDO
    }
    left_out = {
        "keyrings": wire.keyrings,
        "ima-buf": wire.ima_buf,
        "ignored_keyrings": wire.ima.ignored_keyrings,
        "verification-keys": wire.verification_keys,
    }
    try:
        references = ReferenceSet(name, files=files)
    except ValueError as error:
        raise FormatError(_NAME, 0, str(error)) from error
    return KeylimePolicy(
        references,
        tuple(wire.excludes or ()),
        tuple(part for part, value in left_out.items() if value),
    )


def _digest(text: str) -> Digest:
    try:
        value = strict_json.unhex(text.lower())
        return Digest(_ALGORITHMS[len(value)], value)
    except (ValueError, KeyError) as error:
        raise FormatError(_NAME, 0, "not a digest", got=repr(text[:140])) from error


def encode_runtime_policy(files: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Write ``files``, each a path as IMA writes it and a digest, as a runtime policy.

    The boot aggregate is left to Keylime, which compares it with the quote.
    """
    digests: dict[str, dict[str, None]] = {}
    for path, digest in files:
        name = path.decode("utf-8", "backslashreplace")
        digests.setdefault(name, {})[digest.hex()] = None
    document = {
        "meta": {"version": 1, "generator": 0},
        "release": 0,
        "digests": {path: list(found) for path, found in sorted(digests.items())},
        "excludes": [],
        "keyrings": {},
        "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": None},
        "ima-buf": {},
        "verification-keys": "",
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
