"""Tracing, probes and patches in progress: what the guest's structures say, and what they may."""

from __future__ import annotations

import numpy as np
import pytest

from undercroft.base import MemoryFault
from undercroft.formats.kernel import load_kernel
from undercroft.reference.kernel import text_poke
from undercroft.reference.kernel.canvas import Canvas
from undercroft.reference.kernel.explain import Mismatch, find_mismatches, kernel_owner
from undercroft.reference.kernel.guest import GuestValues
from undercroft.reference.kernel.notable import Notable, notable
from undercroft.reference.kernel.replay import Replay, replay
from undercroft.reference.kernel.rules import Rule
from undercroft.testing import tinylinux as t
from undercroft.testing.tinykernel import DATA, TEXT_SIZE, rel32
from undercroft.testing.tinylinux import TinyLinux

HEAP = DATA + 0x2000
CALLER, REGS_CALLER = 0x800, 0x840
ENABLED, REGS, TRAMP, DIRECT = 1 << 31, 1 << 29, 1 << 27, 1 << 23
STRUCTS = {
    "dyn_ftrace": (16, {"ip": 0, "flags": 8}),
    "ftrace_page": (24, {"next": 0, "records": 8, "index": 16}),
    "ftrace_ops": (
        64,
        {
            "func": 0,
            "next": 8,
            "flags": 16,
            "func_hash": 24,
            "trampoline": 32,
            "trampoline_size": 40,
            "old_hash": 48,
        },
    ),
    "ftrace_ops_hash": (16, {"notrace_hash": 0, "filter_hash": 8}),
    "ftrace_hash": (24, {"size_bits": 0, "buckets": 8, "count": 16}),
    "ftrace_func_entry": (32, {"hlist": 0, "ip": 16, "direct": 24}),
    "kprobe": (
        96,
        {
            "hlist": 0,
            "list": 16,
            "addr": 32,
            "pre_handler": 40,
            "post_handler": 48,
            "opcode": 56,
            "ainsn.insn": 64,
            "flags": 72,
        },
    ),
    "optimized_kprobe": (128, {"optinsn.copied_insn": 96, "optinsn.insn": 104}),
    "bp_patching_desc": (16, {"vec": 0, "nr_entries": 8, "refs": 12}),
    "text_poke_loc": (16, {"rel_addr": 0}),
    "mutex": (32, {"owner": 0}),
}
LOCKS = {
    "jump_label_mutex": HEAP + 0x400,
    "static_call_mutex": HEAP + 0x420,
    "ftrace_lock": HEAP + 0x440,
    "text_mutex": HEAP + 0x460,
}


class Guest:
    """A tiny Linux with structures at HEAP; positions in, addresses in memory."""

    def __init__(self, *, wide: bool = False) -> None:
        self.linux = TinyLinux(wide=wide)
        tiny = self.linux.tiny
        tiny.structs |= STRUCTS
        for name, at in (
            ("ftrace_pages_start", HEAP),
            ("ftrace_ops_list", HEAP + 8),
            ("direct_functions", HEAP + 16),
            ("bp_desc", HEAP + 0x20),
            ("tp_vec_nr", HEAP + 0x30),
            ("ftrace_list_end", HEAP + 0x40),
            ("tp_vec", HEAP + 0x80),
            ("kprobe_table", HEAP + 0x200),
            ("removed_ops", HEAP + 0x480),
            *LOCKS.items(),
        ):
            tiny.symbols[name] = (at, "D")
        for name, at in (
            ("ftrace_caller", CALLER),
            ("ftrace_regs_caller", REGS_CALLER),
            ("aggr_pre_handler", 0x1A0),
            ("handler", 0x1B0),
        ):
            tiny.symbols[name] = (at, "t")
        self.linux.image = load_kernel(tiny.vmlinuz())
        self._next = HEAP + 0x500
        self.put(HEAP + 8, self.linux.at(HEAP + 0x40))  # no ops

    def put(self, at: int, value: int, size: int = 8) -> None:
        self.linux.variables[at] = (value, size)

    def point(self, at: int, target: int) -> None:
        self.put(at, self.linux.at(target))

    def new(self, size: int) -> int:
        at = self._next
        self._next += size
        return at

    def record(self, site: int, flags: int) -> None:
        """Make the one ftrace record."""
        page, records = self.new(24), self.new(16)
        self.point(HEAP, page)
        self.point(page + 8, records)
        self.put(page + 16, 1, 4)
        self.point(records, site)
        self.put(records + 8, flags)

    def hash(self, *entries: tuple[int, int]) -> int:
        """Make an ftrace_hash of (ip, direct)."""
        table, bucket = self.new(24), self.new(8)
        self.point(table + 8, bucket)
        self.put(table + 16, len(entries))
        link = bucket
        for ip, direct in entries:
            entry = self.new(32)
            self.point(link, entry)
            self.point(entry + 16, ip)
            self.point(entry + 24, direct)
            link = entry
        return table

    def lock(self, name: str) -> None:
        """Have a task hold a lock, with somebody waiting for it (MUTEX_FLAG_WAITERS)."""
        self.put(LOCKS[name], 0xFFFF888000001001)

    def ops(
        self,
        trampoline: int,
        filtered: int,
        *,
        notrace: int = 0,
        head: int = HEAP + 8,
        flags: int = 0,
        old: int = 0,
    ) -> None:
        """Register one ftrace_ops, or put it elsewhere with ``head``."""
        ops, hashes = self.new(64), self.new(16)
        self.point(head, ops)
        self.point(ops, t.VICTIM)
        self.put(ops + 16, flags)
        if old:
            self.point(ops + 48 + 8, old)
        self.point(ops + 8, HEAP + 0x40)
        self.point(ops + 24, hashes)
        self.point(ops + 32, trampoline)
        if notrace:
            self.point(hashes, notrace)
        self.point(hashes + 8, filtered)

    def probe(self, site: int, opcode: int, flags: int = 0, handler: int = 0x1B0) -> int:
        """Put a kprobe into the table."""
        probe = self.new(128)
        self.point(HEAP + 0x200 + 8 * 5, probe)
        self.point(probe + 32, site)
        self.point(probe + 40, handler)
        self.put(probe + 56, opcode, 1)
        self.put(probe + 72, flags, 4)
        self.point(probe + 16, probe + 16)
        return probe

    def poking(self, *sites: int) -> None:
        """Say that a batch of patches is under way."""
        vector = self.new(16 * len(sites))
        self.point(HEAP + 0x20, vector)
        self.put(HEAP + 0x28, len(sites), 4)
        self.put(HEAP + 0x2C, 1, 4)
        for index, site in enumerate(sites):
            self.put(vector + 16 * index, site, 4)

    def replayed(self) -> tuple[Replay, list[Mismatch], list[Notable]]:
        linux = self.linux
        memory = linux.memory()

        def read(address: int, size: int) -> bytes:
            at = address - linux.base
            if not 0 <= at <= len(memory) - size:
                raise MemoryFault(address, kind="virtual")
            return memory[at : at + size]

        live = Canvas(0, bytearray(memory[:TEXT_SIZE]))
        result = replay(linux.image, t.SLIDE, live, GuestValues(read, linux.base))
        mismatches = find_mismatches(result.canvas, live, linux.base, kernel_owner(linux.image))
        assert result.state is not None
        return result, mismatches, notable(linux.image, result.state, linux.base)


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_nothing_is_active(guest: Guest) -> None:
    _, mismatches, found = guest.replayed()
    assert mismatches == []
    assert found == []


@pytest.mark.parametrize(("flags", "target"), [(ENABLED, CALLER), (ENABLED | REGS, REGS_CALLER)])
def test_a_traced_function(guest: Guest, flags: int, target: int) -> None:
    guest.record(t.TRACED, flags)
    guest.linux.patched[t.TRACED] = rel32("e8", t.TRACED, target)
    result, mismatches, found = guest.replayed()
    assert mismatches == []
    assert [each.kind for each in found] == ["ftrace"]
    assert result.canvas.owner(t.TRACED) == (Rule.FTRACE, t.TRACED)


def test_a_traced_function_with_a_trampoline_of_its_own(guest: Guest) -> None:
    guest.record(t.TRACED, ENABLED | TRAMP)
    guest.ops(0x10_0000, guest.hash((t.TRACED, 0)))
    guest.linux.patched[t.TRACED] = rel32("e8", t.TRACED, 0x10_0000)
    _, mismatches, (found,) = guest.replayed()
    assert mismatches == []
    assert found.foreign == (guest.linux.at(0x10_0000),)
    assert "victim" in found.text


def test_a_trampoline_whose_ops_do_not_trace_the_function(guest: Guest) -> None:
    guest.record(t.TRACED, ENABLED | TRAMP)
    guest.ops(0x10_0000, guest.hash((t.VICTIM, 0)))
    guest.linux.patched[t.TRACED] = rel32("e8", t.TRACED, 0x10_0000)
    _, (mismatch,), _ = guest.replayed()
    assert mismatch.rule is Rule.FTRACE


def test_a_function_that_is_excepted_from_a_trace_of_everything(guest: Guest) -> None:
    guest.record(t.TRACED, ENABLED | TRAMP)
    guest.ops(0x10_0000, guest.hash(), notrace=guest.hash((t.TRACED, 0)))
    guest.linux.patched[t.TRACED] = rel32("e8", t.TRACED, 0x10_0000)
    assert guest.replayed()[1] != []


def test_a_direct_call(guest: Guest) -> None:
    guest.record(t.TRACED, ENABLED | DIRECT)
    guest.point(HEAP + 16, guest.hash((t.TRACED, 0x20_0000)))
    guest.linux.patched[t.TRACED] = rel32("e8", t.TRACED, 0x20_0000)
    _, mismatches, (found,) = guest.replayed()
    assert mismatches == []
    assert found.foreign == (guest.linux.at(0x20_0000),)


@pytest.mark.parametrize("flags", [0, REGS | TRAMP])
def test_a_hook_whose_record_does_not_say_so(guest: Guest, flags: int) -> None:
    guest.record(t.TRACED, flags)
    guest.linux.patched[t.TRACED] = rel32("e8", t.TRACED, CALLER)
    _, (mismatch,), _ = guest.replayed()
    assert mismatch.rule is Rule.FTRACE


def test_a_hook_without_a_record(guest: Guest) -> None:
    guest.record(t.VICTIM, ENABLED)
    guest.linux.patched[t.TRACED] = rel32("e8", t.TRACED, CALLER)
    assert guest.replayed()[1] != []


def test_lists_that_do_not_end(guest: Guest) -> None:
    guest.record(t.TRACED, ENABLED)
    guest.linux.patched[t.TRACED] = rel32("e8", t.TRACED, CALLER)
    page = guest.linux.variables[HEAP][0] - guest.linux.base
    guest.point(page, page)
    with pytest.raises(MemoryFault, match="does not end"):
        guest.replayed()


def test_absurdly_many_records(guest: Guest) -> None:
    guest.record(t.TRACED, ENABLED)
    guest.linux.patched[t.TRACED] = rel32("e8", t.TRACED, CALLER)
    page = guest.linux.variables[HEAP][0] - guest.linux.base
    guest.put(page + 16, 0x7FFFFFFF, 4)
    with pytest.raises(MemoryFault, match="absurdly many"):
        guest.replayed()


def test_a_hash_of_absurd_size(guest: Guest) -> None:
    guest.record(t.TRACED, ENABLED | DIRECT)
    table = guest.hash((t.TRACED, 0x20_0000))
    guest.put(table, 60)
    guest.point(HEAP + 16, table)
    guest.linux.patched[t.TRACED] = rel32("e8", t.TRACED, CALLER)
    with pytest.raises(MemoryFault, match="absurd size"):
        guest.replayed()


def test_a_kprobe(guest: Guest) -> None:
    guest.probe(t.VICTIM, 0x55)
    guest.linux.patched[t.VICTIM] = b"\xcc" + t.TINY_VICTIM[1:]
    result, mismatches, (found,) = guest.replayed()
    assert mismatches == []
    assert (found.kind, found.text) == ("kprobe", "a kprobe (INT3) at victim")
    assert result.canvas.owner(t.VICTIM) == (Rule.KPROBE, t.VICTIM)


@pytest.mark.parametrize("flags", [1, 2, 8])
def test_a_probe_that_is_gone_disabled_or_through_ftrace_explains_nothing(
    guest: Guest, flags: int
) -> None:
    guest.probe(t.VICTIM, 0x55, flags)
    guest.linux.patched[t.VICTIM] = b"\xcc" + t.TINY_VICTIM[1:]
    assert guest.replayed()[1] != []


def test_a_breakpoint_without_a_probe(guest: Guest) -> None:
    guest.linux.patched[t.VICTIM] = b"\xcc"
    _, (mismatch,), _ = guest.replayed()
    assert mismatch.rule is None


def test_a_probe_that_remembers_another_instruction(guest: Guest) -> None:
    """It would put back what never stood there."""
    guest.probe(t.VICTIM, 0x90)
    guest.linux.patched[t.VICTIM] = b"\xcc"
    assert guest.replayed()[1] != []


def test_a_probe_that_is_registered_and_not_armed(guest: Guest) -> None:
    guest.probe(t.VICTIM, 0x55)
    result, mismatches, found = guest.replayed()
    assert (mismatches, found) == ([], [])
    assert result.state is not None
    assert result.state.probes == ()


def test_a_probe_taken_away_again(guest: Guest) -> None:
    """What was painted over is put back when the run-time state is followed again."""
    guest.probe(t.VICTIM, 0x55)
    guest.linux.patched[t.VICTIM] = b"\xcc"
    result, _, _ = guest.replayed()
    assert result.canvas.get(t.VICTIM, 1) == b"\xcc"
    guest.put(HEAP + 0x200 + 8 * 5, 0)
    del guest.linux.patched[t.VICTIM]
    memory = guest.linux.memory()
    values = GuestValues(
        lambda address, size: memory[address - guest.linux.base :][:size], guest.linux.base
    )
    result.follow(values, Canvas(0, bytearray(memory[:TEXT_SIZE])))
    assert result.canvas.get(t.VICTIM, 1) == b"\x55"
    assert result.canvas.owner(t.VICTIM) is None


def label_in_between(guest: Guest, code: bytes) -> None:
    guest.linux.patched[t.LABEL] = code


JUMP = rel32("e9", t.LABEL, t.LABEL + 0x40)


@pytest.mark.parametrize(
    "code",
    [
        b"\xcc" + JUMP[1:],  # the tail is new, the first byte not yet
        b"\xcc" + t.NOP5[1:],  # the tail is still old
        t.NOP5,  # nothing was written yet
    ],
)
def test_a_patch_in_progress(guest: Guest, code: bytes) -> None:
    label_in_between(guest, code)
    guest.poking(t.LABEL)
    result, mismatches, (found,) = guest.replayed()
    assert mismatches == []
    assert found.kind == "text-poke"
    assert result.canvas.owner(t.LABEL) == (Rule.TEXT_POKE, t.LABEL)


def test_a_label_that_is_being_switched_off_has_the_tail_of_its_jump(guest: Guest) -> None:
    guest.put(t.KEY, 0, 4)
    label_in_between(guest, b"\xcc" + JUMP[1:])
    guest.poking(t.LABEL)
    assert guest.replayed()[1] == []
    assert moving(guest) == [t.LABEL]
    label_in_between(guest, b"\xcc" + rel32("e9", t.LABEL, t.LABEL + 0x41)[1:])
    assert guest.replayed()[1] != []


def test_the_same_bytes_with_no_patch_in_progress(guest: Guest) -> None:
    label_in_between(guest, b"\xcc" + JUMP[1:])
    assert guest.replayed()[1] != []


@pytest.mark.parametrize(
    ("site", "code"),
    [
        (t.LABEL, bytes.fromhex("e911223344")),  # a whole jump elsewhere
        # INT3 and the tail of a jump into the middle of a function
        (t.LABEL, b"\xcc" + rel32("e9", t.LABEL, t.VICTIM + 1)[1:]),
        (t.VICTIM, b"\xcc"),  # a place that nobody patches
    ],
)
def test_a_patch_in_progress_does_not_excuse_anything_else(
    guest: Guest, site: int, code: bytes
) -> None:
    guest.linux.patched[site] = code
    guest.poking(site)
    assert guest.replayed()[1] != []


def test_an_old_hook_of_a_traced_function_in_progress(guest: Guest) -> None:
    """The record says "not traced" already; the call of ftrace_caller still stands."""
    guest.record(t.TRACED, 0)
    guest.linux.patched[t.TRACED] = rel32("e8", t.TRACED, CALLER)
    guest.poking(t.TRACED)
    assert guest.replayed()[1] == []
    guest.linux.patched[t.TRACED] = rel32("e8", t.TRACED, t.VICTIM)
    assert guest.replayed()[1] != []


def test_a_static_call_out_of_the_kernel_is_notable(guest: Guest) -> None:
    elsewhere = 0x30_0000
    linux = guest.linux
    linux.variables[t.SCK] = (linux.at(elsewhere), 8)
    linux.patched |= {
        at: rel32(opcode, at, elsewhere)
        for at, opcode in ((t.STATIC_CALL, "e8"), (t.STATIC_TAIL, "e9"), (t.TRAMPOLINE, "e9"))
    }
    _, mismatches, (found,) = guest.replayed()
    assert mismatches == []
    assert (found.kind, found.foreign) == ("static-call.foreign", (linux.at(elsewhere),))
    assert found.as_json()["foreign"] == [f"{linux.at(elsewhere):#x}"]


def moving(guest: Guest) -> list[int]:
    """Return the sites that are taken for moving; what else differs is a mismatch."""
    state = guest.replayed()[0].state
    assert state is not None
    return [int(site) for site in state.moving]


SWITCHED_ON = 0xFFFFFFFF
"""-1: static_key_slow_inc() is in progress."""


def test_a_static_key_that_is_being_switched_on(guest: Guest) -> None:
    """jump_label_update() takes -1 for on; its sites follow one batch after the other."""
    guest.put(t.KEY, SWITCHED_ON, 4)
    assert (moving(guest), guest.replayed()[1]) == ([], [])  # its turn has come
    guest.linux.patched[t.LABEL] = t.NOP5
    assert moving(guest) == [t.LABEL]
    guest.linux.patched[t.LABEL] = rel32("e9", t.LABEL, t.VICTIM)
    assert moving(guest) == []


def test_the_same_with_the_key_on(guest: Guest) -> None:
    guest.linux.patched[t.LABEL] = t.NOP5
    assert moving(guest) == []
    assert guest.replayed()[1] != []


def test_a_static_key_that_was_just_switched_off(guest: Guest) -> None:
    """static_key_disable(): the key first, then its sites, under jump_label_mutex."""
    guest.put(t.KEY, 0, 4)
    guest.lock("jump_label_mutex")
    assert moving(guest) == [t.LABEL]
    guest.linux.patched[t.LABEL] = rel32("e9", t.LABEL, t.VICTIM)
    assert moving(guest) == []


@pytest.mark.parametrize("lock", [None, "static_call_mutex", "ftrace_lock", "text_mutex"])
def test_the_same_under_no_lock_or_another(guest: Guest, lock: str | None) -> None:
    guest.put(t.KEY, 0, 4)
    if lock:
        guest.lock(lock)
    assert moving(guest) == []
    assert guest.replayed()[1] != []


def test_a_static_call_that_is_being_updated(guest: Guest) -> None:
    """__static_call_update(): the key, then the trampoline, then site by site."""
    guest.point(t.SCK, t.KVM)
    assert moving(guest) == []
    guest.lock("static_call_mutex")
    assert moving(guest) == [t.STATIC_CALL, t.STATIC_TAIL, t.TRAMPOLINE]
    guest.linux.patched[t.TRAMPOLINE] = rel32("e9", t.TRAMPOLINE, t.KVM)
    guest.linux.patched[t.STATIC_CALL] = rel32("e8", t.STATIC_CALL, t.KVM + 1)
    assert moving(guest) == [t.STATIC_TAIL]


def test_a_hook_before_its_record_follows(guest: Guest) -> None:
    guest.record(t.TRACED, 0)
    guest.linux.patched[t.TRACED] = rel32("e8", t.TRACED, CALLER)
    assert moving(guest) == []
    guest.lock("ftrace_lock")
    assert moving(guest) == []  # its record says that nobody traces it
    guest.record(t.TRACED, ENABLED | REGS)
    assert moving(guest) == [t.TRACED]
    guest.linux.patched[t.TRACED] = rel32("e8", t.TRACED, t.VICTIM)
    assert moving(guest) == []


def test_the_caller_before_it_calls_the_new_tracer(guest: Guest) -> None:
    """__register_ftrace_function() sets the variable, ftrace_update_ftrace_func() the calls."""
    guest.point(t.TRACE_FUNCTION, t.VICTIM)
    assert moving(guest) == []
    guest.lock("ftrace_lock")
    assert moving(guest) == [t.FTRACE_CALL, t.FTRACE_REGS_CALL]


REMOVING, MODIFYING = 1 << 9, 1 << 10


def test_an_ops_that_is_being_taken_away(guest: Guest) -> None:
    """ftrace_shutdown(): it has left the list, its sites are still to be silenced."""
    guest.record(t.TRACED, ENABLED | TRAMP)
    mine = guest.hash((t.TRACED, 0))
    guest.ops(0x10_0000, guest.hash((t.VICTIM, 0)), head=HEAP + 0x480, flags=REMOVING, old=mine)
    guest.linux.patched[t.TRACED] = rel32("e8", t.TRACED, 0x10_0000)
    assert guest.replayed()[1] == []
    guest.put(HEAP + 0x480, 0)
    assert guest.replayed()[1] != []


@pytest.mark.parametrize(("flags", "explained"), [(MODIFYING, True), (0, False)])
def test_an_ops_whose_filter_is_being_changed(guest: Guest, flags: int, explained: bool) -> None:
    guest.record(t.TRACED, ENABLED | TRAMP)
    mine = guest.hash((t.TRACED, 0))
    guest.ops(0x10_0000, guest.hash((t.VICTIM, 0)), flags=flags, old=mine)
    guest.linux.patched[t.TRACED] = rel32("e8", t.TRACED, 0x10_0000)
    assert (guest.replayed()[1] == []) is explained


def optimised(guest: Guest, flags: int = 4) -> bytes:
    """Set an optimised probe on VICTIM; return the jump to its detour."""
    probe = guest.probe(t.VICTIM, 0x55, flags, handler=0x1A0)
    guest.point(probe + 104, 0x10_0000)
    guest.put(probe + 96, int.from_bytes(t.TINY_VICTIM[1:5], "little"), 4)
    return rel32("e9", t.VICTIM, 0x10_0000)


def test_an_optimised_probe(guest: Guest) -> None:
    guest.linux.patched[t.VICTIM] = optimised(guest)
    assert guest.replayed()[1] == []
    guest.linux.patched[t.VICTIM] = rel32("e9", t.VICTIM, 0x10_0010)
    assert guest.replayed()[1] != []


def test_an_optimised_probe_on_its_way_back(guest: Guest) -> None:
    """arch_unoptimize_kprobe(): INT3 over the jump, which nobody announces."""
    guest.linux.patched[t.VICTIM] = b"\xcc" + optimised(guest)[1:]
    assert moving(guest) == []
    guest.lock("text_mutex")
    assert moving(guest) == [t.VICTIM]
    guest.linux.patched[t.VICTIM] = b"\xcc" + rel32("e9", t.VICTIM, 0x10_0010)[1:]
    assert moving(guest) == []


def test_a_disabled_probe_that_the_optimiser_has_not_come_to(guest: Guest) -> None:
    guest.linux.patched[t.VICTIM] = optimised(guest, flags=4 | 2)
    assert guest.replayed()[1] == []


def test_a_disabled_probe_whose_breakpoint_goes_last(guest: Guest) -> None:
    """do_unoptimize_kprobes(): back to INT3, no longer optimised, disarmed after that."""
    guest.probe(t.VICTIM, 0x55, 2)
    guest.linux.patched[t.VICTIM] = b"\xcc"
    assert moving(guest) == []
    guest.lock("text_mutex")
    assert moving(guest) == [t.VICTIM]


def still_moving(
    guest: Guest, at: int, seen: bytes, rule: Rule | None, *, pad: int = 0
) -> list[int]:
    """Return what moves if only ``seen`` differs, and somebody holds the lock of ``rule``."""
    result = guest.replayed()[0]
    canvas = result.canvas
    live = Canvas(0, bytearray(canvas.data))
    live.data[at : at + len(seen)] = seen
    nothing = np.empty(0, dtype=np.int64)
    movable = text_poke.Movable(
        labels=result.run_time.labels,
        changing=np.zeros(len(result.run_time.labels.size), dtype=np.bool_),
        calls=result.run_time.calls,
        traced=nothing,
        locks=np.array([t.LOCK]),
        hooks=frozenset(),
        hook_calls=nothing,
        pad=pad,
    )
    now = text_poke.UnderWay(frozenset(), frozenset((rule,)) if rule else frozenset())
    return text_poke.moving(guest.linux.image, now, movable, canvas, live)


def test_lock_prefixes_on_their_way(guest: Guest) -> None:
    assert still_moving(guest, t.LOCK, b"\x3e", Rule.SMP_LOCK) == [t.LOCK]
    assert still_moving(guest, t.LOCK, b"\x3e", None) == []
    assert still_moving(guest, t.LOCK, b"\x90", Rule.SMP_LOCK) == []


def test_an_old_static_call_through_a_pad(guest: Guest) -> None:
    """With call depth tracking it led to the nine bytes before the function."""
    old = rel32("e8", t.STATIC_CALL, t.PADDED - 9)
    assert still_moving(guest, t.STATIC_CALL, old, Rule.STATIC_CALL, pad=9) == [t.STATIC_CALL]
    assert still_moving(guest, t.STATIC_CALL, old, Rule.STATIC_CALL) == []


def test_records_that_have_moved_are_read_again(guest: Guest) -> None:
    """A look at a few sites finds the record where it was; else it reads all of them."""
    guest.record(t.TRACED, ENABLED)
    guest.linux.patched[t.TRACED] = rel32("e8", t.TRACED, CALLER)
    result, mismatches, _ = guest.replayed()
    assert mismatches == []
    records, page = guest.linux.variables[HEAP][0], guest.linux.variables[HEAP][0]
    old = guest.linux.variables[page - guest.linux.base + 8][0] - guest.linux.base
    guest.put(old, 0)  # given back
    guest.record(t.TRACED, ENABLED | REGS)
    assert guest.linux.variables[HEAP][0] != records
    guest.linux.patched[t.TRACED] = rel32("e8", t.TRACED, REGS_CALLER)
    memory = guest.linux.memory()
    values = GuestValues(
        lambda address, size: memory[address - guest.linux.base :][:size], guest.linux.base
    )
    live = Canvas(0, bytearray(memory[:TEXT_SIZE]))
    result.follow(values, live, result.run_time.near(np.array([t.TRACED])))
    assert result.canvas.get(t.TRACED, 5) == live.get(t.TRACED, 5)
