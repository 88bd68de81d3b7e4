"""Loaded modules against their files, in a guest that may lie about them."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from undercroft.base import Finding, Outcome
from undercroft.formats.kernel import load_kernel, parse_module
from undercroft.securekernel.arch.x86_64.paging import AddressSpace
from undercroft.securekernel.linux import modules_text, text
from undercroft.securekernel.linux.text import KernelTextProof
from undercroft.testing import tinylinux as t
from undercroft.testing.fakeguest import PAGE_SIZE
from undercroft.testing.tinykernel import DATA, rel32
from undercroft.testing.tinylinux import TinyLinux
from undercroft.testing.tinymodule import ALLOC, EXEC, WRITE, TinyModule

HEAD, STRUCT = DATA + 0x2000, DATA + 0x2100
BASE = 0xFFFFFFFF_C0001000
R_PC32, R_PLT32 = 2, 4
STRUCTS = {
    True: {
        "module": (
            0x100,
            {"state": 0, "list": 8, "name": 24, "mem": 80, "percpu": 160, "sect_attrs": 168},
        ),
        "module_memory": (16, {"base": 0, "size": 8}),
    },
    False: {
        "module": (
            0x100,
            {
                "state": 0,
                "list": 8,
                "name": 24,
                "core_layout.base": 80,
                "percpu": 160,
                "sect_attrs": 168,
            },
        )
    },
}


RODATA, JUMP_TABLE = BASE + 0x1000, BASE + 0x2000


def tiny_module() -> TinyModule:
    """One function that returns, calls the kernel and has an alternative."""
    module = TinyModule()
    code = bytes.fromhex("e900000000 e800000000 9090909090 0f1f440000".replace(" ", ""))
    module.section(".text", ALLOC | EXEC, code.ljust(0x40, b"\xcc"), alignment=16)
    module.section(".altinstr_replacement", ALLOC | EXEC, bytes.fromhex("0f01ca"))
    module.section(".return_sites", ALLOC, bytes(4))
    module.section(".altinstructions", ALLOC, bytes(14))
    module.section("__jump_table", ALLOC | WRITE, bytes(16), alignment=8)
    module.section(".gnu.linkonce.this_module", ALLOC | WRITE, bytes(0x100), alignment=64)
    for name, section, value in (
        ("return_here", ".text", 0),
        ("call_here", ".text", 5),
        ("alternative_here", ".text", 10),
        ("label_here", ".text", 15),
        ("replacement", ".altinstr_replacement", 0),
        ("__x86_return_thunk", "", 0),
        ("helper", "", 0),
        ("key", "", 0),
    ):
        module.symbol(name, section, value)
    module.relocation(".text", 1, R_PLT32, "__x86_return_thunk", -4)
    module.relocation(".text", 6, R_PLT32, "helper", -4)
    module.relocation(".return_sites", 0, R_PC32, "return_here")
    module.relocation(".altinstructions", 0, R_PC32, "alternative_here")
    module.relocation(".altinstructions", 4, R_PC32, "replacement")
    module.relocation("__jump_table", 0, R_PC32, "label_here")
    module.relocation("__jump_table", 4, R_PC32, "call_here")
    module.relocation("__jump_table", 8, 24, "key")
    return module


class Loaded:
    """A tiny Linux with the tiny module loaded at BASE."""

    def __init__(self, *, wide: bool) -> None:
        self.wide = wide
        self.linux = TinyLinux(wide=wide)
        tiny = self.linux.tiny
        tiny.structs |= STRUCTS[wide]
        tiny.symbols["modules"] = (HEAD, "D")
        exports = tiny.code(0x4200, bytes(36))
        strings = b"\0__x86_return_thunk\0helper\0key\0"
        tiny.code(0x4300, strings)
        for index, (name, at) in enumerate(
            (("__x86_return_thunk", t.RETURN_THUNK), ("helper", t.VICTIM), ("key", t.KEY))
        ):
            here = exports + 12 * index
            string = 0x4300 + strings.index(b"\0" + name.encode() + b"\0") + 1
            entry = (at - here).to_bytes(4, "little", signed=True)
            entry += (string - here - 4).to_bytes(4, "little", signed=True)
            tiny.code(here, entry + bytes(4))
        tiny.extra_sections = [
            ("__ksymtab", 0x4200, 36),
            ("__ksymtab_strings", 0x4300, len(strings)),
        ]
        self.linux.image = load_kernel(tiny.vmlinuz())
        self.module = tiny_module()
        # the entry's tail: cpuid, (flags,) lengths
        table = next(s for s in self.module.sections if s.name == ".altinstructions")
        tail = t.FEATURE.to_bytes(2, "little") + (b"\0\0" if wide else b"") + bytes((5, 3))
        table.data[8 : 8 + len(tail)] = tail
        del table.data[8 + len(tail) :]
        self.tail = tail
        self.this = BASE + 0x3000 if not wide else BASE + 0x10000
        variables = self.linux.variables
        variables[HEAD] = (self.this + 8, 8)
        variables[HEAD + 8] = (self.this + 8, 8)
        self.linux.boot()
        self._map(self.linux.at)

    def _map(self, at: Callable[[int], int]) -> None:
        guest = self.linux.guest
        guest.map(BASE, executable=True)
        for offset in (0x1000, 0x2000, 0x3000):
            guest.map(BASE + offset)
        if self.wide:
            guest.map(self.this & ~0xFFF)
        thunk = bytes.fromhex("c3cccccccc")
        call = rel32("e8", BASE + 5, at(t.VICTIM))
        label = rel32("e9", BASE + 15, BASE + 5)
        code = (thunk + call + bytes.fromhex("0f01ca6690") + label).ljust(0x40, b"\xcc")
        guest.write(BASE, code + bytes.fromhex("0f01ca"))
        sites = struct.pack("<iii", -0x1000, 10 - 0x1004, 0x40 - 0x1008)
        guest.write(RODATA, sites + self.tail)
        entry = struct.pack("<iiq", 15 - 0x2000, 5 - 0x2004, at(t.KEY) - (BASE + 0x2008))
        guest.write(JUMP_TABLE, entry)
        guest.put_u64(self.this + 8, at(HEAD))
        guest.put_u64(self.this + 16, at(HEAD))
        guest.write(self.this + 24, b"tiny\0")
        if self.wide:
            for index, base in enumerate((BASE, self.this, BASE + 0x1000, BASE + 0x2000)):
                guest.put_u64(self.this + 80 + 16 * index, base)
        else:
            guest.put_u64(self.this + 80, BASE)
        guest.put_u64(self.this + 168, 1)

    def proof(self, names: tuple[str, ...] = ("tiny",)) -> KernelTextProof:
        guest = self.linux.guest
        files = {"tiny": parse_module(self.module.build())}
        return KernelTextProof.attach(
            guest.memory,
            guest.states,
            self.linux.image,
            paused=guest.paused,
            library=lambda name: files.get(name) if name in names else None,
        )


@pytest.fixture(params=[False, True], ids=["6.1", "6.12"])
def loaded(request: pytest.FixtureRequest) -> Loaded:
    return Loaded(wide=request.param)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "SETTLE_WAIT_S", 0.0)
    monkeypatch.setattr(modules_text, "_WAIT_S", 0.0)


def checked(proof: KernelTextProof) -> Finding:
    return next(each for each in proof.sweep() if each.id == "kernel.modules.text")


def test_an_honest_module(loaded: Loaded) -> None:
    proof = loaded.proof()
    finding = checked(proof)
    assert finding.outcome is Outcome.PASS, finding
    assert finding.details["bytes"] == PAGE_SIZE
    assert proof.modules is not None
    assert proof.modules.ranges() == [(BASE, BASE + PAGE_SIZE, "tiny")]
    assert proof.modules.live_copy("tiny") is not None
    assert proof.modules.live_copy("other") is None


@pytest.mark.parametrize("address", [RODATA, RODATA + 5, RODATA + 0x800, JUMP_TABLE + 9])
def test_one_changed_byte_of_the_constants(loaded: Loaded, address: int) -> None:
    proof = loaded.proof()
    assert checked(proof).details["constant_bytes"] == PAGE_SIZE + 16
    guest = loaded.linux.guest
    space = AddressSpace(guest.memory, guest.cr3, guest.la57)
    before = space.read(address, 1)
    guest.write(address, bytes((before[0] ^ 1,)))
    finding = checked(proof)
    assert finding.outcome is Outcome.FAIL
    assert finding.summary == "the constant data of tiny is not what its package has"
    assert f"'address': '{address:#x}'" in str(finding.details["mismatches"])
    guest.write(address, before)
    assert checked(proof).outcome is Outcome.PASS


@pytest.mark.parametrize("offset", [0, 6, 11, 16, 0x20, 0x41, 0x800])
def test_one_changed_byte(loaded: Loaded, offset: int) -> None:
    proof = loaded.proof()
    assert checked(proof).outcome is Outcome.PASS
    guest = loaded.linux.guest
    before = guest.memory.read(proof.translate(BASE + offset), 1)
    guest.write(BASE + offset, bytes((before[0] ^ 4,)))
    finding = checked(proof)
    assert (finding.outcome, finding.details["unexplained"]) == (Outcome.FAIL, 1)
    assert f"{BASE + offset:#x}" in str(finding.details["mismatches"])
    guest.write(BASE + offset, before)
    assert checked(proof).outcome is Outcome.PASS


def test_a_static_key_is_followed(loaded: Loaded) -> None:
    proof = loaded.proof()
    checked(proof)
    loaded.linux.poke(t.KEY, bytes(4))
    loaded.linux.poke(t.LABEL, t.NOP5)
    loaded.linux.guest.write(BASE + 15, t.NOP5)
    assert checked(proof).outcome is Outcome.PASS


def test_a_module_that_no_package_has(loaded: Loaded) -> None:
    finding = checked(loaded.proof(names=()))
    assert finding.outcome is Outcome.UNKNOWN
    assert finding.details["without_reference"] == ["tiny"]


def test_a_module_on_its_way_is_not_judged_yet(loaded: Loaded) -> None:
    loaded.linux.guest.put_u32(loaded.this, 1)  # MODULE_STATE_COMING
    finding = checked(loaded.proof())
    assert (finding.outcome, finding.details["modules"]) == (Outcome.PASS, [])


def test_a_module_that_goes(loaded: Loaded) -> None:
    proof = loaded.proof()
    checked(proof)
    head = loaded.linux.at(HEAD)
    loaded.linux.guest.put_u64(head, head)
    loaded.linux.guest.put_u64(head + 8, head)
    assert checked(proof).outcome is Outcome.PASS
    assert proof.modules is not None
    assert proof.modules.ranges() == []


def test_a_cyclic_list(loaded: Loaded) -> None:
    guest = loaded.linux.guest
    guest.put_u64(loaded.this + 8, loaded.this + 8)
    finding = checked(loaded.proof())
    assert finding.outcome is Outcome.FAIL
    assert "does not end" in finding.summary


def test_a_list_that_leads_nowhere(loaded: Loaded) -> None:
    loaded.linux.guest.put_u64(loaded.linux.at(HEAD), 0xDEAD0000)
    assert checked(loaded.proof()).outcome is Outcome.FAIL


def test_a_module_that_lies_about_where_it_is(loaded: Loaded) -> None:
    at = loaded.this + 80 + (16 if loaded.wide else 0)
    loaded.linux.guest.put_u64(at, 0xFFFFFFFFC0800000)
    finding = checked(loaded.proof())
    assert finding.outcome is Outcome.FAIL
    assert "struct module is not where" in str(finding.details["problems"])


def test_a_module_whose_code_is_not_mapped(loaded: Loaded) -> None:
    guest = loaded.linux.guest
    guest.memory.put_u64(guest.entry(BASE, 12), 0)
    assert checked(loaded.proof()).outcome is Outcome.FAIL


def test_a_module_whose_code_vanishes(loaded: Loaded) -> None:
    proof = loaded.proof()
    checked(proof)
    guest = loaded.linux.guest
    guest.memory.put_u64(guest.entry(BASE, 12), 0)
    finding = checked(proof)
    assert "cannot be read" in str(finding.details["problems"])


def test_a_module_that_hides_its_sections(loaded: Loaded) -> None:
    loaded.linux.guest.put_u64(loaded.this + 168, 0)
    finding = checked(loaded.proof())
    assert finding.outcome is Outcome.FAIL
    assert "section attributes" in str(finding.details["problems"])


def test_a_symbol_that_nobody_exports(loaded: Loaded) -> None:
    loaded.module.symbol("nowhere")
    loaded.module.relocation(".text", 0x30, R_PC32, "nowhere")
    finding = checked(loaded.proof())
    assert "exports nowhere" in str(finding.details["problems"])


def test_the_file_of_another_module(loaded: Loaded) -> None:
    """A file that lays out otherwise is not the one that was loaded."""
    loaded.module.sections[1].data += bytes(0x2000)
    assert checked(loaded.proof()).outcome is Outcome.FAIL


def test_a_module_that_was_loaded_again_at_the_same_place(loaded: Loaded) -> None:
    """Its init section, which its code still refers to, was somewhere else this time."""
    loaded.module.section(".init.text", ALLOC | EXEC, bytes(0x20), alignment=16)
    loaded.module.symbol("start", ".init.text", 0)
    loaded.module.relocation(".text", 0x30, R_PC32, "start", -4)

    def refer(start: int) -> None:
        distance = start - 4 - (BASE + 0x30)
        loaded.linux.guest.write(BASE + 0x30, distance.to_bytes(4, "little", signed=True))

    refer(BASE + 0x9000)
    proof = loaded.proof()
    assert checked(proof).outcome is Outcome.PASS
    refer(BASE + 0xA000)
    assert checked(proof).outcome is Outcome.PASS
    refer(BASE + 0xA001)
    assert checked(proof).outcome is Outcome.FAIL


def test_a_module_that_goes_while_we_look(loaded: Loaded) -> None:
    """Its code is overwritten, and no longer its own: what we saw last is asked first."""
    proof = loaded.proof()
    assert checked(proof).outcome is Outcome.PASS
    loaded.linux.guest.write(BASE + 0x20, b"\0" * 8)
    asked: list[float] = []

    def go(seconds: float) -> None:
        asked.append(seconds)
        loaded.linux.guest.write(loaded.this, b"\x02")  # MODULE_STATE_GOING

    proof.settler.sleep = go
    assert checked(proof).outcome is Outcome.PASS
    assert asked
    assert checked(proof).details["modules"] == []
