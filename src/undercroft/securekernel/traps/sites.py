"""Where kernel text may change while the kernel runs, and which bytes may stand there.

The places are known exactly: they are the package's own tables.  A write at any other byte of the
text is unlawful before it lands.  What may stand at a place depends on its mechanism:

=============  =====================================================================
jump label     two byte strings, both known beforehand
SMP lock       a LOCK or a DS prefix
ftrace         a NOP, or a call
static call    a call, a jump, a return, a NOP, ``xor %eax, %eax``
kprobe         INT3 or a jump to a detour, where the guest's table has a probe
=============  =====================================================================

text_poke_bp_batch() (arch/x86/kernel/alternative.c) writes INT3, then the tail, then the first
byte: so between two complete states the first byte is INT3.  Which call is the right one is
decided by the replay, for that follows the guest's variables.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel import ftrace
from undercroft.reference.kernel.canvas import Positions, with_rel32
from undercroft.reference.kernel.nops import NOPS
from undercroft.reference.kernel.replay import Replay
from undercroft.reference.kernel.rules import Rule
from undercroft.reference.kernel.run_time import RunTime

INT3 = 0xCC
_LOCK_PREFIXES = (b"\xf0", b"\x3e")


@dataclass(frozen=True, slots=True)
class Site:
    """``size`` bytes at ``position`` that ``rule`` may rewrite.

    ``states`` are the complete byte strings that may stand there; empty if only the guest's
    variables tell.
    """

    position: int
    size: int
    rule: Rule
    states: tuple[bytes, ...] = ()

    def is_complete(self, found: bytes) -> bool:
        """Tell whether ``found`` is one of the states that are known beforehand."""
        return found in self.states

    def may_be_in_flight(self, found: bytes, before: bytes) -> bool:
        """Tell whether ``found`` can stand there in the middle of a patch.

        INT3 first, and every byte of the tail is one that stood there or that a known state has.
        Where no states are known the tail is left to the replay.
        """
        if found[0] != INT3:
            return False
        if not self.states:
            return True
        known = (before, *self.states)
        return all(
            any(each[at] == byte for each in known) for at, byte in enumerate(found) if at > 0
        )


class TextSites:
    """Every place of some text that may change, by position (bytes from _text).

    ``tracing_calls`` are the calls in the kernel's own trampolines that lead to the tracers.
    """

    def __init__(self, run_time: RunTime, tracing_calls: Positions | None = None) -> None:
        labels = run_time.labels
        self._targets = dict(
            zip(labels.table.code.tolist(), labels.table.target.tolist(), strict=True)
        )
        tables = [
            (Rule.JUMP_LABEL, labels.table.code[labels.size == size], size) for size in (2, 5)
        ]
        calls = run_time.calls
        tables += [
            (Rule.STATIC_CALL, calls.site[~calls.jcc], 5),
            # Of a conditional jump only what follows 0x0F is rewritten (text_poke_loc_init).
            (Rule.STATIC_CALL, calls.site[calls.jcc] + 1, 5),
            (Rule.FTRACE, run_time.traced, 5),
            (Rule.SMP_LOCK, run_time.locks, 1),
        ]
        if tracing_calls is not None:
            tables.append((Rule.FTRACE, tracing_calls, 5))
        self._tables = tables
        positions = np.concatenate([sites for _, sites, _ in tables])
        which = np.concatenate(
            [np.full(len(sites), number) for number, (_, sites, _) in enumerate(tables)]
        )
        order = np.argsort(positions, kind="stable")
        self._positions: list[int] = positions[order].tolist()
        self._which: list[int] = which[order].tolist()

    def __len__(self) -> int:
        return len(self._positions)

    def at(self, position: int) -> Site | None:
        """Return the place that holds the byte at ``position``, or None."""
        index = bisect_right(self._positions, position) - 1
        if index < 0:
            return None
        rule, _, size = self._tables[self._which[index]]
        start = self._positions[index]
        if position >= start + size:
            return None
        return Site(start, size, rule, self._states(rule, start, size))

    def _states(self, rule: Rule, site: int, size: int) -> tuple[bytes, ...]:
        if rule is Rule.SMP_LOCK:
            return _LOCK_PREFIXES
        if rule is not Rule.JUMP_LABEL:
            return ()
        target = self._targets[site]
        if size == 5:
            jump = with_rel32(b"\xe9", np.array([site]), np.array([target]))[0].tobytes()
        else:
            jump = bytes((0xEB, (target - site - 2) & 0xFF))
        return (NOPS[size], jump)


def kernel_sites(replay: Replay) -> TextSites:
    """Return the places of the kernel's own text."""
    return TextSites(replay.run_time, _call_sites(replay.image))


def _call_sites(image: KernelImage) -> Positions:
    found = [at for name in ftrace.CALLS if (at := image.find(name)) is not None]
    return np.array(found, dtype=np.int64)


def probe_site(position: int, probes: list[int]) -> Site | None:
    """Return the place of a kprobe at ``position``: its first byte, or the jump's tail."""
    site = next((each for each in probes if each <= position < each + 5), None)
    return None if site is None else Site(site, 5, Rule.KPROBE)
