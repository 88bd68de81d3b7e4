"""Function pointers in the kernel's data, against what the signed file initialises."""

from __future__ import annotations

import struct
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from undercroft.base import Finding, Outcome
from undercroft.formats.kernel import KernelImage
from undercroft.securekernel.linux import pointers
from undercroft.securekernel.linux.facts import Observer
from undercroft.testing.fakecode import BAD_MODULE, GOOD_MODULE, TEXT, FakeCode
from undercroft.testing.fakekernel import LINK_BASE

RO, DATA, BSS = 0x200000, 0x202000, 0x204000
SIZE, BSS_SIZE = 0x1000, 0x3000
OPS, UNALIGNED, RO_HOOK, NUMBER = DATA + 0x10, DATA + 0x83, RO + 0x20, DATA + 0x100
"""Where pointers stand: an ops table, a packed struct, ro-after-init data; and a plain number."""

NO_POINTERS = {
    "__start_init_task": DATA + 0xC00,
    "__end_init_task": DATA + SIZE,
    "mod_tree": DATA + 0x400,
    "stack_dump_trace": BSS + 0x100,
    "__start_bss_decrypted_unused": BSS + 0x2000,
    "__end_bss_decrypted": BSS + BSS_SIZE,
}
STACK_TRACE = 500 * 8


def function(number: int) -> int:
    return TEXT + 0x40 * number


class Guest(FakeCode):
    """A kernel whose file initialises three function pointers and one data pointer."""

    def __init__(self) -> None:
        super().__init__({})
        spans = {
            "__start_ro_after_init": RO,
            "__end_ro_after_init": RO + SIZE,
            "_sdata": DATA,
            "_edata": DATA + SIZE,
            "__bss_start": BSS,
            "__bss_stop": BSS + BSS_SIZE,
        }
        names = self.image.symbols.names
        names |= {name: LINK_BASE + at for name, at in spans.items()}
        names |= {"tcp_prot": LINK_BASE + OPS, "a_hook": LINK_BASE + BSS + 0x40}
        names |= {name: LINK_BASE + at for name, at in NO_POINTERS.items()}
        memory = bytearray(BSS)
        self.file = {OPS: function(1), UNALIGNED: function(2), RO_HOOK: function(3)}
        data_pointer = {DATA + 0x200: LINK_BASE + DATA}
        for at, value in (self.file | data_pointer).items():
            struct.pack_into("<Q", memory, at, value)
        for at, size in ((RO, SIZE), (DATA, SIZE), (BSS, BSS_SIZE)):
            self.guest.map(LINK_BASE + at + self.slide, size)
        for at, value in (self.file | data_pointer).items():
            self.set(at, value + self.slide)
        places = [*self.file, *data_pointer, 0x100, BSS + 0x10]  # the last two are not looked at
        image = SimpleNamespace(
            link_base=LINK_BASE,
            text_size=TEXT + 0x3000 - LINK_BASE,
            memory=bytes(memory),
            relocations=SimpleNamespace(r64=np.array(places, dtype=np.int64)),
            offset=lambda name: names[name] - LINK_BASE,
            symbols=self.image.symbols,
            btf=SimpleNamespace(size_of={"mod_tree_root": 40}.__getitem__),
        )
        self.pointers = pointers.DataPointers(cast(KernelImage, image))

    def set(self, at: int, value: int) -> None:
        self.guest.put_u64(LINK_BASE + at + self.slide, value)

    def look(self) -> Finding:
        observer = Observer(nullcontext, lambda _: None, (0, 1))
        return pointers.collect(self.kernel(), self.pointers, observer)

    def only(self) -> dict[str, Any]:
        found = self.look()
        assert found.outcome is Outcome.FAIL
        anomalies: Any = found.details["anomalies"]
        (anomaly,) = anomalies
        return dict(anomaly)


@pytest.fixture
def fake() -> Guest:
    return Guest()


def test_pointers_as_the_file_has_them_pass(fake: Guest) -> None:
    found = fake.look()
    assert found.outcome is Outcome.PASS
    assert (found.details["pointers"], found.details["moved"]) == (3, 0)


def test_a_pointer_to_another_function_of_the_kernel_is_listed(fake: Guest) -> None:
    fake.set(OPS, fake.function(7))
    found = fake.look()
    assert found.outcome is Outcome.PASS
    assert found.details["moved_to"] == ["tcp_prot -> f7"]


def test_a_pointer_to_a_signed_module_or_to_nothing_is_lawful(fake: Guest) -> None:
    fake.set(OPS, GOOD_MODULE + 0x10)
    fake.set(RO_HOOK, 0)
    found = fake.look()
    assert found.outcome is Outcome.PASS
    assert found.details["moved_to"] == ["tcp_prot -> [good]+0x10"]


@pytest.mark.parametrize("at", [OPS, UNALIGNED, RO_HOOK])
@pytest.mark.parametrize(
    ("target", "rule"),
    [
        (BAD_MODULE + 0x20, "not signed"),
        (0xFFFFFFFFC0700000, "no known code"),
        (function(1) + 0x2000000 + 5, "middle of a function"),
    ],
)
def test_a_redirected_pointer_is_found(fake: Guest, at: int, target: int, rule: str) -> None:
    fake.set(at, target)
    found = fake.only()
    assert rule in found["rule"]
    assert "in the file it is f" in found["rule"]
    assert found["address"] == f"{LINK_BASE + at + fake.slide:#x}"


@pytest.mark.parametrize("where", ["foreign module", "stray"])
def test_a_hook_in_zeroed_data_is_found_by_where_it_leads(fake: Guest, where: str) -> None:
    fake.set(BSS + 0x40, BAD_MODULE + 8 if where == "foreign module" else fake.stray())
    found = fake.only()
    assert found["pointer"] == "a_hook"


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(NO_POINTERS["mod_tree"] + 0x18, id="where the modules start"),
        pytest.param(DATA + 0xC00, id="the end of the first task's stack"),
        pytest.param(DATA + SIZE - 8, id="the start of the first task's stack"),
        pytest.param(BSS + 0x100, id="the deepest stack, first"),
        pytest.param(BSS + 0x100 + STACK_TRACE - 8, id="the deepest stack, last"),
        pytest.param(BSS + 0x2000, id="a page given back"),
        pytest.param(BSS + BSS_SIZE - 8, id="the last word given back"),
    ],
)
def test_addresses_of_a_foreign_module_that_nobody_calls_are_no_hooks(fake: Guest, at: int) -> None:
    fake.set(at, BAD_MODULE)
    assert fake.look().outcome is Outcome.PASS


@pytest.mark.parametrize(
    "at",
    [
        *(NO_POINTERS["mod_tree"] - 8, NO_POINTERS["mod_tree"] + 40),
        *(DATA + 0xC00 - 8, BSS + 0x100 - 8, BSS + 0x100 + STACK_TRACE, BSS + 0x2000 - 8),
    ],
)
def test_the_words_beside_them_are_looked_at(fake: Guest, at: int) -> None:
    fake.set(at, BAD_MODULE)
    assert fake.only()["rule"] == "it leads into bad"


def test_a_plain_number_is_no_pointer(fake: Guest) -> None:
    fake.set(NUMBER, 0x12345)
    assert fake.look().outcome is Outcome.PASS


def test_data_that_cannot_be_read_is_unknown(fake: Guest) -> None:
    fake.image.symbols.names["_stext"] += 0  # the map of code still works
    fake.guest.memory.put_u64(fake.guest.entry(LINK_BASE + DATA + fake.slide, 12), 0)
    assert fake.look().outcome is Outcome.UNKNOWN
