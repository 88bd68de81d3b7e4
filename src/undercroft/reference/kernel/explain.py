"""Say of every byte that differs what should have stood there, and which rule decides it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from undercroft.base import JsonValue
from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.canvas import Canvas
from undercroft.reference.kernel.insn import decode, disassemble
from undercroft.reference.kernel.replay import Replay
from undercroft.reference.kernel.rules import Rule

_JOIN = 8
"""Differences at most this far apart are one place."""
_CONTEXT = 16
_MAX_PLACES = 4096
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


def find_mismatches(replay: Replay, live: Canvas, base: int) -> list[Mismatch]:
    """Compare ``live`` with the expected image and describe every place that differs.

    At most 4,096 places are described: more is another kernel, not a patch.
    """
    expected = replay.canvas.array[live.start : live.stop]
    different = np.flatnonzero(expected != live.array)
    if not len(different):
        return []
    edges = np.flatnonzero(np.diff(different) > _JOIN) + 1
    places = np.split(different, edges[:_MAX_PLACES])
    return [
        _describe(replay, live, base, [live.start + at for at in place.tolist()])
        for place in places
    ]


def _describe(replay: Replay, live: Canvas, base: int, offsets: list[int]) -> Mismatch:
    image, canvas = replay.image, replay.canvas
    first, last = offsets[0], offsets[-1]
    function, distance = image.symbols.locate(image.link_base + first)
    owner = canvas.owner(first)
    start, stop = _window(image, canvas, first, last, live)
    rule = owner[0] if owner else None
    return Mismatch(
        address=base + first,
        function=function,
        distance=distance,
        owner="vmlinux",
        offsets=tuple(offsets),
        window_address=base + start,
        expected=canvas.get(start, stop - start),
        found=live.get(start, stop - start),
        rule=rule,
        reason=_reason(rule),
    )


def _window(
    image: KernelImage, canvas: Canvas, first: int, last: int, live: Canvas
) -> tuple[int, int]:
    """Return the span of whole expected instructions around a place, with a little behind it."""
    _, distance = image.symbols.locate(image.link_base + first)
    if first >= image.text_size or distance > _MAX_FUNCTION:
        return max(live.start, first & ~7), min(live.stop, (last | 7) + 1)
    at = start = first - distance
    stop = last + 1
    while at < stop or at < first + _CONTEXT:
        insn = decode(canvas.get(at, min(15, canvas.stop - at)))
        length = insn.length if insn else 1
        if at <= first:
            start = at
        at += length
    return max(live.start, start), min(live.stop, max(at, stop))


def _reason(rule: Rule | None) -> str:
    if rule is None:
        return "no rule patches this place: it must equal the relocated package"
    return f"{rule.what}: {rule.source} writes something else here"
