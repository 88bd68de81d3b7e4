"""Rule 6: returns.  Compiled as ``jmp __x86_return_thunk``, they become what this CPU needs.

apply_returns() writes ``ret; int3...`` or a jump to the chosen return thunk; x86_return_thunk is
chosen once, by the mitigations for Retbleed, SRSO, ITS and call depth tracking.  With the ITS
thunk only returns in the lower half of a cache line need it (cpu_wants_rethunk_at).  A static
call's trampoline is left to __static_call_fixup(): rule 11.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.canvas import (
    Canvas,
    Mask,
    Positions,
    constant_rows,
    majority,
    rel32,
    with_rel32,
)
from undercroft.reference.kernel.rules import Rule

RET = b"\xc3\xcc\xcc\xcc\xcc"
TRAMPOLINE_UD = b"\x0f\xb9\xcc"
"""``ud1 %esp, %ecx`` marks a static call's trampoline (tramp_ud in static_call.c)."""

THUNKS = (
    "__x86_return_thunk",
    "retbleed_return_thunk",
    "srso_return_thunk",
    "srso_alias_return_thunk",
    "its_return_thunk",
    "call_depth_return_thunk",
)


@dataclass(frozen=True, slots=True)
class ReturnChoice:
    """How functions return: through ``thunk`` (a position), or with RET if it is None.

    ``name`` is the thunk's symbol.  With ``its`` set, a site uses the thunk only where its
    address has bit 5 clear.
    """

    thunk: int | None
    name: str
    its: bool

    def wants_thunk(self, sites: Positions) -> Mask:
        """Tell which sites jump to the thunk (cpu_wants_rethunk_at)."""
        if self.thunk is None:
            return np.zeros(len(sites), dtype=np.bool_)
        if not self.its:
            return np.ones(len(sites), dtype=np.bool_)
        lower: Mask = (sites & 0x20) == 0
        return lower

    def code(self, sites: Positions) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
        """Return the five bytes of a return at each site."""
        rows = constant_rows(RET, len(sites))
        if self.thunk is not None:
            wanting = self.wants_thunk(sites)
            mine = sites[wanting]
            rows[wanting] = with_rel32(b"\xe9", mine, np.full(len(mine), self.thunk))
        return rows


def infer(image: KernelImage, sites: Positions, live: Canvas) -> ReturnChoice:
    """Return what the return sites show: the vendor's thunk that most of them jump to, or RET."""
    names = {position: name for name in THUNKS if (position := image.find(name)) is not None}
    mine = sites[live.covers(sites, 5)]
    rows = live.gather(mine, 5)
    jumps = rows[:, 0] == 0xE9
    thunk = majority(mine[jumps] + 5 + rel32(rows[jumps], 1))
    returns = int(np.count_nonzero(np.all(rows == np.frombuffer(RET, dtype=np.uint8), axis=1)))
    if thunk is None or thunk not in names:
        return ReturnChoice(None, "ret", its=False)
    name = names[thunk]
    if name != "its_return_thunk" and returns > np.count_nonzero(jumps):
        return ReturnChoice(None, "ret", its=False)
    return ReturnChoice(thunk, name, its=name == "its_return_thunk")


def apply(sites: Positions, canvas: Canvas, choice: ReturnChoice) -> None:
    """Paint every return site but the static-call trampolines."""
    mine = sites[canvas.covers(sites, 8)]
    behind = canvas.gather(mine + 5, 3)
    trampoline = np.all(behind == np.frombuffer(TRAMPOLINE_UD, dtype=np.uint8), axis=1)
    mine = mine[~trampoline]
    canvas.paint(Rule.RETURN, mine, choice.code(mine))
