"""The proof as a document: what was compared, what it had to be, by which rules.

Two looks at the same memory give the same manifest, whatever they are made through.  So a proof
that was made beside a running guest can be made again from the kernel's package and a dump.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from undercroft.base import Finding, JsonValue
from undercroft.securekernel.linux import generated_text, modules_text
from undercroft.securekernel.linux.text import NOTABLE, RODATA, TEXT, KernelTextProof

FORMAT = "undercroft.kernel-proof/1"
Manifest = dict[str, JsonValue]


def manifest(proof: KernelTextProof, findings: Sequence[Finding]) -> Manifest | None:
    """Return the manifest of the sweep that gave ``findings``; None if no kernel was located.

    ``sha256`` of a range is that of the bytes that had to stand there: with nothing unexplained,
    of those that did.
    """
    if proof.kernel is None or proof.replay is None:
        return None
    facts = {finding.id: finding for finding in findings}
    image, canvas = proof.image, proof.replay.canvas
    text = canvas.get(0, image.executable_size)
    return {
        "format": FORMAT,
        "kernel": {
            "release": image.release,
            "build_id": image.build_id,
            "vmlinuz_sha256": image.sha256,
            "slide": f"{proof.kernel.slide:#x}",
            "paging_levels": 5 if proof.kernel.la57 else 4,
        },
        "text": {
            **_result(facts.get(TEXT)),
            "sha256": hashlib.sha256(text).hexdigest(),
            "rules": proof.replay.statistics(),
            "choices": proof.replay.choices.as_json(),
        },
        "rodata": {
            **_result(facts.get(RODATA)),
            "ranges": [_range(proof, start, stop) for start, stop in proof.rodata_addresses()],
        },
        "modules": {
            **_result(facts.get(modules_text.FINDING)),
            "loaded": proof.modules.as_json() if proof.modules is not None else [],
        },
        "generated": _result(facts.get(generated_text.FINDING)),
        "notable": facts[NOTABLE].details.get("notable", []) if NOTABLE in facts else [],
    }


def _range(proof: KernelTextProof, start: int, stop: int) -> JsonValue:
    assert proof.kernel is not None
    assert proof.replay is not None
    content = proof.replay.canvas.get(start - proof.kernel.base, stop - start)
    return {
        "address": f"{start:#x}",
        "bytes": stop - start,
        "sha256": hashlib.sha256(content).hexdigest(),
    }


_KEPT = (
    "bytes",
    "constant_bytes",
    "unexplained",
    "mismatches",
    "problems",
    "without_reference",
    "pieces",
    "bpf_bytes_not_compared",
)


def _result(fact: Finding | None) -> Manifest:
    """Return what a finding found, without what depends on how often we looked."""
    if fact is None:
        return {"outcome": "unknown"}
    kept = {key: fact.details[key] for key in _KEPT if key in fact.details}
    return {"outcome": fact.outcome.value, **kept}


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over everything that was compared; ``deviations`` counts sites that are lawfully not
    as the package has them."""

    compared: int
    deviations: int
    unexplained: int


def totals(document: Manifest) -> Totals:
    """Return the sums over a manifest."""
    parts = [part for part in document.values() if isinstance(part, dict)]
    text = document.get("text")
    rules = text.get("rules") if isinstance(text, dict) else None
    return Totals(
        sum(_number(part.get(key)) for part in parts for key in ("bytes", "constant_bytes")),
        sum(_number(row.get("changed")) for row in _rows(rules)),
        sum(_number(part.get("unexplained")) for part in parts),
    )


def _rows(rules: JsonValue) -> list[Mapping[str, JsonValue]]:
    values = rules.values() if isinstance(rules, Mapping) else ()
    return [row for row in values if isinstance(row, Mapping)]


def _number(value: JsonValue) -> int:
    return value if isinstance(value, int) else 0


def digest(document: Manifest) -> str:
    """Return the SHA-256 of a manifest: over its JSON, sorted and without spaces."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(ours: JsonValue, theirs: JsonValue, at: str = "") -> list[str]:
    """Return where two manifests differ: one line for each place."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        keys = list(dict.fromkeys([*ours, *theirs]))
        return [
            line
            for key in keys
            for line in differences(ours.get(key), theirs.get(key), f"{at}.{key}" if at else key)
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = zip(ours, theirs, strict=True)
        return [
            line
            for number, (one, two) in enumerate(pairs)
            for line in differences(one, two, f"{at}[{number}]")
        ]
    if ours == theirs:
        return []
    return [f"{at}: {_short(theirs)} became {_short(ours)}"]


def _short(value: JsonValue) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
