"""Rule 12: ftrace.  The call of __fentry__ at a function's start.

ftrace_init() turns every call into a NOP (ftrace_nop_initialize).  ``ftrace_call`` and
``ftrace_regs_call`` inside ftrace_caller are not in the table of sites; they call the function
in ``ftrace_trace_function`` (ftrace_update_ftrace_func).
"""

from __future__ import annotations

import numpy as np

from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.call_thunks import CallThunks
from undercroft.reference.kernel.canvas import Canvas, Positions, constant_rows, rel32, with_rel32
from undercroft.reference.kernel.guest import GuestValues
from undercroft.reference.kernel.nops import NOP5
from undercroft.reference.kernel.rules import Rule

CALLS = ("ftrace_call", "ftrace_regs_call")


def decode(sites: Positions, canvas: Canvas, fentry: int) -> Positions:
    """Return the sites on the canvas that are a call of __fentry__ or a NOP already."""
    mine = sites[canvas.covers(sites, 5)]
    rows = canvas.gather(mine, 5)
    calls = (rows[:, 0] == 0xE8) & (mine + 5 + rel32(rows, 1) == fentry)
    silent = np.all(rows == np.frombuffer(NOP5, dtype=np.uint8), axis=1)
    sites_found: Positions = mine[calls | silent]
    return sites_found


def apply(sites: Positions, canvas: Canvas) -> None:
    """Paint every site as a NOP: no tracer is active."""
    canvas.paint(Rule.FTRACE, sites, constant_rows(NOP5, len(sites)))


def apply_calls(
    image: KernelImage,
    canvas: Canvas,
    values: GuestValues,
    live: Canvas,
    thunks: CallThunks | None,
) -> None:
    """Paint the calls inside ftrace_caller and ftrace_regs_caller.

    As compiled they call ftrace_stub, with call depth tracking through its pad; from the first
    tracer on they are written by ftrace_update_ftrace_func(), which knows no pads.
    """
    pointer = image.find("ftrace_trace_function")
    sites = np.array([at for name in CALLS if (at := image.find(name)) is not None], dtype=np.int64)
    if pointer is None or not len(sites):
        return
    target = values.position(values.u64(pointer))
    targets = np.full(len(sites), target)
    if thunks is not None:
        padded = thunks.padded(targets, canvas)
        through = with_rel32(b"\xe8", sites, targets - thunks.size)
        padded &= np.all(live.gather(sites, 5) == through, axis=1)
        targets[padded] -= thunks.size
    canvas.paint(Rule.FTRACE, sites, with_rel32(b"\xe8", sites, targets))
