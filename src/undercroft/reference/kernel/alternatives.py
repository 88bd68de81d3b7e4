"""Rule 2: ALTERNATIVE(), code chosen by CPU feature.

The kernel walks ``.altinstructions`` once, in order; an entry is applied if its feature bit is
set (or, inverted, if it is clear), and a later entry for the same place overwrites an earlier
one.  We do not ask the guest for its feature bits and do not know the kernel's numbers for
them: the bits are *inferred from the code itself*.  Every site shows which of its outcomes it
has; one vector has to explain all sites.  A site that disagrees with the vector is not
explained, whichever of its outcomes it shows.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from undercroft.formats.kernel import KernelImage
from undercroft.formats.kernel.sites import AltInstr
from undercroft.reference.kernel import alternative_bytes as alt
from undercroft.reference.kernel.canvas import Canvas, rel32
from undercroft.reference.kernel.paravirt import Vendor, shown
from undercroft.reference.kernel.rules import Rule

_MAX_BITS = 6
"""Feature bits that one site may depend on; ALTERNATIVE_3 has three."""

_CALL_INDIRECT = b"\xff\x15"
FeatureVector = Mapping[int, bool]


@dataclass(frozen=True, slots=True)
class Entry:
    """One ``struct alt_instr``, with the bytes of its replacement."""

    site: int
    size: int
    cpuid: int
    inverted: bool
    direct_call: bool
    replacement: alt.Replacement


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive entries for one place: the kernel applies them one over the other."""

    site: int
    size: int
    entries: tuple[Entry, ...]

    @property
    def bits(self) -> tuple[int, ...]:
        """The feature bits that the place depends on, each once."""
        return tuple(dict.fromkeys(entry.cpuid for entry in self.entries))


@dataclass(frozen=True, slots=True)
class CallTargets:
    """Where the direct calls of ALT_FLAG_DIRECT_CALL entries lead, by the pointer they replace.

    ``bug`` and ``nop`` are the positions of BUG_func and nop_func.
    """

    by_slot: Mapping[int, int]
    bug: int
    nop: int


def groups(table: AltInstr, canvas: Canvas) -> list[Group]:
    """Read the table's replacements from the canvas and group its entries by place."""
    rows: Iterable[tuple[int, int, int, bool, bool, int, int]] = zip(
        table.instr.tolist(),
        table.replacement.tolist(),
        table.cpuid.tolist(),
        table.inverted.tolist(),
        table.direct_call.tolist(),
        table.instr_len.tolist(),
        table.replacement_len.tolist(),
        strict=True,
    )
    found: list[Group] = []
    on = canvas.covers(table.instr, 1)
    rows = itertools.compress(rows, on.tolist())
    for site, run in itertools.groupby(rows, key=lambda row: row[0]):
        entries = list(run)
        longest = max(row[5] for row in entries)
        found.append(
            Group(
                site,
                longest,
                tuple(
                    Entry(
                        site,
                        # nested alternatives share the longest padding (wide layout only)
                        longest if table.wide else row[5],
                        row[2],
                        row[3],
                        row[4],
                        alt.Replacement(
                            canvas.get(row[1], row[6]),
                            row[1],
                            longest if table.wide else row[5],
                        ),
                    )
                    for row in entries
                ),
            )
        )
    return found


def infer_call_targets(
    image: KernelImage,
    table: AltInstr,
    canvas: Canvas,
    live: Canvas,
    allowed: Vendor,
    pad: int,
) -> CallTargets | None:
    """Return what the ALT_FLAG_DIRECT_CALL sites show of each slot; None in older kernels."""
    bug, nop = image.find("BUG_func"), image.find("nop_func")
    if bug is None or nop is None or not np.any(table.direct_call):
        return None
    sites = np.unique(table.instr[table.direct_call])
    sites = sites[canvas.covers(sites, 6)]
    rows = canvas.gather(sites, 6)
    through = (rows[:, 0] == 0xFF) & (rows[:, 1] == 0x15)
    sites, rows = sites[through], rows[through]
    slots = sites + 6 + rel32(rows, 2)
    return CallTargets(shown(slots, sites, live, allowed, nop, pad), bug, nop)


class Alternatives:
    """The alternatives of one canvas (the kernel's or a module's)."""

    def __init__(self, table: AltInstr, canvas: Canvas, targets: CallTargets | None) -> None:
        self.canvas = canvas
        self.groups = groups(table, canvas)
        self._wide = table.wide
        self._targets = targets
        self.guessed: frozenset[int] = frozenset()
        """Bits of the inferred vector that no site shows: another choice gives the same code."""

    def outcome(self, group: Group, features: FeatureVector, before: bytes) -> bytes:
        """Return the group's bytes under ``features``, from the bytes ``before`` patching."""
        current = before
        place = alt.wide if self._wide else alt.narrow
        for entry in group.entries:
            applied = features.get(entry.cpuid, False) != entry.inverted
            replacement = self._replacement(entry, current) if applied else None
            after = place(current, entry.site, replacement, entry.size)
            current = after + current[len(after) :]
        return current[: group.size]

    def _replacement(self, entry: Entry, current: bytes) -> alt.Replacement:
        """Resolve ALT_FLAG_DIRECT_CALL: "call BUG_func" becomes the call the site made."""
        plain = entry.replacement
        if not entry.direct_call or self._targets is None:
            return plain
        if current[:2] != _CALL_INDIRECT:
            return plain
        slot = entry.site + 6 + int.from_bytes(current[2:6], "little", signed=True)
        target = self._targets.by_slot.get(slot, self._targets.bug)
        if target == self._targets.nop:
            return alt.Replacement(b"", plain.at, plain.size)
        distance = target - (plain.at + 5)
        code = b"\xe8" + (distance % (1 << 32)).to_bytes(4, "little")
        return alt.Replacement(code, plain.at, plain.size)

    def infer(self, live: Canvas) -> dict[int, bool]:
        """Return the feature vector that the code in ``live`` shows.

        Each site votes for the bits on which all its matching outcomes agree; what is ambiguous
        is decided after the clear votes are counted, so that one vector comes out.  A bit on
        which nothing depends is left out.
        """
        undecided: list[tuple[tuple[int, ...], list[tuple[bool, ...]]]] = []
        votes: Counter[tuple[int, bool]] = Counter()
        for group in self.groups:
            bits = group.bits
            fits = self._matching(group, bits, live)
            if not fits or len(fits) == 1 << len(bits):
                continue
            if not _vote(votes, bits, fits):
                undecided.append((bits, fits))
        vector = _decide(votes)
        seen = frozenset(vector)
        for bits, fits in undecided:
            possible = [
                fit
                for fit in fits
                if all(
                    vector.get(bit, value) == value for bit, value in zip(bits, fit, strict=True)
                )
            ]
            if possible:
                _vote(votes, bits, possible[:1])
        vector = _decide(votes)
        self.guessed = frozenset(vector) - seen
        return vector

    def _matching(
        self, group: Group, bits: tuple[int, ...], live: Canvas
    ) -> list[tuple[bool, ...]]:
        """Return every assignment of ``bits`` under which the site has the bytes it has."""
        if len(bits) > _MAX_BITS or not _on(live, group):
            return []
        seen = live.get(group.site, group.size)
        before = self.before(group)
        fits = []
        for values in itertools.product((False, True), repeat=len(bits)):
            features = dict(zip(bits, values, strict=True))
            if self.outcome(group, features, before) == seen:
                fits.append(values)
        return fits

    def before(self, group: Group) -> bytes:
        """Return the bytes at the group's place now, with what lies behind it."""
        available = min(group.size + alt.LOOKAHEAD, self.canvas.stop - group.site)
        return self.canvas.get(group.site, available)

    def apply(self, features: FeatureVector) -> None:
        """Paint every group's outcome under ``features``, in table order."""
        self.canvas.paint_each(Rule.ALTERNATIVE, self._pieces(features))

    def _pieces(self, features: FeatureVector) -> Iterator[tuple[int, bytes]]:
        for group in self.groups:  # lazily: a piece sees the pieces painted before it
            yield group.site, self.outcome(group, features, self.before(group))


def _on(canvas: Canvas, group: Group) -> bool:
    return canvas.start <= group.site and group.site + group.size <= canvas.stop


def _vote(
    votes: Counter[tuple[int, bool]], bits: tuple[int, ...], fits: list[tuple[bool, ...]]
) -> bool:
    """Count the bits on which all fits agree; tell whether every bit was decided."""
    clear = True
    for place, bit in enumerate(bits):
        values = {fit[place] for fit in fits}
        if len(values) == 1:
            votes[bit, values.pop()] += 1
        else:
            clear = False
    return clear


def _decide(votes: Counter[tuple[int, bool]]) -> dict[int, bool]:
    bits = {bit for bit, _ in votes}
    return {bit: votes[bit, True] > votes[bit, False] for bit in sorted(bits)}
