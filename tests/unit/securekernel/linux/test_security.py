"""Security hooks that are in place or not, and switches that were turned down."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from undercroft.base import Finding, Outcome
from undercroft.formats.kernel import KernelImage
from undercroft.securekernel.linux.facts import Observer
from undercroft.securekernel.linux.live import LiveKernel
from undercroft.securekernel.linux.security import SecurityState, read_switches
from undercroft.testing.fakekernel import LINK_BASE, FakeKernel, FakeTypes

LAYOUTS: Mapping[str, tuple[int, Mapping[str, int]]] = {
    "security_hook_heads": (32, {}),
    "security_hook_list": (40, {"list": 0, "head": 16, "hook": 24, "lsm": 32}),
    "selinux_state": (104, {"enforcing": 0}),
}


class Types(FakeTypes):
    """FakeTypes that can be asked whether a struct exists."""

    def __contains__(self, name: str) -> bool:
        return name in self.layouts


class Guest(FakeKernel):
    """A kernel with two LSMs: yama, registered with two hooks, and one that is not used."""

    def __init__(self) -> None:
        super().__init__(LAYOUTS, slide=0x1000000)
        self.heads = self.symbol("security_hook_heads", 32)
        self.arrays = self.symbol("yama_hooks", 80), self.symbol("other_hooks", 40)
        first, second, unused = self.arrays[0], self.arrays[0] + 40, self.arrays[1]
        self.entries = (first, second)
        name = self.string("yama")
        for entry, number in ((first, 0), (second, 2)):
            self.put(entry, "security_hook_list", "lsm", name)
            self.link_hlist(self.heads + 8 * number, [entry])
        self.switch("kernel_locked_down", 1)
        self.switch("aa_g_profile_mode", 0)
        self.guest.write(self.symbol("selinux_state", 104), b"\1")
        memory = bytearray(0x2000)
        places = []
        for entry, number in ((first, 0), (second, 2), (unused, 1)):
            at = entry - self.slide - LINK_BASE + 16
            struct.pack_into("<Q", memory, at, self.heads - self.slide + 8 * number)
            places.append(at)
        places += [0x1800, 4]  # a pointer elsewhere, and one too early to be a head
        image = SimpleNamespace(
            link_base=LINK_BASE,
            memory=bytes(memory),
            relocations=SimpleNamespace(r64=np.array(places, dtype=np.int64)),
            symbols=self.image.symbols,
            btf=Types(LAYOUTS),
        )
        self.state = SecurityState(cast(KernelImage, image))

    def switch(self, name: str, value: int) -> None:
        self.guest.put_u32(self.symbol(name, 4), value)

    def _settle(self, fact: Any) -> Finding:
        found = fact(self.kernel(), Observer(nullcontext, lambda _: None, (0, 1)))
        assert isinstance(found, Finding)
        return found

    def hooks(self) -> Finding:
        return self._settle(self.state.hooks)

    def switches(self) -> Finding:
        return self._settle(self.state.switches)


@pytest.fixture
def fake() -> Guest:
    return Guest()


def anomalies(found: Finding) -> Any:
    assert found.outcome is Outcome.FAIL
    return found.details["anomalies"]


def test_registered_hooks_in_place_pass(fake: Guest) -> None:
    found = fake.hooks()
    assert found.outcome is Outcome.PASS
    assert found.details["by_lsm"] == {"yama": 2}


def test_a_removed_hook_is_named(fake: Guest) -> None:
    fake.put(fake.entries[1], "security_hook_list", "hook", LINK_BASE + 0x40 + fake.slide)
    fake.image.symbols.names["yama_task_free"] = LINK_BASE + 0x40
    fake.guest.put_u64(fake.heads + 16, 0)
    assert anomalies(fake.hooks()) == [{"lsm": "yama", "hook": "yama_task_free", "number": 2}]


def test_a_kernel_that_keeps_its_hooks_elsewhere_is_unknown(fake: Guest) -> None:
    del fake.image.symbols.names["security_hook_heads"]
    assert fake.hooks().outcome is Outcome.UNKNOWN


CALLS: Mapping[str, tuple[int, Mapping[str, int]]] = {
    "lsm_static_calls_table": (96, {}),
    "lsm_static_call": (32, {"key": 0, "hl": 16, "active": 24}),
    "security_hook_list": (24, {"scalls": 0, "hook": 8, "lsmid": 16}),
    "lsm_id": (16, {"name": 0}),
    "static_call_key": (16, {"func": 0}),
}


class Calls(FakeKernel):
    """A kernel since 6.12: three slots, the second taken by a hook of yama."""

    def __init__(self) -> None:
        super().__init__(CALLS, slide=0x1000000)
        table = self.symbol("static_calls_table", 96)
        hooks = self.symbol("yama_hooks", 24)
        self.image.symbols.names |= {"yama_task_free": LINK_BASE + 0x40, "other": LINK_BASE + 0x60}
        self.hook = LINK_BASE + 0x40 + self.slide
        self.key, self.active = self.make("static_call_key", func=self.hook), self.alloc(16)
        self.guest.put_u32(self.active, 1)
        self.slot = table + 32
        for name, value in (("key", self.key), ("hl", hooks), ("active", self.active)):
            self.put(self.slot, "lsm_static_call", name, value)
        lsm = self.make("lsm_id", name=self.string("yama"))
        self.put(hooks, "security_hook_list", "hook", self.hook)
        self.put(hooks, "security_hook_list", "lsmid", lsm)
        memory = bytearray(0x2000)
        at = hooks - self.slide - LINK_BASE
        struct.pack_into("<Q", memory, at, table - self.slide + 32)
        image = SimpleNamespace(
            link_base=LINK_BASE,
            memory=bytes(memory),
            relocations=SimpleNamespace(r64=np.array([at], dtype=np.int64)),
            symbols=self.image.symbols,
            btf=Types(CALLS),
        )
        self.state = SecurityState(cast(KernelImage, image))

    def look(self) -> Finding:
        return self.state.hooks(self.kernel(), Observer(nullcontext, lambda _: None, (0, 1)))


def test_hooks_that_are_static_calls_pass() -> None:
    found = Calls().look()
    assert found.outcome is Outcome.PASS
    assert found.details["by_lsm"] == {"yama": 1}


@pytest.mark.parametrize(
    ("how", "rule"),
    [
        ("redirected", "it leads to other"),
        ("switched off", "it is switched off"),
        ("taken out", "it has no static call"),
    ],
)
def test_a_static_call_that_was_taken_away_is_named(how: str, rule: str) -> None:
    fake = Calls()
    if how == "redirected":
        fake.put(fake.key, "static_call_key", "func", LINK_BASE + 0x60 + fake.slide)
    elif how == "switched off":
        fake.guest.put_u32(fake.active, 0)
    else:
        fake.put(fake.slot, "lsm_static_call", "hl", 0)
    assert anomalies(fake.look()) == [
        {"lsm": "yama", "hook": "yama_task_free", "number": 1, "rule": rule}
    ]


def test_switches_may_go_up_but_not_down(fake: Guest) -> None:
    assert fake.switches().outcome is Outcome.PASS
    fake.switch("kernel_locked_down", 2)
    assert fake.switches().outcome is Outcome.PASS
    fake.switch("kernel_locked_down", 0)
    assert anomalies(fake.switches()) == [{"switch": "kernel_locked_down", "expected": 1, "got": 0}]


def test_some_switches_protect_when_they_are_low(fake: Guest) -> None:
    fake.switches()
    fake.switch("aa_g_profile_mode", 1)
    assert anomalies(fake.switches())[0]["switch"] == "aa_g_profile_mode"


def test_selinux_is_a_member_of_a_struct(fake: Guest) -> None:
    fake.switches()
    fake.guest.write(fake.symbol("selinux_state"), b"\0")
    assert anomalies(fake.switches()) == [{"switch": "selinux_state", "expected": 1, "got": 0}]


def test_a_negative_value_is_lower(fake: Guest) -> None:
    fake.switches()
    fake.switch("kernel_locked_down", 0xFFFFFFFF)
    assert anomalies(fake.switches())[0]["got"] == -1


def test_only_switches_that_exist_are_read(fake: Guest) -> None:
    kernel: LiveKernel = fake.kernel()
    assert read_switches(kernel) == {
        "selinux_state": 1,
        "kernel_locked_down": 1,
        "aa_g_profile_mode": 0,
    }
