"""Rule 12: ftrace.  The call of __fentry__ at a function's start.

ftrace_init() turns every call into a NOP.  A function that is traced calls a trampoline
instead: which one, its ``struct dyn_ftrace`` says (ftrace_get_addr_curr in
kernel/trace/ftrace.c)::

    DIRECT_EN   the address in the hash direct_functions
    TRAMP_EN    the trampoline of the one ftrace_ops that traces it
    REGS_EN     ftrace_regs_caller
    otherwise   ftrace_caller

An ops that is taken away leaves the list before its sites are silent: meanwhile it is in
``removed_ops``, and its filter in ``old_hash``, which also keeps the filter of one whose sites
are being changed (ftrace_shutdown, ftrace_run_modify_code).

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
    Bytes,
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
OPS_FL_REMOVING, OPS_FL_MODIFYING = 1 << 9, 1 << 10
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
    """Who traces, and what: ``sites`` active functions, and where they call instead.

    ``hooks`` is everything that a traced function may call.
    """

    ops: tuple[Ops, ...]
    sites: Positions
    targets: Positions
    hooks: frozenset[int] = frozenset()


_NONE = np.empty(0, dtype=np.int64)
NOBODY = Tracing((), _NONE, _NONE)


class Records:
    """Where the ``struct dyn_ftrace`` of each site is: they stay, so that a look at a few is quick.

    A record whose address is not that of its site any more has moved: then all are read again.
    """

    def __init__(self) -> None:
        self._known = (_NONE, _NONE)  # sites and addresses: taken and replaced together

    def read(self, image: KernelImage, guest: GuestStructs) -> tuple[Positions, Positions]:
        """Read every record: sites in ascending order, and their flags."""
        sites, flags, at = read_records(image, guest)
        order = np.argsort(sites, kind="stable")
        self._known = sites[order], at[order]
        return sites[order], flags[order]

    def read_some(
        self, image: KernelImage, guest: GuestStructs, sites: Positions
    ) -> tuple[Positions, Positions]:
        """Read the records of ``sites`` (ascending): those that have one, and their flags."""
        known, addresses = self._known
        where = np.searchsorted(known, sites)
        if len(where) and where[-1] >= len(known):
            return self.read(image, guest)
        flags = []
        for site, at in zip(sites.tolist(), addresses[where].tolist(), strict=True):
            address = at % (1 << 64)
            if guest.values.position(guest.u64(address, "dyn_ftrace", "ip")) != site:
                return self.read(image, guest)
            flags.append(guest.u64(address, "dyn_ftrace", "flags"))
        return sites, np.array(flags, dtype=np.uint64).astype(np.int64)


def decode(sites: Positions, canvas: Canvas, fentry: int) -> Positions:
    """Return the sites on the canvas that are a call of __fentry__ or a NOP already."""
    mine = sites[canvas.covers(sites, 5)]
    rows = canvas.gather(mine, 5)
    calls = (rows[:, 0] == 0xE8) & (mine + 5 + rel32(rows, 1) == fentry)
    silent = np.all(rows == np.frombuffer(NOP5, dtype=np.uint8), axis=1)
    found: Positions = mine[calls | silent]
    return found


def apply(
    image: KernelImage,
    sites: Positions,
    canvas: Canvas,
    values: GuestValues,
    live: Canvas,
    records: Records,
    *,
    some: bool = False,
) -> Tracing:
    """Paint every site: a NOP, or the call that its record stands for.

    The records are read only if some site is not a NOP; with ``some`` only those of such sites.
    """
    rows = constant_rows(NOP5, len(sites))
    shown = live.gather(sites, 5)
    silent = np.all(shown == rows, axis=1)
    tracing = NOBODY
    if not np.all(silent) and image.find("ftrace_pages_start") is not None:
        guest, loud = GuestStructs(values, image.btf), sites[~silent]
        read = records.read_some(image, guest, loud) if some else records.read(image, guest)
        tracing = read_tracing(image, guest, loud, read, shown[~silent])
        where = np.searchsorted(sites, tracing.sites)
        rows[where] = with_rel32(b"\xe8", tracing.sites, tracing.targets)
    canvas.paint(Rule.FTRACE, sites, rows)
    return tracing


def read_tracing(
    image: KernelImage,
    guest: GuestStructs,
    sites: Positions,
    records: tuple[Positions, Positions],
    shown: Bytes,
) -> Tracing:
    """Return where those of ``sites`` (ascending) call that their records say are traced.

    ``records`` are sites (ascending) and flags, ``shown`` the bytes that stand at ``sites``.
    """
    ops = read_ops(image, guest)
    found, flags = records
    at = np.searchsorted(found, sites)
    known = at < len(found)
    known[known] = found[at[known]] == sites[known]
    mine, state, shown = sites[known], flags[at[known]], shown[known]
    active = (state & FL_ENABLED) != 0
    mine, state, shown = mine[active], state[active], shown[active]
    plain, regs = image.offset("ftrace_caller"), image.offset("ftrace_regs_caller")
    targets = np.where((state & FL_REGS_EN) != 0, regs, plain)
    tramp = (state & FL_TRAMP_EN) != 0
    if np.any(tramp):
        targets[tramp] = _trampolines(guest, ops, mine[tramp], targets[tramp], shown[tramp])
    direct = (state & FL_DIRECT_EN) != 0
    table = read_direct(image, guest)
    if np.any(direct):
        targets[direct] = [table.get(site, plain) for site in mine[direct].tolist()]
    hooks = {plain, regs, *table.values(), *(each.trampoline for each in ops if each.trampoline)}
    return Tracing(ops, mine, targets, frozenset(hooks))


def _trampolines(
    guest: GuestStructs,
    ops: tuple[Ops, ...],
    sites: Positions,
    default: Positions,
    shown: Bytes,
) -> Positions:
    """Return each site's trampoline: that of the ops that traces it.

    While an ops comes or goes, there are two for some sites (ftrace_find_tramp_ops_curr and
    _new): then the one that stands there is taken.
    """
    targets = default.copy()
    decided = np.zeros(len(sites), dtype=np.bool_)
    calls = np.where(shown[:, 0] == 0xE8, sites + 5 + rel32(shown, 1), 0)
    for each in ops:
        if each.trampoline:
            mine = _traces(guest, each, sites)
            mine &= ~decided | (calls == each.trampoline)
            targets[mine] = each.trampoline
            decided |= mine
    return targets


def _traces(guest: GuestStructs, ops: Ops, sites: Positions) -> Mask:
    """Tell which sites the ops traces, by its filter or by the one that it had."""
    hashes = guest.u64(ops.address, "ftrace_ops", "func_hash")
    mask = _passes(guest, hashes, sites)
    if ops.flags & (OPS_FL_REMOVING | OPS_FL_MODIFYING):
        old = guest.types.offset_of("ftrace_ops", "old_hash")
        mask |= _passes(guest, ops.address + old, sites)
    return mask


def _passes(guest: GuestStructs, hashes: int, sites: Positions) -> Mask:
    """Tell which sites are in the filter and not in notrace (hash_contains_ip)."""
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
    """Return the registered ftrace_ops, and the one that is being taken away (removed_ops)."""
    values = guest.values
    end = values.address(image.offset("ftrace_list_end"))
    first = values.u64(image.offset("ftrace_ops_list"))
    addresses = list(guest.chain(first, "ftrace_ops", "next", end))
    removed = image.find("removed_ops")
    if removed is not None and (going := values.u64(removed)) and going not in addresses:
        addresses.append(going)
    return tuple(_read_ops(guest, at) for at in addresses)


def _read_ops(guest: GuestStructs, at: int) -> Ops:
    position = guest.values.position
    trampoline = guest.u64(at, "ftrace_ops", "trampoline")
    return Ops(
        address=at,
        function=position(guest.u64(at, "ftrace_ops", "func")),
        flags=guest.u64(at, "ftrace_ops", "flags"),
        trampoline=position(trampoline) if trampoline else 0,
        trampoline_size=guest.u64(at, "ftrace_ops", "trampoline_size"),
    )


def read_records(image: KernelImage, guest: GuestStructs) -> tuple[Positions, Positions, Positions]:
    """Return position, flags and address (as int64) of every ``struct dyn_ftrace``."""
    values, types = guest.values, guest.types
    size = types.size_of("dyn_ftrace")
    ip_at, flags_at = types.offset_of("dyn_ftrace", "ip"), types.offset_of("dyn_ftrace", "flags")
    first = values.u64(image.offset("ftrace_pages_start"))
    parts: list[bytes] = []
    addresses = [np.empty(0, dtype=np.uint64)]
    total = 0
    for page in guest.chain(first, "ftrace_page", "next"):
        count = guest.u32(page, "ftrace_page", "index")
        total += count
        if total > _MAX_RECORDS:
            raise MemoryFault(page, kind="virtual", why="absurdly many ftrace records")
        records = guest.u64(page, "ftrace_page", "records")
        parts.append(values.read(values.position(records), size * count))
        addresses.append(np.uint64(records) + np.arange(count, dtype=np.uint64) * np.uint64(size))
    raw = np.frombuffer(b"".join(parts), dtype=np.uint8).reshape(-1, size)
    words = [
        np.ascontiguousarray(raw[:, at : at + 8]).view("<u8")[:, 0] for at in (ip_at, flags_at)
    ]
    base = np.uint64(values.base)
    sites = (words[0] - base).astype(np.int64)
    return sites, words[1].astype(np.int64), np.concatenate(addresses).astype(np.int64)


def call_sites(image: KernelImage, canvas: Canvas) -> Positions:
    """Return the calls inside ftrace_caller and ftrace_regs_caller, if they are on the canvas."""
    sites = np.array([at for name in CALLS if (at := image.find(name)) is not None], dtype=np.int64)
    mine: Positions = sites[canvas.covers(sites, 5)]
    return mine


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
    sites = call_sites(image, canvas)
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
