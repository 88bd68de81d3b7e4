"""The secure kernel finds the kernel by two hardware roots and proves its text."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from undercroft.base import Finding, MemoryFault, Outcome
from undercroft.formats.kernel import load_kernel
from undercroft.securekernel.linux import text
from undercroft.securekernel.linux.locate import locate
from undercroft.securekernel.linux.mapped import map_range
from undercroft.securekernel.linux.text import KernelTextProof
from undercroft.testing import tinykernel
from undercroft.testing import tinylinux as t
from undercroft.testing.fakeguest import PAGE_SIZE, PRESENT
from undercroft.testing.tinylinux import TinyLinux


@pytest.fixture(params=[(False, False), (True, True)], ids=["6.1", "6.12-la57"])
def linux(request: pytest.FixtureRequest) -> TinyLinux:
    wide, la57 = request.param
    return TinyLinux(wide=wide, la57=la57).boot()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "SETTLE_WAIT_S", 0.0)


def attach(linux: TinyLinux) -> KernelTextProof:
    guest = linux.guest
    return KernelTextProof.attach(guest.memory, guest.states, linux.image, paused=guest.paused)


def outcomes(findings: list[Finding]) -> dict[str, Outcome]:
    return {finding.id: finding.outcome for finding in findings}


def only_mismatch(finding: Finding) -> dict[str, object]:
    mismatches = finding.details["mismatches"]
    assert isinstance(mismatches, list)
    (mismatch,) = mismatches
    assert isinstance(mismatch, dict)
    return mismatch


def test_an_honest_guest(linux: TinyLinux) -> None:
    proof = attach(linux)
    found = outcomes(proof.sweep())
    assert found == {
        "kernel.located": Outcome.PASS,
        "kernel.text": Outcome.PASS,
        "kernel.rodata": Outcome.PASS,
        "kernel.generated": Outcome.PASS,
        "kernel.notable": Outcome.PASS,
    }
    assert linux.guest.pauses == 0
    assert proof.kernel is not None
    assert (proof.kernel.slide, proof.kernel.cr3) == (t.SLIDE, linux.guest.cr3)


def test_a_patched_function(linux: TinyLinux) -> None:
    proof = attach(linux)
    linux.poke(t.VICTIM, bytes.fromhex("e900000000"))
    finding = proof.sweep()[1]
    assert finding.outcome is Outcome.FAIL
    assert "victim" in finding.summary
    assert only_mismatch(finding)["symbol"] == "victim+0x0"
    assert linux.guest.pauses == 2  # only to be sure, at the end of settling
    linux.poke(t.VICTIM, t.TINY_VICTIM)
    assert outcomes(proof.sweep())["kernel.text"] is Outcome.PASS


def test_changed_constants(linux: TinyLinux) -> None:
    proof = attach(linux)
    linux.poke(tinykernel.RODATA + 0x10, b"\xff")
    found = {finding.id: finding for finding in proof.sweep()}
    assert found["kernel.rodata"].outcome is Outcome.FAIL
    assert found["kernel.text"].outcome is Outcome.PASS


def test_what_boot_code_sets_is_not_a_constant(linux: TinyLinux) -> None:
    proof = attach(linux)
    linux.poke(tinykernel.HOLE + 0x800, b"\x77")
    assert outcomes(proof.sweep())["kernel.rodata"] is Outcome.PASS


def test_a_static_key_that_is_switched_while_we_look(linux: TinyLinux) -> None:
    proof = attach(linux)
    linux.poke(t.KEY, bytes(4))
    linux.poke(t.LABEL, t.NOP5)
    assert outcomes(proof.sweep())["kernel.text"] is Outcome.PASS
    assert proof.settled == 1
    assert linux.guest.pauses == 0


def test_a_branch_that_its_key_does_not_explain(linux: TinyLinux) -> None:
    proof = attach(linux)
    linux.poke(t.LABEL, t.NOP5)
    finding = proof.sweep()[1]
    assert finding.outcome is Outcome.FAIL
    assert only_mismatch(finding)["rule"] == "jump-label"


def test_a_patch_that_is_finished_when_the_guest_stands_still(linux: TinyLinux) -> None:
    @contextmanager
    def paused() -> Iterator[None]:
        linux.poke(t.LABEL, t.NOP5)
        yield

    guest = linux.guest
    proof = KernelTextProof.attach(guest.memory, guest.states, linux.image, paused=paused)
    linux.poke(t.KEY, bytes(4))
    linux.poke(t.LABEL, b"\xcc")
    assert outcomes(proof.sweep())["kernel.text"] is Outcome.PASS


def test_a_remapped_text_page(linux: TinyLinux) -> None:
    """The frames that we know stay honest; the page table leads elsewhere."""
    proof = attach(linux)
    guest = linux.guest
    copy = guest.frame()
    honest = guest.memory.read(linux.frame + PAGE_SIZE, PAGE_SIZE)
    guest.memory.write(copy, honest)
    guest.map(linux.at(PAGE_SIZE), paddr=copy, executable=True)
    assert outcomes(proof.sweep())["kernel.text"] is Outcome.PASS  # an honest copy
    guest.memory.write(copy + (t.VICTIM - PAGE_SIZE), b"\xcc")
    assert outcomes(proof.sweep())["kernel.text"] is Outcome.FAIL


def test_unmapped_text(linux: TinyLinux) -> None:
    proof = attach(linux)
    linux.guest.memory.put_u64(linux.guest.entry(linux.at(0x2000), 12), 0)
    finding = proof.sweep()[1]
    assert (finding.id, finding.outcome) == ("kernel.text", Outcome.FAIL)
    assert "cannot be read" in finding.summary


def test_unmapped_constants(linux: TinyLinux) -> None:
    proof = attach(linux)
    linux.guest.memory.put_u64(linux.guest.entry(linux.at(tinykernel.RODATA), 12), 0)
    finding = proof.sweep()[2]
    assert (finding.id, finding.outcome) == ("kernel.rodata", Outcome.FAIL)


def test_unmapped_variables(linux: TinyLinux) -> None:
    linux.guest.memory.put_u64(linux.guest.entry(linux.at(t.KEY), 12), 0)
    (finding,) = attach(linux).sweep()
    assert (finding.id, finding.outcome) == ("kernel.located", Outcome.FAIL)


def located(linux: TinyLinux) -> Finding:
    return locate(linux.guest.memory, linux.guest.states, linux.image).finding


def test_no_vcpu_runs_a_kernel(linux: TinyLinux) -> None:
    linux.guest.states = tuple(replace(vcpu, cr0=0x10) for vcpu in linux.guest.states)
    finding = located(linux)
    assert (finding.outcome, finding.details["cause"]) == (Outcome.UNKNOWN, "not-booted")


def test_a_vcpu_that_is_coming_up(linux: TinyLinux) -> None:
    """It has an IDT of the early kernel, and cpu_init() has not set its LSTAR."""
    first, second = linux.guest.states
    early = replace(second, lstar=0, idtr=replace(second.idtr, base=linux.base))
    linux.guest.states = (first, early)
    assert located(linux).outcome is Outcome.PASS
    linux.guest.states = (early,)
    finding = located(linux)
    assert (finding.outcome, finding.details["cause"]) == (Outcome.UNKNOWN, "not-booted")


def test_without_lstar_one_root_is_not_proof(linux: TinyLinux) -> None:
    linux.guest.states = tuple(replace(vcpu, lstar=None) for vcpu in linux.guest.states)
    proof = attach(linux)
    found = outcomes(proof.sweep())
    assert found["kernel.located"] is Outcome.UNKNOWN
    assert found["kernel.text"] is Outcome.PASS
    assert proof.located.details["roots"] == ["idt"]


def test_a_redirected_system_call_entry(linux: TinyLinux) -> None:
    first, second = linux.guest.states
    linux.guest.states = (first, replace(second, lstar=linux.at(t.VICTIM)))
    finding = located(linux)
    assert finding.outcome is Outcome.FAIL
    assert finding.details["cause"] == "other-kernel"  # the tiny kernel says no banner
    assert finding.details["guest_banner"] == ""


def test_a_redirected_entry_of_a_kernel_that_says_it_is_the_packages() -> None:
    linux = TinyLinux()
    banner = f"Linux version {linux.image.release} (test)\n\0".encode()
    linux.tiny.code(tinykernel.RODATA + 0x20, banner)
    linux.image = load_kernel(linux.tiny.vmlinuz())
    linux.boot()
    linux.guest.states = (replace(linux.guest.states[0], lstar=linux.at(t.VICTIM)),)
    # the scan reads 2 MiB at a time, as real kernels are mapped
    for at in range(tinykernel.INIT, 0x200000, PAGE_SIZE):
        linux.guest.map(linux.at(at), paddr=linux.frame)
    finding = located(linux)
    assert finding.details["cause"] == "roots-disagree"


def test_another_build(linux: TinyLinux) -> None:
    other = TinyLinux(wide=linux.tiny.wide)
    elf = other.tiny.elf().replace(tinykernel.BUILD_ID, bytes(20))
    linux.image = load_kernel(tinykernel.bzimage(tinykernel.compress(elf, "gzip")))
    finding = located(linux)
    assert (finding.outcome, finding.details["cause"]) == (Outcome.FAIL, "other-build")


def test_an_idt_that_is_not_mapped(linux: TinyLinux) -> None:
    linux.guest.memory.put_u64(linux.guest.entry(t.IDT, 12), 0)
    finding = located(linux)
    assert (finding.outcome, finding.details["cause"]) == (Outcome.UNKNOWN, "idt")


def test_entry_points_that_lead_where_nothing_is_mapped(linux: TinyLinux) -> None:
    gate_at = linux.at(t.DIVIDE_ERROR) + 0x400000
    gate = struct.pack(
        "<HHHHII", gate_at & 0xFFFF, 0x10, 0x8E00, gate_at >> 16 & 0xFFFF, gate_at >> 32, 0
    )
    linux.guest.write(t.IDT, gate)
    linux.guest.states = tuple(
        replace(vcpu, lstar=linux.at(t.SYSCALL) + 0x400000) for vcpu in linux.guest.states
    )
    finding = located(linux)
    assert (finding.outcome, finding.details["cause"]) == (Outcome.FAIL, "not-mapped")


def test_two_vcpus_that_see_different_text(linux: TinyLinux) -> None:
    guest = linux.guest
    other = guest.frame()
    for at in range(0, tinykernel.INIT, PAGE_SIZE):
        entry = guest.memory.u64(guest.entry(linux.at(at), 12))
        guest.memory.put_u64(guest.entry(linux.at(at), 12, root=other), entry)
    guest.map(linux.at(PAGE_SIZE), paddr=guest.frame(), executable=True, root=other)
    idt = guest.memory.u64(guest.entry(t.IDT, 12))
    guest.memory.put_u64(guest.entry(t.IDT, 12, root=other), idt)
    first, second = guest.states
    guest.states = (first, replace(second, cr3=other))
    finding = located(linux)
    assert (finding.outcome, finding.details["cause"]) == (Outcome.FAIL, "split-text")
    guest.states = (guest.states[1],)
    assert located(linux).details["cause"] == "split-text"


def test_a_vcpu_in_user_mode_under_page_table_isolation(linux: TinyLinux) -> None:
    """Its CR3 has bit 12 set and maps the entry code only; the kernel's half is one page below."""
    guest = linux.guest
    if guest.cr3 & PAGE_SIZE:
        moved = guest.frame()
        moved += moved & PAGE_SIZE and guest.frame() - moved
        guest.memory.write(moved, guest.memory.read(guest.cr3, PAGE_SIZE))
        guest.memory.put_u64(
            guest.entry(linux.at(t.ROOT), 12),
            moved | (guest.memory.u64(guest.entry(linux.at(t.ROOT), 12)) & 0xFFF),
        )
        guest.memory.write(moved, guest.memory.read(guest.cr3, PAGE_SIZE))
        guest.cr3 = moved
    user = guest.cr3 + PAGE_SIZE
    guest.memory.write(user, bytes(PAGE_SIZE))
    at = 8 * (t.IDT >> (48 if guest.la57 else 39) & 511)
    guest.memory.put_u64(user + at, guest.memory.u64(guest.cr3 + at))
    guest.states = tuple(replace(vcpu, cr3=user, cpl=3) for vcpu in guest.states)
    assert located(linux).outcome is Outcome.PASS


def test_page_tables_that_loop(linux: TinyLinux) -> None:
    """Every entry leads back to the root: the walk still ends."""
    guest = linux.guest
    for index in range(512):
        guest.memory.put_u64(guest.cr3 + 8 * index, guest.cr3 | PRESENT)
    finding = located(linux)
    assert finding.outcome in (Outcome.UNKNOWN, Outcome.FAIL)


def test_a_range_is_bounded(linux: TinyLinux) -> None:
    with pytest.raises(ValueError, match="1 to"):
        map_range(linux.guest.memory, linux.guest.cr3, linux.guest.la57, linux.base, 1 << 31)
    with pytest.raises(MemoryFault):
        map_range(linux.guest.memory, 1 << 40, linux.guest.la57, linux.base, 1)


def test_the_rest_of_the_last_page_of_code_is_compared_too(linux: TinyLinux) -> None:
    end = linux.image.text_size
    short = replace(linux.image, text_size=end - 0x80)
    assert short.executable_size == end
    guest = linux.guest
    proof = KernelTextProof.attach(guest.memory, guest.states, short)
    assert outcomes(proof.sweep())["kernel.text"] is Outcome.PASS
    linux.poke(end - 4, b"\x90")
    finding = proof.sweep()[1]
    assert only_mismatch(finding)["address"] == hex(linux.at(end - 4))
