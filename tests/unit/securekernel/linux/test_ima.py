"""The measurement list out of kernel structures, against what the kernel would print."""

from __future__ import annotations

import struct

import pytest

from undercroft.base import FormatError, MemoryFault
from undercroft.securekernel.linux.ima import read_ima_list
from undercroft.securekernel.linux.live import StructureError
from undercroft.testing.fakekernel import FakeKernel

LAYOUTS = {
    "ima_queue_entry": (40, {"later": 16, "entry": 32}),
    "ima_template_entry": (
        32,
        {"pcr": 0, "digests": 8, "template_desc": 16, "template_data_len": 24, "template_data": 32},
    ),
    "ima_template_desc": (48, {"name": 16, "fmt": 24, "num_fields": 32, "fields": 40}),
    "ima_template_field": (32, {"field_id": 0}),
    "ima_field_data": (16, {"data": 0, "len": 8}),
    "tpm_digest": (66, {"alg_id": 0, "digest": 2}),
}
SHA1 = bytes(range(20))


class Guest(FakeKernel):
    """A kernel with a measurement list."""

    def __init__(self) -> None:
        super().__init__(LAYOUTS)
        self.head = self.symbol("ima_measurements", 16)
        self.guest.put_u32(self.symbol("ima_sha1_idx"), 1)
        self.entries: list[int] = []
        self.queue: list[int] = []
        self.link_list(self.head, [])

    def template(self, name: str, fields: list[str], fmt: str = "") -> int:
        pointers = self.alloc(8 * len(fields))
        for number, field_id in enumerate(fields):
            at = self.make("ima_template_field")
            self.guest.write(at, field_id.encode())
            self.guest.put_u64(pointers + 8 * number, at)
        desc = self.make("ima_template_desc", name=self.string(name), fmt=self.string(fmt))
        self.put(desc, "ima_template_desc", "num_fields", len(fields), size=4)
        self.put(desc, "ima_template_desc", "fields", pointers)
        return desc

    def measure(self, template: int, fields: list[bytes], *, pcr: int = 10) -> int:
        digests = self.data(bytes(66) + b"\x04\0" + SHA1 + bytes(44))
        entry = self.alloc(32 + 16 * len(fields))
        self.put(entry, "ima_template_entry", "pcr", pcr, size=4)
        self.put(entry, "ima_template_entry", "digests", digests)
        self.put(entry, "ima_template_entry", "template_desc", template)
        size = sum(4 + len(field) for field in fields)
        self.put(entry, "ima_template_entry", "template_data_len", size, size=4)
        for number, field in enumerate(fields):
            self.guest.put_u64(entry + 32 + 16 * number, self.data(field) if field else 0)
            self.guest.put_u32(entry + 40 + 16 * number, len(field))
        self.entries.append(entry)
        self.queue.append(self.make("ima_queue_entry", entry=entry))
        self.link_list(self.head, [at + 16 for at in self.queue])
        return entry


@pytest.fixture
def fake() -> Guest:
    return Guest()


def printed(name: str, data: bytes, *, pcr: int = 10, sized: bool = True) -> bytes:
    head = struct.pack("<I", pcr) + SHA1 + struct.pack("<I", len(name)) + name.encode()
    return head + (struct.pack("<I", len(data)) if sized else b"") + data


def field(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def test_entries_are_printed_as_the_kernel_prints_them(fake: Guest) -> None:
    sig = fake.template("ima-sig", ["d-ng", "n-ng", "sig"])
    fake.measure(sig, [b"sha256:\0" + bytes(32), b"boot_aggregate\0", b""])
    fake.measure(sig, [b"sha256:\0" + bytes(range(32)), b"/bin/sh\0", b"\x03\x02sig"], pcr=11)
    first = field(b"sha256:\0" + bytes(32)) + field(b"boot_aggregate\0") + field(b"")
    second = field(b"sha256:\0" + bytes(range(32))) + field(b"/bin/sh\0") + field(b"\x03\x02sig")
    assert read_ima_list(fake.kernel()) == printed("ima-sig", first) + printed(
        "ima-sig", second, pcr=11
    )


def test_the_old_template_has_no_lengths_but_the_names(fake: Guest) -> None:
    fake.measure(fake.template("ima", ["d", "n"]), [bytes(20), b"/bin/sh\0\0\0\0"])
    assert read_ima_list(fake.kernel()) == printed(
        "ima", bytes(20) + field(b"/bin/sh"), sized=False
    )


def test_a_template_without_a_name_goes_by_its_format(fake: Guest) -> None:
    fake.measure(fake.template("", ["n-ng"], fmt="n-ng"), [b"x\0"])
    assert read_ima_list(fake.kernel()) == printed("n-ng", field(b"x\0"))


def test_an_empty_list_is_empty_bytes(fake: Guest) -> None:
    assert read_ima_list(fake.kernel()) == b""


def test_a_kernel_without_ima(fake: Guest) -> None:
    del fake.image.symbols.names["ima_measurements"]
    with pytest.raises(FormatError):
        read_ima_list(fake.kernel())


def test_fields_that_do_not_add_up_are_refused(fake: Guest) -> None:
    entry = fake.measure(fake.template("ima-ng", ["d-ng"]), [b"abc"])
    fake.put(entry, "ima_template_entry", "template_data_len", 8, size=4)
    with pytest.raises(StructureError, match="length"):
        read_ima_list(fake.kernel())


@pytest.mark.parametrize("count", [0, 17, 0xFFFFFFFF])
def test_an_absurd_number_of_fields_is_refused(fake: Guest, count: int) -> None:
    template = fake.template("ima-ng", ["d-ng"])
    fake.measure(template, [b"abc"])
    fake.put(template, "ima_template_desc", "num_fields", count, size=4)
    with pytest.raises(StructureError, match="number of fields"):
        read_ima_list(fake.kernel())


def test_an_absurdly_long_field_is_not_read(fake: Guest) -> None:
    entry = fake.measure(fake.template("ima-ng", ["d-ng"]), [b"abc"])
    fake.guest.put_u32(entry + 40, 0x7FFFFFFF)
    with pytest.raises(StructureError, match="absurdly long"):
        read_ima_list(fake.kernel())


def test_an_absurd_digest_index_is_refused(fake: Guest) -> None:
    fake.guest.put_u32(fake.symbol("ima_sha1_idx"), 99)
    with pytest.raises(StructureError, match="ima_sha1_idx"):
        read_ima_list(fake.kernel())


def test_a_wild_entry_faults(fake: Guest) -> None:
    fake.measure(fake.template("ima-ng", ["d-ng"]), [b"abc"])
    fake.put(fake.queue[0], "ima_queue_entry", "entry", 0x10)
    with pytest.raises(MemoryFault):
        read_ima_list(fake.kernel())
