"""PE parsing: what is hashed is what runs, and nothing outside the file is believed."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError, HashAlgorithm
from undercroft.formats.pe import parse_pe
from undercroft.testing.bootdisk import make_pe

_PE_AT = 0x40
_HEADERS = 0x200


@dataclass
class Image:
    """A minimal PE32+ file, written field by field after the Microsoft PE Format."""

    sections: list[tuple[bytes, int, bytes]] = field(
        default_factory=lambda: [(b".text", 0x200, b"T" * 0x200), (b".data", 0x400, b"D" * 0x100)]
    )
    behind: bytes = b""
    certificates: bytes = b""
    magic: int = 0x20B
    headers: int = _HEADERS
    directories: int = 16
    checksum: int = 0
    section_count: int | None = None
    table: tuple[int, int] | None = None

    def build(self) -> bytes:
        body = bytearray(_HEADERS)
        body[0:2] = b"MZ"
        struct.pack_into("<I", body, 0x3C, _PE_AT)
        optional_size = (112 if self.magic != 0x10B else 96) + 8 * 16
        count = len(self.sections) if self.section_count is None else self.section_count
        body[_PE_AT : _PE_AT + 4] = b"PE\0\0"
        struct.pack_into("<HHIIIHH", body, _PE_AT + 4, 0x8664, count, 0, 0, 0, optional_size, 0x22)
        optional = _PE_AT + 24
        struct.pack_into("<H", body, optional, self.magic)
        struct.pack_into("<II", body, optional + 60, self.headers, self.checksum)
        directories = optional + (112 if self.magic != 0x10B else 96)
        struct.pack_into("<I", body, directories - 4, self.directories)
        at = optional + optional_size
        for name, offset, data in self.sections:
            row = struct.pack("<8sIIII", name, len(data), offset, len(data), offset)
            body[at : at + 40] = row.ljust(40, b"\0")
            at += 40
        for _, offset, data in sorted(self.sections, key=lambda s: s[1]):
            body[offset : offset + len(data)] = data
        body += self.behind
        table = self.table or ((len(body), len(self.certificates)) if self.certificates else (0, 0))
        struct.pack_into("<II", body, directories + 32, *table)
        return bytes(body + self.certificates)


def _certificate(data: bytes) -> bytes:
    return struct.pack("<IHH", len(data) + 8, 0x200, 2) + data + bytes(-len(data) % 8)


def test_the_digest_skips_checksum_entry_and_certificates() -> None:
    certificates = _certificate(b"signature!")
    plain = parse_pe(Image().build()).authenticode()
    assert parse_pe(Image(checksum=0x1234).build()).authenticode() == plain
    assert parse_pe(Image(certificates=certificates).build()).authenticode() == plain
    changed = Image(sections=[(b".text", 0x200, b"T" * 0x1FF + b"U")])
    assert parse_pe(changed.build()).authenticode() != plain


def test_the_digest_is_over_headers_sections_and_what_follows_them() -> None:
    data = Image(behind=b"overlay").build()
    image = parse_pe(data)
    at, entry = image.checksum_offset, image.certificate_entry_offset
    expected = hashlib.sha384(data[:at] + data[at + 4 : entry] + data[entry + 8 :]).digest()
    assert image.authenticode(HashAlgorithm.SHA384) == expected


def test_sections_are_hashed_in_file_order() -> None:
    sections = [(b".b", 0x400, b"B" * 0x100), (b".a", 0x200, b"A" * 0x200), (b".bss", 0, b"")]
    data = Image(sections=sections).build()
    image = parse_pe(data)
    at, entry = image.checksum_offset, image.certificate_entry_offset
    expected = hashlib.sha256(data[:at] + data[at + 4 : entry] + data[entry + 8 :]).digest()
    assert image.authenticode() == expected


def test_pe32_has_its_directories_elsewhere() -> None:
    image = parse_pe(Image(magic=0x10B, certificates=_certificate(b"x" * 8)).build())
    assert image.certificates[0].data == b"x" * 8
    assert image.certificates[0].certificate_type == 2


def test_sections_are_found_by_name_and_cut_to_their_virtual_size() -> None:
    image = parse_pe(Image().build())
    assert image.section(".data") == b"D" * 0x100
    assert image.section(".none") is None
    assert image.machine == 0x8664


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        (Image(magic=0x107), "unknown optional header"),
        (Image(headers=0x10000), "SizeOfHeaders"),
        (Image(headers=0x10), "SizeOfHeaders"),
        (Image(directories=4), "no certificate table"),
        (Image(section_count=97), "too many sections"),
        (Image(sections=[(b".a", 0x100, b"x")]), "overlaps"),
        (Image(sections=[(b".a", 0x200, b"x" * 8), (b".b", 0x204, b"y" * 8)]), "overlaps"),
        (Image(certificates=b"\0" * 16), "shorter than its header"),
        (Image(certificates=b"\xff\0\0\0" + b"\0" * 12), "longer than the input"),
        (Image(table=(0x10, 0x10)), "not the end of the file"),
        (Image(table=(0x600, 0x10)), "not the end of the file"),
    ],
)
def test_defects_are_named(defect: Image, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_pe(defect.build())


@pytest.mark.parametrize("data", [b"", b"ELF", b"MZ" + bytes(100), Image().build()[:0x150]])
def test_what_is_no_pe_image_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_pe(data)


def test_a_cut_section_is_refused() -> None:
    with pytest.raises(FormatError, match="cut short"):
        parse_pe(Image().build()[:-1])


@given(st.integers(0, 0x4FF), st.integers(0, 255))
def test_one_changed_byte_never_escapes_as_another_error(offset: int, value: int) -> None:
    data = bytearray(Image(certificates=_certificate(b"s" * 16)).build())
    data[offset] = value
    with contextlib.suppress(FormatError):
        parse_pe(bytes(data)).authenticode()


def test_a_long_section_name_stands_in_the_string_table() -> None:
    image = make_pe({".vendor_cert": b"certificate", ".text": b"code"})
    assert parse_pe(image).section(".vendor_cert") == b"certificate"
    # Cut off, its name is all that is left.
    assert next(s.name for s in parse_pe(image[: -len(b"....vendor_cert\0")]).sections) == "/4"
