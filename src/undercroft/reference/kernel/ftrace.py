"""Rule 12: ftrace.  The call of __fentry__ at a function's start.

ftrace_init() turns every call into a NOP.  A function that is traced calls a trampoline
instead: which one, its ``struct dyn_ftrace`` says (ftrace_get_addr_curr in
kernel/trace/ftrace.c)::

    DIRECT_EN   the address in the hash direct_functions
    TRAMP_EN    the trampoline of the one ftrace_ops that traces it
    REGS_EN     ftrace_regs_caller
    otherwise   ftrace_caller

``ftrace_call`` and ``ftrace_regs_call`` inside those two are not in the table of sites; they
call the function in ``ftrace_trace_function`` (ftrace_update_ftrace_func).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from undercroft.base import MemoryFault
from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.call_thunks import CallThunks
from undercroft.reference.kernel.canvas import (
    Canvas,
    Mask,
    Positions,
    constant_rows,
    rel32,
    with_rel32,
)
from undercroft.reference.kernel.guest import GuestStructs, GuestValues
from undercroft.reference.kernel.nops import NOP5
from undercroft.reference.kernel.rules import Rule

CALLS = ("ftrace_call", "ftrace_regs_call")
LIST_FUNCTIONS = ("arch_ftrace_ops_list_func", "ftrace_ops_list_func")
"""What serves every registered ops in turn; the second name is an alias in some kernels."""

FL_ENABLED, FL_REGS_EN, FL_TRAMP_EN, FL_DIRECT_EN = 1 << 31, 1 << 29, 1 << 27, 1 << 23
"""FTRACE_FL_* in include/linux/ftrace.h, unchanged since 5.5."""
OPS_FL_ALLOC_TRAMP, OPS_FL_SAVE_REGS = 1 << 11, 1 << 2
_MAX_RECORDS = 1 << 20
_MAX_HASH_BITS = 16


@dataclass(frozen=True, slots=True)
class Ops:
    """A registered ``struct ftrace_ops``: who traces.  Positions; ``address`` is its own."""

    address: int
    function: int
    flags: int
    trampoline: int
    trampoline_size: int


@dataclass(frozen=True, slots=True)
class Tracing:
    """Who traces, and what: ``sites`` active functions, and where they call instead."""

    ops: tuple[Ops, ...]
    sites: Positions
    targets: Positions


NOBODY = Tracing((), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


def decode(sites: Positions, canvas: Canvas, fentry: int) -> Positions:
    """Return the sites on the canvas that are a call of __fentry__ or a NOP already."""
    mine = sites[canvas.covers(sites, 5)]
    rows = canvas.gather(mine, 5)
    calls = (rows[:, 0] == 0xE8) & (mine + 5 + rel32(rows, 1) == fentry)
    silent = np.all(rows == np.frombuffer(NOP5, dtype=np.uint8), axis=1)
    found: Positions = mine[calls | silent]
    return found


def apply(
    image: KernelImage, sites: Positions, canvas: Canvas, values: GuestValues, live: Canvas
) -> Tracing:
    """Paint every site: a NOP, or the call that its record stands for.

    The records are read only if some site is not a NOP.
    """
    rows = constant_rows(NOP5, len(sites))
    silent = np.all(live.gather(sites, 5) == rows, axis=1)
    tracing = NOBODY
    if not np.all(silent) and image.find("ftrace_pages_start") is not None:
        tracing = read_tracing(image, GuestStructs(values, image.btf), sites[~silent])
        where = np.searchsorted(sites, tracing.sites)
        rows[where] = with_rel32(b"\xe8", tracing.sites, tracing.targets)
    canvas.paint(Rule.FTRACE, sites, rows)
    return tracing


def read_tracing(image: KernelImage, guest: GuestStructs, sites: Positions) -> Tracing:
    """Return where those of ``sites`` (ascending) call that their records say are traced."""
    ops = read_ops(image, guest)
    found, flags = read_records(image, guest)
    order = np.argsort(found, kind="stable")
    found, flags = found[order], flags[order]
    at = np.searchsorted(found, sites)
    known = (at < len(found)) & (found[np.minimum(at, max(len(found) - 1, 0))] == sites)
    mine = sites[known]
    state = flags[at[known]]
    active = (state & FL_ENABLED) != 0
    mine, state = mine[active], state[active]
    plain, regs = image.offset("ftrace_caller"), image.offset("ftrace_regs_caller")
    targets = np.where((state & FL_REGS_EN) != 0, regs, plain)
    tramp = (state & FL_TRAMP_EN) != 0
    if np.any(tramp):
        targets[tramp] = _trampolines(guest, ops, mine[tramp], targets[tramp])
    direct = (state & FL_DIRECT_EN) != 0
    if np.any(direct):
        table = read_direct(image, guest)
        targets[direct] = [table.get(site, plain) for site in mine[direct].tolist()]
    return Tracing(ops, mine, targets)


def _trampolines(
    guest: GuestStructs, ops: tuple[Ops, ...], sites: Positions, default: Positions
) -> Positions:
    """Return each site's trampoline: that of the ops whose filter has it (func_hash)."""
    targets = default.copy()
    decided = np.zeros(len(sites), dtype=np.bool_)
    for each in ops:
        if each.trampoline:
            mine = ~decided & _traces(guest, each, sites)
            targets[mine] = each.trampoline
            decided |= mine
    return targets


def _traces(guest: GuestStructs, ops: Ops, sites: Positions) -> Mask:
    """Tell which sites the ops traces (hash_contains_ip): in its filter, not in its notrace."""
    hashes = guest.u64(ops.address, "ftrace_ops", "func_hash")
    wanted = guest.u64(hashes, "ftrace_ops_hash", "filter_hash")
    refused = guest.u64(hashes, "ftrace_ops_hash", "notrace_hash")
    chosen = _members(guest, wanted)
    mask = np.isin(sites, chosen) if len(chosen) else np.ones(len(sites), dtype=np.bool_)
    mask &= ~np.isin(sites, _members(guest, refused))
    return mask


def _members(guest: GuestStructs, table: int) -> Positions:
    positions = [guest.values.position(ip) for ip, _ in _hash_entries(guest, table)]
    return np.array(positions, dtype=np.int64)


def _hash_entries(guest: GuestStructs, table: int) -> list[tuple[int, int]]:
    """Return (ip, direct) of every ftrace_func_entry in a ``struct ftrace_hash``."""
    if not table:
        return []
    bits = guest.u64(table, "ftrace_hash", "size_bits")
    if bits > _MAX_HASH_BITS:
        raise MemoryFault(table, kind="virtual", why="an ftrace_hash of absurd size")
    if not guest.u64(table, "ftrace_hash", "count"):
        return []
    buckets = guest.u64(table, "ftrace_hash", "buckets")
    ip, direct = (guest.types.offset_of("ftrace_func_entry", name) for name in ("ip", "direct"))
    return [
        (
            int.from_bytes(entry[ip : ip + 8], "little"),
            int.from_bytes(entry[direct : direct + 8], "little"),
        )
        for _, entry in guest.hash_table(buckets, 1 << bits, "ftrace_func_entry", "hlist")
    ]


def read_direct(image: KernelImage, guest: GuestStructs) -> Mapping[int, int]:
    """Return the direct calls (BPF trampolines): position of the site to that of the target."""
    symbol = image.find("direct_functions")
    if symbol is None:
        return {}
    table = guest.values.u64(symbol)
    position = guest.values.position
    return {position(ip): position(direct) for ip, direct in _hash_entries(guest, table)}


def read_ops(image: KernelImage, guest: GuestStructs) -> tuple[Ops, ...]:
    """Return the registered ftrace_ops: the list from ftrace_ops_list to ftrace_list_end."""
    values = guest.values
    end = values.address(image.offset("ftrace_list_end"))
    first = values.u64(image.offset("ftrace_ops_list"))
    found = []
    for at in guest.chain(first, "ftrace_ops", "next", end):
        trampoline = guest.u64(at, "ftrace_ops", "trampoline")
        found.append(
            Ops(
                address=at,
                function=values.position(guest.u64(at, "ftrace_ops", "func")),
                flags=guest.u64(at, "ftrace_ops", "flags"),
                trampoline=values.position(trampoline) if trampoline else 0,
                trampoline_size=guest.u64(at, "ftrace_ops", "trampoline_size"),
            )
        )
    return tuple(found)


def read_records(image: KernelImage, guest: GuestStructs) -> tuple[Positions, Positions]:
    """Return position and flags of every ``struct dyn_ftrace``."""
    values, types = guest.values, guest.types
    size = types.size_of("dyn_ftrace")
    ip_at, flags_at = types.offset_of("dyn_ftrace", "ip"), types.offset_of("dyn_ftrace", "flags")
    first = values.u64(image.offset("ftrace_pages_start"))
    parts: list[bytes] = []
    total = 0
    for page in guest.chain(first, "ftrace_page", "next"):
        count = guest.u32(page, "ftrace_page", "index")
        total += count
        if total > _MAX_RECORDS:
            raise MemoryFault(page, kind="virtual", why="absurdly many ftrace records")
        records = guest.u64(page, "ftrace_page", "records")
        parts.append(values.read(values.position(records), size * count))
    raw = np.frombuffer(b"".join(parts), dtype=np.uint8).reshape(-1, size)
    words = [
        np.ascontiguousarray(raw[:, at : at + 8]).view("<u8")[:, 0] for at in (ip_at, flags_at)
    ]
    base = np.uint64(values.base)
    return (words[0] - base).astype(np.int64), words[1].astype(np.int64)


def apply_calls(
    image: KernelImage,
    canvas: Canvas,
    values: GuestValues,
    live: Canvas,
    thunks: CallThunks | None,
) -> None:
    """Paint the calls inside ftrace_caller and ftrace_regs_caller.

    As compiled they call ftrace_stub, with call depth tracking through its pad; from the first
    tracer on they are written by ftrace_update_ftrace_func(), which knows no pads.  While sites
    are being changed they call the function that serves every ops (ftrace_modify_all_code).
    """
    pointer = image.find("ftrace_trace_function")
    sites = np.array([at for name in CALLS if (at := image.find(name)) is not None], dtype=np.int64)
    sites = sites[canvas.covers(sites, 5)]
    if pointer is None or not len(sites):
        return
    target = values.position(values.u64(pointer))
    targets = np.full(len(sites), target)
    shown = sites + 5 + rel32(live.gather(sites, 5), 1)
    for name in LIST_FUNCTIONS:
        function = image.find(name)
        if function is not None:
            targets[shown == function] = function
    if thunks is not None:
        padded = thunks.padded(targets, canvas)
        through = with_rel32(b"\xe8", sites, targets - thunks.size)
        padded &= np.all(live.gather(sites, 5) == through, axis=1)
        targets[padded] -= thunks.size
    canvas.paint(Rule.FTRACE, sites, with_rel32(b"\xe8", sites, targets))
