"""The vDSO's images: alternatives by feature, and a byte that none of them explains."""

from __future__ import annotations

import struct
from contextlib import nullcontext
from types import SimpleNamespace
from typing import cast

import pytest

from undercroft.base import Finding, FormatError, Outcome
from undercroft.formats.kernel import KernelImage
from undercroft.securekernel.linux import vdso
from undercroft.securekernel.linux.facts import Observer
from undercroft.testing.fakekernel import LINK_BASE, FakeKernel

SIZE = 4096
SITE, ALT, REPLACEMENT = 0x200, 0x800, 0x900
ORIGINAL, CHOSEN = b"\x0f\x31\x90\x90\x90", b"\x0f\xae\xe8\x0f\x31"  # rdtsc; lfence; rdtsc
LAYOUTS = {"vdso_image": (32, {"data": 0, "size": 8, "alt": 16, "alt_len": 24})}


def content() -> bytearray:
    """An image with one ALTERNATIVE: "rdtsc", or with feature 114 "lfence; rdtsc"."""
    data = bytearray(b"\xc3" * SIZE)
    data[SITE : SITE + 5] = ORIGINAL
    data[REPLACEMENT : REPLACEMENT + 5] = CHOSEN
    entry = struct.pack("<iiHBB", SITE - ALT, REPLACEMENT - ALT - 4, 114, 5, 5)
    data[ALT : ALT + len(entry)] = entry
    return data


class Guest(FakeKernel):
    """A kernel with one image, as the file has it and as the guest does."""

    def __init__(self, *, size: int = SIZE) -> None:
        super().__init__(LAYOUTS)
        self.live = self.symbol("raw_data", SIZE)
        link = self.live - self.slide
        description = self.symbol("vdso_image_64", 32) - self.slide
        self.image.content[link - LINK_BASE] = bytes(content())
        self.image.content[description - LINK_BASE] = struct.pack("<4Q", link, size, ALT, 12)
        self.write(0, bytes(content()))

    def write(self, at: int, data: bytes) -> None:
        self.guest.write(self.live + at, data)

    def signed(self) -> KernelImage:
        image = self.image
        described = SimpleNamespace(
            symbols=image.symbols,
            btf=image.btf,
            link_base=LINK_BASE,
            read=image.read,
            offset=lambda name: image.symbols.address(name) - LINK_BASE,
            sites=SimpleNamespace(alternatives=SimpleNamespace(wide=False)),
        )
        return cast(KernelImage, described)

    def look(self, features: dict[int, bool] | None = None) -> Finding:
        observer = Observer(nullcontext, lambda _: None, (0, 1))
        return vdso.collect(self.kernel(), vdso.Vdso(self.signed()), observer, features or {})


def test_an_image_whose_processor_lacks_the_feature_passes() -> None:
    guest = Guest()
    guest.write(SITE, b"\x0f\x31\x0f\x1f\x00")  # the padding is made one NOP all the same
    found = guest.look()
    assert found.outcome is Outcome.PASS
    assert found.details["images"] == {"vdso_image_64": SIZE}


def test_an_image_whose_processor_has_the_feature_passes() -> None:
    guest = Guest()
    guest.write(SITE, CHOSEN)
    assert guest.look().outcome is Outcome.PASS


@pytest.mark.parametrize("at", [0, SITE, SITE + 4, SIZE - 1])
def test_a_changed_byte_is_named(at: int) -> None:
    guest = Guest()
    guest.write(SITE, CHOSEN)
    guest.write(at, b"\xcc")
    found = guest.look()
    assert found.outcome is Outcome.FAIL
    (only,) = cast("list[dict[str, object]]", found.details["anomalies"])
    assert only["image"] == "vdso_image_64"
    assert at - 5 < cast(int, only["offset"]) <= at


def test_an_image_that_cannot_be_read_is_unknown() -> None:
    guest = Guest()
    images = vdso.Vdso(guest.signed())
    guest.slide += 1 << 30
    found = vdso.collect(guest.kernel(), images, Observer(nullcontext, lambda _: None, (0, 1)), {})
    assert found.outcome is Outcome.UNKNOWN


@pytest.mark.parametrize("size", [0, ALT, 1 << 20])
def test_a_description_of_absurd_size_is_refused(size: int) -> None:
    with pytest.raises(FormatError, match="vdso_image"):
        vdso.Vdso(Guest(size=size).signed())


def test_a_feature_that_the_kernel_does_not_have() -> None:
    guest = Guest()
    guest.write(SITE, CHOSEN)
    assert guest.look({114: True}).outcome is Outcome.PASS
    assert guest.look({114: False}).outcome is Outcome.FAIL
