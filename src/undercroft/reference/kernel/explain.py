"""Say of every byte that differs what should have stood there, and which rule decides it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from undercroft.base import JsonValue
from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.canvas import Canvas, Positions
from undercroft.reference.kernel.insn import decode, disassemble
from undercroft.reference.kernel.rules import Rule

_JOIN = 8
"""Differences at most this far apart are one place."""
_CONTEXT = 16
_MAX_PLACES = 256
_MAX_FUNCTION = 1 << 16


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One place whose bytes no rule explains.

    ``address`` is the first differing byte, ``function`` and ``distance`` its symbol;
    ``offsets`` are the differing positions.  ``window_address``, ``expected`` and ``found``
    show the instructions around them.
    """

    address: int
    function: str
    distance: int
    owner: str
    offsets: tuple[int, ...]
    window_address: int
    expected: bytes
    found: bytes
    rule: Rule | None
    reason: str

    def as_json(self, *, code: bool = True) -> dict[str, JsonValue]:
        """Return the mismatch as a JSON object; with ``code`` both sides are disassembled."""
        shown: dict[str, JsonValue] = {
            "address": f"{self.address:#x}",
            "symbol": f"{self.function}+{self.distance:#x}",
            "owner": self.owner,
            "bytes": len(self.offsets),
            "expected": self.expected.hex(),
            "found": self.found.hex(),
            "rule": self.rule.label if self.rule else None,
            "reason": self.reason,
        }
        if code:
            shown["expected_code"] = list(disassemble(self.expected, self.window_address))
            shown["found_code"] = list(disassemble(self.found, self.window_address))
        return shown


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose bytes are compared: a name, and how its positions are named.

    ``locate`` returns the symbol that a position falls behind and the distance; code ends at
    ``code_stop``.
    """

    name: str
    locate: Callable[[int], tuple[str, int]]
    code_stop: int


def kernel_owner(image: KernelImage) -> Owner:
    """Return the owner of the kernel's own image."""
    base = image.link_base
    return Owner("vmlinux", lambda at: image.symbols.locate(base + at), image.executable_size)


def find_mismatches(canvas: Canvas, live: Canvas, base: int, owner: Owner) -> list[Mismatch]:
    """Compare ``live`` with the expected ``canvas`` and describe every place that differs.

    ``base`` is the address of position 0.  At most 256 places are described, the last with all
    that is left: more is another kernel, not a patch.
    """
    return describe(differences(canvas, live), canvas, live, base, owner)


def differences(canvas: Canvas, live: Canvas) -> Positions:
    """Return the positions in ``live`` whose bytes are not those of the canvas."""
    expected = canvas.array[live.start - canvas.start : live.stop - canvas.start]
    found: Positions = live.start + np.flatnonzero(expected != live.array)
    return found


def describe(
    different: Positions, canvas: Canvas, live: Canvas, base: int, owner: Owner
) -> list[Mismatch]:
    """Describe the places that differ, like :func:`find_mismatches`."""
    if not len(different):
        return []
    edges = np.flatnonzero(np.diff(different) > _JOIN) + 1
    places = np.split(different, edges[: _MAX_PLACES - 1])
    return [_describe(canvas, live, base, owner, place.tolist()) for place in places]


def _describe(
    canvas: Canvas, live: Canvas, base: int, owner: Owner, offsets: list[int]
) -> Mismatch:
    first, last = offsets[0], offsets[-1]
    function, distance = owner.locate(first)
    decided = canvas.owner(first)
    start, stop = _window(owner, canvas, first, last, live)
    rule = decided[0] if decided else None
    return Mismatch(
        address=base + first,
        function=function,
        distance=distance,
        owner=owner.name,
        offsets=tuple(offsets),
        window_address=base + start,
        expected=canvas.get(start, stop - start),
        found=live.get(start, stop - start),
        rule=rule,
        reason=_reason(rule),
    )


def _window(owner: Owner, canvas: Canvas, first: int, last: int, live: Canvas) -> tuple[int, int]:
    """Return the span of whole expected instructions around a place, with a little behind it."""
    _, distance = owner.locate(first)
    if first >= owner.code_stop or distance > _MAX_FUNCTION or first - distance < canvas.start:
        return max(live.start, first & ~7), min(live.stop, (last | 7) + 1)
    at = start = first - distance
    stop = last + 1
    while at < stop or at < first + _CONTEXT:
        insn = decode(canvas.get(at, min(15, canvas.stop - at))) if at < canvas.stop else None
        length = insn.length if insn else 1
        if at <= first:
            start = at
        at += length
    return max(live.start, start), min(live.stop, max(at, stop))


def _reason(rule: Rule | None) -> str:
    if rule is None:
        return "no rule patches this place: it must equal the relocated package"
    return f"{rule.what}: {rule.source} writes something else here"
