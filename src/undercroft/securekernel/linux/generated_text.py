"""Prove the code that the kernel made for itself: trampolines, slots of probes, BPF's packs.

Every page is compared whole: what no piece explains must be what the allocator left there.
JIT-compiled BPF cannot be computed here; it is listed, and the space around it is compared.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from undercroft.base import Finding, JsonValue, MemoryFault, Outcome
from undercroft.reference.kernel import ftrace, generated, its, kprobes, text_poke
from undercroft.reference.kernel.canvas import Canvas
from undercroft.reference.kernel.generated import Generated
from undercroft.reference.kernel.guest import GuestStructs, GuestValues
from undercroft.reference.kernel.replay import Replay
from undercroft.securekernel.linux.settle import MOVING_S

FINDING = "kernel.generated"
_PAGE = 4096
_PACK_SIZE = 2 << 20
_CHUNK = 64
_INT3 = 0xCC
_LISTED = 16
_MAX_NODES = 64
LOOKS_S = (0.0, 0.002, 0.02, 0.1, 0.2)
"""Seconds the guest runs before each look."""


@dataclass(frozen=True, slots=True)
class _PackSpace:
    """Bytes of BPF's packs that are free and that hold code; addresses that are wrong."""

    free: int
    jitted: int
    wrong: list[int]


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look saw: how much there is, and (owner, address) of what is not explained."""

    pieces: int
    size: int
    wrong: list[tuple[str, int]]
    jitted: int
    left_over: int


class GeneratedCode:
    """Finds and compares generated code; nothing is kept between two checks.

    ``code`` gives the expected code that a position falls in, the kernel's or a module's;
    ``its_pages`` are the pages (position >> 12) of modules' ITS thunks.
    """

    def __init__(
        self,
        replay: Replay,
        values: Callable[[], GuestValues],
        code: Callable[[int], Canvas | None],
        its_pages: frozenset[int] = frozenset(),
    ) -> None:
        self._replay = replay
        self._values = values
        self._code = code
        self._its_pages = its_pages

    def check(
        self,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> Finding:
        """Compare everything.

        Such code comes and goes while the guest runs, so that a byte is wrong if it is so at
        every one of a few looks; while the kernel says that it is patching, there are more.
        """
        begun = now()
        wrong: dict[int, str] = {}
        fault: MemoryFault | None = None
        seen: _Look | None = None
        for number, delay in enumerate(itertools.chain(LOOKS_S, itertools.repeat(LOOKS_S[-1]))):
            if number >= len(LOOKS_S) and not (now() - begun < MOVING_S and self._patching()):
                break
            sleep(delay)
            try:
                look = self._look()
            except MemoryFault as error:
                fault = error
                continue
            found = {address: what for what, address in look.wrong}
            wrong = found if seen is None else {at: wrong[at] for at in wrong if at in found}
            seen = look
            if not wrong:
                break
        if seen is None:
            assert fault is not None
            return Finding(
                FINDING,
                Outcome.FAIL,
                f"generated code cannot be read: {fault}",
                {"address": f"{fault.address:#x}"},
            )
        return _finding(seen, [(wrong[at], at) for at in sorted(wrong)])

    def _patching(self) -> bool:
        with contextlib.suppress(MemoryFault):
            return bool(text_poke.under_way(self._replay.image, self._values()))
        return False

    def _look(self) -> _Look:
        """Compare everything once.  Raises MemoryFault for what cannot be read."""
        image, values = self._replay.image, self._values()
        guest = GuestStructs(values, image.btf)
        wrong: list[tuple[str, int]] = []
        pages: set[int] = set()
        left_over = 0
        pieces = list(self._pieces(guest))
        for piece in pieces:
            last = piece.start + max(len(form) for form in piece.forms) - 1
            pages |= set(range(piece.start // _PAGE, last // _PAGE + 1))
        slots = {each.start // _PAGE: each for each in kprobes.read_slot_pages(image, guest)}
        for page in sorted(pages | set(slots)):
            mine = [piece for piece in pieces if _touches(piece, page)]
            content = values.read(page * _PAGE, _PAGE)
            odd = generated.unexplained(content, page * _PAGE, mine, 0)
            if odd and page in slots:
                before = len(odd)
                odd = self._without_leavings(slots[page], content, mine, odd)
                left_over += before - len(odd)
            wrong += [(_owner(mine, at), values.address(at)) for at in odd]
        thunks = sorted(self._its_pages | self._replay.choices.its_pages)
        for page in thunks:
            wrong += [
                ("ITS thunks", values.address(page * _PAGE + at))
                for at in its.odd_bytes(values.read(page * _PAGE, _PAGE))
            ]
        space = self._packs(guest)
        wrong += [("free space of a BPF pack", address) for address in space.wrong]
        size = (len(pages | set(slots)) + len(thunks)) * _PAGE + space.free
        return _Look(len(pieces) + len(thunks), size, wrong, space.jitted, left_over)

    def _without_leavings(
        self, page: kprobes.SlotPage, content: bytes, mine: list[Generated], odd: list[int]
    ) -> list[int]:
        """Drop what probes that are gone have left in their slots, and behind shorter copies."""
        ends = {piece.start: _end(piece, content, page.start) for piece in mine}
        kept = []
        for at in odd:
            slot = page.start + (at - page.start) // page.slot * page.slot
            held = content[slot - page.start :][: page.slot]
            lawful = at >= ends[slot] if slot in ends else self._left(page, slot, held)
            if not lawful:
                kept.append(at)
        return kept

    def _left(self, page: kprobes.SlotPage, slot: int, held: bytes) -> bool:
        replay = self._replay
        return generated.given_back(
            replay.image, replay.canvas, self._code, slot, held, detour=page.detours
        )

    def _pieces(self, guest: GuestStructs) -> Iterator[Generated]:
        image, choices = self._replay.image, self._replay.choices
        if image.find("ftrace_ops_list") is not None and "ftrace_ops" in image.btf:
            for ops in ftrace.read_ops(image, guest):
                if ops.trampoline and ops.flags & ftrace.OPS_FL_ALLOC_TRAMP:
                    piece = generated.ftrace_trampoline(
                        image, self._replay.canvas, ops, choices.returns
                    )
                    if piece is not None:
                        yield piece
        for probe in kprobes.read_probes(image, guest):
            canvas = self._code(probe.site)
            if canvas is None or probe.flags & (kprobes.FLAG_GONE | kprobes.FLAG_FTRACE):
                continue
            for piece in (
                generated.probe_slot(probe, canvas),
                generated.probe_detour(image, self._replay.canvas, probe, canvas),
            ):
                if piece is not None:
                    yield piece

    def _packs(self, guest: GuestStructs) -> _PackSpace:
        """Compare the free space of BPF's packs: what the bitmap calls free is INT3.

        bpf_prog_pack_alloc() and bpf_prog_pack_free() in kernel/bpf/core.c.
        """
        image = self._replay.image
        head, nodes = image.find("pack_list"), image.find("nr_node_ids")
        if head is None or "bpf_prog_pack" not in image.btf:
            return _PackSpace(0, 0, [])
        count = guest.values.u32(nodes) if nodes is not None else 1
        if not 1 <= count <= _MAX_NODES:
            raise MemoryFault(head, kind="virtual", why="an absurd number of memory nodes")
        size = _PACK_SIZE * count
        free = jitted = 0
        wrong: list[int] = []
        for pack in guest.list(guest.values.address(head), "bpf_prog_pack", "list"):
            start = guest.u64(pack, "bpf_prog_pack", "ptr")
            raw = guest.raw(pack, "bpf_prog_pack", "bitmap", size // _CHUNK // 8)
            used = np.unpackbits(np.frombuffer(raw, dtype=np.uint8), bitorder="little") != 0
            content = guest.values.read(guest.values.position(start), size)
            chunks = np.frombuffer(content, dtype=np.uint8).reshape(-1, _CHUNK)
            odd = (chunks != _INT3) & ~used[:, None]
            wrong += [start + int(at) for at in np.flatnonzero(odd)]
            jitted += int(np.count_nonzero(used)) * _CHUNK
            free += int(np.count_nonzero(~used)) * _CHUNK
        return _PackSpace(free, jitted, wrong)


def _end(piece: Generated, content: bytes, start: int) -> int:
    """Return where a piece ends: in the form that stands there, else in its longest."""
    at = piece.start - start
    stands = [len(form) for form in piece.forms if content[at : at + len(form)] == form]
    return piece.start + max(stands or [len(form) for form in piece.forms])


def _touches(piece: Generated, page: int) -> bool:
    last = piece.start + max(len(form) for form in piece.forms) - 1
    return piece.start // _PAGE <= page <= last // _PAGE


def _owner(pieces: list[Generated], at: int) -> str:
    for piece in pieces:
        if piece.start <= at < piece.start + max(len(form) for form in piece.forms):
            return piece.what
    return "space beside " + (", ".join(sorted({piece.what for piece in pieces})) or "kprobes")


def _finding(look: _Look, wrong: list[tuple[str, int]]) -> Finding:
    pieces, size, jitted = look.pieces, look.size, look.jitted
    details: dict[str, JsonValue] = {
        "pieces": pieces,
        "bytes": size,
        "unexplained": len(wrong),
        "bpf_bytes_not_compared": jitted,
        "left_over_in_slots": look.left_over,
    }
    if wrong:
        details["mismatches"] = [
            {"address": f"{address:#x}", "owner": what} for what, address in wrong[:_LISTED]
        ]
        names = ", ".join(dict.fromkeys(what for what, _ in wrong))
        summary = f"{len(wrong):,} bytes of generated code are not explained: {names}"
        return Finding(FINDING, Outcome.FAIL, summary, details)
    summary = f"all {pieces} trampolines and slots of the kernel are as it makes them"
    if jitted:
        summary += f"; {jitted:,} bytes of BPF code cannot be compared"
    return Finding(FINDING, Outcome.PASS, summary, details)
