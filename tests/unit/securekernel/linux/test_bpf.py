"""BPF programs in three views, in a kernel made by hand."""

from __future__ import annotations

import struct
from contextlib import nullcontext
from typing import cast

import pytest

from undercroft.base import Finding, Outcome
from undercroft.securekernel.linux import bpf
from undercroft.securekernel.linux.facts import Observer
from undercroft.testing.fakekernel import FakeKernel

RAW_TRACEPOINT, CGROUP_SKB = 17, 8
KSYM = 64
LAYOUTS = {
    "bpf_prog": (64, {"type": 4, "tag": 20, "aux": 56}),
    "bpf_prog_aux": (
        256,
        {"id": 0, "func_cnt": 4, "func": 8, "prog": 16, "user": 24, "name": 32, "ksym": KSYM},
    ),
    "bpf_ksym": (48, {"lnode": 0, "prog": 16}),
    "user_struct": (16, {"uid": 8}),
    "idr": (24, {"idr_rt": 8}),
    "xarray": (16, {"xa_head": 8}),
    "xa_node": (576, {"shift": 0, "parent": 8, "slots": 40}),
    "tracepoint": (32, {"name": 0, "funcs": 8}),
    "tracepoint_func": (24, {"func": 0, "data": 8}),
    "bpf_link": (32, {"prog": 24}),
}
LINKED = {**LAYOUTS, "bpf_raw_tp_link": (48, {"link": 0, "cookie": 40})}


class Guest(FakeKernel):
    """A kernel with BPF programs; what each view holds can be changed."""

    def __init__(self, layouts: object = LAYOUTS) -> None:
        super().__init__(cast("dict[str, tuple[int, dict[str, int]]]", layouts))
        self.idr = self.symbol("prog_idr", 24)
        self.code = self.symbol("bpf_kallsyms", 16)
        self.tracepoint = self.symbol("__tracepoint_sys_enter", 32)
        self.caller = self.symbol("__bpf_trace_sys_enter")
        self.other = self.symbol("ftrace_syscall_enter")
        start = self.symbol("__start___tracepoints_ptrs")
        self.guest.write(start, struct.pack("<i", self.tracepoint - start))
        self.image.symbols.names["__stop___tracepoints_ptrs"] = start + 4 - self.slide
        self.symbol("_end")
        self.listed: list[int] = []
        self.compiled: list[int] = []
        self.attached: list[tuple[int, int]] = []
        self.relink()

    def program(self, kind: int, *, name: str = "watch", uid: int = 1000) -> int:
        at = self.make("bpf_prog")
        aux = self.make("bpf_prog_aux", prog=at)
        self.put(at, "bpf_prog", "aux", aux)
        self.put(at, "bpf_prog", "type", kind, size=4)
        self.put(at, "bpf_prog", "tag", 0x0123456789ABCDEF)
        self.put(aux, "bpf_prog_aux", "id", 7, size=4)
        self.put(aux, "bpf_prog_aux", "user", self.make("user_struct", uid=uid))
        self.guest.write(aux + 32, name.encode())
        self.guest.write(aux + KSYM + 16, b"\x01")
        return at

    def aux(self, program: int) -> int:
        return self.kernel().u64(program + 56)

    def relink(self) -> None:
        node = self.make("xa_node")
        for number, program in enumerate(self.listed):
            self.guest.put_u64(node + 40 + 8 * (number + 1), program)
        self.guest.put_u64(self.idr + 8 + 8, node | 2)
        self.link_list(self.code, [self.aux(program) + KSYM for program in self.compiled])
        probes = b"".join(struct.pack("<QQQ", *pair, 0) for pair in self.attached) + bytes(24)
        self.guest.put_u64(self.tracepoint + 8, self.data(probes) if self.attached else 0)

    def look(self) -> tuple[Finding, Finding]:
        self.relink()
        observer = Observer(nullcontext, lambda _: None, (0, 1))
        crossview, watchers = bpf.collect(self.kernel(), observer)
        return crossview, watchers


def anomaly(found: Finding) -> dict[str, object]:
    (only,) = cast("list[dict[str, object]]", found.details["anomalies"])
    return only


@pytest.fixture
def fake() -> Guest:
    return Guest()


def test_a_guest_without_programs_passes(fake: Guest) -> None:
    assert [found.outcome for found in fake.look()] == [Outcome.PASS, Outcome.PASS]


def test_a_kernel_without_bpf_passes(fake: Guest) -> None:
    for name in ("prog_idr", "bpf_kallsyms"):
        del fake.image.symbols.names[name]
    observer = Observer(nullcontext, lambda _: None, (0, 1))
    found = bpf.collect(fake.kernel(), observer)
    assert [one.outcome for one in found] == [Outcome.PASS, Outcome.PASS]


def test_a_packet_filter_of_a_cgroup_is_listed_and_passes(fake: Guest) -> None:
    program = fake.program(CGROUP_SKB, name="sd_fw_ingress", uid=0)
    fake.listed, fake.compiled = [program], [program]
    crossview, watchers = fake.look()
    assert (crossview.outcome, watchers.outcome) == (Outcome.PASS, Outcome.PASS)
    (other,) = cast("list[dict[str, object]]", watchers.details["others"])
    assert (other["name"], other["type"]) == ("sd_fw_ingress", "8")


def test_a_program_at_a_tracepoint_is_for_a_person_to_judge(fake: Guest) -> None:
    program = fake.program(RAW_TRACEPOINT)
    fake.listed, fake.compiled, fake.attached = [program], [program], [(fake.caller, program)]
    crossview, watchers = fake.look()
    assert (crossview.outcome, watchers.outcome) == (Outcome.PASS, Outcome.UNKNOWN)
    assert anomaly(watchers) == {
        "id": 7,
        "type": "raw_tracepoint",
        "name": "watch",
        "tag": "efcdab8967452301",
        "uid": 1000,
        "program": f"{program:#x}",
        "seen_in": ["bpf_kallsyms", "prog_idr", "tracepoint"],
    }


@pytest.mark.parametrize("view", ["bpf_kallsyms", "tracepoint"])
def test_a_program_that_is_not_listed_is_hidden(fake: Guest, view: str) -> None:
    program = fake.program(RAW_TRACEPOINT)
    if view == "bpf_kallsyms":
        fake.compiled = [program]
    else:
        fake.attached = [(fake.caller, program)]
    crossview, _ = fake.look()
    assert crossview.outcome is Outcome.FAIL
    assert anomaly(crossview)["seen_in"] == [view]


def test_a_harmless_kind_at_a_tracepoint_watches_all_the_same(fake: Guest) -> None:
    program = fake.program(CGROUP_SKB)
    fake.listed, fake.attached = [program], [(fake.caller, program)]
    assert fake.look()[1].outcome is Outcome.UNKNOWN


def test_a_probe_that_is_no_program_is_not_taken_for_one(fake: Guest) -> None:
    fake.attached = [(fake.other, 0x1234)]
    assert [found.outcome for found in fake.look()] == [Outcome.PASS, Outcome.PASS]


def test_further_functions_of_a_program_need_no_entry_of_their_own(fake: Guest) -> None:
    program, function = fake.program(RAW_TRACEPOINT), fake.program(RAW_TRACEPOINT)
    aux = fake.aux(program)
    fake.put(aux, "bpf_prog_aux", "func", fake.data(struct.pack("<Q", function)))
    fake.put(aux, "bpf_prog_aux", "func_cnt", 1, size=4)
    fake.listed, fake.compiled = [program], [program, function]
    crossview, watchers = fake.look()
    assert crossview.outcome is Outcome.PASS
    assert anomaly(watchers)["program"] == f"{program:#x}"


def test_code_that_belongs_to_no_program_is_left_to_the_closure(fake: Guest) -> None:
    program = fake.program(RAW_TRACEPOINT)
    fake.guest.write(fake.aux(program) + KSYM + 16, b"\x00")  # a trampoline
    fake.compiled = [program]
    assert fake.look()[0].outcome is Outcome.PASS


def test_since_6_10_a_tracepoint_leads_to_the_link() -> None:
    fake = Guest(LINKED)
    program = fake.program(RAW_TRACEPOINT)
    fake.attached = [(fake.caller, fake.make("bpf_link", prog=program))]
    crossview, _ = fake.look()
    assert anomaly(crossview)["program"] == f"{program:#x}"


def test_absurd_counts_are_unknown(fake: Guest) -> None:
    program = fake.program(RAW_TRACEPOINT)
    fake.put(fake.aux(program), "bpf_prog_aux", "func_cnt", 1 << 20, size=4)
    fake.listed = [program]
    assert fake.look()[0].outcome is Outcome.UNKNOWN


def test_absurdly_many_tracepoints_are_unknown(fake: Guest) -> None:
    fake.image.symbols.names["__stop___tracepoints_ptrs"] += 1 << 30
    assert fake.look()[0].outcome is Outcome.UNKNOWN
