"""Protected pages: whose byte it is, what changed, and the digest of a region."""

from __future__ import annotations

import hashlib

from undercroft.formats.evidence.interval import page_tree_digest
from undercroft.securekernel.linux.mapped import Extent
from undercroft.securekernel.traps.pages import Pages
from undercroft.securekernel.traps.regions import PAGE, Region, pages_of

TEXT = Region("kernel.text", (Extent(0xFFFF_0000_0000_0000, 0x1000, 2 * PAGE + 16),), patched=True)
ENTRIES = Region("kernel.page-tables", (Extent(0, 0x3100, 8), Extent(0, 0x9008, 8)), entries=True)


class Ram:
    size = 0x10000

    def __init__(self) -> None:
        self.data = bytearray(self.size)

    def read(self, paddr: int, size: int) -> bytes:
        return bytes(self.data[paddr : paddr + size])

    def view(self, paddr: int, size: int) -> memoryview:
        return memoryview(self.read(paddr, size))


def test_pages_of_two_regions_are_joined_into_runs() -> None:
    pages = Pages([TEXT, ENTRIES])
    assert pages.runs() == [(0x1000, 3 * PAGE), (0x9000, PAGE)]
    assert len(pages) == 4
    assert pages_of(TEXT.extents) == [0x1000, 0x2000, 0x3000]


def test_a_byte_belongs_to_one_region_or_to_nobody() -> None:
    page = Pages([TEXT, ENTRIES]).get(0x3000)
    assert page is not None
    first, entry = page.span_at(15), page.span_at(0x107)
    assert first is not None
    assert entry is not None
    assert (first.region, first.vaddr) == (TEXT, 0xFFFF_0000_0000_2000)
    assert (entry.region, entry.vaddr) == (ENTRIES, 0)
    assert page.span_at(16) is None
    assert page.span_at(0x108) is None


def test_differences_are_found_and_taken() -> None:
    ram, pages = Ram(), Pages([TEXT])
    pages.load(ram)
    page = pages.get(0x2000)
    assert page is not None
    ram.data[0x2005] = 7
    assert page.differences(ram.read(0x2000, PAGE)) == [5]
    pages.update(page, ram.read(0x2000, PAGE))
    assert page.differences(ram.read(0x2000, PAGE)) == []


def test_the_digest_is_of_the_covered_bytes_page_by_page() -> None:
    ram, pages = Ram(), Pages([TEXT, ENTRIES])
    ram.data[:] = bytes(at % 251 for at in range(len(ram.data)))
    pages.load(ram)

    def expected() -> bytes:
        parts = [ram.read(0x1000, PAGE), ram.read(0x2000, PAGE), ram.read(0x3000, 16)]
        return page_tree_digest([hashlib.sha256(part).digest() for part in parts])

    before = pages.digest(TEXT)
    assert before == expected()
    ram.data[0x3008] ^= 1
    page = pages.get(0x3000)
    assert page is not None
    pages.update(page, ram.read(0x3000, PAGE))
    assert pages.digest(TEXT) == expected() != before


def test_what_lies_beside_a_region_is_not_in_its_digest() -> None:
    ram, pages = Ram(), Pages([TEXT, ENTRIES])
    pages.load(ram)
    before = pages.digest(TEXT), pages.digest(ENTRIES)
    ram.data[0x3020] = 1
    page = pages.get(0x3000)
    assert page is not None
    pages.update(page, ram.read(0x3000, PAGE))
    assert (pages.digest(TEXT), pages.digest(ENTRIES)) == before
