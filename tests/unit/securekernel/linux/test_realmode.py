"""The code that starts processors: the blob, moved to where it was copied."""

from __future__ import annotations

import struct
from contextlib import nullcontext
from types import SimpleNamespace
from typing import cast

import pytest

from undercroft.base import Finding, FormatError, Outcome
from undercroft.formats.kernel import KernelImage
from undercroft.securekernel.linux import realmode
from undercroft.securekernel.linux.facts import Observer
from undercroft.testing.fakekernel import LINK_BASE, FakeKernel

LAYOUTS = {"real_mode_header": (16, {"text_start": 0, "ro_end": 4})}
PLACE, SIZE = 0x8000, 0x3000
SEGMENT, LINEAR = 0x100, 0x200


def blob(*, end: int = 0x1800) -> bytes:
    content = bytearray(b"\xf4" * SIZE)
    struct.pack_into("<II", content, 0, 0x1000, end)
    struct.pack_into("<H", content, SEGMENT, 0xFFFF)
    struct.pack_into("<I", content, LINEAR, 0x1234)
    return bytes(content)


class Guest(FakeKernel):
    """A kernel with a blob in its file, copied to PLACE."""

    def __init__(
        self,
        content: bytes | None = None,
        *,
        relocations: tuple[int, ...] = (1, SEGMENT, 1, LINEAR),
    ) -> None:
        super().__init__(LAYOUTS)
        content = blob() if content is None else content
        names = self.image.symbols.names
        for number, (name, data) in enumerate(
            (
                ("real_mode_blob", content),
                ("real_mode_relocs", struct.pack(f"<{len(relocations)}I", *relocations)),
            )
        ):
            names[name] = LINK_BASE + 0x100000 * (number + 1)
            self.image.content[0x100000 * (number + 1)] = data
        names["real_mode_blob_end"] = names["real_mode_blob"] + len(content)
        header = 0xFFFF888000000000 + PLACE
        self.guest.map(header, SIZE, paddr=PLACE)
        self.guest.put_u64(self.symbol("real_mode_header"), header)
        moved = bytearray(content)
        struct.pack_into("<H", moved, SEGMENT, PLACE >> 4)
        struct.pack_into("<I", moved, LINEAR, 0x1234 + PLACE)
        self.guest.memory.write(PLACE, bytes(moved))

    def finding(self) -> Finding:
        image = self.image
        signed = SimpleNamespace(
            btf=image.btf,
            read=image.read,
            offset=lambda name: image.symbols.address(name) - LINK_BASE,
        )
        observer = Observer(nullcontext, sleep=lambda _: None)
        return realmode.collect(self.kernel(), cast(KernelImage, signed), observer)


def test_the_trampoline_as_packaged() -> None:
    finding = Guest().finding()
    assert finding.outcome is Outcome.PASS
    assert finding.details["bytes"] == 0x2000


@pytest.mark.parametrize("at", [0, SEGMENT, LINEAR + 3, 0x1FFF])
def test_one_changed_byte(at: int) -> None:
    guest = Guest()
    memory = guest.guest.memory
    memory.write(PLACE + at, bytes((memory.data[PLACE + at] ^ 1,)))
    finding = guest.finding()
    assert finding.outcome is Outcome.FAIL
    assert hex(PLACE + at) in str(finding.details)


def test_what_follows_the_code_is_the_trampolines_data() -> None:
    guest = Guest()
    guest.guest.memory.write(PLACE + 0x2000, b"\0" * 0x1000)
    assert guest.finding().outcome is Outcome.PASS


@pytest.mark.parametrize(
    "guest",
    [
        Guest(blob(end=0)),
        Guest(blob(end=SIZE + 1)),
        Guest(relocations=(1, SIZE, 0)),
        Guest(relocations=(1 << 30,)),
    ],
)
def test_a_blob_that_makes_no_sense_is_unknown(guest: Guest) -> None:
    assert guest.finding().outcome is Outcome.UNKNOWN


def test_a_trampoline_that_is_not_in_low_memory_is_unknown() -> None:
    guest = Guest()
    guest.guest.put_u64(guest.symbol("real_mode_header"), guest.symbol("real_mode_header"))
    assert guest.finding().outcome is not Outcome.PASS


def test_a_blob_of_absurd_size() -> None:
    guest = Guest()
    guest.image.symbols.names["real_mode_blob_end"] = LINK_BASE
    assert guest.finding().outcome is Outcome.UNKNOWN
    short = Guest()
    short.image.symbols.names["real_mode_blob_end"] = LINK_BASE + 0x100000 + 4
    with pytest.raises(FormatError, match="shorter than its header"):
        realmode.read_trampoline(
            cast(
                KernelImage,
                SimpleNamespace(
                    btf=short.image.btf,
                    read=short.image.read,
                    offset=lambda name: short.image.symbols.address(name) - LINK_BASE,
                ),
            )
        )
