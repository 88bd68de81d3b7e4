"""The executable closure over page tables made by hand, and who owns what."""

from __future__ import annotations

import struct
from contextlib import nullcontext
from typing import Any

import pytest

from undercroft.base import Finding, Outcome
from undercroft.securekernel.linux import closure, owners
from undercroft.securekernel.linux.facts import Observer
from undercroft.securekernel.linux.live import StructureError
from undercroft.securekernel.linux.owners import Owner, uncovered
from undercroft.testing.fakecode import CODE_LAYOUTS, MODULE_LAYOUTS, CodeOwners
from undercroft.testing.fakekernel import DIRECT_MAP, LINK_BASE, Layouts

LAYOUTS: Layouts = {
    **CODE_LAYOUTS,
    "mm_struct": (64, {"pgd": 8}),
    "task_struct": (256, {"tasks": 0, "mm": 16, "active_mm": 24, "pid": 32, "comm": 40}),
    "cpuinfo_x86": (128, {"x86_capability": 0}),
    "rcu_state": (64, {"gp_seq": 0}),
    "mutex": (32, {"owner": 0}),
    "module": (
        MODULE_LAYOUTS["module"][0],
        {**MODULE_LAYOUTS["module"][1], "its_num_pages": 320, "its_page_array": 328},
    ),
    "bpf_prog_pack": (32, {"list": 0, "ptr": 16}),
    "kprobe_insn_cache": (88, {"mutex": 0, "pages": 56}),
    "kprobe_insn_page": (40, {"list": 0, "insns": 16}),
    "efi": (264, {"memmap.map": 8, "memmap.nr_map": 24, "memmap.desc_size": 32}),
    "kimage": (64, {"control_code_page": 8}),
    "page": (64, {}),
}
MODULE = 0xFFFFFFFFC0000000
USER = 0x400000
TEXT_PAGES = 3


class Guest(CodeOwners):
    """A kernel whose text, one module and the trampoline are all that runs."""

    def __init__(self) -> None:
        super().__init__(LAYOUTS, slide=0)
        names = self.image.symbols.names
        self.text = self.guest.frames(TEXT_PAGES)
        self.guest.map(
            LINK_BASE + 0x100000,
            TEXT_PAGES << 12,
            paddr=self.text,
            executable=True,
            writable=False,
        )
        names |= {"_text": LINK_BASE + 0x100000, "_etext": LINK_BASE + 0x102100}
        self.rodata = self.guest.frames(2)
        self.guest.map(LINK_BASE + 0x200000, 0x2000, paddr=self.rodata, writable=False)
        names |= {"__start_rodata": LINK_BASE + 0x200000, "__end_rodata": LINK_BASE + 0x202000}
        self._trampoline()
        self._lists()
        self._tasks()
        self._efi_and_poking()
        self.symbol("boot_cpu_data", 128)
        self.symbol("rcu_state", 64)
        self.vcpus = [self.guest.vcpu(0)]

    def _trampoline(self) -> None:
        self.guest.put_u64(self.symbol("page_offset_base"), DIRECT_MAP)
        code = 0x99000
        while self.guest._next <= code:
            self.guest.frame()
        self.guest.map(DIRECT_MAP + code, 0x1000, paddr=code, executable=True, writable=False)
        header = self.make("real_mode_header")
        self.put(header, "real_mode_header", "text_start", code, size=4)
        self.put(header, "real_mode_header", "ro_end", code + 0x800, size=4)
        self.trampoline_pgd = self.guest.frame()
        self.put(header, "real_mode_header", "trampoline_pgd", self.trampoline_pgd, size=4)
        self.guest.put_u64(self.symbol("real_mode_header"), header)

    def _lists(self) -> None:
        self.start_owners()
        self.module("tls", MODULE, 0x2000)
        self.link_list(self.symbol("pack_list", 16), [])
        for name in ("kprobe_insn_slots", "kprobe_optinsn_slots"):
            self.link_list(self.symbol(name, 88) + 56, [])

    def _tasks(self) -> None:
        init = self.symbol("init_task", 256)
        while self.guest._next & 0x1000:  # roots come in pairs of frames
            self.guest.frame()
        self.process_pgd = self.guest.frames(2)
        self.share_kernel(self.process_pgd)
        mm = self.make("mm_struct", pgd=self.direct(self.process_pgd))
        task = self.make("task_struct", mm=mm, active_mm=mm)
        self.guest.write(task + 40, b"sh")
        self.put(task, "task_struct", "pid", 7, size=4)
        self.link_list(init, [task])

    def share_kernel(self, root: int) -> None:
        """Give a root the kernel half of init_mm's."""
        memory = self.guest.memory
        memory.write(root + 2048, memory.read(self.guest.cr3 + 2048, 2048))

    def direct(self, paddr: int) -> int:
        """Return the direct-map address of a frame, mapping it if needed."""
        self.guest.map(DIRECT_MAP + paddr, paddr=paddr)
        return DIRECT_MAP + paddr

    def _efi_and_poking(self) -> None:
        self.efi_pgd = self.guest.frame()
        self.share_kernel(self.efi_pgd)
        mm = self.symbol("efi_mm", 64)
        self.put(mm, "mm_struct", "pgd", self.direct(self.efi_pgd))
        self.efi = self.symbol("efi", 264)
        self.poking_pgd = self.guest.frame()
        self.share_kernel(self.poking_pgd)
        poking = self.make("mm_struct", pgd=self.direct(self.poking_pgd))
        self.guest.put_u64(self.symbol("poking_mm"), poking)
        self.guest.put_u64(self.symbol("poking_addr"), 0x700000000000)

    def memory_map(self, *regions: tuple[int, int, int, int]) -> None:
        """(type, physical, virtual, pages), all kept for runtime."""
        data = b"".join(
            struct.pack("<IIQQQQ", kind, 0, physical, virtual, pages, 1 << 63)
            for kind, physical, virtual, pages in regions
        )
        self.put(self.efi, "efi", "memmap.map", self.data(data))
        self.put(self.efi, "efi", "memmap.nr_map", len(regions), size=4)
        self.put(self.efi, "efi", "memmap.desc_size", 40)

    def findings(self) -> dict[str, Finding]:
        for root in (self.process_pgd, self.efi_pgd, self.poking_pgd, self.trampoline_pgd):
            self.share_kernel(root)
        observer = Observer(nullcontext, lambda _: None, (0, 1))
        found = closure.collect(self.kernel(), lambda: self.vcpus, observer)
        return {finding.id.removeprefix("kernel.closure."): finding for finding in found}

    def only(self, name: str) -> dict[str, Any]:
        """The one anomaly of the one fact that fails."""
        findings = self.findings()
        assert {key for key, one in findings.items() if one.outcome is not Outcome.PASS} == {name}
        assert findings[name].outcome is Outcome.FAIL
        anomalies = findings[name].details["anomalies"]
        assert isinstance(anomalies, list)
        (anomaly,) = anomalies
        return dict(anomaly)

    def passes(self) -> bool:
        return all(one.outcome is Outcome.PASS for one in self.findings().values())


@pytest.fixture
def fake() -> Guest:
    return Guest()


def test_an_honest_guest_passes(fake: Guest) -> None:
    findings = fake.findings()
    assert {name: one.outcome for name, one in findings.items()} == dict.fromkeys(
        ("owned", "wx", "alias", "roots"), Outcome.PASS
    )
    assert findings["owned"].details["executable_bytes"] == (TEXT_PAGES + 2 + 1) << 12
    assert findings["alias"].details["text_poke_in_flight"] is False


def test_executable_memory_that_no_list_knows_is_found(fake: Guest) -> None:
    fake.guest.map(MODULE + 0x100000, 0x2000, executable=True, writable=False)
    assert fake.only("owned") == {
        "address": f"{MODULE + 0x100000:#x}",
        "size": 0x2000,
        "in": "init_mm",
    }


def test_a_module_that_left_its_list_is_found_by_its_pages(fake: Guest) -> None:
    fake.link_list(fake.symbol("modules", 16), [])
    assert fake.only("owned")["address"] == f"{MODULE:#x}"


def test_a_page_beyond_its_owner_is_found(fake: Guest) -> None:
    fake.guest.map(MODULE + 0x2000, executable=True, writable=False)
    assert fake.only("owned")["address"] == f"{MODULE + 0x2000:#x}"


def test_user_code_is_no_kernel_code(fake: Guest) -> None:
    fake.guest.map(USER, executable=True, user=True, root=fake.process_pgd)
    assert fake.passes()


def test_kernel_code_in_the_user_half_is_found(fake: Guest) -> None:
    fake.guest.map(USER, executable=True, writable=False, root=fake.process_pgd)
    # tables on the way carry the user bit; the page does not
    assert fake.only("owned") == {"address": f"{USER:#x}", "size": 4096, "in": "sh (7)"}


def test_writable_and_executable_is_found(fake: Guest) -> None:
    fake.guest.map(LINK_BASE + 0x100000, paddr=fake.text, executable=True)
    findings = fake.findings()
    assert findings["wx"].outcome is Outcome.FAIL
    assert findings["alias"].outcome is Outcome.FAIL
    assert findings["owned"].outcome is Outcome.PASS


@pytest.mark.parametrize("what", ["text", "rodata"])
def test_a_writable_alias_is_found(fake: Guest, what: str) -> None:
    fake.guest.map(DIRECT_MAP + 0x70000000, paddr=getattr(fake, what) + 0x1000)
    assert fake.only("alias")["address"] == f"{DIRECT_MAP + 0x70000000:#x}"


def test_a_writable_alias_in_a_process_is_found(fake: Guest) -> None:
    fake.guest.map(USER, paddr=fake.text, user=True, root=fake.process_pgd)
    found = fake.only("alias")
    assert (found["in"], found["user"]) == ("sh (7)", True)


def test_the_kernel_patching_itself_is_lawful_in_its_window_only(fake: Guest) -> None:
    fake.guest.map(0x700000000000, paddr=fake.text, root=fake.poking_pgd)
    findings = fake.findings()
    assert findings["alias"].outcome is Outcome.PASS
    assert findings["alias"].details["text_poke_in_flight"] is True
    fake.guest.map(0x700000002000, paddr=fake.text, root=fake.poking_pgd)
    assert fake.only("alias")["in"] == "poking_mm"


def test_the_window_is_lawful_in_poking_mm_only(fake: Guest) -> None:
    fake.guest.map(0x700000000000, paddr=fake.text, root=fake.process_pgd)
    assert fake.only("alias")["in"] == "sh (7)"


def test_an_unknown_root_is_found_and_walked(fake: Guest) -> None:
    strange = fake.guest.frame()
    fake.share_kernel(strange)
    fake.guest.map(USER, executable=True, writable=False, root=strange)
    fake.vcpus = [fake.guest.vcpu(0, cr3=strange | 0x18)]
    findings = fake.findings()
    assert findings["roots"].outcome is Outcome.FAIL
    assert findings["owned"].outcome is Outcome.FAIL


def test_known_roots_are_lawful(fake: Guest) -> None:
    fake.vcpus = [
        fake.guest.vcpu(0, cr3=fake.process_pgd | 3),
        fake.guest.vcpu(1, cr3=fake.efi_pgd),
        fake.guest.vcpu(2, cr0=0x60000010, cr3=0x1234000),  # does not page
    ]
    assert fake.passes()


def test_under_page_table_isolation_the_user_root_is_known(fake: Guest) -> None:
    fake.vcpus = [fake.guest.vcpu(0, cr3=fake.process_pgd | 0x1000)]
    assert fake.findings()["roots"].outcome is Outcome.FAIL
    fake.guest.put_u32(fake.symbol("boot_cpu_data") + 4 * 7, 1 << 11)
    assert fake.findings()["roots"].outcome is Outcome.PASS


def test_a_kernel_half_of_its_own_is_walked(fake: Guest) -> None:
    """An entry that init_mm does not have, in the kernel half of one process."""
    observer = Observer(nullcontext, lambda _: None, (0, 1))
    fake.guest.map(0xFFFFC90000000000, executable=True, writable=False, root=fake.process_pgd)
    found = closure.collect(fake.kernel(), lambda: fake.vcpus, observer)
    assert found[0].outcome is Outcome.FAIL


def test_a_page_table_outside_ram_is_found(fake: Guest) -> None:
    at = fake.guest.entry(0xFFFFC90000000000, 30)
    fake.guest.memory.put_u64(at, fake.guest.memory.size | 3)
    assert fake.only("owned")["rule"] == "tables are in RAM"


def test_what_cannot_be_walked_is_unknown(fake: Guest) -> None:
    fake.guest.put_u64(fake.symbol("modules"), 0x10)
    assert all(one.outcome is Outcome.UNKNOWN for one in fake.findings().values())


def test_efi_runtime_code_is_owned_in_efi_mm_only(fake: Guest) -> None:
    code = fake.guest.frame()
    fake.memory_map((5, code, 0xFFFFFFFEF0000000, 1))
    fake.guest.map(code, paddr=code, executable=True, writable=False, root=fake.efi_pgd)
    assert fake.passes()
    fake.guest.map(code, paddr=code, executable=True, writable=False, root=fake.process_pgd)
    assert fake.only("owned")["in"] == "sh (7)"


def test_efi_runtime_data_is_no_owner(fake: Guest) -> None:
    data = fake.guest.frame()
    fake.memory_map((6, data, 0xFFFFFFFEF0000000, 1))
    fake.guest.map(data, paddr=data, executable=True, writable=False, root=fake.efi_pgd)
    assert fake.only("owned")["in"] == "efi_mm"


def test_what_efi_mm_still_maps_is_counted(fake: Guest) -> None:
    """The kernel leaves mappings there of memory that it frees (its first memory map)."""
    fake.guest.map(fake.text, paddr=fake.text, root=fake.efi_pgd)
    findings = fake.findings()
    assert findings["alias"].outcome is Outcome.PASS
    assert findings["alias"].details["frames_in_efi_mm"] == 1


def test_page_0_and_device_registers_may_be_writable_for_the_firmware(fake: Guest) -> None:
    device = fake.guest.memory.size + 0x1000000
    high = 1 << 20
    while fake.guest._next <= high:
        fake.guest.frame()
    fake.memory_map((3, 0, 0xFFFFFFFEF0000000, 1), (11, device, 0xFFFFFFFEF1000000, 1))
    fake.guest.map(0, paddr=0, executable=True, root=fake.efi_pgd)
    fake.guest.map(device, paddr=device, executable=True, root=fake.efi_pgd)
    assert fake.passes()
    fake.memory_map((3, 0, 0xFFFFFFFEF0000000, 1), (5, high, 0xFFFFFFFEF1000000, 1))
    fake.guest.memory.put_u64(fake.guest.entry(device, 12, root=fake.efi_pgd), 0)
    fake.guest.map(high, paddr=high, executable=True, root=fake.efi_pgd)
    assert fake.only("wx")["in"] == "efi_mm"


def test_what_waits_for_a_grace_period_is_unknown(fake: Guest) -> None:
    """A page that its owner gave up stays executable until RCU has let it go."""
    fake.guest.map(MODULE + 0x100000, executable=True, writable=False)
    fake.guest.put_u64(fake.symbol("rcu_state"), 4 * 100 + 1)
    assert fake.findings()["owned"].outcome is Outcome.UNKNOWN
    fake.guest.put_u64(fake.symbol("rcu_state"), 4 * 100)
    assert fake.findings()["owned"].outcome is Outcome.FAIL


def test_grace_periods_that_pass_end_the_wait(fake: Guest) -> None:
    at = fake.symbol("rcu_state")
    fake.guest.put_u64(at, 4 * 100 + 1)
    grace = closure.GracePeriods(fake.kernel())
    assert grace.pending(fake.kernel())
    fake.guest.put_u64(at, 4 * 102 + 1)
    assert grace.pending(fake.kernel())
    fake.guest.put_u64(at, 4 * 103 + 1)
    assert not grace.pending(fake.kernel())


@pytest.mark.parametrize(
    ("lock", "offset"),
    [
        ("module_mutex", 0),
        ("ftrace_lock", 0),
        ("kprobe_insn_slots", 8),
        ("kprobe_optinsn_slots", 8),
    ],
)
def test_code_that_is_being_given_up_is_waited_for(fake: Guest, lock: str, offset: int) -> None:
    """free_module() has taken it from the list, and its grace period has yet to begin."""
    fake.guest.put_u64(fake.symbol("rcu_state"), 4 * 100)
    at = fake.symbol(lock, 96)
    fake.guest.put_u64(at, 0xFFFF888000001001)
    grace = closure.GracePeriods(fake.kernel())
    assert all(grace.pending(fake.kernel()) for _ in range(5))
    fake.guest.put_u64(at, 1)  # given back; somebody else waits for it
    assert grace.pending(fake.kernel())
    assert not grace.pending(fake.kernel())


def test_a_grace_period_that_cannot_be_read_is_not_waited_for(fake: Guest) -> None:
    fake.guest.map(MODULE + 0x100000, executable=True, writable=False)
    del fake.image.symbols.names["rcu_state"]
    assert fake.findings()["owned"].outcome is Outcome.FAIL


# Owners


def claims(fake: Guest, kind: str) -> list[tuple[str, int, int]]:
    return [
        (owner.name, owner.start, owner.end - owner.start)
        for owner in owners.collect_owners(fake.kernel())
        if owner.kind == kind
    ]


def test_text_and_modules_and_the_trampoline(fake: Guest) -> None:
    assert claims(fake, owners.TEXT) == [("vmlinux", LINK_BASE + 0x100000, 0x3000)]
    assert claims(fake, owners.MODULE) == [("tls", MODULE, 0x2000)]
    assert claims(fake, owners.TRAMPOLINE) == [
        ("1:1", 0x99000, 0x1000),
        ("direct map", DIRECT_MAP + 0x99000, 0x1000),
    ]


def test_its_thunks(fake: Guest) -> None:
    pages = fake.data(struct.pack("<QQ", MODULE + 0x5000, MODULE + 0x7000))
    fake.put(fake.modules[0], "module", "its_num_pages", 2, size=4)
    fake.put(fake.modules[0], "module", "its_page_array", pages)
    fake.guest.put_u64(fake.symbol("its_page"), MODULE + 0x9000)
    assert claims(fake, owners.ITS) == [
        ("tls", MODULE + 0x5000, 0x1000),
        ("tls", MODULE + 0x7000, 0x1000),
        ("vmlinux", MODULE + 0x9000, 0x1000),
    ]
    fake.put(fake.modules[0], "module", "its_num_pages", 1 << 20, size=4)
    with pytest.raises(StructureError, match="thunk pages"):
        owners.collect_owners(fake.kernel())


def test_bpf_packs_and_images(fake: Guest) -> None:
    pack = fake.make("bpf_prog_pack", ptr=MODULE + 0x200000)
    fake.link_list(fake.symbol("pack_list"), [pack])
    ksym = fake.make("bpf_ksym", start=MODULE + 0x600010, end=MODULE + 0x600900)
    fake.guest.write(ksym + 16, b"bpf_trampoline_1")
    fake.link_list(fake.symbol("bpf_kallsyms"), [ksym + 144])
    assert claims(fake, owners.BPF) == [
        ("bpf_prog_pack", MODULE + 0x200000, 2 << 20),
        ("bpf_trampoline_1", MODULE + 0x600000, 0x1000),
    ]
    fake.put(ksym, "bpf_ksym", "end", MODULE)
    with pytest.raises(StructureError, match="BPF image"):
        owners.collect_owners(fake.kernel())


def test_ftrace_trampolines_registered_and_retired(fake: Guest) -> None:
    end = fake.symbol("ftrace_list_end")
    function = LINK_BASE + 0x100000
    live = fake.make("ftrace_ops", next=end, func=function, trampoline=MODULE + 0x800000)
    fake.put(live, "ftrace_ops", "trampoline_size", 0x123)
    plain = fake.make("ftrace_ops", next=live)
    retired = fake.make("ftrace_ops", trampoline=MODULE + 0x802000, func=function)
    fake.put(retired, "ftrace_ops", "trampoline_size", 0x123)
    fake.guest.put_u64(fake.symbol("ftrace_ops_list"), plain)
    fake.link_list(fake.symbol("ftrace_ops_trampoline_list"), [retired + 160])
    assert claims(fake, owners.FTRACE) == [
        ("_text", MODULE + 0x800000, 0x1000),
        ("_text", MODULE + 0x802000, 0x1000),
    ]
    fake.put(live, "ftrace_ops", "next", plain)
    with pytest.raises(StructureError, match="does not end"):
        owners.collect_owners(fake.kernel())


def test_an_absurd_trampoline_is_refused(fake: Guest) -> None:
    ops = fake.make("ftrace_ops", trampoline=MODULE, trampoline_size=1 << 30)
    fake.link_list(fake.symbol("ftrace_ops_trampoline_list"), [ops + 160])
    with pytest.raises(StructureError, match="absurdly large"):
        owners.collect_owners(fake.kernel())


def test_kprobe_slots(fake: Guest) -> None:
    page = fake.make("kprobe_insn_page", insns=MODULE + 0xA00000)
    fake.link_list(fake.symbol("kprobe_insn_slots") + 56, [page])
    assert claims(fake, owners.KPROBE) == [("kprobe_insn_slots", MODULE + 0xA00000, 0x1000)]


def test_a_loaded_kexec_image(fake: Guest) -> None:
    fake.guest.put_u64(fake.symbol("vmemmap_base"), 0xFFFFEA0000000000)
    image = fake.make("kimage", control_code_page=0xFFFFEA0000000000 + 64 * 0x123)
    fake.guest.put_u64(fake.symbol("kexec_image"), image)
    assert claims(fake, owners.KEXEC) == [("kexec_image", DIRECT_MAP + 0x123000, 0x2000)]


@pytest.mark.parametrize(("start", "end"), [(0, 0), (0x99000, 0x98000), (0x99000, 1 << 21)])
def test_an_absurd_trampoline_header_is_refused(fake: Guest, start: int, end: int) -> None:
    header = fake.kernel().u64(fake.symbol("real_mode_header"))
    fake.put(header, "real_mode_header", "text_start", start, size=4)
    fake.put(header, "real_mode_header", "ro_end", end, size=4)
    with pytest.raises(StructureError, match="real-mode trampoline"):
        owners.collect_owners(fake.kernel())


@pytest.mark.parametrize(("count", "step"), [(-1, 40), (5000, 40), (1, 8), (1, 4096)])
def test_an_absurd_memory_map_is_refused(fake: Guest, count: int, step: int) -> None:
    fake.memory_map((5, 0x1000, 0x2000, 1))
    fake.put(fake.efi, "efi", "memmap.nr_map", count, size=4)
    fake.put(fake.efi, "efi", "memmap.desc_size", step)
    with pytest.raises(StructureError, match="memory map"):
        list(owners.efi_runtime(fake.kernel()))


def test_a_kernel_without_tracers_or_bpf_has_fewer_owners(fake: Guest) -> None:
    for name in ("pack_list", "bpf_kallsyms", "ftrace_ops_list", "ftrace_ops_trampoline_list"):
        del fake.image.symbols.names[name]
    for name in ("kprobe_insn_slots", "kprobe_optinsn_slots", "efi_mm", "poking_mm"):
        del fake.image.symbols.names[name]
    assert fake.passes()


def owner(start: int, end: int) -> Owner:
    return Owner("test", "test", start, end)


@pytest.mark.parametrize(
    ("claimed", "gaps"),
    [
        ([], [(10, 20)]),
        ([(10, 20)], []),
        ([(0, 5), (30, 40)], [(10, 20)]),
        ([(5, 12), (15, 30)], [(12, 15)]),
        ([(5, 12), (11, 14), (14, 20)], []),
        ([(12, 14)], [(10, 12), (14, 20)]),
        ([(10, 30), (12, 13)], []),
    ],
)
def test_what_no_owner_covers(claimed: list[tuple[int, int]], gaps: list[tuple[int, int]]) -> None:
    assert uncovered(10, 20, [owner(*claim) for claim in claimed]) == gaps
