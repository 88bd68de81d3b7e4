"""Rule 11: static calls.  A call, or a jump, that follows a function pointer by being rewritten.

__static_call_transform() in arch/x86/kernel/static_call.c writes, for the function in the key:

======== ====================== =======================================================
site      function               bytes
======== ====================== =======================================================
call      f                      ``call f`` (through f's call-depth pad, if there is one)
call      NULL                   5-byte NOP
call      __static_call_return0  ``cs cs cs xor %eax, %eax``
tail      f                      ``jmp f``
tail      NULL                   a return (rule 6)
Jcc tail  f or NULL              the same condition, to f or to a return
======== ====================== =======================================================

A trampoline ``__SCT__name`` is a tail site that belongs to the key ``__SCK__name``.

Quirk (rule 11b): a NULL tail that was written before the kernel chose its return thunk keeps
``ret``; both forms are returns, so the one that stands there is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from undercroft.formats.kernel import KernelImage
from undercroft.formats.kernel.sites import StaticCallSites
from undercroft.reference.kernel.call_thunks import CallThunks
from undercroft.reference.kernel.canvas import (
    Bytes,
    Canvas,
    Mask,
    Positions,
    constant_rows,
    with_rel32,
)
from undercroft.reference.kernel.guest import NULL, GuestValues
from undercroft.reference.kernel.nops import NOP5
from undercroft.reference.kernel.returns import RET, ReturnChoice
from undercroft.reference.kernel.rules import Rule

XOR_EAX = bytes.fromhex("2e2e2e31c0")


@dataclass(frozen=True, slots=True)
class StaticCalls:
    """Sites and trampolines on a canvas; ``jcc`` are conditional tail calls (6 bytes)."""

    site: Positions
    key: Positions
    tail: Mask
    jcc: Mask


@dataclass(frozen=True, slots=True)
class StaticCallConstants:
    """Positions that the transformation compares with or jumps to.

    ``null_jcc`` is where a conditional tail call of NULL leads.
    """

    return0: int
    null_jcc: int


def constants(image: KernelImage, returns: ReturnChoice) -> StaticCallConstants:
    """Look up the functions that stand for "return 0" and for a conditional return."""
    if returns.thunk is None:
        null_jcc = image.offset("__static_call_return")
    elif image.sites.alternatives.wide:
        null_jcc = returns.thunk
    else:
        null_jcc = image.offset("__x86_return_thunk")
    return StaticCallConstants(image.offset("__static_call_return0"), null_jcc)


def trampolines(image: KernelImage) -> StaticCallSites:
    """Return the trampolines as tail sites, by the names of their symbols."""
    pairs = [
        (image.symbols.address(name), key)
        for name in image.symbols.with_prefix("__SCT__")
        if (key := image.symbols.get("__SCK__" + name.removeprefix("__SCT__"))) is not None
    ]
    base = image.link_base
    return StaticCallSites(
        site=np.array([site - base for site, _ in pairs], dtype=np.int64),
        key=np.array([key - base for _, key in pairs], dtype=np.int64),
        tail=np.ones(len(pairs), dtype=np.bool_),
    )


def decode(tables: list[StaticCallSites], canvas: Canvas) -> StaticCalls:
    """Join the tables, keep what is on the canvas, and find the conditional tail calls."""
    site = np.concatenate([table.site for table in tables])
    key = np.concatenate([table.key for table in tables])
    tail = np.concatenate([table.tail for table in tables])
    inside = canvas.covers(site, 6)
    site, key, tail = site[inside], key[inside], tail[inside]
    rows = canvas.gather(site, 2)
    jcc = tail & (rows[:, 0] == 0x0F) & (rows[:, 1] & 0xF0 == 0x80)
    return StaticCalls(site, key, tail, jcc)


def functions(calls: StaticCalls, values: GuestValues) -> Positions:
    """Read each site's function from its key in the guest (a position; NULL for none)."""
    keys, back = np.unique(calls.key, return_inverse=True)
    found: Positions = values.pointers(keys)[back]
    return found


def apply(
    calls: StaticCalls,
    canvas: Canvas,
    function: Positions,
    returns: ReturnChoice,
    known: StaticCallConstants,
    live: Canvas,
    thunks: CallThunks | None,
    pads: tuple[Canvas, ...],
) -> int:
    """Paint every site; return how many kept an early ``ret`` (rule 11b).

    ``pads`` are the canvases that hold the pads of the functions called.
    """
    null = function == NULL
    call = ~calls.tail
    five = np.empty((len(calls.site), 5), dtype=np.uint8)
    _fill(five, call & ~null, with_rel32(b"\xe8", calls.site, _or_zero(function)))
    _fill(five, call & null, constant_rows(NOP5, len(five)))
    _fill(five, call & (function == known.return0), constant_rows(XOR_EAX, len(five)))
    _fill(five, calls.tail & ~null, with_rel32(b"\xe9", calls.site, _or_zero(function)))
    _fill(five, calls.tail & null, returns.code(calls.site))
    if thunks is not None:
        _through_pads(five, calls, call & ~null, function, pads, live, thunks)
    early = _early_returns(calls, calls.tail & null & ~calls.jcc, returns, live)
    _fill(five, early, constant_rows(RET, len(five)))
    plain = ~calls.jcc
    canvas.paint(Rule.STATIC_CALL, calls.site[plain], five[plain])
    _apply_jcc(calls, canvas, np.where(null, known.null_jcc, function))
    return int(np.count_nonzero(early))


def _through_pads(
    five: Bytes,
    calls: StaticCalls,
    where: Mask,
    function: Positions,
    pads: tuple[Canvas, ...],
    live: Canvas,
    thunks: CallThunks,
) -> None:
    """Rule 11c: with call depth tracking a call goes through its function's pad.

    callthunks_translate_call_dest() does this only once the pads are set up, and it does it
    before the function is compared with __static_call_return0: so a call that was written
    early has no pad, and a call of __static_call_return0 may be a call of its pad.  All are the
    vendor's; the one that stands there is taken.
    """
    where = where & live.covers(calls.site, 5)
    where[where] = thunks.through(calls.site[where], function[where], pads, live)
    padded = with_rel32(b"\xe8", calls.site[where], function[where] - thunks.size)
    seen = np.all(live.gather(calls.site[where], 5) == padded, axis=1)
    chosen = np.flatnonzero(where)[seen]
    five[chosen] = padded[seen]


def _early_returns(calls: StaticCalls, where: Mask, returns: ReturnChoice, live: Canvas) -> Mask:
    kept = np.zeros(len(where), dtype=np.bool_)
    wanting = where & returns.wants_thunk(calls.site) & live.covers(calls.site, 5)
    if np.any(wanting):
        rows = live.gather(calls.site[wanting], 5)
        kept[wanting] = np.all(rows == np.frombuffer(RET, dtype=np.uint8), axis=1)
    return kept


def _apply_jcc(calls: StaticCalls, canvas: Canvas, function: Positions) -> None:
    sites = calls.site[calls.jcc]
    if not len(sites):
        return
    rows = np.empty((len(sites), 6), dtype=np.uint8)
    rows[:, :2] = canvas.gather(sites, 2)
    rows[:, 2:] = with_rel32(b"\xe9", sites + 1, function[calls.jcc])[:, 1:]
    canvas.paint(Rule.STATIC_CALL, sites, rows)


def _or_zero(function: Positions) -> Positions:
    zeroed: Positions = np.where(function == NULL, 0, function)
    return zeroed


def _fill(rows: Bytes, where: Mask, code: Bytes) -> None:
    rows[where] = code[where]
