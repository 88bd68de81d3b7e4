"""What a launch of the secure kernel should measure, as reference values for PCR 17 and 18."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from undercroft.base import HashAlgorithm
from undercroft.formats.launch import (
    MANIFEST,
    PCR_IDENTITY,
    PCR_MANIFEST,
    TAG_IDENTITY,
    TAG_MANIFEST,
    tagged_event,
)
from undercroft.reference.model import Provenance, ReferenceSet, ReferenceValue

BANKS = (HashAlgorithm.SHA1, HashAlgorithm.SHA256, HashAlgorithm.SHA384, HashAlgorithm.SHA512)


def launch_references(
    manifests: Iterable[tuple[bytes, Provenance]],
    identities: Mapping[str, tuple[bytes, Provenance]],
    *,
    banks: Iterable[HashAlgorithm] = BANKS,
) -> ReferenceSet:
    """Return references for a launch of one of ``manifests`` with ``identities`` (bytes by name).

    Each identity has its name as role, so that a launch without it does not pass.
    """
    algorithms = tuple(banks)

    def value(tag: int, name: str, data: bytes, where: Provenance) -> ReferenceValue:
        field = tagged_event(tag, name, data)
        digests = tuple(algorithm.digest(field) for algorithm in algorithms)
        return ReferenceValue(digests, f"{name}, {len(data)} bytes", where, name)

    return ReferenceSet(
        "launch",
        events={
            PCR_MANIFEST: tuple(
                value(TAG_MANIFEST, MANIFEST, data, where) for data, where in manifests
            ),
            PCR_IDENTITY: tuple(
                value(TAG_IDENTITY, name, data, where) for name, (data, where) in identities.items()
            ),
        },
    )
