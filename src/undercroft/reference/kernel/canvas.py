"""The expected code while the rules paint it, and who painted what.

Everything is addressed by *position*: a virtual address minus the address at which the kernel's
_text stands.  So KASLR is out of the picture, and a module has positions like the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from undercroft.reference.kernel.rules import Rule

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Layer:
    """The sites that one rule decided: ``size`` bytes at each of ``sites`` (ascending)."""

    rule: Rule
    sites: Positions
    size: int

    def changed(self, before: Canvas, after: Canvas) -> int:
        """Count the sites whose bytes differ between two canvases that cover them."""
        old, new = (canvas.gather(self.sites, self.size) for canvas in (before, after))
        return int(np.count_nonzero(np.any(old != new, axis=1)))


@dataclass(slots=True)
class Canvas:
    """Expected bytes of [``start``, ``start`` + len(``data``)) and the layers painted on them."""

    start: int
    data: bytearray
    layers: list[Layer] = field(default_factory=list)
    _covered: list[tuple[int, bytes]] = field(default_factory=list)
    """What the overlays hide, in the order in which they were laid."""

    @property
    def array(self) -> Bytes:
        """The bytes as a writable array."""
        return np.frombuffer(self.data, dtype=np.uint8)

    @property
    def stop(self) -> int:
        """One past the last position."""
        return self.start + len(self.data)

    def covers(self, sites: Positions, size: int) -> Mask:
        """Tell which sites lie on the canvas with all their ``size`` bytes."""
        inside: Mask = (sites >= self.start) & (sites + size <= self.stop)
        return inside

    def get(self, site: int, size: int) -> bytes:
        """Return ``size`` bytes at one position; IndexError if they are not on the canvas."""
        at = site - self.start
        if at < 0 or at + size > len(self.data):
            raise IndexError(f"position {site:#x} is not on the canvas")
        return bytes(self.data[at : at + size])

    def gather(self, sites: Positions, size: int) -> Bytes:
        """Return an (n, size) array: the bytes at each site."""
        return gather(self.array, sites - self.start, size)

    def paint(self, rule: Rule, sites: Positions, rows: Bytes) -> None:
        """Write row i at site i and record the layer.  Sites must lie on the canvas."""
        if not len(sites):
            return
        size = rows.shape[1]
        index = (sites - self.start)[:, None] + np.arange(size)
        self.array[index] = rows
        self.layers.append(Layer(rule, np.sort(sites), size))

    def paint_each(self, rule: Rule, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Write pieces of different lengths in order; later ones overwrite earlier ones."""
        by_size: dict[int, list[int]] = {}
        for site, piece in pieces:
            at, size = site - self.start, len(piece)
            by_size.setdefault(size, []).append(site)
            self.data[at : at + size] = piece
        for size, sites in by_size.items():
            ordered = np.unique(np.array(sites, dtype=np.int64))
            self.layers.append(Layer(rule, ordered, size))

    def overlay(self, rule: Rule, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Paint pieces that :meth:`lift` takes away again."""
        pieces = list(pieces)
        for site, piece in pieces:
            self._covered.append((site, self.get(site, len(piece))))
        self.paint_each(rule, pieces)

    def beneath(self, site: int, size: int) -> bytes:
        """Return ``size`` bytes at one position as they are without the overlays."""
        code = bytearray(self.get(site, size))
        for start, before in reversed(self._covered):
            low, high = max(start, site), min(start + len(before), site + size)
            if low < high:
                code[low - site : high - site] = before[low - start : high - start]
        return bytes(code)

    def lift(self, rules: frozenset[Rule]) -> None:
        """Take away every overlay: put back what it hides, and forget the layers of ``rules``."""
        for site, before in reversed(self._covered):
            at = site - self.start
            self.data[at : at + len(before)] = before
        self._covered.clear()
        self.layers[:] = [layer for layer in self.layers if layer.rule not in rules]

    def owner(self, position: int) -> tuple[Rule, int] | None:
        """Return the last rule that decided the byte at ``position`` and its site, or None."""
        for layer in reversed(self.layers):
            index = int(np.searchsorted(layer.sites, position, side="right")) - 1
            if index >= 0 and position < layer.sites[index] + layer.size:
                return layer.rule, int(layer.sites[index])
        return None


def gather(array: Bytes, at: Positions, size: int) -> Bytes:
    """Return an (n, size) array of the bytes of ``array`` at each index of ``at``."""
    rows: Bytes = array[at[:, None] + np.arange(size)]
    return rows


def rel32(rows: Bytes, at: int) -> Positions:
    """Return the signed 32-bit little-endian field at column ``at`` of each row."""
    field32 = np.ascontiguousarray(rows[:, at : at + 4]).view("<i4")[:, 0]
    return field32.astype(np.int64)


def with_rel32(opcode: bytes, sites: Positions, targets: Positions) -> Bytes:
    """Encode ``opcode`` rel32 at each site so that it reaches its target: an (n, k+4) array."""
    size = len(opcode) + 4
    rows = np.empty((len(sites), size), dtype=np.uint8)
    rows[:, : len(opcode)] = np.frombuffer(opcode, dtype=np.uint8)
    distance = (targets - sites - size).astype("<i4")
    rows[:, len(opcode) :] = distance.view(np.uint8).reshape(-1, 4)
    return rows


def constant_rows(piece: bytes, count: int) -> Bytes:
    """Return ``count`` rows that all hold ``piece``."""
    return np.tile(np.frombuffer(piece, dtype=np.uint8), (count, 1))


def majority(values: Positions) -> int | None:
    """Return the most frequent value, or None of an empty array."""
    if not len(values):
        return None
    found, counts = np.unique(values, return_counts=True)
    return int(found[np.argmax(counts)])
