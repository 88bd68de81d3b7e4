"""Tracing, probes and patches in progress: what the guest's structures say, and what they may."""

from __future__ import annotations

import pytest

from undercroft.base import MemoryFault
from undercroft.formats.kernel import load_kernel
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
        48,
        {
            "func": 0,
            "next": 8,
            "flags": 16,
            "func_hash": 24,
            "trampoline": 32,
            "trampoline_size": 40,
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

    def ops(self, trampoline: int, filtered: int, *, notrace: int = 0) -> None:
        """Register one ftrace_ops."""
        ops, hashes = self.new(48), self.new(16)
        self.point(HEAP + 8, ops)
        self.point(ops, t.VICTIM)
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
