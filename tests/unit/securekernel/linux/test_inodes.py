"""The operations of inodes that nobody has open."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, cast

import pytest

from undercroft.base import Finding, Outcome
from undercroft.securekernel.linux import inodes
from undercroft.securekernel.linux.facts import Observer
from undercroft.testing.fakecode import BAD_MODULE, GOOD_MODULE, FakeCode

LINK, LIST, HEAD, OWN = 64, 0, 16, 96
LAYOUTS: dict[str, tuple[int, dict[str, int]]] = {
    "inode": (
        320,
        {"i_op": 32, "i_mapping": 48, "i_fop": 56, "i_ino": 40, "i_sb_list": LINK, "i_data": OWN},
    ),
    "address_space": (192, {"a_ops": 144}),
    "super_block": (256, {"s_list": LIST, "s_inodes": HEAD, "s_type": 40}),
    "file_system_type": (64, {"name": 0}),
    **dict.fromkeys(inodes._TABLES, (64, {})),
}


class Guest(FakeCode):
    """One file system with two inodes."""

    def __init__(self) -> None:
        super().__init__(LAYOUTS)
        rodata = self.symbol("__start_rodata", 256)
        self.image.symbols.names["__end_rodata"] = rodata - self.slide + 256
        self.constant = rodata + 64
        kind = self.make("file_system_type", name=self.string("ext4"))
        self.block = self.make("super_block", s_type=kind)
        self.link_list(self.symbol("super_blocks", 16), [self.block + LIST])
        self.inodes = [self.inode(11), self.inode(12)]

    def inode(self, number: int) -> int:
        mapping = self.make("address_space", a_ops=self.constant)
        at = self.make("inode", i_op=self.constant, i_fop=self.constant, i_ino=number)
        self.put(at, "inode", "i_mapping", mapping)
        return at

    def table(self, *words: int) -> int:
        at = self.alloc(64)
        for number, word in enumerate(words):
            self.guest.put_u64(at + 8 * number, word)
        return at

    def look(self) -> Finding:
        self.link_list(self.block + HEAD, [inode + LINK for inode in self.inodes])
        return inodes.collect(self.kernel(), Observer(nullcontext, lambda _: None, (0, 1)))


@pytest.fixture
def fake() -> Guest:
    return Guest()


def anomaly(found: Finding) -> dict[str, Any]:
    assert found.outcome is Outcome.FAIL
    (only,) = cast("list[dict[str, Any]]", found.details["anomalies"])
    return only


def test_an_honest_guest_passes(fake: Guest) -> None:
    found = fake.look()
    assert found.outcome is Outcome.PASS
    counts = {name: found.details[name] for name in ("inodes", "left_out", "tables")}
    assert counts == {"inodes": 2, "left_out": 0, "tables": 3}


def test_tables_of_signed_modules_and_data_words_pass(fake: Guest) -> None:
    table = fake.table(GOOD_MODULE, 0, 7, fake.function(3))
    fake.put(fake.inodes[0], "inode", "i_fop", table)
    assert fake.look().outcome is Outcome.PASS


@pytest.mark.parametrize("member", ["i_op", "i_fop"])
def test_a_table_that_leads_into_an_unsigned_module_is_named(fake: Guest, member: str) -> None:
    fake.put(fake.inodes[1], "inode", member, fake.table(fake.function(1), BAD_MODULE + 16))
    found = anomaly(fake.look())
    assert (found["number"], found["file_system"]) == (12, "ext4")
    assert found["rule"].startswith("operation 1: it leads into module bad")


def test_the_operations_of_its_pages_count_too(fake: Guest) -> None:
    mapping = fake.make("address_space", a_ops=fake.table(BAD_MODULE))
    fake.put(fake.inodes[0], "inode", "i_mapping", mapping)
    assert anomaly(fake.look())["operations"].startswith("address_space_operations at ")


def test_an_operation_in_the_middle_of_a_function_is_named(fake: Guest) -> None:
    fake.put(fake.inodes[0], "inode", "i_fop", fake.table(fake.function(1) + 5))
    assert "middle of a function" in anomaly(fake.look())["rule"]


def test_an_inode_without_tables_passes(fake: Guest) -> None:
    for member in ("i_op", "i_fop", "i_mapping"):
        fake.put(fake.inodes[0], "inode", member, 0)
    assert fake.look().outcome is Outcome.PASS


def test_what_is_left_out_is_counted(fake: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inodes, "MAX_INODES", 1)
    found = fake.look()
    assert (found.details["inodes"], found.details["left_out"]) == (1, 1)


def test_a_table_that_cannot_be_read_is_unknown(fake: Guest) -> None:
    fake.put(fake.inodes[0], "inode", "i_fop", 0x1234)
    assert fake.look().outcome is Outcome.UNKNOWN


def test_the_operations_of_an_inodes_own_mapping_count(fake: Guest) -> None:
    inode = fake.inodes[0]
    fake.put(inode, "inode", "i_mapping", inode + OWN)
    fake.guest.put_u64(inode + OWN + 144, fake.table(BAD_MODULE))
    assert "address_space_operations" in anomaly(fake.look())["operations"]


@pytest.mark.parametrize("place", ["inode", "head"])
def test_a_neighbour_that_does_not_point_back_is_unknown(fake: Guest, place: str) -> None:
    fake.look()
    fake.guest.put_u64((fake.inodes[1] + LINK if place == "inode" else fake.block + HEAD) + 8, 8)
    observer = Observer(nullcontext, lambda _: None, (0, 1))
    assert inodes.collect(fake.kernel(), observer).outcome is Outcome.UNKNOWN
