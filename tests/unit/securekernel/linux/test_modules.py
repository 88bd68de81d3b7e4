"""Modules in three views, in a kernel made by hand."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from undercroft.base import Finding, Outcome
from undercroft.securekernel.linux import modules
from undercroft.securekernel.linux.facts import Observer
from undercroft.securekernel.linux.live import StructureError
from undercroft.securekernel.linux.modules import Span
from undercroft.testing.fakecode import MODULE_LAYOUTS
from undercroft.testing.fakekernel import FakeKernel

MTN = 104
NEW = {
    **MODULE_LAYOUTS,
    "module": (
        1024,
        {"state": 0, "list": 8, "name": 24, "mem": 80, "taints": 900, "sect_attrs": 912},
    ),
    "module_memory": (72, {"base": 0, "size": 8}),
}


class Guest(FakeKernel):
    """A kernel with modules that every view holds."""

    def __init__(self, layouts: Any = MODULE_LAYOUTS) -> None:
        super().__init__(layouts)
        self.head = self.symbol("modules", 16)
        self.tree = self.symbol("mod_tree", 32)
        self.kset = self.make("kset")
        self.guest.put_u64(self.symbol("module_kset"), self.kset)
        self.listed: list[int] = []
        self.nodes: list[int] = []
        self.kobjects: list[int] = []
        self.kobjects.append(self.make("module_kobject"))  # a built-in one
        self.relink()

    def module(self, name: str, base: int = 0xFFFFFFFFC0000000) -> int:
        at = self.make("module", sect_attrs=1)
        self.guest.write(at + 24, name.encode())
        if "module_memory" in self.image.btf.layouts:
            self.guest.put_u64(at + 80, base)
            self.guest.put_u32(at + 88, 0x3000)
        else:
            self.put(at, "module", "core_layout.base", base)
            self.put(at, "module", "core_layout.text_size", 0x3000, size=4)
        self.listed.append(at)
        self.nodes.append(self.make("mod_tree_node", mod=at))
        self.kobjects.append(self.make("module_kobject", mod=at))
        self.relink()
        return at

    def relink(self) -> None:
        self.link_list(self.head, [at + 8 for at in self.listed])
        self.link_list(self.kset, [at + 8 for at in self.kobjects])
        for copy in (0, 1):  # a tree that is a chain to the right
            parent, link = 0, self.tree + 8 + 8 * copy
            for node in self.nodes:
                at = node + 8 + 24 * copy
                self.guest.put_u64(link, at)
                self.guest.put_u64(at, parent | 1)
                parent, link = at, at + 8
            self.guest.put_u64(link, 0)

    def look(self) -> Finding:
        return modules.crossview(self.kernel(), Observer(nullcontext, lambda _: None, (0, 1)))

    def anomaly(self) -> dict[str, Any]:
        found = self.look()
        assert found.outcome is Outcome.FAIL
        listed = found.details["anomalies"]
        assert isinstance(listed, list)
        (only,) = listed
        return dict(only)


@pytest.fixture
def fake() -> Guest:
    guest = Guest()
    guest.module("tls")
    guest.module("evil", 0xFFFFFFFFC0100000)
    return guest


def test_an_honest_guest_passes(fake: Guest) -> None:
    found = fake.look()
    assert found.outcome is Outcome.PASS
    assert found.details["modules"] == ["evil", "tls"]


def test_a_guest_without_modules_passes() -> None:
    assert Guest().look().outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("view", "attribute"),
    [("modules list", "listed"), ("mod_tree", "nodes"), ("module kset", "kobjects")],
)
def test_a_module_out_of_one_view_is_named(fake: Guest, view: str, attribute: str) -> None:
    getattr(fake, attribute).pop()
    fake.relink()
    found = fake.anomaly()
    assert found["module"] == "evil"
    assert found["missing_from"] == [view]
    assert found["text"] == "0xffffffffc0100000+0x3000"


def test_missing_section_attributes_are_named(fake: Guest) -> None:
    fake.put(fake.listed[0], "module", "sect_attrs", 0)
    assert fake.anomaly()["missing_from"] == ["section attributes"]


@pytest.mark.parametrize("state", [1, 2, 3])
def test_a_module_that_comes_or_goes_is_not_judged(fake: Guest, state: int) -> None:
    fake.put(fake.listed[1], "module", "state", state, size=4)
    fake.kobjects.pop()
    fake.relink()
    assert fake.look().outcome is Outcome.PASS


def test_two_copies_of_the_tree_that_differ_are_unknown(fake: Guest) -> None:
    fake.guest.put_u64(fake.tree + 16, 0)
    found = fake.look()
    assert found.outcome is Outcome.UNKNOWN
    assert "differ" in found.summary


def test_since_6_4_parts_are_in_an_array() -> None:
    guest = Guest(NEW)
    at = guest.module("tls")
    found = modules.read_module(guest.kernel(), at)
    assert found.text == Span(0xFFFFFFFFC0000000, 0x3000)
    assert found.init_text == Span(0, 0)
    assert found.text.end == 0xFFFFFFFFC0003000


def test_an_absurdly_large_module_is_refused(fake: Guest) -> None:
    fake.put(fake.listed[0], "module", "core_layout.text_size", 1 << 31, size=4)
    with pytest.raises(StructureError, match="absurdly large"):
        modules.read_module(fake.kernel(), fake.listed[0])
