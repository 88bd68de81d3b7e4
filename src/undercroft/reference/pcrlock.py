"""Boot events as systemd-pcrlock components, for a machine that seals its own secrets to them.

Source: systemd-pcrlock(8) and systemd.pcrlock(5): a component is a file ``NNN-name.pcrlock``, or a
folder ``NNN-name.pcrlock.d`` with one file for each variant; each holds records as in the TCG
Common Event Log: a PCR and its digests.  Components are measured in the order of their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec

from undercroft.base import HashAlgorithm
from undercroft.reference.model import ReferenceSet, ReferenceValue

_HASHES = (HashAlgorithm.SHA256, HashAlgorithm.SHA384, HashAlgorithm.SHA512)
"""What systemd-pcrlock reads; a SHA-1 bank it does not seal to."""
_FIRST, _STEP = 100, 5


def pcrlock_components(references: ReferenceSet) -> dict[str, bytes]:
    """Return the components of ``references``' boot events, by file name.

    Values of one role are variants of one component; a value without a role may be absent, so a
    variant without records stands beside it.  Raises ValueError if there is no event in a bank
    that systemd-pcrlock reads.
    """
    groups = [
        (pcr, name, values)
        for pcr, group in references.events.items()
        for name, values in _components(group)
    ]
    files: dict[str, bytes] = {}
    for number, (pcr, name, values) in enumerate(groups):
        stem = f"{_FIRST + number * _STEP:04d}-pcr{pcr}-{name}.pcrlock"
        variants = [_component(pcr, value) for value in values]
        if len(values) == 1 and values[0].role:
            files[stem] = variants[0]
            continue
        if not values[0].role:
            variants.append(_encode([]))
        for variant, data in enumerate(variants):
            files[f"{stem}.d/{variant:03d}.pcrlock"] = data
    if not files:
        raise ValueError("no boot event in a bank that systemd-pcrlock reads")
    return files


def _components(group: Sequence[ReferenceValue]) -> Iterator[tuple[str, list[ReferenceValue]]]:
    usable = [value for value in group if any(value.digest(bank) for bank in _HASHES)]
    seen: set[str] = set()
    for value in usable:
        if not value.role:
            yield _slug(value.description), [value]
        elif value.role not in seen:
            seen.add(value.role)
            yield _slug(value.role), [one for one in usable if one.role == value.role]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48] or "event"


def _component(pcr: int, value: ReferenceValue) -> bytes:
    digests = [
        {"hashAlg": bank.label, "digest": digest.value.hex()}
        for bank in _HASHES
        if (digest := value.digest(bank))
    ]
    return _encode([{"pcr": pcr, "digests": digests}])


def _encode(records: list[dict[str, object]]) -> bytes:
    return msgspec.json.format(msgspec.json.encode({"records": records}), indent=1) + b"\n"
